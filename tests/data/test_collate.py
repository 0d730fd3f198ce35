"""Collation: the one shift, padding, documents; by hand, as properties, and through a model."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from data import IGNORE, Example, collate, shifted_targets
from llama import Llama, LlamaConfig

X = IGNORE
A = Example([1, 10, 11, 12, 2], [False, False, True, True, True])
B = Example([1, 20, 2], [False, True, True])


def test_the_shift_by_hand():
    """At token 10 the model must say 11; at token 12 it must end; at the end it has nothing to say."""
    assert shifted_targets(A) == [X, 11, 12, 2, X]
    assert shifted_targets(B) == [20, 2, X]
    assert shifted_targets(Example([7, 8], [True, False])) == [X, X], "the first token's mark is never used"


def test_right_padding_by_hand():
    batch = collate([[A], [B]], pad_id=0)
    assert batch.token_ids.tolist() == [[1, 10, 11, 12, 2, 0, 0, 0], [1, 20, 2, 0, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[X, 11, 12, 2, X, X, X, X], [20, 2, X, X, X, X, X, X]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 0, 0], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert batch.documents is None, "causal attention never looks to the right"
    assert (batch.n_supervised, batch.n_tokens) == (5, 8)


def test_left_padding_by_hand():
    batch = collate([[A], [B]], pad_id=0, padding_side="left", pad_to_multiple_of=5)
    assert batch.token_ids.tolist() == [[1, 10, 11, 12, 2], [0, 0, 1, 20, 2]]
    assert batch.targets.tolist() == [[X, 11, 12, 2, X], [X, X, 20, 2, X]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]]
    assert batch.documents.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]


def test_packing_by_hand():
    batch = collate([[A, B], [B]], pad_id=9)
    assert batch.token_ids.tolist() == [[1, 10, 11, 12, 2, 1, 20, 2], [1, 20, 2, 9, 9, 9, 9, 9]]
    assert batch.targets.tolist() == [[X, 11, 12, 2, X, 20, 2, X], [20, 2, X, X, X, X, X, X]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert batch.documents.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 0, 0, 0, 0, 0]]
    assert (batch.n_supervised, batch.n_tokens) == (7, 11)


def test_no_documents_where_nothing_is_padded_on_the_left():
    assert collate([[A], [A]], pad_id=0, padding_side="left", pad_to_multiple_of=5).documents is None


examples = st.integers(1, 9).flatmap(
    lambda n: st.builds(
        Example, st.lists(st.integers(3, 99), min_size=n, max_size=n), st.lists(st.booleans(), min_size=n, max_size=n)
    )
)
grid = st.lists(st.lists(examples, min_size=1, max_size=4), min_size=1, max_size=4)


@given(rows=grid, multiple=st.integers(1, 9), side=st.sampled_from(["right", "left"]))
def test_properties(rows, multiple, side):
    batch = collate(rows, pad_id=0, pad_to_multiple_of=multiple, padding_side=side)
    tensors = [batch.token_ids, batch.targets, batch.positions]
    width = batch.token_ids.shape[1]
    longest = max(sum(map(len, row)) for row in rows)
    assert all(t.dtype == torch.int64 and t.shape == (len(rows), width) for t in tensors)
    assert width % multiple == 0 and longest <= width < longest + multiple
    n_supervised = 0
    for b, row in enumerate(rows):
        used = sum(map(len, row))
        start = 0 if side == "right" else width - used
        outside = torch.ones(width, dtype=torch.bool)
        for number, example in enumerate(row, start=1):
            span = slice(start, start + len(example))
            outside[span] = False
            assert batch.token_ids[b, span].tolist() == example.token_ids  # every token exactly once, in order
            assert batch.positions[b, span].tolist() == list(range(len(example)))  # positions restart
            for t in range(len(example)):  # the target is the next token of the same document, or nothing
                counts = t + 1 < len(example) and example.supervised[t + 1]
                assert batch.targets[b, start + t] == (example.token_ids[t + 1] if counts else IGNORE)
                n_supervised += counts
            if batch.documents is not None:
                assert (batch.documents[b, span] == number).all()
            start += len(example)
        assert (batch.token_ids[b, outside] == 0).all() and (batch.targets[b, outside] == IGNORE).all()
        if batch.documents is not None:
            assert (batch.documents[b, outside] == 0).all()
    needs_documents = any(len(row) > 1 for row in rows) or (
        side == "left" and any(sum(map(len, row)) < width for row in rows)
    )
    assert (batch.documents is not None) == needs_documents
    assert batch.n_supervised == n_supervised == (batch.targets != IGNORE).sum()
    assert batch.n_tokens == sum(len(example) for row in rows for example in row)


def test_to_moves_every_tensor_but_documents():
    """Attention is planned on the CPU: documents on a GPU would have to be waited for."""
    batch = collate([[A, B]], pad_id=0).to("meta")
    assert {t.device.type for t in (batch.token_ids, batch.targets, batch.positions)} == {"meta"}
    assert batch.documents is not None and batch.documents.device.type == "cpu"
    assert collate([[A]], pad_id=0).to("cpu").documents is None


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "0 rows"),
        ([[A], []], {}, "2 rows, 1 of them empty"),
        ([[A]], {"pad_id": -1}, "pad_id=-1"),
        ([[A]], {"pad_to_multiple_of": 0}, "pad_to_multiple_of=0"),
        ([[A]], {"padding_side": "both"}, "padding_side='both'"),
    ],
)
def test_refusals(rows, settings, message):
    with pytest.raises(ValueError, match=message):
        collate(rows, **{"pad_id": 0} | settings)


# --- Through a model: packing and padding change no logits ------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=40, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48)
    return Llama(config).eval()


def example_of(*token_ids):
    return Example(list(token_ids), [False] + [True] * (len(token_ids) - 1))


LAYOUTS = {
    "right padding": ([[0], [1], [2]], "right"),
    "left padding": ([[0], [1], [2]], "left"),
    "packing": ([[0, 1], [2]], "right"),
    "packing, padded left": ([[2, 0, 1], [1]], "left"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_changes_no_logits_and_no_loss(model, check_bound, layout):
    """Each example alone against the same example in the batch.

    Bound: sums over the model width of 32 may round in another order, 32 · 2⁻²³ at logits of order 1.
    """
    pool = [example_of(1, 5, 6, 7, 8, 2), example_of(1, 30, 31, 2), example_of(1, 9, 9, 12, 13, 14, 15, 2)]
    places, side = LAYOUTS[layout]
    batch = collate([[pool[i] for i in row] for row in places], pad_id=0, padding_side=side)
    with torch.no_grad():
        logits = model(batch.token_ids, positions=batch.positions, documents=batch.documents)
        alone = [model(torch.tensor([example.token_ids]))[0] for example in pool]
    width = batch.token_ids.shape[1]
    total = 0.0
    for b, row in enumerate(places):
        start = 0 if side == "right" else width - sum(len(pool[i]) for i in row)
        for i in row:
            span = slice(start, start + len(pool[i]))
            check_bound(
                f"{layout}: logits vs example alone, float32", (logits[b, span] - alone[i]).abs().max(), 32 * 2**-23
            )
            total += F.cross_entropy(alone[i][:-1], torch.tensor(pool[i].token_ids[1:]), reduction="sum").item()
            start = span.stop
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum").item()
    check_bound(f"{layout}: summed loss vs examples alone, relative", abs(loss - total) / total, 1e-6)
