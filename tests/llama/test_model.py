"""The whole model against a float64 LLaMA, and what must hold whatever the weights."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.llama import forward

from llama import KVCache, Llama, LlamaConfig

SHAPES = {
    "multi-head": LlamaConfig(61, 32, 2, 4, 4, 48, norm_eps=1e-6),
    "grouped": LlamaConfig(61, 48, 3, 6, 2, 64, norm_eps=1e-5),
    "one key head, tied": LlamaConfig(61, 24, 1, 4, 1, 40, tie_embeddings=True),
}


def make(config: LlamaConfig, seed: int = 0, std: float = 0.3) -> Llama:
    """A model whose weights are large enough for every part to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = Llama(config).init_weights(generator, std=std).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data = 1 + 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def oracle_logits(model: Llama, row: torch.Tensor, **options) -> np.ndarray:
    config = model.config
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    return forward(
        weights, row.tolist(), n_layers=config.n_layers, n_heads=config.n_heads, n_kv_heads=config.n_kv_heads,
        eps=config.norm_eps, theta=config.rope_theta, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_logits_against_float64(check_bound, name):
    model, ids = make(SHAPES[name]), tokens(2, 17)
    logits = model(ids)
    assert logits.dtype == torch.float32
    for row in range(2):
        expected = oracle_logits(model, ids[row])
        error = np.abs(logits[row].numpy() - expected).max() / np.abs(expected).max()
        check_bound("llama: logits vs float64 oracle, of the largest", error, 1e-5)


@torch.no_grad()
def test_positions_can_be_given():
    model, ids = make(SHAPES["grouped"]), tokens(1, 6)
    at = [3, 4, 9, 10, 11, 40]
    logits = model(ids, positions=torch.tensor(at))
    assert np.abs(logits[0].numpy() - oracle_logits(model, ids[0], positions=at)).max() < 1e-4
    assert torch.equal(model(ids, positions=torch.arange(6)), model(ids))


@settings(max_examples=20)
@given(t=st.integers(1, 11), new=st.integers(0, 60))
@torch.no_grad()
def test_the_future_is_invisible(t, new):
    model, ids = make(SHAPES["grouped"]), tokens(1, 12)
    changed = ids.clone()
    changed[0, t] = new
    assert torch.equal(model(ids)[:, :t], model(changed)[:, :t])


@settings(max_examples=20)
@given(cuts=st.sets(st.integers(1, 11), max_size=4))
@torch.no_grad()
def test_cached_equals_full(cuts):
    model, ids = make(SHAPES["grouped"]), tokens(2, 12)
    cache = KVCache(model.config, 2, 12, dtype=torch.float32, device="cpu")
    bounds = [0, *sorted(cuts), 12]
    parts = [model(ids[:, a:b], cache=cache) for a, b in pairwise(bounds)]
    full = model(ids)
    assert (torch.cat(parts, dim=1) - full).abs().max() <= 1e-5 * full.abs().max()


@torch.no_grad()
def test_left_padded_rows_in_a_cache_equal_rows_alone():
    model = make(SHAPES["multi-head"])
    long, short = tokens(1, 7, seed=1), tokens(1, 4, seed=2)
    batch = torch.cat((long, torch.cat((torch.zeros(1, 3, dtype=torch.long), short), dim=1)))
    cache = KVCache(model.config, 2, 9, dtype=torch.float32, device="cpu", padding=torch.tensor([0, 3]))
    logits = model(batch, cache=cache)
    assert torch.allclose(logits[0], model(long)[0], atol=1e-5)
    assert torch.allclose(logits[1, 3:], model(short)[0], atol=1e-5)
    following = model(torch.tensor([[5], [6]]), cache=cache)
    assert torch.allclose(following[1, 0], model(torch.cat((short, torch.tensor([[6]])), dim=1))[0, -1], atol=1e-5)


@torch.no_grad()
def test_right_padding_is_invisible():
    model, ids = make(SHAPES["grouped"]), tokens(1, 9)
    assert torch.allclose(model(ids[:, :5]), model(ids)[:, :5], atol=1e-6)


@torch.no_grad()
def test_packed_documents_equal_documents_alone():
    model = make(SHAPES["grouped"])
    a, b = tokens(1, 5, seed=1), tokens(1, 3, seed=2)
    packed = model(
        torch.cat((a, b), dim=1),
        positions=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]]),
        documents=torch.tensor([[1, 1, 1, 1, 1, 2, 2, 2]]),
    )
    assert torch.allclose(packed[:, :5], model(a), atol=1e-5)
    assert torch.allclose(packed[:, 5:], model(b), atol=1e-5)


def test_gradient_checkpointing_changes_nothing():
    model, ids = make(SHAPES["grouped"]).train(), tokens(2, 8)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(ids).square().mean().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing = True
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


PACKED = torch.tensor([[0, 1, 1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 2, 3, 3, 3, 3, 3]])
PLACES = torch.tensor([[0, 0, 1, 2, 3, 4, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0, 1, 2, 3, 4]])


def document_gradients(model: Llama, ids: torch.Tensor) -> list[torch.Tensor]:
    """Of a loss over all documents of two rows, padding left out."""
    model.zero_grad()
    model(ids, positions=PLACES, documents=PACKED)[PACKED != 0].square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def test_gradients_of_packed_documents_are_those_of_documents_alone(check_bound):
    model, ids = make(SHAPES["grouped"]).train(), tokens(2, 10)
    packed = document_gradients(model, ids)
    model.zero_grad()
    for row, numbers in zip(ids, PACKED, strict=True):
        for number in range(1, 4):
            if (numbers == number).any():
                model(row[numbers == number][None]).square().sum().backward()
    # Sums over 17 tokens in another order, through three blocks: some ten roundings of 2⁻²⁴ of the largest number.
    for mine, parameter in zip(packed, model.parameters(), strict=True):
        error = (mine - parameter.grad).abs().max() / parameter.grad.abs().max()
        check_bound("llama: gradients of packed documents vs alone, relative", error, 1e-5)


def test_documents_go_through_checkpointing_and_autocast():
    model, ids = make(SHAPES["grouped"]).train(), tokens(2, 10)
    plain = document_gradients(model, ids)
    model.gradient_checkpointing = True
    assert all(torch.equal(a, b) for a, b in zip(plain, document_gradients(model, ids), strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = document_gradients(model, ids)
    for a, b in zip(plain, mixed, strict=True):  # three blocks of products of 8-bit significands
        assert a.dtype == b.dtype and (a - b).norm() < 0.1 * a.norm()


@torch.no_grad()
def test_padding_stays_finite_and_unseen():
    model, ids = make(SHAPES["grouped"]), tokens(2, 10)
    other = ids.where(PACKED != 0, (ids + 1) % 61)
    mine, theirs = (model(x, positions=PLACES, documents=PACKED) for x in (ids, other))
    assert mine.isfinite().all() and torch.equal(mine[PACKED != 0], theirs[PACKED != 0])


def test_tied_head_is_one_parameter():
    model = make(SHAPES["one key head, tied"])
    assert model.output.weight is model.tok_embeddings.weight
    assert not any(name == "output.weight" for name, _ in model.named_parameters())
    model.tok_embeddings.weight = torch.nn.Parameter(torch.zeros(61, 24))
    model.tie_weights()
    assert model.output.weight is model.tok_embeddings.weight


def test_adapter_layout_names_every_linear():
    model = make(SHAPES["grouped"])
    layout = model.adapter_layout()
    assert layout.keys() == {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert layout["layers.2.feed_forward.w2"].key == "model.layers.2.mlp.down_proj"
    assert layout["layers.0.attention.wk"].rows.numel() == 2 * 8
    assert [name for name, slot in layout.items() if slot.rows is not None and not name.endswith(("wq", "wk"))] == []


def test_meta_model_has_only_parameters():
    with torch.device("meta"):
        model = Llama(LlamaConfig.named("7B"))
    assert not list(model.buffers())


def test_wrong_inputs_are_refused():
    model = make(SHAPES["grouped"])
    with pytest.raises(ValueError, match="add a batch dimension"):
        model(torch.tensor([1, 2]))
    cache = KVCache(model.config, 1, 4, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="exclude each other"):
        model(tokens(1, 3), documents=torch.ones(1, 3, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="each token needs a document"):
        model(tokens(1, 3), documents=torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="document 1 comes back in row 0"):
        model(tokens(1, 3), documents=torch.tensor([[1, 2, 1]]))
