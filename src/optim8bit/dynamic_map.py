"""The dynamic map: the 256 numbers in [−1, 1] that an 8-bit code can mean, and the nearest of them to a given number.

    decade i = 0 … 6 holds n_i = 2^i (signed) or 2^(i+1) (unsigned) values, the midpoints of n_i equal parts of
    [0.1, 1], times 10^(i−6); signed mirrors them; 0 and 1 are added          (dynamic tree, arXiv 2110.02861, §1.3)

A leading run of zero bits is the exponent, what remains of the byte is a linear fraction: seven decades of range, and
64 (128) steps in the uppermost one, where the values that matter lie. There is a 1 but no −1.

The nearest code, exactly and without a search. Between two neighbouring codes lies one boundary, so the code is a
staircase over the bit patterns of the non-negative float32 numbers, which are ordered like the numbers themselves. No
two boundaries share the upper 16 bits of their patterns (`carry_table` checks it): one table entry per upper half says
which code it begins with and where in its lower half the step is, stored such that adding the lower half carries into
the code's place exactly beyond the step:

    code = (table[bits >> 16] + (bits & 0xFFFF)) >> 16

The arithmetic closed form (find the decade by six comparisons, then ⌊(x·10^(6−i) − 0.1)·n_i/0.9⌋) rounds differently
from the map itself within an ulp or two of a boundary. This one is right for every float32.
"""

from functools import cache

import torch
from torch import Tensor

N_CODES = 256
N_DECADES = 7
SIGNED_ZERO = 127  # codes below it are negative, in the mirrored order of those above it
_ONE_UPPER_HALF = 0x3F80  # the upper 16 bits of float32 1.0
_LOWER_HALF = 0xFFFF
_NO_SIGN = 0x7FFFFFFF


def dynamic_map(signed: bool, device: torch.device | str = "cpu") -> Tensor:
    """The values of codes 0 … 255, ascending: (256,) float32. The arithmetic is bitsandbytes', so the bits are too.

    >>> dynamic_map(signed=True)[[0, 126, 127, 128, 255]].tolist()
    [-0.992968738079071, -5.500000384017767e-07, 0.0, 5.500000384017767e-07, 1.0]
    >>> dynamic_map(signed=False)[[0, 1, 2, 255]].tolist()
    [0.0, 3.2500003044333425e-07, 7.749999895168003e-07, 1.0]
    """
    return cached_map(signed, torch.device(device)).clone()


@cache
def cached_map(signed: bool, device: torch.device) -> Tensor:
    """`dynamic_map` without the copy, for this package: nobody may write to it."""
    magnitudes = []
    for i in range(N_DECADES):
        n_values = 2**i if signed else 2 ** (i + 1)
        edges = torch.linspace(0.1, 1, n_values + 1, dtype=torch.float32, device="cpu")
        magnitudes.append((edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - (N_DECADES - 1)))
    positive = torch.cat(magnitudes)
    negative = -positive.flip(0) if signed else positive[:0]
    return torch.cat([negative, positive.new_zeros(1), positive, positive.new_ones(1)]).to(device)


def code_boundaries(signed: bool, keep_positive: bool = False) -> Tensor:
    """For each non-negative code but the last: the largest float32 that is nearest to it. Shape (128,) or (255,).

    A number halfway between two codes takes the one nearer zero, so that quantizing is an odd function.

    Args:
        keep_positive: no positive number becomes code 0, however small: the first boundary is 0 itself.
    """
    values = cached_map(signed, torch.device("cpu"))[SIGNED_ZERO if signed else 0 :].double()
    midpoints = (values[:-1] + values[1:]) / 2  # exact: the sum of two neighbours fits float64's 53 bits
    rounded = midpoints.float()
    below = torch.nextafter(rounded, torch.zeros_like(rounded))
    boundaries = torch.where(rounded.double() > midpoints, below, rounded)
    if keep_positive:
        boundaries[0] = 0.0
    return boundaries


@cache
def carry_table(signed: bool, device: torch.device, keep_positive: bool = False) -> Tensor:
    """What `nearest_code` looks up: (0x3F81,) int32, one entry for each upper half of the numbers in [0, 1]."""
    steps = code_boundaries(signed, keep_positive).view(torch.int32)
    upper_halves = torch.arange(_ONE_UPPER_HALF + 1, dtype=torch.int32, device="cpu")
    first_code = torch.searchsorted(steps, upper_halves << 16).int()
    table = first_code << 16  # no step: adding a lower half never carries
    assert (steps >> 16).unique().numel() == steps.numel(), "two boundaries share an upper half"
    table[steps >> 16] += _LOWER_HALF - (steps & _LOWER_HALF)
    return table.to(device)


@cache
def two_lines(signed: bool) -> Tensor:
    """The lines by which C guesses a code (native/adam.c): (2, 2, 16) float32, on the CPU.

    Within decade i the codes above zero are evenly spaced: code k begins at the number u with f_i(u) = k,

        f_i(u) = k_i + (u·10^(6−i) − 0.1)·n_i/0.9,    k_i = n_i (signed) or n_i − 1, the decade's first code.

    These lines meet at the borders of decades and get flatter upwards, so the lowest of all of them holds everywhere,
    except that just above a border, for a fifth of a code, the lower decade's last code is still the nearest. Hence
    ⌊min_i f_i(u) − 1/4⌋ is the code or the one below.

    The float32 numbers in [0, 1] with the same exponent but for its last bit span a factor of four, and so two decades
    at most. Entry [j, 0, e] is the slope, [j, 1, e] the offset of the lower (j = 0) or upper decade's line, minus 1/4,
    where e are the last four bits of the exponent without its last.
    """
    lines = torch.empty(2, 2, 16, dtype=torch.float64, device="cpu")
    for e in range(16):
        bottom = 2.0 ** (2 * e - 31)
        for j, u in enumerate((bottom, 4 * bottom)):
            i = max((i for i in range(1, N_DECADES) if u > 10.0 ** (i - N_DECADES)), default=0)
            n_values = 2**i if signed else 2 ** (i + 1)
            first = n_values if signed else n_values - 1
            lines[j, 0, e] = 10.0 ** (N_DECADES - 1 - i) * n_values / 0.9
            lines[j, 1, e] = first - n_values / 9 - 0.25
    return lines.float()


def nearest_code(unit: Tensor, table: Tensor, signed: bool) -> Tensor:
    """The code nearest to each number: uint8, in unit's shape. Halfway takes the code nearer zero.

    Args:
        unit: float32 in [−1, 1], or [0, 1] for the unsigned map (the caller clamps). NaN is not allowed.
        table: from `carry_table`, on unit's device and of the same signedness.

    >>> x = torch.tensor([-1.0, 0.0, 5e-8, 0.5, 1.0])
    >>> nearest_code(x, carry_table(True, x.device), signed=True).tolist()
    [0, 127, 127, 219, 255]
    """
    bits = unit.view(torch.int32)
    magnitude = bits & _NO_SIGN
    start = table.index_select(0, (magnitude >> 16).flatten()).view_as(magnitude)
    rank = (start + (magnitude & _LOWER_HALF)) >> 16
    if not signed:
        return rank.to(torch.uint8)
    sign = bits >> 31  # 0 or −1: arithmetic shift
    # Mirror below SIGNED_ZERO; the clamp is for −1, which has no code of its own.
    return ((rank ^ sign) - sign + SIGNED_ZERO).clamp(min=0).to(torch.uint8)


def nearest_code_reference(unit: Tensor, signed: bool) -> Tensor:
    """The definition: the code with the least distance |x − q|, in float64; of two, the one of smaller |q|. uint8."""
    values = cached_map(signed, unit.device).double()
    nearer_zero_first = values.abs().argsort(stable=True)
    distance = (unit.double().unsqueeze(-1) - values[nearer_zero_first]).abs()
    return nearer_zero_first[distance.argmin(-1)].to(torch.uint8)
