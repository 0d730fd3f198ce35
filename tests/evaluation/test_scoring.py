import math

import pytest
import torch
from torch import Tensor, nn

from data import PromptTemplate
from data.exams import Question
from evaluation import encode_choices, log_likelihoods_reference, pose, score_questions, sit
from evaluation.prompts import TEXT, Method, with_shots
from evaluation.scoring import LikelihoodPaper
from llama import Llama, LlamaConfig

TEMPLATE = PromptTemplate.named("alpaca_short")
QUESTIONS = [
    Question("q1", "Which organ makes insulin?", {"A": "Liver", "B": "Pancreas", "C": "Ear"}, "B", step="step1"),
    Question("q2", "Which vitamin?", {"A": "B12", "B": "C", "C": "D", "D": "Niacin, of which plenty"}, "A", "step2"),
    Question("q3", "A longer question, which needs more tokens: which bone?", {"A": "Femur", "B": "Tibia"}, "A"),
]
METHODS: list[Method] = ["letter", "text", "text_per_token", "text_per_byte", "text_calibrated", "letter_calibrated"]


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

    llama = tiny_llama().eval()
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


# --- Calibrated ---


def by_hand(model: nn.Module, prompt: str, options: list[str]) -> list[float]:
    """log p of each option behind the prompt, one forward pass each, one byte a token."""
    sums = []
    for option in options:
        token_ids = [1] + [3 + byte for byte in (prompt + option).encode()]
        with torch.no_grad():
            log_probs = model(torch.tensor([token_ids])).double().log_softmax(-1)[0]
        first = len(token_ids) - len(option.encode())
        sums.append(sum(float(log_probs[t - 1, token_ids[t]]) for t in range(first, len(token_ids))))
    return sums


def test_text_calibrated_subtracts_what_the_options_are_without_the_question(check_bound) -> None:
    llama = tiny_llama().eval()
    [result] = score_questions(llama, Characters(), QUESTIONS[:1], TEMPLATE, method="text_calibrated")
    asked = (
        "### Instruction:\nAnswer this question truthfully\n\n### Input:\nWhich organ makes insulin?\n\n### Response:\n"
    )
    nothing = "### Instruction:\nAnswer this question truthfully\n\n### Response:\n"
    options = ["Liver", "Pancreas", "Ear"]
    pairs = zip(by_hand(llama, asked, options), by_hand(llama, nothing, options), strict=True)
    error = max(abs(score - (a - b)) for score, (a, b) in zip(result.scores.values(), pairs, strict=True))
    # Two sums of up to 8 float32 log-probabilities, each some 1e-6 off.
    check_bound("text_calibrated vs by hand", error, 2e-5)


def test_letter_calibrated_subtracts_what_the_letters_are_for_no_content(check_bound) -> None:
    llama = tiny_llama().eval()
    [result] = score_questions(llama, Characters(), QUESTIONS[:1], TEMPLATE, method="letter_calibrated")
    start = "### Instruction:\nAnswer this multiple choice question.\n\n### Input:\n"
    end = "\n\n### Response:\nThe Answer to the question is:"
    asked = f"{start}Which organ makes insulin?\nA: Liver\nB: Pancreas\nC: Ear{end}"
    nothing = f"{start}N/A\nA: N/A\nB: N/A\nC: N/A{end}"
    letters = [" A", " B", " C"]
    pairs = zip(by_hand(llama, asked, letters), by_hand(llama, nothing, letters), strict=True)
    error = max(abs(score - (a - b)) for score, (a, b) in zip(result.scores.values(), pairs, strict=True))
    check_bound("letter_calibrated vs by hand", error, 1e-5)


@pytest.mark.parametrize("method", ["text_calibrated", "letter_calibrated"])
def test_a_model_that_does_not_read_has_no_calibrated_preference(method: Method) -> None:
    """It likes one option whatever is asked: its raw choice is that one, its calibrated scores are all zero."""
    raw = method.removesuffix("_calibrated")
    [plain] = score_questions(likes("Pancreas B"), Characters(), QUESTIONS[:1], TEMPLATE, method=raw)  # type: ignore[arg-type]
    assert not plain.tied
    [result] = score_questions(likes("Pancreas B"), Characters(), QUESTIONS[:1], TEMPLATE, method=method)
    assert list(result.scores.values()) == [0.0, 0.0, 0.0]


# --- Shots, BOS ---


def test_shots_stand_before_the_question_and_before_nothing(check_bound) -> None:
    llama = tiny_llama(max_seq_len=1024).eval()
    shots = [[QUESTIONS[1]]]
    paper = LikelihoodPaper(llama, Characters(), QUESTIONS[:1], TEMPLATE, method="text_calibrated", shots=shots)
    [result] = sit(paper)
    shown = f"{pose(QUESTIONS[1], TEMPLATE, TEXT)[0]}B12\n\n"
    options = ["Liver", "Pancreas", "Ear"]
    asked = by_hand(llama, shown + pose(QUESTIONS[0], TEMPLATE, TEXT)[0], options)
    nothing = by_hand(llama, shown + TEMPLATE.render(TEXT.instruction), options)
    pairs = zip(result.scores.values(), asked, nothing, strict=True)
    error = max(abs(score - (a - b)) for score, a, b in pairs)
    check_bound("text_calibrated with a shot vs by hand", error, 2e-5)
    assert paper.notes == []


def test_shots_that_do_not_fit_are_left_out_whole_and_counted() -> None:
    llama = tiny_llama(max_seq_len=300)
    shots = [[QUESTIONS[2], QUESTIONS[2], QUESTIONS[1]], []]
    paper = LikelihoodPaper(llama, Characters(), QUESTIONS[:2], TEMPLATE, shots=shots)
    one = Characters().encode(
        with_shots(pose(QUESTIONS[0], TEMPLATE, TEXT)[0], [QUESTIONS[1]], TEMPLATE, TEXT), bos=True
    )
    assert paper.lengths[0] == len(one)  # the last shot is kept: it stands next to the question
    assert paper.notes == ["2 of 3 shots did not fit into the model's window and were left out"]
    assert not any(result.truncated for result in sit(paper))


def test_the_prompt_may_begin_without_bos() -> None:
    llama = tiny_llama()
    papers = [LikelihoodPaper(llama, Characters(), QUESTIONS[:1], TEMPLATE, bos=bos) for bos in (True, False)]
    assert papers[0].lengths[0] - papers[1].lengths[0] == 1
    assert sit(papers[0])[0].scores != sit(papers[1])[0].scores
    short = tiny_llama(max_seq_len=40)
    cut = LikelihoodPaper(short, Characters(), QUESTIONS[:1], TEMPLATE, bos=False)
    assert cut.lengths == [40 - len("Pancreas")] and sit(cut)[0].truncated


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
