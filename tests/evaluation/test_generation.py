"""The generating protocols on a model that says random things, and on one whose words are written in the test."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tiny_models import tiny_llama, train_tokenizer

from data import PromptTemplate
from data.exams import Question
from evaluation import Result, Sitting, counts, notes, sit
from evaluation.generation import generator_of
from evaluation.prompts import LINE, OWN_WORDS, pose
from llama import Llama, Tokenizer
from llama.decoding import generate

TEMPLATE = PromptTemplate.named("alpaca_short")
QUESTIONS = [
    Question(
        id=f"step1/{n}",
        text=f"Which organ is number {n}{', and which is it not' * (n % 3)}?",
        options=dict(zip("ABCD", options, strict=True)),
        answer="ABCD"[n % 4],
    )
    for n, options in enumerate([("liver", "lung", "skin", "bone"), ("asthma", "gout", "fever", "cold")] * 4)
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(train_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    return tiny_llama(0, vocab_size=tokenizer.vocab_size, max_seq_len=512)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> dict[str, Any]:
    """A model that says script["says"](id, try) to each question; script["calls"] is what it was asked."""
    script: dict[str, Any] = {"calls": []}

    def say(
        model: Llama, prompts: Sequence[Sequence[int]], *, max_new_tokens: Sequence[int], **options: Any
    ) -> Iterator[tuple[int, list[int]]]:
        script["calls"].append({"prompts": prompts, "limits": max_new_tokens} | options)
        asked = [next(q for q in QUESTIONS if q.text in tokenizer.decode(prompt)) for prompt in prompts]
        for place in reversed(range(len(prompts))):  # the shortest are ready first
            attempt = script.setdefault("tries", {}).setdefault(asked[place].id, 0)
            script["tries"][asked[place].id] += 1
            # What continues a prompt has no dummy prefix; its first space is a real one.
            yield place, tokenizer.encode(f"{script['says'](asked[place].id, attempt)}")[: max_new_tokens[place]]

    monkeypatch.setattr("evaluation.generation.generate_many", say)
    return script


def results_of(
    sitting: Sitting, model: Llama, tokenizer: Tokenizer, questions: Sequence[Question] = QUESTIONS, **more: Any
) -> list[Result]:
    return sit(sitting.prepare(model, tokenizer, questions, TEMPLATE, **more))


# --- Real sampling ---

SAMPLED = Sitting("medalpaca", temperature=1.0, max_new_tokens=6, tries=3)
FEW = QUESTIONS[:5]


def test_batches_order_and_company_change_nothing(model: Llama, tokenizer: Tokenizer) -> None:
    alone = [results_of(SAMPLED, model, tokenizer, [question])[0] for question in FEW]
    assert len({text for result in alone for text in result.texts}) > 10  # it does say different things
    assert results_of(SAMPLED, model, tokenizer, FEW, batch_size=2) == alone
    mixed = random.Random(0).sample(list(zip(FEW, alone, strict=True)), len(FEW))
    assert results_of(SAMPLED, model, tokenizer, [q for q, _ in mixed]) == [result for _, result in mixed]


def test_another_seed_says_other_things_and_the_same_seed_the_same(model: Llama, tokenizer: Tokenizer) -> None:
    first, again, other = (
        results_of(replace(SAMPLED, seed=seed, tries=1), model, tokenizer, FEW) for seed in (1, 1, 2)
    )
    assert first == again
    assert all(a.texts != b.texts for a, b in zip(first, other, strict=True))


def test_each_try_draws_anew(model: Llama, tokenizer: Tokenizer) -> None:
    results = results_of(SAMPLED, model, tokenizer, FEW)
    tried = [result.texts for result in results if len(result.texts) > 1]
    assert tried and all(len(set(texts)) == len(texts) for texts in tried)


def test_generate_says_what_greedy_decoding_says(model: Llama, tokenizer: Tokenizer) -> None:
    results = results_of(Sitting("generate", max_new_tokens=12), model, tokenizer, FEW, batch_size=3)
    for question, result in zip(FEW, results, strict=True):
        prompt = tokenizer.encode(pose(question, TEMPLATE, OWN_WORDS)[0], bos=True)
        token_ids = list(generate(model, prompt, max_new_tokens=12, stop_ids={tokenizer.eos_id}))
        assert result.texts == (tokenizer.decode(token_ids, continues=True).strip(),)
        assert result.scores == {} and not result.accident


@pytest.mark.parametrize("sitting", [SAMPLED, Sitting("generate", max_new_tokens=12)], ids=lambda s: s.protocol)
def test_an_interruption_loses_no_question_that_is_answered(
    sitting: Sitting, model: Llama, tokenizer: Tokenizer
) -> None:
    whole = results_of(sitting, model, tokenizer, FEW, batch_size=2)
    for stop in range(1, len(FEW)):
        kept: dict[str, Result] = {}

        def interrupted(results: Sequence[Result], kept: dict[str, Result] = kept, stop: int = stop) -> None:
            [result] = results
            kept[result.id] = result
            if len(kept) == stop:
                raise KeyboardInterrupt

        paper = sitting.prepare(model, tokenizer, FEW, TEMPLATE, batch_size=2)
        with pytest.raises(KeyboardInterrupt):
            sit(paper, record=interrupted)
        assert sit(paper, kept=kept) == whole


def test_every_try_has_its_own_generator() -> None:
    states = {
        generator_of(seed, question, attempt).initial_seed()
        for seed in range(3)
        for question in ("step1/1", "step1/11", "1")
        for attempt in range(5)
    }
    assert len(states) == 45
    assert generator_of(1, "a", 2).initial_seed() == generator_of(1, "a", 2).initial_seed()


# --- Tries ---


def test_a_question_is_asked_until_an_answer_is_accepted(scripted, model: Llama, tokenizer: Tokenizer) -> None:
    """Question n gives its answer at try n; from the sixth on that is too late."""
    scripted["says"] = lambda name, attempt: " C: yes" if attempt >= int(name[-1]) else " Hm."
    results = results_of(Sitting("medalpaca"), model, tokenizer)
    assert [len(result.texts) for result in results] == [1, 2, 3, 4, 5, 5, 5, 5]
    assert [result.predicted for result in results] == ["C"] * 5 + [None] * 3
    assert results[2].texts == ("Hm.", "Hm.", "C: yes")
    assert [len(call["prompts"]) for call in scripted["calls"]] == [8, 7, 6, 5, 4]  # only who has no answer yet
    found = counts(results)
    assert (found["unanswered"], found["tries"]) == (3, {"1": 1, "2": 1, "3": 1, "4": 1, "5": 4})
    said = notes(results, QUESTIONS)
    assert "3 of 8 questions got no acceptable answer, which counts as wrong" in said
    assert "tries used, failures included: 1 after 1, 1 after 2, 1 after 3, 1 after 4, 4 after 5" in said


def test_a_question_is_recorded_as_soon_as_its_last_try_is_there(scripted, model: Llama, tokenizer: Tokenizer) -> None:
    scripted["says"] = lambda name, attempt: " C: yes" if attempt >= int(name[-1]) else " Hm."
    names, tries = list[str](), list[int]()

    def record(results: Sequence[Result]) -> None:
        names.extend(result.id for result in results)
        tries.append(sum(scripted["tries"].values()))

    sit(Sitting("medalpaca").prepare(model, tokenizer, QUESTIONS, TEMPLATE), record=record)
    assert names[:4] == [f"step1/{n}" for n in range(4)]
    assert all(n <= most for n, most in zip(tries, (8, 15, 21, 26), strict=False))
    assert tries[4:] == [27, 28, 29, 30]  # all are at their fifth try


def test_the_published_numbers_are_the_defaults(scripted, model: Llama, tokenizer: Tokenizer) -> None:
    scripted["says"] = lambda name, attempt: " A: yes"
    results_of(Sitting("medalpaca"), model, tokenizer)
    [call] = scripted["calls"]
    assert (call["temperature"], call["top_k"], call["top_p"]) == (0.4, 50, 0.9)
    assert set(call["limits"]) == {128} and call["stop_ids"] == {tokenizer.eos_id}
    prompts = {tuple(tokenizer.encode(pose(question, TEMPLATE, LINE)[0], bos=True)) for question in QUESTIONS}
    assert set(map(tuple, call["prompts"])) == prompts


def test_accidents_are_counted_and_sound_answers_missed_too(scripted, model: Llama, tokenizer: Tokenizer) -> None:
    texts = {"0": " A man of 35", "1": " I think so", "2": " B", "3": " E. coli", "4": " C: skin", "5": " A: lung"}
    scripted["says"] = lambda name, attempt: texts.get(name[-1], " D: bone")
    results = results_of(Sitting("medalpaca", tries=1), model, tokenizer)
    assert [result.predicted for result in results] == ["A", "I", None, "E", "C", "A", "D", "D"]
    assert [result.accident for result in results] == [True, True, False, True, False, False, False, False]
    found = counts(results)
    assert (found["accidents"], found["accidents_right"], found["no_option"]) == (3, 1, 2)
    said = notes(results, QUESTIONS)
    assert any(line.startswith("3 answers were accepted by accident, 1 of them right") for line in said)
    assert "2 answers are letters that were no option" in said
    assert "1 texts were not accepted although they give an answer" in said


def test_a_text_that_the_model_ended_is_read_with_its_end_of_text(scripted, model: Llama, tokenizer: Tokenizer) -> None:
    """As it was decoded then: "B: </s>" is accepted, the same text cut off at the limit is not."""
    scripted["says"] = lambda name, attempt: "B: "
    length = len(tokenizer.encode("B: "))
    ended, cut = (
        results_of(Sitting("medalpaca", tries=1, max_new_tokens=limit), model, tokenizer, QUESTIONS[:1])[0]
        for limit in (length + 1, length)
    )
    assert (ended.predicted, cut.predicted) == ("B", None)
    assert ended.texts == cut.texts == ("B:",)


def test_the_sound_parser_can_accept_instead(scripted, model: Llama, tokenizer: Tokenizer) -> None:
    texts = {"0": " A man of 35", "1": " I think so", "2": " B", "3": " E. coli"}
    scripted["says"] = lambda name, attempt: texts.get(name[-1], " The answer is (D).")
    results = results_of(Sitting("medalpaca", accept="sound", tries=2), model, tokenizer)
    assert [result.predicted for result in results] == [None, None, "B", None, "D", "D", "D", "D"]
    assert not any(result.accident for result in results)


def test_greedily_there_is_one_try(scripted, model: Llama, tokenizer: Tokenizer) -> None:
    scripted["says"] = lambda name, attempt: " Hm."
    results = results_of(Sitting("medalpaca", temperature=0.0), model, tokenizer)
    assert {len(result.texts) for result in results} == {1}


# --- The prompt and the window ---


def test_the_prompt_may_begin_without_bos_and_with_other_words(scripted, model: Llama, tokenizer: Tokenizer) -> None:
    scripted["says"] = lambda name, attempt: " B: x"
    results_of(Sitting("medalpaca", bos=False, answer_prefix="It is", instruction="Choose."), model, tokenizer)
    for prompt in scripted["calls"][0]["prompts"]:
        assert prompt[0] != tokenizer.bos_id
        text = tokenizer.decode(prompt)
        assert text.startswith("### Instruction:\nChoose.\n") and text.endswith("### Response:\nIt is")


def test_a_text_that_is_not_stopped_goes_on_behind_end_of_text(
    monkeypatch: pytest.MonkeyPatch, model: Llama, tokenizer: Tokenizer
) -> None:
    stops = []

    def say(
        model: Llama, prompts: Sequence[Sequence[int]], *, stop_ids: Any, **_: Any
    ) -> Iterator[tuple[int, list[int]]]:
        stops.append(set(stop_ids))
        yield 0, [*tokenizer.encode("B"), tokenizer.eos_id, *tokenizer.encode("C")]

    monkeypatch.setattr("evaluation.generation.generate_many", say)
    [result] = results_of(Sitting("medalpaca", stop=False, tries=1), model, tokenizer, QUESTIONS[:1])
    assert stops == [set()]
    assert result.texts == ("B</s> C",)
    assert result.predicted is None


def test_a_small_window_shortens_the_answer_before_it_cuts_the_question(
    scripted, model: Llama, tokenizer: Tokenizer
) -> None:
    scripted["says"] = lambda name, attempt: " B: x"
    longest = max(len(tokenizer.encode(pose(question, TEMPLATE, LINE)[0], bos=True)) for question in QUESTIONS)
    tight = tiny_llama(0, vocab_size=tokenizer.vocab_size, max_seq_len=longest + 16)
    paper = Sitting("medalpaca").prepare(tight, tokenizer, QUESTIONS, TEMPLATE)
    assert not any(result.truncated for result in sit(paper))
    [call] = scripted["calls"]
    assert min(call["limits"]) == 16
    assert all(len(p) + n == longest + 16 for p, n in zip(call["prompts"], call["limits"], strict=True))
    assert paper.notes == ["8 of 8 prompts leave fewer than 128 new tokens in the window, at least 16"]

    tighter = tiny_llama(0, vocab_size=tokenizer.vocab_size, max_seq_len=longest + 15)
    results = results_of(Sitting("medalpaca"), tighter, tokenizer)
    assert [result.truncated for result in results].count(True) == 2  # the two longest lose a token each
    cut = scripted["calls"][1]["prompts"][0]
    assert len(cut) == longest - 1 and cut[0] == tokenizer.bos_id
    assert tokenizer.decode(cut).endswith("The Answer to the question is:")


def test_a_window_without_room_is_refused(tokenizer: Tokenizer) -> None:
    tiny = tiny_llama(0, vocab_size=tokenizer.vocab_size, max_seq_len=16)
    with pytest.raises(ValueError, match=r"window of 16 tokens has no room .* before 16 new ones"):
        Sitting("generate").prepare(tiny, tokenizer, QUESTIONS, TEMPLATE)


def test_a_foreign_tokenizer_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"id \d+, the model embeds 61; use the model's own tokenizer"):
        Sitting("generate").prepare(tiny_llama(0, max_seq_len=512), tokenizer, QUESTIONS, TEMPLATE)


def test_shots_leave_room_for_the_whole_answer(scripted, tokenizer: Tokenizer) -> None:
    scripted["says"] = lambda name, attempt: " B: x"
    window = tiny_llama(0, vocab_size=tokenizer.vocab_size, max_seq_len=512)
    shots = [[question] * 20 for question in QUESTIONS]
    paper = Sitting("medalpaca", shots=20).prepare(window, tokenizer, QUESTIONS, TEMPLATE, shots=shots)
    [note] = paper.notes
    assert note.endswith("of 160 shots did not fit into the model's window and were left out")
    sit(paper)
    [call] = scripted["calls"]
    assert set(call["limits"]) == {128}
    assert all(len(prompt) + 128 <= 512 for prompt in call["prompts"])
    text = tokenizer.decode(call["prompts"][0])
    assert text.startswith("### Instruction:\nAnswer this multiple choice question.")  # whole shots only
    assert text.count("The Answer to the question is: ") == text.count("### Instruction:") - 1 > 0
