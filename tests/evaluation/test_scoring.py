import math

import pytest
import torch
from torch import Tensor, nn

from data import PromptTemplate
from data.exams import Question
from evaluation import Result, encode_choices, log_likelihoods_reference, pose, score_questions
from evaluation.prompts import TEXT, Method
from llama import Llama, LlamaConfig

TEMPLATE = PromptTemplate.named("alpaca_short")
QUESTIONS = [
    Question("q1", "Which organ makes insulin?", {"A": "Liver", "B": "Pancreas", "C": "Ear"}, "B", step="step1"),
    Question("q2", "Which vitamin?", {"A": "B12", "B": "C", "C": "D", "D": "Niacin, of which plenty"}, "A", "step2"),
    Question("q3", "A longer question, which needs more tokens: which bone?", {"A": "Femur", "B": "Tibia"}, "A"),
]
METHODS: list[Method] = ["letter", "text", "text_per_token", "text_per_byte"]


class Characters:
    """A token per UTF-8 byte."""

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        return [1] * bos + [3 + byte for byte in text.encode()] + [2] * eos


class Fixed(nn.Module):
    """After any token: the same logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.logits.expand(*token_ids.shape, -1)


def likes(text: str, strength: float = 5.0) -> Fixed:
    """A model that finds each byte of `text` more probable than any other."""
    logits = torch.zeros(300)
    logits[[3 + byte for byte in text.encode()]] = strength
    return Fixed(logits)


def tiny_llama(max_seq_len: int = 512) -> Llama:
    config = LlamaConfig(300, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, max_seq_len=max_seq_len)
    return Llama(config).init_weights(torch.Generator().manual_seed(0), std=0.3)


@pytest.mark.parametrize(("favourite", "predicted"), [("Liver", "A"), ("Pancreas", "B"), ("Ear", "C")])
def test_a_rigged_model_gets_its_favourite(favourite: str, predicted: str) -> None:
    # Of the other options some bytes are always missing in the favourite, so its mean is the highest.
    [result] = score_questions(likes(favourite), Characters(), QUESTIONS[:1], TEMPLATE, method="text_per_token")
    assert result.predicted == predicted
    assert result.correct == (predicted == "B")
    assert (result.margin > 0) == result.correct
    assert not result.tied


@pytest.mark.parametrize("letter", ["A", "B"])
def test_letter_compares_letters_and_not_words(letter: str) -> None:
    results = score_questions(likes(letter), Characters(), QUESTIONS, TEMPLATE, method="letter")
    assert [result.predicted for result in results] == [letter] * 3


def test_a_sum_favours_the_short_and_a_mean_does_not() -> None:
    """Every byte equally probable, one in 300."""
    indifferent = Fixed(torch.zeros(300))
    [total] = score_questions(indifferent, Characters(), QUESTIONS[:1], TEMPLATE, method="text")
    assert total.predicted == "C"  # "Ear"
    assert math.isclose(total.scores["B"], 8 * math.log(1 / 300), rel_tol=1e-6)
    for method in ("text_per_token", "text_per_byte"):
        [mean] = score_questions(indifferent, Characters(), QUESTIONS[:1], TEMPLATE, method=method)  # type: ignore[arg-type]
        assert math.isclose(mean.scores["B"], mean.scores["C"], rel_tol=1e-6)


def test_ties_go_to_the_first_and_are_marked() -> None:
    results = score_questions(Fixed(torch.zeros(300)), Characters(), QUESTIONS, TEMPLATE, method="letter")
    assert [result.predicted for result in results] == ["A", "A", "A"]
    assert all(result.tied for result in results)


@pytest.mark.parametrize("method", METHODS)
def test_llama_scores_what_the_reference_scores(check_bound, method: Method) -> None:
    class Plain(nn.Module):
        def __init__(self, llama: Llama) -> None:
            super().__init__()
            self.llama = llama

        def forward(self, token_ids: Tensor) -> Tensor:
            return self.llama(token_ids)

    llama = tiny_llama()
    fast = score_questions(llama, Characters(), QUESTIONS, TEMPLATE, method=method)
    plain = score_questions(Plain(llama), Characters(), QUESTIONS, TEMPLATE, method=method)
    error = max(abs(a.scores[x] - b.scores[x]) for a, b in zip(fast, plain, strict=True) for x in a.scores)
    check_bound("score_questions: Llama vs any model", error, 3e-5)  # up to 23 tokens of some 1e-6 each


def test_batch_size_changes_nothing(check_bound) -> None:
    llama = tiny_llama()
    runs = [score_questions(llama, Characters(), QUESTIONS, TEMPLATE, batch_size=size) for size in (1, 2, 16)]
    assert [result.id for result in runs[0]] == ["q1", "q2", "q3"]
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            error = max(abs(one.scores[x] - other.scores[x]) for x in one.scores)
            check_bound("score_questions: batch sizes", error, 1e-5)


def test_normalisation_divides_by_tokens_and_bytes() -> None:
    llama = tiny_llama()
    prompt, continuations = pose(QUESTIONS[1], TEMPLATE, TEXT)
    [sums] = log_likelihoods_reference(llama, [encode_choices(Characters(), prompt, list(continuations.values()))])
    for method, lengths in (
        ("text", [1, 1, 1, 1]),
        ("text_per_token", [3, 1, 1, 23]),
        ("text_per_byte", [3, 1, 1, 23]),
    ):
        result = score_questions(llama, Characters(), QUESTIONS, TEMPLATE, method=method)[1]  # type: ignore[arg-type]
        expected = [total / length for total, length in zip(sums, lengths, strict=True)]
        assert list(result.scores.values()) == pytest.approx(expected, abs=3e-5)


def test_bytes_are_those_of_utf8() -> None:
    question = Question("1", "?", {"A": "é", "B": "e"}, "A")
    [total] = score_questions(Fixed(torch.zeros(300)), Characters(), [question], TEMPLATE, method="text")
    [mean] = score_questions(Fixed(torch.zeros(300)), Characters(), [question], TEMPLATE, method="text_per_byte")
    assert mean.scores == {"A": total.scores["A"] / 2, "B": total.scores["B"]}


def test_a_long_question_is_cut_to_the_models_window_and_says_so() -> None:
    def tokens(question: Question) -> int:
        prompt, continuations = pose(question, TEMPLATE, TEXT)
        return max(len(Characters().encode(prompt + text, bos=True)) for text in continuations.values())

    window = sorted(map(tokens, QUESTIONS))[-2]
    results = score_questions(tiny_llama(max_seq_len=window), Characters(), QUESTIONS, TEMPLATE)
    assert [result.truncated for result in results] == [False, False, True]
    whole = score_questions(tiny_llama(max_seq_len=window), Characters(), QUESTIONS, TEMPLATE, max_length=4096)
    assert not any(result.truncated for result in whole)


def test_training_mode_is_left_as_it_was_and_not_used() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, token_ids: Tensor) -> Tensor:
            return self.dropout(torch.arange(300.0).expand(*token_ids.shape, -1))

    model = Noisy().train()
    first, second = (score_questions(model, Characters(), QUESTIONS, TEMPLATE) for _ in range(2))
    assert first == second
    assert model.training


def test_results_know_their_question() -> None:
    result = score_questions(tiny_llama(), Characters(), QUESTIONS, TEMPLATE)[1]
    assert (result.id, result.step, result.answer, result.seen) == ("q2", "step2", "A", None)
    assert list(result.scores) == ["A", "B", "C", "D"]


def test_probabilities_are_a_softmax_over_the_options() -> None:
    result = Result("1", "", None, "A", {"A": math.log(0.1), "B": math.log(0.3)})
    assert result.probabilities == pytest.approx({"A": 0.25, "B": 0.75})
    far = Result("1", "", None, "A", {"A": -2000.0, "B": -1000.0})
    assert far.probabilities == {"A": 0.0, "B": 1.0}


# --- Refusals ---


def test_nan_is_not_an_answer() -> None:
    llama = tiny_llama()
    with torch.no_grad():
        llama.output.weight[7] = math.nan
    with pytest.raises(ValueError, match=r"question q\d: .*nan.*--dtype float32"):
        score_questions(llama, Characters(), QUESTIONS, TEMPLATE)


def test_a_foreign_tokenizer_is_refused() -> None:
    config = LlamaConfig(64, dim=32, n_layers=1, n_heads=4, n_kv_heads=2, hidden_dim=48)
    with pytest.raises(ValueError, match=r"id \d+, the model embeds 64; use the model's own tokenizer"):
        score_questions(Llama(config).init_weights(), Characters(), QUESTIONS, TEMPLATE)


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(ValueError, match="no questions"):
        score_questions(tiny_llama(), Characters(), [], TEMPLATE)
    with pytest.raises(ValueError, match="batch_size = 0"):
        score_questions(tiny_llama(), Characters(), QUESTIONS, TEMPLATE, batch_size=0)
