"""Each step from logits to a token against its definition in NumPy float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import decoding as oracle

from llama.decoding.sampling import (
    Sampling,
    choose,
    distribution,
    draw,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
)

Check = Callable[[str, float, float], None]
EPS = torch.finfo(torch.float32).eps
MAX_VOCAB = 40

logit_rows = arrays(np.float32, st.integers(1, MAX_VOCAB), elements=st.floats(-20, 20, width=32, allow_subnormal=False))
# softmax in float32: the exponent's argument carries a relative error ε, |x| ≤ 2·20 after the shift; then V roundings.
SOFTMAX_BOUND = (2 * 20 + MAX_VOCAB) * EPS


# check_bound keeps the worst of all examples, as it should: nothing to reset between them.
shares_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def kept(logits: torch.Tensor) -> set[int]:
    return set(torch.isfinite(logits[0]).nonzero()[:, 0].tolist())


@given(logit_rows, st.integers(1, MAX_VOCAB + 5))
def test_top_k_keeps_the_k_largest(row: np.ndarray, k: int) -> None:
    logits = torch.from_numpy(row)[None]
    out = keep_top_k(logits, k)
    chosen = kept(out)
    assert len(chosen) == min(k, len(row))
    assert min(row[sorted(chosen)]) >= max((x for i, x in enumerate(row) if i not in chosen), default=-math.inf)
    assert torch.equal(out[0, sorted(chosen)], logits[0, sorted(chosen)])  # what stays is untouched


@given(logit_rows, st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_of_mass_p(row: np.ndarray, p: float) -> None:
    logits = torch.from_numpy(row)[None]
    out = keep_top_p(logits, p)
    chosen = sorted(kept(out))
    probabilities = oracle.softmax(row.astype(np.float64))
    mass = probabilities[chosen].sum()
    assert len(chosen) >= 1
    assert mass >= p - SOFTMAX_BOUND
    # Minimal: without its least probable token the set would fall short of p.
    assert len(chosen) == 1 or mass - probabilities[chosen].min() < p + SOFTMAX_BOUND
    # The most probable ones: nothing outside is more probable than anything inside.
    outside = np.delete(probabilities, chosen)
    assert outside.size == 0 or outside.max() <= probabilities[chosen].min() + SOFTMAX_BOUND
    assert torch.equal(out[0, chosen], logits[0, chosen])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.99])
def test_top_p_is_the_nucleus(p: float) -> None:
    """Distinct random logits, where float32 cannot confuse the order: exactly the oracle's set."""
    for seed in range(20):
        row = np.random.default_rng(seed).normal(scale=3, size=50).astype(np.float32)
        assert kept(keep_top_p(torch.from_numpy(row)[None], p)) == oracle.nucleus(
            oracle.softmax(row.astype(np.float64)), p
        )


def test_top_p_by_hand() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert kept(keep_top_p(logits, 0.3)) == {0}
    assert kept(keep_top_p(logits, 0.6)) == {0, 1}
    assert kept(keep_top_p(logits, 0.8)) == {0, 1, 2}
    assert kept(keep_top_p(logits, 1.0)) == {0, 1, 2, 3}


def test_top_p_one_keeps_what_float32_rounds_away() -> None:
    logits = torch.tensor([[0.0, -30.0, -60.0]])  # e^-30 is below ε: the mass is 1 after the first token
    assert kept(keep_top_p(logits, 1.0)) == {0, 1, 2}


@shares_fixture
@given(
    row=logit_rows,
    temperature=st.floats(0.2, 5),
    k=st.none() | st.integers(1, MAX_VOCAB),
    p=st.none() | st.floats(0.05, 1.0),
)
def test_distribution_is_renormalised(
    row: np.ndarray, temperature: float, k: int | None, p: float | None, check_bound: Check
) -> None:
    probabilities = distribution(torch.from_numpy(row)[None], Sampling(temperature, k, p))[0].double().numpy()
    wanted = oracle.tempered(row.astype(np.float64), temperature)
    support = probabilities > 0
    # As above, with arguments of up to 2·20 / 0.2.
    bound = (2 * 20 / 0.2 + MAX_VOCAB) * EPS
    check_bound("sampling: probabilities sum to 1", abs(probabilities.sum() - 1), MAX_VOCAB * EPS)
    renormalised = wanted[support] / wanted[support].sum()
    check_bound("sampling: distribution vs NumPy float64", abs(probabilities[support] - renormalised).max(), bound)


@shares_fixture
@given(row=logit_rows, penalty=st.floats(0.5, 3), data=st.data())
def test_repetition_penalty(row: np.ndarray, penalty: float, data: st.DataObject, check_bound: Check) -> None:
    seen = data.draw(st.sets(st.integers(0, len(row) - 1)))
    mask = torch.zeros(1, len(row), dtype=torch.bool)
    mask[0, list(seen)] = True
    out = penalize_repetition(torch.from_numpy(row)[None], mask, penalty)[0].double().numpy()
    wanted = oracle.ctrl_penalty(row.astype(np.float64), seen, penalty)
    # θ and the product are each rounded once; |x·θ| ≤ 20·3.
    check_bound("sampling: repetition penalty vs NumPy float64", abs(out - wanted).max(), 60 * EPS)
    # Whatever its sign, a seen token becomes less likely under θ > 1.
    if penalty > 1:
        assert all(out[token] <= row[token] for token in seen)
    unseen = sorted(set(range(len(row))) - seen)
    assert np.array_equal(out[unseen], row.astype(np.float64)[unseen])


def test_steps_run_in_their_order() -> None:
    """Penalty before temperature before top-k before top-p, by hand."""
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    seen = torch.tensor([[True, False, False, False]])
    probabilities = distribution(logits, Sampling(0.5, top_k=2, top_p=0.85, repetition_penalty=2.0), seen)
    # Penalty: 2 3 2 1. T = 0.5: 4 6 4 2. Top-k 2: {6, one of the 4s}. p: e^6/(e^6+e^4) = 0.881 > 0.85: token 1 alone.
    assert probabilities.tolist() == [[0.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("temperature", [1e-6, 1e-3])
def test_cold_sampling_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[1000.0, 999.0, -1000.0], [-5.0, -6.0, -4.0]])
    assert distribution(logits, Sampling(temperature)).argmax(-1).tolist() == [0, 2]
    assert choose(logits, Sampling(temperature), [None, None]).tolist() == [0, 2]


def test_draw_has_the_distribution(check_bound: Check) -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    counts = np.bincount([int(draw(probabilities, generator)) for _ in range(n)], minlength=5)
    assert counts[4] == 0
    expected = n * probabilities.double().numpy()[:4]
    chi_squared = float((((counts[:4] - expected) ** 2) / expected).sum())
    # 99.9 % quantile of χ² with 3 degrees of freedom; the seed is fixed, so the test is not flaky.
    check_bound("sampling: χ² of 20,000 draws, 3 degrees of freedom", chi_squared, 16.27)


def test_draws_are_seeded_and_rows_independent() -> None:
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(1))

    def sequence(rows: list[int]) -> list[list[int]]:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return [choose(logits[rows], Sampling(1.0), generators).tolist() for _ in range(8)]

    assert sequence([0, 1, 2]) == sequence([0, 1, 2])
    assert [row[2] for row in sequence([0, 1, 2])] == [row[0] for row in sequence([2])]


def test_greedy_takes_the_largest_after_the_penalty() -> None:
    logits = torch.tensor([[2.0, 1.9], [-1.0, -1.1]])
    seen = torch.tensor([[True, False], [True, False]])
    assert choose(logits, Sampling(), [None, None]).tolist() == [0, 0]
    assert choose(logits, Sampling(repetition_penalty=1.2), [None, None], seen).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"temperature": math.inf}, "temperature = inf"),
        ({"temperature": 1e-9}, "temperature = 1e-09"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.1}, "top_p = 1.1"),
        ({"top_p": math.nan}, "top_p = nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0"),
        ({"repetition_penalty": math.nan}, "repetition_penalty = nan"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)  # type: ignore[arg-type]


def test_greedy_has_no_distribution() -> None:
    with pytest.raises(ValueError, match="temperature = 0 is greedy"):
        distribution(torch.zeros(1, 3), Sampling())
