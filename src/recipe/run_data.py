"""From settings to examples: read the files, hold out validation rows, supervise, plan the order of the whole run."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import data.miniature
from data import (
    Example,
    MixturePart,
    PromptTemplate,
    Record,
    SupervisionReport,
    build_examples,
    epoch_plan,
    load_mixture,
    load_texts,
    split_validation,
    text_examples,
)
from data.plan import MicroBatch
from llama import Tokenizer
from recipe.config import MINIATURE, RunConfig


@dataclass(frozen=True)
class RunData:
    """What a run learns from and is validated on.

    Attributes:
        train, validation: examples; `validation` may be empty.
        report: what became of the training rows; None under the text objective, which loses none.
        questions: the validation records, to answer aloud while training; empty under the text objective.
    """

    train: list[Example]
    validation: list[Example]
    template: PromptTemplate
    report: SupervisionReport | None
    questions: list[Record]


def digest(data: RunData) -> str:
    """A short name for the training tokens, to notice on resume that the files have changed."""
    tokens = hashlib.sha256()
    for example in data.train:
        tokens.update(array("q", example.token_ids).tobytes() + bytes(example.supervised))
    return tokens.hexdigest()[:16]


def load_run_data(config: RunConfig, tokenizer: Tokenizer, *, progress: bool = True) -> RunData:
    """Read and supervise everything `[data]` names.

    Raises:
        ValueError: no files, unreadable rows, or nothing left to train on.
    """
    settings, seed = config.data, config.train.seed
    template = PromptTemplate.find(settings.template)
    if not settings.files:
        raise ValueError("data.files is empty: name the files to train on")
    parts = data_files(settings.folder, settings.files)
    if settings.objective == "text":
        if counted := [path.name for path, samples in parts if samples is not None]:
            raise ValueError(f"{counted[0]}: texts are taken whole; drop the number of rows behind the file's name")
        texts = load_texts([path for path, _ in parts])
        train, held_out = _split(texts, config)
        windows = partial(text_examples, tokenizer=tokenizer, max_length=settings.max_length, progress=progress)
        return RunData(windows(train), windows(held_out) if held_out else [], template, None, [])

    records = load_mixture([MixturePart(path, samples) for path, samples in parts], seed=seed)
    train, held_out = _split(records, config)
    supervised = partial(
        build_examples,
        template=template,
        tokenizer=tokenizer,
        max_length=settings.max_length,
        train_on_prompt=settings.train_on_prompt,
        add_bos=settings.add_bos,
        add_eos=settings.add_eos,
        progress=progress,
    )
    examples, report = supervised(train)
    validation = supervised(held_out)[0] if held_out else []
    return RunData(examples, validation, template, report, held_out)


@dataclass(frozen=True)
class RunPlan:
    """Every optimizer step of a run.

    Attributes:
        steps: per step, the micro-batches whose gradients it sums.
        evaluations: the steps, counted from 1, after which to validate: each `eval_every`-th or the ends of the epochs,
            and the last.
    """

    steps: list[list[MicroBatch]]
    evaluations: frozenset[int]

    def digest(self) -> str:
        """A short name for the order of the whole run: shuffling, grouping, packing, mixture and all."""
        return hashlib.sha256(repr(self.steps).encode()).hexdigest()[:16]


def data_files(folder: str, files: tuple[str, ...]) -> list[tuple[Path, int | None]]:
    """The data files with the number of rows to draw from each, from entries such as `name.json:1000`.

    >>> data_files("meadow", ("flashcards.json", "wikidoc.json:10000"))
    [(PosixPath('meadow/flashcards.json'), None), (PosixPath('meadow/wikidoc.json'), 10000)]
    """
    root = data.miniature.folder() if folder == MINIATURE else Path(folder)
    parts = []
    for entry in files:
        name, _, count = entry.rpartition(":")
        named = bool(name) and count.isascii() and count.isdigit()
        parts.append((root / (name if named else entry), int(count) if named else None))
    return parts


def plan_steps(config: RunConfig, lengths: Sequence[int]) -> RunPlan:
    """The order of the whole run.

    A pure function of settings and lengths, so that a resumed run goes on by index. Steps do not cross epochs; the last
    of an epoch may be smaller.
    """
    settings = config.data
    steps: list[list[MicroBatch]] = []
    epoch_ends = set()
    for epoch in range(config.train.epochs):
        plan = epoch_plan(
            lengths,
            micro_batch_size=config.train.micro_batch_size,
            seed=config.train.seed,
            epoch=epoch,
            order="group_by_length" if settings.group_by_length else "shuffle",
            pack_to=settings.max_length if settings.packing else None,
        )
        steps += [plan[start : start + config.accumulation] for start in range(0, len(plan), config.accumulation)]
        epoch_ends.add(len(steps))
    steps = steps[: config.train.max_steps or None]
    every = config.train.eval_every
    return RunPlan(steps, frozenset({*(range(every, len(steps), every) if every else epoch_ends), len(steps)}))


def _split(items: list, config: RunConfig) -> tuple[list, list]:
    settings, seed = config.data, config.train.seed
    if settings.validation_rows:
        return split_validation(items, rows=settings.validation_rows, seed=seed)
    if settings.validation_fraction:
        return split_validation(items, fraction=settings.validation_fraction, seed=seed)
    return items, []
