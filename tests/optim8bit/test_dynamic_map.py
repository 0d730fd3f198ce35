import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import optim8bit as oracle
from torch import Tensor

from optim8bit.dynamic_map import (
    cached_map,
    carry_table,
    code_boundaries,
    dynamic_map,
    nearest_code,
    nearest_code_reference,
    two_lines,
)

CPU = torch.device("cpu")


def encode(unit: Tensor, signed: bool) -> Tensor:
    return nearest_code(unit, carry_table(signed, CPU), signed)


def floats_around(values: Tensor, ulps: int) -> Tensor:
    """Every float32 within `ulps` representable numbers of each positive value."""
    offsets = torch.arange(-ulps, ulps + 1, dtype=torch.int32)
    return (values.view(torch.int32)[:, None] + offsets).clamp(min=0).view(torch.float32).flatten()


def test_the_papers_numbers() -> None:
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    assert signed.shape == unsigned.shape == (256,)
    assert signed.dtype == unsigned.dtype == torch.float32
    assert signed[0].item() == pytest.approx(-0.99296875, rel=2**-24)
    assert signed[127].item() == 0.0
    assert signed[[126, 128]].tolist() == pytest.approx([-5.5e-7, 5.5e-7], rel=2**-23)
    assert unsigned[:3].tolist() == pytest.approx([0.0, 3.25e-7, 7.75e-7], rel=2**-23)
    assert signed[255] == unsigned[255] == 1.0


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_the_formula(signed: bool, check_bound) -> None:
    values = dynamic_map(signed)
    expected = torch.from_numpy(oracle.dynamic_map(signed))
    assert (values.diff() > 0).all()
    nonzero = expected != 0
    relative = (values.double() - expected)[nonzero].abs() / expected[nonzero].abs()
    # Four float32 roundings, of half an ulp (2⁻²⁴ relative at most) each: two edges, their mean, the power of ten.
    check_bound("dynamic map: float32 vs oracle, relative", relative.max(), 4 * 2**-24)
    assert (values[~nonzero] == 0).all()


def test_default_dtype_and_device_do_not_reach_the_map() -> None:
    expected = [dynamic_map(True), dynamic_map(False), carry_table(True, CPU), code_boundaries(True)]
    cached_map.cache_clear()
    carry_table.cache_clear()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            found = [dynamic_map(True), dynamic_map(False), carry_table(True, CPU), code_boundaries(True)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))


def test_a_callers_change_does_not_reach_the_map() -> None:
    dynamic_map(True).zero_()
    assert dynamic_map(True)[255] == 1.0


@pytest.mark.parametrize("signed", [True, False])
def test_every_code_is_nearest_to_its_own_value(signed: bool) -> None:
    assert encode(dynamic_map(signed), signed).tolist() == list(range(256))


@pytest.mark.parametrize("signed", [True, False])
def test_nearest_code_is_exact_for_every_float(signed: bool) -> None:
    """A proof by cases. Within a bucket of 2¹⁶ bit patterns (one upper half) the formula adds the lower half to a
    constant: a staircase of at most one step. So it is right everywhere if it is right at both ends of every bucket and
    on both sides of every boundary. 64 neighbours of each boundary are thrown in."""
    upper_halves = torch.arange(0x3F81, dtype=torch.int32) << 16
    ends = torch.cat([upper_halves, upper_halves[:-1] + 0xFFFF]).view(torch.float32)
    around = floats_around(code_boundaries(signed), ulps=64)
    unit = torch.cat([ends, around, torch.tensor([0.0, -0.0, 1.0])])
    if signed:
        unit = torch.cat([unit, -unit])
    for part in unit.split(2**14):
        assert torch.equal(encode(part, signed), nearest_code_reference(part, signed))


@pytest.mark.parametrize("signed", [True, False])
def test_nearest_code_on_random_numbers(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    unit = torch.rand(50_000, generator=generator)
    unit = torch.cat([unit, 10 ** (-9 * unit)])  # evenly, and evenly over nine decades
    if signed:
        unit = torch.cat([unit, -unit])
    codes = encode(unit, signed)
    for part, part_codes in zip(unit.split(2**14), codes.split(2**14), strict=True):
        assert torch.equal(part_codes, nearest_code_reference(part, signed))


@pytest.mark.parametrize("signed", [True, False])
def test_halfway_takes_the_code_nearer_zero(signed: bool) -> None:
    values = dynamic_map(signed)[127 if signed else 0 :].double()
    midpoints = (values[:-1] + values[1:]) / 2
    ties = midpoints[midpoints.float().double() == midpoints].float()
    assert len(ties) > 20  # so many midpoints are float32 numbers
    zero = 127 if signed else 0
    lower = torch.searchsorted(values, ties.double()) - 1
    assert (encode(ties, signed).long() - zero).tolist() == lower.tolist()
    assert nearest_code_reference(ties, signed).tolist() == encode(ties, signed).tolist()


@given(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32))
def test_signed_codes_are_monotone_and_odd(a: float, b: float) -> None:
    low, high = encode(torch.tensor([min(a, b), max(a, b)]), signed=True).tolist()
    assert low <= high
    plus, minus = encode(torch.tensor([a, -a]), signed=True).tolist()
    if plus not in (0, 255) and minus not in (0, 255):  # 1 has no mirror image
        assert plus - 127 == 127 - minus


def test_the_guarded_table_keeps_every_positive_number() -> None:
    table = carry_table(False, CPU, keep_positive=True)
    smallest = 2.0**-149
    unit = torch.tensor([0.0, smallest, 1e-30, 1e-7, 1.6e-7, 2e-7])
    assert nearest_code(unit, table, signed=False).tolist() == [0, 1, 1, 1, 1, 1]
    assert encode(unit, signed=False).tolist() == [0, 0, 0, 0, 0, 1]
    above = torch.cat([floats_around(code_boundaries(False)[1:], ulps=8), torch.tensor([1.0])])
    assert torch.equal(nearest_code(above, table, signed=False), encode(above, signed=False))


@pytest.mark.parametrize("signed", [True, False])
def test_two_lines_guess_the_code_or_the_one_below(signed: bool) -> None:
    """The guess rises with the number, so both ends of every code's interval and of the lines' ranges suffice."""
    boundaries = code_boundaries(signed)
    ranges = 4.0 ** -torch.arange(16)
    units = torch.cat([boundaries, ranges, torch.tensor([0.0, 1.0])])
    units = torch.cat([units, torch.nextafter(units, torch.ones(())), torch.nextafter(units, torch.zeros(()))])
    exponents = units.clamp(min=2.0**-30).view(torch.int32) >> 24 & 15
    lines = two_lines(signed)[:, :, exponents]  # (line, slope and offset, unit)
    guess = (units * lines[:, 0] + lines[:, 1]).amin(0).int()
    code = torch.searchsorted(boundaries, units)  # how many boundaries lie below
    assert ((guess == code) | (guess == code - 1)).all()
    assert guess.min() == 0 and guess.max() < boundaries.numel()  # it is an index of the boundaries
