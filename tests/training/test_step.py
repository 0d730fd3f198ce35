"""One optimizer step: accumulation weighs tokens, clipping, and no update from garbage."""

import math

import pytest
import torch
from torch import nn

from data import Example, collate
from llama import Llama, LlamaConfig
from lora import LoraConfig, add_lora
from training import NonFiniteError, causal_lm_loss, dropout_seed, optimizer_step, validation_loss
from training.step import clip_gradients

CONFIG = LlamaConfig(31, 16, 1, 2, 2, 24)


def make() -> tuple[Llama, torch.optim.Optimizer]:
    model = Llama(CONFIG).init_weights(torch.Generator().manual_seed(0), std=0.2).train()
    return model, torch.optim.SGD(model.parameters(), lr=0.5)


def row(length: int, supervised: int, seed: int) -> Example:
    ids = torch.randint(0, 31, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example(ids, [i >= length - supervised for i in range(length)])


ROWS = [row(9, 7, 1), row(4, 1, 2), row(6, 3, 3), row(8, 2, 4)]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_of_any_size_make_the_same_step(check_bound, size):
    whole, optimizer = make()
    expected = optimizer_step(whole, optimizer, [collate([[r] for r in ROWS], pad_id=0)], clip=0)
    split, optimizer = make()
    batches = [collate([[r] for r in ROWS[i : i + size]], pad_id=0) for i in range(0, 4, size)]
    result = optimizer_step(split, optimizer, batches, clip=0)
    assert result.n_tokens == expected.n_tokens == 27
    assert math.isclose(result.loss, expected.loss, rel_tol=1e-6)
    error = max((a - b).abs().max().item() for a, b in zip(whole.parameters(), split.parameters(), strict=True))
    check_bound("accumulation: weights after one step vs one batch", error, 1e-6)  # float32 sums in another order


def test_loss_is_the_mean_over_supervised_tokens():
    model, optimizer = make()
    expected = sum(causal_lm_loss(model, collate([[r]], pad_id=0)).item() for r in ROWS) / (7 + 1 + 3 + 2)
    result = optimizer_step(model, optimizer, [collate([[r]], pad_id=0) for r in ROWS], clip=0)
    assert math.isclose(result.loss, expected, rel_tol=1e-6)


def test_clipping_scales_the_whole_gradient():
    model, optimizer = make()
    before = [p.detach().clone() for p in model.parameters()]
    result = optimizer_step(model, optimizer, [collate([[ROWS[0]]], pad_id=0)], clip=0.01)
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before, strict=True)]).norm()
    assert result.gradient_norm > 0.01
    assert math.isclose(moved.item(), 0.5 * 0.01, rel_tol=1e-3)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_non_finite_loss_stops_before_the_update(poison):
    model, optimizer = make()
    model.norm.weight.data[3] = poison
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(NonFiniteError, match="no update was made"):
        optimizer_step(model, optimizer, [collate([[ROWS[0]]], pad_id=0)], clip=1.0)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items() if n != "norm.weight")


def test_non_finite_gradient_is_named():
    model, _ = make()
    causal_lm_loss(model, collate([[ROWS[0]]], pad_id=0)).backward()
    model.layers[0].attention.wk.weight.grad[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"layers\.0\.attention\.wk\.weight"):
        clip_gradients(model, 1.0)


def test_nothing_supervised_is_an_error_not_a_nan():
    model, optimizer = make()
    with pytest.raises(ValueError, match="no supervised token"):
        optimizer_step(model, optimizer, [collate([[Example([1, 2], [False, False])]], pad_id=0)], clip=1.0)


def test_validation_loss_is_the_token_mean_and_leaves_the_mode():
    model, _ = make()
    batches = [collate([[r]], pad_id=0) for r in ROWS]
    expected = sum(causal_lm_loss(model, b).item() for b in batches) / 13
    assert math.isclose(validation_loss(model, batches), expected, rel_tol=1e-6)
    assert model.training


def test_the_micro_batch_whose_loss_is_not_finite_is_named():
    model, optimizer = make()
    model.tok_embeddings.weight.data[30] = math.nan
    good, bad = row(5, 2, 7), Example([1, 30, 2], [False, True, True])
    assert 30 not in good.token_ids
    batches = [collate([[r]], pad_id=0) for r in (good, bad, good)]
    with pytest.raises(NonFiniteError, match="the loss of micro-batch 5 is nan") as caught:
        optimizer_step(model, optimizer, batches, clip=1.0, numbers=[3, 5, 7])
    assert caught.value.micro_batch == 5


def test_dropout_depends_on_seed_step_and_micro_batch_alone():
    """What was drawn before a step changes nothing in it."""
    losses = []
    for drawn_before in (0, 3):
        model, optimizer = make()
        config = LoraConfig(r=2, alpha=2, dropout=0.5, targets=("q_proj", "v_proj"))
        add_lora(model, config, generator=torch.Generator().manual_seed(2))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        torch.rand(drawn_before)
        batches = [collate([[r]], pad_id=0) for r in ROWS]
        seeds = [dropout_seed(42, 1, number) for number in range(4)]
        losses.append(optimizer_step(model, optimizer, batches, clip=0, seeds=seeds).loss.hex())
    assert losses[0] == losses[1]
    assert len({dropout_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}) == 125
