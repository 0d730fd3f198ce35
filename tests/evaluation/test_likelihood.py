import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from evaluation.likelihood import Choices, encode_choices, log_likelihoods, log_likelihoods_reference
from llama import Llama, LlamaConfig

VOCAB = 96
# Two float32 evaluations of logits of size 1 differ by some 1e-6 per token; options here have at most 6 tokens.
FLOAT32_BOUND = 1e-5


def tiny_llama(n_kv_heads: int = 2, seed: int = 0) -> Llama:
    config = LlamaConfig(VOCAB, dim=32, n_layers=2, n_heads=4, n_kv_heads=n_kv_heads, hidden_dim=48, max_seq_len=64)
    # Wide weights, so that the options' likelihoods differ by whole nats and a wrong position cannot hide.
    return Llama(config).init_weights(torch.Generator().manual_seed(seed), std=0.3).eval()


def random_choices(seed: int, sizes: list[tuple[int, list[int]]]) -> list[Choices]:
    """One question per (prompt length, option lengths)."""
    draw = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(3, VOCAB, (n,), generator=draw).tolist()

    return [Choices([1, *ids(prompt - 1)], [ids(length) for length in options]) for prompt, options in sizes]


def brute_force(model: nn.Module, choices: Choices) -> list[float]:
    """One token at a time: run everything before it alone, take its log-probability in float64."""
    totals = []
    for option in choices.options:
        total = 0.0
        for t, token in enumerate(option):
            with torch.no_grad():
                logits = model(torch.tensor([choices.prompt + option[:t]]))[0, -1].double().numpy()
            total += logits[token] - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()
        totals.append(total)
    return totals


RAGGED = [(9, [1, 3, 2, 6, 1]), (4, [2, 2, 2, 2]), (17, [5, 1]), (1, [3, 4, 1]), (9, [1, 1, 1, 1, 1])]


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("implementation", [log_likelihoods, log_likelihoods_reference])
def test_equals_brute_force(check_bound, implementation, n_kv_heads: int) -> None:
    model, batch = tiny_llama(n_kv_heads), random_choices(1, RAGGED)
    expected = [brute_force(model, choices) for choices in batch]
    assert [len(row) for row in expected] == [5, 4, 2, 3, 5]
    for got, wanted in zip(implementation(model, batch), expected, strict=True):
        error = max(abs(a - b) for a, b in zip(got, wanted, strict=True))
        check_bound(f"{implementation.__name__}: vs token-by-token float64", error, FLOAT32_BOUND)


def test_shared_prompt_equals_whole_rows(check_bound) -> None:
    model, batch = tiny_llama(), random_choices(2, RAGGED)
    pairs = zip(log_likelihoods(model, batch), log_likelihoods_reference(model, batch), strict=True)
    error = max(abs(a - b) for fast, plain in pairs for a, b in zip(fast, plain, strict=True))
    check_bound("log_likelihoods: cached prompt vs reference", error, FLOAT32_BOUND)


def test_shared_prompt_equals_whole_rows_in_bfloat16(check_bound) -> None:
    model, batch = tiny_llama().bfloat16(), random_choices(2, RAGGED)
    pairs = list(zip(log_likelihoods(model, batch), log_likelihoods_reference(model, batch), strict=True))
    # A logit of size 4 carries a rounding of 2^-9 relative, after two layers of the same; 6 tokens to an option.
    error = max(abs(a - b) for fast, plain in pairs for a, b in zip(fast, plain, strict=True))
    check_bound("log_likelihoods: cached prompt vs reference, bfloat16", error, 6 * 4 * 2**-9 * 3)


@pytest.mark.parametrize("implementation", [log_likelihoods, log_likelihoods_reference])
def test_neighbours_in_the_batch_do_not_matter(check_bound, implementation) -> None:
    model, batch = tiny_llama(), random_choices(3, RAGGED)
    together = implementation(model, batch)
    alone = [implementation(model, [choices])[0] for choices in batch]
    error = max(abs(a - b) for x, y in zip(together, alone, strict=True) for a, b in zip(x, y, strict=True))
    check_bound(f"{implementation.__name__}: batched vs alone", error, FLOAT32_BOUND)


def test_padding_id_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_llama(), random_choices(4, RAGGED)
    first = log_likelihoods(model, batch)
    monkeypatch.setattr("evaluation.likelihood.PAD", 57)
    assert log_likelihoods(model, batch) == first  # bit for bit: no token that counts looks right


def test_equal_options_tie_bit_for_bit() -> None:
    [choices] = random_choices(5, [(7, [4, 2])])
    repeated = Choices(choices.prompt, [choices.options[0], choices.options[1], choices.options[0]])
    first, _, third = log_likelihoods(tiny_llama(), [repeated, *random_choices(6, RAGGED)])[0]
    assert first == third


def test_probabilities_of_all_tokens_sum_to_one(check_bound) -> None:
    everything = Choices([1, 5, 9], [[token] for token in range(VOCAB)])
    total = math.fsum(math.exp(value) for value in log_likelihoods(tiny_llama(), [everything])[0])
    check_bound("log_likelihoods: total probability", abs(total - 1), 1e-6)  # float32 logs of size ~5: 3e-7 each


def test_leaves_no_graph() -> None:
    model = tiny_llama()
    log_likelihoods(model, random_choices(7, RAGGED))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


# --- Where an option begins ---


class Pieces:
    """A tokenizer of the longest known piece, as SentencePiece would split: a word may own the space before it."""

    def __init__(self, *pieces: str) -> None:
        self.ids = {piece: 2 + i for i, piece in enumerate(sorted({*pieces, *map(chr, range(32, 127)), "\n"}))}
        self.longest = max(map(len, self.ids))

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        ids, start = [1] * bos, 0
        while start < len(text):
            length = next(n for n in range(self.longest, 0, -1) if text[start : start + n] in self.ids)
            ids.append(self.ids[text[start : start + length]])
            start += length
        return ids + [0] * eos

    def text(self, ids: list[int]) -> str:
        names = {number: piece for piece, number in self.ids.items()}
        return "".join(names[number] for number in ids if number > 1)


def test_border_lies_where_prompt_and_option_part() -> None:
    tokenizer = Pieces("Answer", "Heart", "Liver")
    choices = encode_choices(tokenizer, "Answer:", ["Heart", "Liver"])
    assert choices.prompt == tokenizer.encode("Answer:", bos=True)
    assert [tokenizer.text(option) for option in choices.options] == ["Heart", "Liver"]


def test_all_options_start_at_the_same_border() -> None:
    """ "Answer: " + "Heart" swallows the prompt's space, + "9" does not: both must then pay for the space."""
    tokenizer = Pieces("Answer", " Heart")
    choices = encode_choices(tokenizer, "Answer: ", ["Heart", "9"])
    assert tokenizer.text(choices.prompt) == "Answer:"
    assert [tokenizer.text(option) for option in choices.options] == [" Heart", " 9"]


def test_an_option_that_melts_into_the_prompt_keeps_a_token() -> None:
    class Unknowing(Pieces):
        def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
            ids = super().encode(text.replace("é", "~"), bos=bos, eos=eos)
            return [token for token, before in zip(ids, [0, *ids], strict=False) if token != before]  # é, éé -> unk

    choices = encode_choices(Unknowing(), "caf\u00e9", ["\u00e9", "s"])
    assert [len(option) for option in choices.options] == [1, 2]


@given(
    st.text("abc ", min_size=1, max_size=12),
    st.lists(st.text("abc ", min_size=1, max_size=6), min_size=2, max_size=5),
    st.lists(st.text("abc ", min_size=2, max_size=4), max_size=6),
)
def test_prompt_and_option_always_spell_the_whole(prompt: str, options: list[str], pieces: list[str]) -> None:
    tokenizer = Pieces(*pieces)
    choices = encode_choices(tokenizer, prompt, options)
    assert choices.prompt[0] == 1
    for text, option in zip(options, choices.options, strict=True):
        assert option
        assert choices.prompt + option == tokenizer.encode(prompt + text, bos=True)


def test_real_sentencepiece_inserts_no_stray_space(real_data) -> None:
    from llama import Tokenizer

    tokenizer = Tokenizer(real_data / "llama-tokenizer")
    for prompt in ("Q: Which?\n\n### Response:\n", "### Response:", "Answer: ", "The Answer to the question is:"):
        choices = encode_choices(tokenizer, prompt, ["Aspirin", " B", "7"])
        for text, option in zip(["Aspirin", " B", "7"], choices.options, strict=True):
            whole = choices.prompt + option
            assert tokenizer.decode(whole) == prompt + text
            assert whole == tokenizer.encode(prompt + text, bos=True)
    letters = encode_choices(tokenizer, "The Answer to the question is:", [" A", " B", " C", " D", " E"])
    assert [len(option) for option in letters.options] == [1] * 5  # a letter is one token, so letters compete fairly


# --- The window ---


def test_a_long_prompt_is_cut_on_the_left_for_all_options_alike() -> None:
    tokenizer = Pieces()
    choices = encode_choices(tokenizer, "0123456789", ["a", "bcd"], max_length=9)
    assert choices.truncated
    assert choices.prompt[0] == 1
    assert tokenizer.text(choices.prompt) == "56789"
    assert [tokenizer.text(option) for option in choices.options] == ["a", "bcd"]


def test_what_fits_exactly_is_not_cut() -> None:
    tokenizer = Pieces()
    assert not encode_choices(tokenizer, "0123456789", ["a", "bcd"], max_length=14).truncated
    assert encode_choices(tokenizer, "0123456789", ["a", "bcd"], max_length=13).truncated


def test_an_option_that_fills_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"question step1/7: an option of 9 tokens .* window of 10"):
        encode_choices(Pieces(), "0123456789", ["a", "b" * 9], max_length=10, name="step1/7")


def test_without_bos_the_prompt_is_cut_from_its_first_token() -> None:
    tokenizer = Pieces()
    whole = encode_choices(tokenizer, "Answer:", [" yes", " no"], bos=False)
    assert whole.prompt == tokenizer.encode("Answer:")
    longest = max(map(len, whole.options))
    cut = encode_choices(tokenizer, "Answer:", [" yes", " no"], longest + 2, bos=False)
    assert cut.prompt == whole.prompt[-2:] and cut.truncated


def test_without_bos_and_words_nothing_precedes_the_options() -> None:
    with pytest.raises(ValueError, match="question 7: no token precedes the options; begin the prompt with BOS"):
        encode_choices(Pieces(), "", ["yes", "no"], name="7", bos=False)
