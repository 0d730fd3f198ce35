"""The step of `optim8bit.step`, fast and in place, for all parameters at once. Three ways, one result:

- C (`native.adam`), on a CPU: float32 and bfloat16;
- Triton (`optim8bit.cuda`), on a CUDA device: moments in 8 bits;
- PyTorch's operators, for all else: a chunk of whole blocks of one parameter at a time.

Every rounding is the reference's, so parameters and moments are the same bit for bit.

Letters: N blocks (rows), B block size.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from native.adam import MAX_BLOCK, AdamTensors, adam_applies, adam_step
from optim8bit.blockwise import n_blocks, safe_scale
from optim8bit.dynamic_map import N_CODES, cached_map, carry_table, code_boundaries, nearest_code, two_lines
from optim8bit.step import GRADIENT_LIMIT, Moments8bit

# Elements that the operators handle at a time. CPU: the half dozen float32 temporaries of a chunk stay in a core's
# second-level cache. Elsewhere memory is not a cache but a budget (64 MiB a temporary), and launches are what costs.
CPU_CHUNK, CHUNK = 2**16, 2**24


class Scalars(NamedTuple):
    """The step's numbers as 0-dimensional float32 tensors, in the order that C and Triton read them in."""

    lr: Tensor
    beta1: Tensor
    one_minus_beta1: Tensor
    beta2: Tensor
    one_minus_beta2: Tensor
    correction1: Tensor  # 1 − β₁ᵗ
    correction2: Tensor  # 1 − β₂ᵗ
    eps: Tensor
    weight_decay: Tensor
    shrink: Tensor  # 1 − η·λ, the factor of decoupled weight decay
    gradient_scale: Tensor


def scalars_at_step(
    step: int,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    gradient_scale: float | Tensor = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(11,) float32 on `device`, in the order of `Scalars`; each is computed in float64 and rounded once.

    lr and gradient_scale may be tensors of one element: on `device`, the host does not wait for them.
    """
    beta1, beta2 = betas
    eta = 0.0 if isinstance(lr, Tensor) else lr
    scale = 1.0 if isinstance(gradient_scale, Tensor) else gradient_scale
    corrections = (1 - beta1**step, 1 - beta2**step)
    values = (eta, beta1, 1 - beta1, beta2, 1 - beta2, *corrections, eps, weight_decay, 1 - eta * weight_decay, scale)
    scalars = torch.tensor(values, dtype=torch.float32, device="cpu")
    target = torch.device(device)
    scalars = scalars.pin_memory().to(target, non_blocking=True) if target.type == "cuda" else scalars.to(target)
    named = Scalars(*scalars.unbind())
    if isinstance(lr, Tensor):
        named.lr.copy_(lr.view(()))
        named.shrink.copy_(1 - lr.view(()).double() * weight_decay)
    if isinstance(gradient_scale, Tensor):
        named.gradient_scale.copy_(gradient_scale.view(()))
    return scalars


class Codec(NamedTuple):
    """What a moment's codes mean and how they are found, on one device."""

    values: Tensor  # (256,) float32
    carries: Tensor  # of `carry_table`
    flat: Tensor  # (576,) float32, for C: values, largest number nearest to each, lines of the guess

    @classmethod
    def of(cls, *, signed: bool, device: torch.device) -> "Codec":
        guard = not signed  # no positive second moment becomes code 0
        boundaries = code_boundaries(signed, keep_positive=guard)
        boundaries = F.pad(boundaries, (0, N_CODES - boundaries.numel()), value=torch.inf)
        flat = torch.cat([cached_map(signed, torch.device("cpu")), boundaries, two_lines(signed).flatten()])
        return cls(cached_map(signed, device), carry_table(signed, device, keep_positive=guard), flat)


@cache
def codecs(device: torch.device) -> tuple[Codec, Codec]:
    """Those of the first and the second moment."""
    return Codec.of(signed=True, device=device), Codec.of(signed=False, device=device)


def step_(parameters: Sequence[AdamTensors], scalars: Tensor, *, decoupled: bool, block_size: int) -> None:
    """One step in place on parameters and moments of one device, at one step count.

    Args:
        parameters: weights and codes are contiguous; a gradient has its weight's shape.
        scalars: from `scalars_at_step`, on the parameters' device.
    """
    by_c, by_triton, by_operators = [], [], []
    for tensors in parameters:
        if adam_applies(tensors, block_size):
            by_c.append(tensors)
        elif tensors.weight.is_cuda and tensors.m_absmax is not None and block_size <= MAX_BLOCK and _cuda():
            by_triton.append(tensors)
        else:
            by_operators.append(tensors)
    if by_c:
        m_codec, v_codec = codecs(scalars.device)
        adam_step(by_c, scalars, m_codec.flat, v_codec.flat, block_size=block_size, decoupled=decoupled)
    if by_triton and (cuda := _cuda()):
        cuda.adam_8bit_step_(by_triton, scalars, *codecs(scalars.device), block_size=block_size, decoupled=decoupled)
    for tensors in by_operators:
        step_by_operators_(tensors, Scalars(*scalars.unbind()), decoupled=decoupled, block_size=block_size)


@cache
def _cuda() -> ModuleType | None:
    """The Triton kernel's module, or None, with one warning, where Triton is not installed."""
    try:
        from optim8bit import cuda
    except ImportError as error:
        warnings.warn(f"8-bit Adam goes by operators on this device, which is slower: {error}", stacklevel=2)
        return None
    return cuda


def step_by_operators_(tensors: AdamTensors, s: Scalars, *, decoupled: bool, block_size: int) -> None:
    """One parameter's step, a chunk of whole blocks at a time; a shorter last block on its own."""
    p, grad, m_codes, v_codes, m_absmax, v_absmax = tensors
    if m_absmax is None or v_absmax is None:
        adam_update_(p, grad, m_codes, v_codes, s, decoupled=decoupled)
        return
    flat = [tensor.view(-1) for tensor in (p, grad.contiguous(), m_codes, v_codes)]
    chunk = max((CPU_CHUNK if p.device.type == "cpu" else CHUNK) // block_size, 1) * block_size
    in_whole_blocks = p.numel() // block_size * block_size
    spans = [(start, min(start + chunk, in_whole_blocks), block_size) for start in range(0, in_whole_blocks, chunk)]
    if in_whole_blocks < p.numel():
        spans.append((in_whole_blocks, p.numel(), p.numel() - in_whole_blocks))
    for start, end, width in spans:
        blocks = slice(start // block_size, n_blocks(end, block_size))
        rows = [tensor[start:end].view(-1, width) for tensor in flat]
        moments = Moments8bit(rows[2], m_absmax[blocks], rows[3], v_absmax[blocks])
        _step_rows_(rows[0], rows[1], moments, s, decoupled=decoupled)


def _step_rows_(p: Tensor, grad: Tensor, moments: Moments8bit, s: Scalars, *, decoupled: bool) -> None:
    """The step on rows (N, B) that are blocks."""
    m_codec, v_codec = codecs(p.device)
    m = _decode(moments.m_codes, moments.m_absmax, m_codec)
    v = _decode(moments.v_codes, moments.v_absmax, v_codec)
    adam_update_(p, grad, m, v, s, decoupled=decoupled)
    torch.amax(m.abs(), 1, out=moments.m_absmax)
    torch.amax(v, 1, out=moments.v_absmax)
    m_unit = m.div_(safe_scale(moments.m_absmax).unsqueeze(1))
    v_unit = v.div_(safe_scale(moments.v_absmax).unsqueeze(1))
    moments.m_codes.copy_(nearest_code(m_unit, m_codec.carries, signed=True))
    moments.v_codes.copy_(nearest_code(v_unit, v_codec.carries, signed=False))


def adam_update_(p: Tensor, grad: Tensor, m: Tensor, v: Tensor, s: Scalars, *, decoupled: bool) -> None:
    """Adam on float32 moments, in place on m, v and p (any floating dtype)."""
    weight = p.float()  # p itself where it is float32
    g = grad.float() * s.gradient_scale
    if decoupled:
        weight.mul_(s.shrink)
    else:
        g.add_(weight * s.weight_decay)
    g.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).clamp_(-GRADIENT_LIMIT, GRADIENT_LIMIT)
    m.mul_(s.beta1).add_(g * s.one_minus_beta1)
    v.mul_(s.beta2).add_(g.square_().mul_(s.one_minus_beta2))
    root = v / s.correction2
    # The nearest float32, as in step.py: a CPU's vector library may miss it by one place.
    root = root.double().sqrt_().float() if root.device.type == "cpu" else root.sqrt_()
    denominator = root.add_(s.eps)
    weight.sub_((m / s.correction1).div_(denominator).mul_(s.lr))
    p.copy_(weight)


def _decode(codes: Tensor, absmax: Tensor, codec: Codec) -> Tensor:
    values = codec.values.index_select(0, codes.flatten().int()).view(codes.shape)
    return values.mul_(absmax.unsqueeze(1))
