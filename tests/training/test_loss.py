"""The objective: against the formula over all logits, against float64, and how it adds up."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from data import IGNORE, Example, collate
from llama import Llama, LlamaConfig
from training import causal_lm_loss, causal_lm_loss_reference

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


def test_gradient_equals_reference():
    net = model()
    batch = collate([[example(9, 4, 1)]], pad_id=0)
    causal_lm_loss(net, batch).backward()
    own = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    causal_lm_loss_reference(net(batch.token_ids), batch.targets).backward()
    for name, p in net.named_parameters():
        assert torch.allclose(own[name], p.grad, atol=1e-4, rtol=1e-4), name
