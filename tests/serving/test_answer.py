"""Events of an answer against the library: same tokens, same text, the model's own probabilities."""

import copy
from dataclasses import replace
from threading import Event as Flag
from typing import Any

import pytest
import torch

from llama import Llama
from llama.decoding import generate, stream_text
from lora import adapters_disabled
from recipe import Inference, load_for_inference, prompt_ids
from serving.answer import answer_events, piece_text
from serving.question import Question

ASKED = Question("What is gout?", ("adapter",), max_new_tokens=24)


def expected_ids(inference: Inference, question: Question) -> list[int]:
    """The answer's ids by the library alone."""
    prompt = prompt_ids(inference.template, inference.tokenizer, question.instruction, question.input)
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty")
    settings = {name: getattr(question, name) for name in names}
    rng = torch.Generator().manual_seed(question.seed)
    return list(generate(inference.model, prompt, stop_ids={inference.tokenizer.eos_id}, generator=rng, **settings))


def tokens(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "token"]


@pytest.mark.parametrize("seed", range(12))
def test_the_page_shows_what_generate_prints(babbler: Inference, seed: int) -> None:
    """Half-written characters, control tokens, and a stop string that begins and ends anywhere."""
    question = replace(ASKED, temperature=1.5, seed=seed, top_k=200, top_p=0.99, repetition_penalty=1.1)
    ids = expected_ids(babbler, question)
    whole = "".join(stream_text(babbler.tokenizer, ids, continues=True))
    for stop in ("", whole[-3:-1], whole[5:7], whole[2:3]):
        events = list(answer_events(babbler, question, [stop] if stop else []))
        shown = tokens(events)
        assert "".join(token["text"] for token in shown) == (whole[: whole.index(stop)] if stop else whole)
        listed = [token["id"] for token in shown]
        assert listed[: len(ids)] == ids[: len(listed)]
        assert events[0] == {"event": "begin", "side": "adapter"}
        assert events[-1]["event"] == "end"
        assert events[-1]["reason"] == ("stop" if stop else "length" if len(ids) == 24 else "end")
        if not stop:
            assert events[-1]["tokens"] == len(ids) <= len(shown)


def dictate(model: Llama, ids: list[int], patch: pytest.MonkeyPatch) -> None:
    """Make these the most probable tokens of the next steps, whatever the model would say."""
    script, compute = iter(ids), model.logits

    def dictated(hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(compute(hidden)).index_fill(-1, torch.tensor(next(script)), 9.0)

    patch.setattr(model, "logits", dictated)


@pytest.mark.parametrize(("length", "texts"), [(4, ["", "", "", "🙂"]), (3, ["", "", "\ufffd"])])
def test_half_characters_are_tokens_without_text(
    babbler: Inference, monkeypatch: pytest.MonkeyPatch, length: int, texts: list[str]
) -> None:
    """The token that completes a character has it whole; without one, the last shows that something is missing."""
    dictate(babbler.model, [byte + 3 for byte in "🙂".encode()], monkeypatch)  # byte pieces follow unk, bos, eos
    shown = tokens(list(answer_events(babbler, replace(ASKED, max_new_tokens=length))))
    assert [token["text"] for token in shown] == texts
    assert [token["piece"] for token in shown] == ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>"][:length]


def test_a_further_question_is_not_part_of_the_answer(babbler: Inference, monkeypatch: pytest.MonkeyPatch) -> None:
    dictate(babbler.model, babbler.tokenizer.encode("Gout.\n### Instruction: And"), monkeypatch)
    events = list(answer_events(babbler, replace(ASKED, max_new_tokens=100)))
    assert "".join(token["text"] for token in tokens(events)).strip() == "Gout."
    assert events[-1]["reason"] == "stop"


def test_alternatives_are_the_softmax_of_the_raw_logits(babbler: Inference, check_bound: Any) -> None:
    """Whatever the sampling. The whole sequence is read anew, without a cache."""
    question = replace(ASKED, temperature=3.0, top_k=50, repetition_penalty=1.5)
    shown = tokens(list(answer_events(babbler, question)))
    prompt = prompt_ids(babbler.template, babbler.tokenizer, question.instruction)
    ids = [token["id"] for token in shown]
    with torch.no_grad():
        logits = babbler.model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1]  # (T, V)
    probabilities = logits.softmax(-1)
    assert any(token["id"] not in [other["id"] for other in token["top"]] for token in shown)
    for row, token in zip(probabilities, shown, strict=True):
        found = [other["p"] for other in token["top"]]
        assert len(found) == 5
        assert found == sorted(found, reverse=True)
        assert 0 < sum(found) <= 1 + 5 * 5e-7
        # Six digits are sent; float32 sums of the cached and the whole pass differ by less.
        error = max(abs(row[other["id"]].item() - other["p"]) for other in [*token["top"], token])
        check_bound("page: probabilities against a whole pass", error, 2e-6)
        assert found[0] == pytest.approx(row.max().item(), abs=2e-6)


def test_sides_answer_in_order_each_as_if_alone(miniature: Inference) -> None:
    question = replace(ASKED, sides=("adapter", "base"), temperature=1.0, seed=3)
    events = list(answer_events(miniature, question))
    tuned = expected_ids(miniature, question)
    with adapters_disabled(miniature.model):
        base = expected_ids(miniature, question)
    assert tuned != base
    begins = [place for place, event in enumerate(events) if event["event"] == "begin"]
    assert [events[place]["side"] for place in begins] == ["adapter", "base"]
    for part, ids in ((events[: begins[1]], tuned), (events[begins[1] :], base)):
        assert [token["id"] for token in tokens(part)][: len(ids)] == ids
    assert expected_ids(miniature, question) == tuned


def test_leaving_early_gives_the_adapter_back(miniature: Inference) -> None:
    question = replace(ASKED, sides=("base",))
    tuned = expected_ids(miniature, question)
    events = answer_events(miniature, question)
    next(events), next(events)
    assert expected_ids(miniature, question) != tuned  # still off
    events.close()
    assert expected_ids(miniature, question) == tuned


def test_the_end_has_alternatives_too(babbler: Inference) -> None:
    ids = expected_ids(babbler, ASKED)
    tokenizer = copy.copy(babbler.tokenizer)
    tokenizer.eos_id = next(token_id for token_id in ids if token_id != ids[0])
    events = list(answer_events(replace(babbler, tokenizer=tokenizer), ASKED))
    last, end = events[-2:]
    assert (last["id"], last["text"]) == (tokenizer.eos_id, "")
    assert last["top"][0]["id"] == tokenizer.eos_id  # greedy: it was the most probable
    assert (end["reason"], end["tokens"]) == ("end", ids.index(tokenizer.eos_id))


def test_a_stopped_answer_computes_nothing_more(babbler: Inference) -> None:
    passes: list[int] = []
    hook = babbler.model.norm.register_forward_hook(lambda *_: passes.append(1))
    stopped = Flag()
    shown = []
    for event in answer_events(babbler, replace(ASKED, sides=("base", "adapter")), stopped=stopped):
        shown.append(event)
        if event["event"] == "token" and not stopped.is_set():
            stopped.set()
            before = len(passes)
    hook.remove()
    assert len(passes) == before
    assert shown[-1]["reason"] == "stopped"
    assert [event["side"] for event in shown if event["event"] == "begin"] == ["base"]


def test_an_answer_gets_the_room_there_is(babbler: Inference) -> None:
    frame = len(prompt_ids(babbler.template, babbler.tokenizer, "x"))
    long = replace(ASKED, instruction="x" * (256 - frame - 4))
    room = 256 - len(prompt_ids(babbler.template, babbler.tokenizer, long.instruction))
    assert list(answer_events(babbler, long))[-1]["tokens"] == room > 0


def test_what_cannot_be_answered_is_refused_at_the_call(babbler: Inference) -> None:
    with pytest.raises(ValueError, match="fills the model's window of 256: shorten it"):
        answer_events(babbler, replace(ASKED, instruction="x" * 300))
    with pytest.raises(ValueError, match="lone surrogate"):
        answer_events(babbler, replace(ASKED, instruction="\ud800"))
    with pytest.raises(ValueError, match="no adapter is loaded: ask the base"):
        answer_events(load_for_inference(progress=False), ASKED)


def test_pieces_are_readable(babbler: Inference) -> None:
    tokenizer = babbler.tokenizer
    names = [piece_text(tokenizer, token_id) for token_id in (0, 1, 2, 3 + 0x41, 3 + 0xC3)]
    assert names == ["<unk>", "<s>", "</s>", "A", "<0xC3>"]
    assert " the" in [piece_text(tokenizer, token_id) for token_id in range(tokenizer.vocab_size)]
