"""The objective: against the formula over all logits, against float64, and how it adds up; the head's gradients."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import training.loss
from data import IGNORE, Example, collate
from int8 import Int8Linear
from llama import Llama, LlamaConfig
from lora import LoraLinear
from training import causal_lm_loss, causal_lm_loss_reference
from training.loss import head_loss, row_losses_

CONFIG = LlamaConfig(53, 32, 2, 4, 2, 48)


def model() -> Llama:
    return Llama(CONFIG).init_weights(torch.Generator().manual_seed(0), std=0.2)


def example(length: int, supervised_from: int, seed: int) -> Example:
    ids = torch.randint(0, 53, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example(ids, [i >= supervised_from for i in range(length)])


def test_by_hand():
    # p = (½, ¼, ¼): −ln ¼ for the one supervised target
    logits = torch.tensor([[[0.5, 0.25, 0.25], [1.0, 1.0, 1.0]]]).log()
    assert math.isclose(causal_lm_loss_reference(logits, torch.tensor([[2, IGNORE]])).item(), math.log(4), rel_tol=1e-6)


def test_fast_against_reference_and_float64(check_bound):
    net = model()
    batch = collate([[example(9, 4, 1)], [example(6, 2, 2)]], pad_id=0)
    with torch.no_grad():
        loss = causal_lm_loss(net, batch).item()
        logits = net(batch.token_ids)
    reference = causal_lm_loss_reference(logits, batch.targets).item()
    oracle = 0.0
    for row, targets in zip(logits.double().numpy(), batch.targets.numpy(), strict=True):
        for scores, target in zip(row, targets, strict=True):
            if target != IGNORE:
                oracle -= np.log(np.exp(scores[target]) / np.exp(scores).sum())
    # Ten terms of order 5, each rounded a few times to float32.
    check_bound("loss: reference vs float64", abs(reference - oracle) / oracle, 1e-6)
    check_bound("loss: supervised positions only vs reference", abs(loss - reference) / reference, 1e-6)


def test_shift_is_right():
    """The loss of a row is that of predicting token t + 1 from tokens 0 … t, spelled out."""
    net, row = model(), example(7, 3, 5)
    expected = 0.0
    for t in range(3, 7):
        logits = net(torch.tensor([row.token_ids[:t]]))[0, -1]
        expected += F.cross_entropy(logits, torch.tensor(row.token_ids[t])).item()
    assert math.isclose(causal_lm_loss(net, collate([[row]], pad_id=0)).item(), expected, rel_tol=1e-5)


@given(start=st.integers(1, 7))
def test_sums_are_additive_over_rows_and_packing(start):
    net = model()
    a, b = example(8, start, 3), example(5, 2, 4)
    alone = sum(causal_lm_loss(net, collate([[row]], pad_id=0)).item() for row in (a, b))
    together = causal_lm_loss(net, collate([[a], [b]], pad_id=0)).item()
    packed = causal_lm_loss(net, collate([[a, b]], pad_id=0)).item()
    left = causal_lm_loss(net, collate([[a], [b]], pad_id=0, padding_side="left")).item()
    for value in (together, packed, left):
        assert math.isclose(value, alone, rel_tol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk_logits", [1, 3 * 53, 2**24])
def test_gradients_equal_the_references(tied, chunk_logits, monkeypatch, check_bound):
    """Of every weight, whatever the chunks; a tied head's gradient adds to the embedding's."""
    monkeypatch.setattr(training.loss, "CHUNK_LOGITS", chunk_logits)
    net = Llama(replace(CONFIG, tie_embeddings=tied)).init_weights(torch.Generator().manual_seed(0), std=0.2)
    batch = collate([[example(9, 4, 1)], [example(12, 2, 2)]], pad_id=0)
    (2 * causal_lm_loss(net, batch, scale=1 / 6)).backward()
    own = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    (causal_lm_loss_reference(net(batch.token_ids), batch.targets) / 3).backward()
    assert len(own) == len(list(net.parameters()))
    for name, p in net.named_parameters():
        error = (own[name] - p.grad).norm() / p.grad.norm()
        check_bound("loss: gradients vs reference's", error, 2e-6)  # float32 sums in another order


@pytest.mark.parametrize("in_c", [True, False])
def test_rows_of_logits(in_c, monkeypatch, check_bound):
    """Losses and gradient, also where exp of a logit is beyond float32."""
    if not in_c:
        monkeypatch.setattr(training.loss, "cross_entropy_", lambda *_: None)
    z = torch.randn(7, 40, generator=torch.Generator().manual_seed(2)) * 4 + 200
    targets, exact = torch.arange(7), z.double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="none")
    (gradient,) = gradients(0.3 * expected.sum(), exact)
    losses = row_losses_(z, targets, 0.3)
    # The difference of two logits, its exponential, a sum, a logarithm, each rounded to float32
    check_bound("loss of a row vs float64", ((losses - expected) / expected).detach().abs().max(), 1e-6)
    check_bound("gradient of a row vs float64", ((z - gradient).norm(dim=-1) / gradient.norm(dim=-1)).max(), 1e-6)


def gradients(loss: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, tensors))


def heads() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    adapted = LoraLinear(nn.Linear(32, 53, bias=False).requires_grad_(False), 4, 8, 0.0)
    nn.init.normal_(adapted.lora_B)
    return {
        "trained": nn.Linear(32, 53, bias=False),
        "with bias": nn.Linear(32, 53),
        "frozen": nn.Linear(32, 53).requires_grad_(False),
        "adapted": adapted,
        "int8": Int8Linear.from_linear(nn.Linear(32, 53, bias=False)),
    }


def head_input(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(11, 32, generator=generator, dtype=torch.float32).to(dtype).requires_grad_()
    return hidden, torch.randint(53, (11,), generator=generator)


@pytest.mark.parametrize("in_c", [True, False])
@pytest.mark.parametrize("kind", heads())
def test_any_head_will_do(kind, in_c, monkeypatch, check_bound):
    if not in_c:
        monkeypatch.setattr(training.loss, "cross_entropy_", lambda *_: None)
    head, (hidden, targets) = heads()[kind], head_input()
    tensors = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    plain = F.cross_entropy(head(hidden), targets, reduction="sum")
    loss = head_loss(head, hidden, targets, n_chunks=3)
    check_bound("loss of a head in chunks vs whole", abs(loss.item() / plain.item() - 1), 1e-6)
    for mine, theirs in zip(gradients(loss, *tensors), gradients(plain, *tensors), strict=True):
        # products and sums of float32 in another order
        check_bound("gradients of a head in chunks vs whole", (mine - theirs).norm() / theirs.norm(), 2e-6)


def exact_gradients(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Of the mean loss, in float64, but for the logits, which are rounded to bf16 as those of a bf16 product are."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    logits = hidden @ weight.T
    rounding = (logits.bfloat16() - logits).detach()
    return gradients(F.cross_entropy(logits + rounding, targets), hidden, weight)


@pytest.mark.parametrize("n_chunks", [1, 4])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_sixteen_bit_products(stored, n_chunks, check_bound):
    """bf16 weights, and float32 masters under autocast."""
    head, (hidden, targets) = heads()["trained"].bfloat16().to(stored), head_input(torch.bfloat16)
    hidden = hidden.detach().to(stored).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=stored == torch.float32):
        loss = head_loss(head, hidden, targets, scale=1 / 11, n_chunks=n_chunks)
    own = gradients(loss, hidden, head.weight)
    assert loss.dtype == torch.float32 and [gradient.dtype for gradient in own] == [stored, stored]
    for mine, exact in zip(own, exact_gradients(hidden, head.weight, targets), strict=True):
        # ∂L/∂z is rounded, the products are, and in bf16 each sum of two chunks: by 2^-8 at most, a third on average.
        check_bound("gradients of a bf16 head vs float64", (mine - exact).norm() / exact.norm(), 2**-8)


def test_the_scale_is_part_of_the_gradient_before_rounding():
    head, (hidden, targets) = heads()["trained"].bfloat16(), head_input(torch.bfloat16)
    (given,) = gradients(head_loss(head, hidden, targets, scale=1 / 11), hidden)
    (applied,) = gradients(head_loss(head, hidden, targets) / 11, hidden)
    exact, _ = exact_gradients(hidden, head.weight, targets)
    assert (given - exact).norm() < (applied - exact).norm()


def test_logits_of_one_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(training.loss, "CHUNK_LOGITS", 4 * 53)
    net, seen = model(), []
    net.output.register_forward_hook(lambda _head, _inputs, logits: seen.append(logits.shape))
    batch = collate([[example(9, 4, 1)], [example(12, 2, 2)]], pad_id=0)  # 5 + 10 supervised
    causal_lm_loss(net, batch)
    assert seen == [(4, 53), (4, 53), (4, 53), (3, 53)]


def test_nothing_supervised_is_zero_with_a_graph():
    net = model()
    loss = causal_lm_loss(net, collate([[Example([1, 2, 3], [False] * 3)]], pad_id=0))
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("in_c", [True, False])
def test_a_nan_shows(in_c, monkeypatch):
    if not in_c:
        monkeypatch.setattr(training.loss, "cross_entropy_", lambda *_: None)
    head, (hidden, targets) = heads()["trained"], head_input()
    hidden.data[3, 5] = math.nan
    loss = head_loss(head, hidden, targets)
    assert loss.isnan()
    assert gradients(loss, hidden)[0].isfinite().all(-1).tolist() == [row != 3 for row in range(11)]


def test_without_gradients_only_the_loss():
    head, (hidden, targets) = heads()["trained"], head_input()
    expected = head_loss(head, hidden, targets).item()
    logits = []
    head.register_forward_hook(lambda _head, _inputs, output: logits.append(output))
    with torch.no_grad():
        loss = head_loss(head, hidden, targets, n_chunks=2)
    assert math.isclose(loss.item(), expected, rel_tol=1e-6)
    head.requires_grad_(False)
    head_loss(head, hidden.detach(), targets)
    assert not loss.requires_grad and not any(output.requires_grad for output in logits)


def test_a_second_backward_pass_is_refused():
    head, (hidden, targets) = heads()["trained"], head_input()
    loss = head_loss(head, hidden, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
