"""What a run would learn from, looked at before it does: tokenizer, prompts, marks of supervision, ends, cuts.

Every check is a function that returns what it found, or raises a ValueError with both numbers and a remedy. They look
at the token ids themselves, not at the files that these came from: a wrong template, mask or tokenizer shows here
whoever made it. Each reads a few rows, or all of them once.
"""

import math
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from os.path import commonprefix

from data import Example, PromptTemplate
from data.supervise import common_prefix
from llama import Tokenizer
from llama.tokenizer import SPACE
from recipe import RunConfig, RunData, RunPlan

SAMPLE = 8
"""Rows that are decoded; a fault in template, mask or tokenizer is in every row."""
MUCH_CUT = 0.2
FEW_ENDS = 0.5
KEPT = 0.95
"""Share of the rows that the length suggested after a warning would keep whole."""


@dataclass(frozen=True)
class Finding:
    """What a check that passed has seen, and what its reader should think about."""

    found: str
    warning: str = ""


# --- The tokenizer ---


def check_tokenizer(config: RunConfig, data: RunData, tokenizer: Tokenizer, vocab_rows: int) -> Finding:
    """Control ids distinct and inside the embedding; text comes back from its ids.

    What the tokenizer documents as lost is a warning: unknown characters without byte fallback, and what a normalising
    model changes. Neither happens with LLaMA's own.

    Args:
        vocab_rows: rows of the embedding.
    """
    if tokenizer.vocab_size > vocab_rows:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size:,} pieces, the embedding {vocab_rows:,} rows: they do not belong "
            "together; give the tokenizer.model of this base"
        )
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id}
    wanted = {"unk", *(name for name in ("bos", "eos") if getattr(config.data, f"add_{name}"))}
    present = {name: number for name, number in ids.items() if number >= 0 or name in wanted}
    outside = [f"{name} = {number}" for name, number in present.items() if not 0 <= number < tokenizer.vocab_size]
    if outside or len(set(present.values())) < len(present):
        what = f"{', '.join(outside)} outside" if outside else "two of them the same"
        raise ValueError(
            f"control ids {ids}, {what}, in a vocabulary of {tokenizer.vocab_size:,} pieces: the tokenizer is damaged "
            "or converted wrongly; LLaMA's has unk 0, bos 1, eos 2"
        )
    losses = {_lost(text, tokenizer) for text in _texts(config, data, tokenizer)} - {""}
    control = f"unk {tokenizer.unk_id}, bos {tokenizer.bos_id}, eos {tokenizer.eos_id}"
    found = f"{tokenizer.vocab_size:,} pieces for {vocab_rows:,} rows, {control}"
    text = "text comes back changed" if losses else "text comes back as it was"
    return Finding(f"{found}; {text}", "; ".join(sorted(losses)))


def _texts(config: RunConfig, data: RunData, tokenizer: Tokenizer) -> Iterator[str]:
    """What must survive: the template around a question, and the first rows."""
    if config.data.objective == "instruct":
        yield data.template.render("What is gout?", "A disease of the joints (39.5 °C, 3 days).")
        yield data.template.render("What is gout?")
    yield from (tokenizer.decode(example.token_ids) for example in islice(data.train, SAMPLE))


def _lost(text: str, tokenizer: Tokenizer) -> str:
    """What a round trip loses, in words; empty if nothing.

    Raises:
        ValueError: it loses what no property of a tokenizer explains.
    """
    ids = tokenizer.encode(text)
    back, given = tokenizer.decode(ids), text.replace(SPACE, " ")
    if back == given:
        return ""
    if tokenizer.unk_id in ids:
        return (
            "the tokenizer has no pieces for some characters, which the model will not see: train it with byte fallback"
        )
    if tokenizer.encode(back) == ids:
        return f"the tokenizer changes text before it encodes it, {_around(given, back)}; LLaMA's own does not"
    raise ValueError(
        f"the tokenizer does not give back what it was given, {_around(given, back)} ({len(given)} and {len(back)} "
        "characters): it is damaged, or not the base's; give the tokenizer.model of this base"
    )


def _around(given: str, back: str) -> str:
    """Where two texts part, with a little before and after it."""
    shared = len(commonprefix([given, back]))  # noqa: RUF071, these are texts, not paths
    start = max(0, shared - 8)
    return f"{given[start : start + 24]!r} comes back as {back[start : start + 24]!r}"


def check_ids(data: RunData, vocab_rows: int) -> Finding:
    """Every id of every example, training and validation, has a row of the embedding."""
    lowest, highest = vocab_rows, -1
    for name, examples in (("training", data.train), ("validation", data.validation)):
        for number, example in enumerate(examples):
            low, high = min(example.token_ids), max(example.token_ids)
            if low < 0 or high >= vocab_rows:
                raise ValueError(
                    f"{name} example {number} (from 0) holds the id {low if low < 0 else high}, but the embedding has "
                    f"{vocab_rows:,} rows: tokenizer and base do not belong together"
                )
            lowest, highest = min(lowest, low), max(highest, high)
    return Finding(f"{len(data.train) + len(data.validation):,} examples hold ids {lowest} to {highest:,}")


# --- Prompts and marks ---


def check_template(config: RunConfig, data: RunData, tokenizer: Tokenizer) -> Finding:
    """The first whole rows begin with the template's prompt, filled; their targets begin where the answer does.

    Encoded alone, as it is when the model is asked, a prompt must give the ids it has in front of its answer, up to the
    token on the boundary.
    """
    examples = enumerate(data.train if _keeps_template(data.template, tokenizer) else [])
    whole = ((i, e) for i, e in examples if any(e.supervised) and not is_cut(e, config, tokenizer))
    rows = list(islice(((i, e) for i, e in whole if tokenizer.unk_id not in e.token_ids), SAMPLE))
    departing = 0
    for number, example in rows:
        where = f"training example {number} (from 0)"
        first = example.supervised.index(True)
        text = tokenizer.decode(example.token_ids)
        known = "" if config.data.train_on_prompt else tokenizer.decode(example.token_ids[:first])
        prompt = _prompt_of(text, known, data.template)
        if prompt is None:
            raise ValueError(
                f"{where} does not hold the prompt of template {data.template.name!r}, which ends in "
                f"{data.template.prompt_no_input[-24:]!r}; its own, of {first} tokens, ends in {known[-24:]!r}: were "
                "the rows made with another template, or is the mask wrong?"
            )
        alone = tokenizer.encode(prompt, bos=config.data.add_bos)
        shared = common_prefix(example.token_ids, alone)
        departing = max(departing, len(alone) - shared)
        if len(tokenizer.decode(alone[:shared])) < prompt.rfind(data.template.response_split):
            raise ValueError(
                f"{where}: alone, its prompt of {len(alone)} tokens agrees with the row in the first {shared} only, "
                "before the response begins: asked so, the model would see other tokens than in training"
            )
        begins = 1 if config.data.train_on_prompt else max(shared, 1)
        if first != begins:
            what = "row" if config.data.train_on_prompt else "answer"
            raise ValueError(
                f"{where}: its first target is token {first}, but should be token {begins}, where the {what} begins: "
                "check data.train_on_prompt, and who made the rows"
            )
    warning = "" if departing < 2 else f"asked alone, a prompt's last {departing} tokens are others than in training"
    found = f"{len(rows)} rows hold the prompt {data.template.name!r}; their targets begin where they should"
    return Finding(found if rows else "no whole row whose text comes back, so none was looked at", warning)


def _prompt_of(text: str, known: str, template: PromptTemplate) -> str | None:
    """The part of a row that is the template's prompt, filled with something; None if no part is.

    Args:
        known: its beginning that is surely prompt, but for its last token; empty if the marks do not say.
    """
    for form in (template.prompt_input, template.prompt_no_input):
        pieces = [(literal, name is not None) for literal, name, _, _ in string.Formatter().parse(form)]
        if pieces[-1][1]:
            pieces.append(("", False))
        tail = pieces[-1][0]
        if not known:
            found = re.match("".join(re.escape(literal) + "(.*?)" * slot for literal, slot in pieces), text, re.DOTALL)
        else:
            place = text.find(tail, max(0, len(known) - len(tail)))
            pattern = "".join(re.escape(literal) + "(.*)" * slot for literal, slot in pieces)
            found = re.fullmatch(pattern, text[: place + len(tail)], re.DOTALL) if place >= 0 else None
        if found is not None and any(value.strip() for value in found.groups()):
            return found[0]
    return None


def _keeps_template(template: PromptTemplate, tokenizer: Tokenizer) -> bool:
    """Whether the template's text can be found again in what its tokens say."""
    texts = (template.prompt_input, template.prompt_no_input)
    return all(tokenizer.decode(tokenizer.encode(text)) == text.replace(SPACE, " ") for text in texts)


def is_cut(example: Example, config: RunConfig, tokenizer: Tokenizer) -> bool:
    """Whether the window's end cut an example: it fills the window and does not end in EOS."""
    return len(example) >= config.data.max_length and example.token_ids[-1] != tokenizer.eos_id


# --- Ends, cuts, targets ---


def check_ends(config: RunConfig, data: RunData, tokenizer: Tokenizer, window: int) -> Finding:
    """Rows begin with BOS where asked for, and enough of the whole ones end in EOS as a target.

    Args:
        window: tokens that the model can see, at most what a remedy may name.
    """
    settings, rows = config.data, data.train
    if settings.add_bos:
        first = next((i for i, example in enumerate(rows) if example.token_ids[0] != tokenizer.bos_id), None)
        if first is not None:
            raise ValueError(
                f"training example {first} (from 0) begins with id {rows[first].token_ids[0]}, not with BOS = "
                f"{tokenizer.bos_id}, though data.add_bos is on: check who made the rows, or set it to false"
            )
    if not settings.add_eos:
        return Finding(
            f"data.add_eos is off for {len(rows):,} rows", "no row ends in EOS: the model will not learn to stop"
        )
    cut = sum(is_cut(example, config, tokenizer) for example in rows)
    ends = sum(example.token_ids[-1] == tokenizer.eos_id and example.supervised[-1] for example in rows)
    whole = len(rows) - cut
    found = f"EOS ends {ends:,} of {whole:,} whole rows; {cut:,} are cut"
    if ends == 0:
        remedy = "look for what drops their last id" if whole else _longer(config, data, window)
        raise ValueError(f"{found}: nothing would teach the model to stop; {remedy}, or set data.add_eos to false")
    few = ends < FEW_ENDS * whole
    return Finding(found, f"only {ends / whole:.0%} of the whole rows teach the model to stop" if few else "")


def check_cuts(config: RunConfig, data: RunData, window: int) -> Finding:
    """How many rows `data.max_length` cut or dropped; `window` as in `check_ends`."""
    report = data.report
    assert report is not None  # the instruct objective has one
    lost = report.truncated + report.dropped_prompt_too_long
    found = f"{report.truncated:,} of {report.rows:,} rows cut, {report.rows - report.kept:,} dropped"
    if lost <= MUCH_CUT * report.rows:
        return Finding(found)
    warning = f"{lost / report.rows:.0%} of the rows do not fit into {config.data.max_length} tokens"
    return Finding(found, f"{warning}: {_longer(config, data, window)}")


def _longer(config: RunConfig, data: RunData, window: int) -> str:
    """What to do about rows that are too long."""
    lengths, now = sorted(data.report.full_lengths) if data.report is not None else [], config.data.max_length
    if not lengths or now >= window:
        return f"shorten or split the longest; the model's window is {window} tokens"
    keeps = min(window, lengths[math.ceil(KEPT * len(lengths)) - 1])
    share = sum(length <= keeps for length in lengths) / len(lengths)
    limit = ", the model's whole window," if keeps == window else ""
    return f"data.max_length = {keeps} instead of {now}{limit} would keep {share:.0%} of them whole"


def check_targets(data: RunData, plan: RunPlan) -> Finding:
    """Every micro-batch of the run has something to predict."""
    if not plan.steps:
        raise ValueError(f"the plan has no step for {len(data.train):,} examples: give data, or train longer")
    counts = [sum(example.supervised[1:]) for example in data.train]
    fewest = None
    for step, micro_batches in enumerate(plan.steps, start=1):
        for number, rows in enumerate(micro_batches):
            count = sum(counts[i] for row in rows for i in row)
            if count == 0:
                named = ", ".join(str(i) for row in rows for i in row)
                raise ValueError(
                    f"step {step}, micro-batch {number} has 0 supervised tokens in {len(rows)} rows (training examples "
                    f"{named}, from 0): nothing to learn from; check template, data.max_length and the marks"
                )
            fewest = count if fewest is None else min(fewest, count)
    return Finding(f"{len(plan.steps):,} steps; a micro-batch has {fewest:,} supervised tokens or more")
