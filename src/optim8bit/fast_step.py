"""The step of `optim8bit.step`, fast: in place, a chunk of whole blocks at a time, through torch.compile where it pays.

A step has two stages. The first decodes the moments, updates them and the parameter, and finds each block's new absmax;
the second encodes the moments with it. Every rounding is the reference's, so the moments are the same bit for bit.

Letters: N blocks (rows), B block size.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from optim8bit.blockwise import n_blocks, safe_scale
from optim8bit.dynamic_map import cached_map, carry_table, nearest_code
from optim8bit.step import GRADIENT_LIMIT, Moments8bit

# Elements handled at a time. CPU: the half dozen float32 temporaries of a chunk stay in a core's second-level cache.
# Elsewhere memory is not a cache but a budget (64 MiB a temporary), and launches are what costs.
PLAIN_CHUNK = {"cpu": 2**16}
COMPILED_CHUNK = {"cpu": 2**17}
LARGE_CHUNK = 2**24


class Hyperparameters(NamedTuple):
    """The step's scalars as 0-dimensional float32 tensors: a compiled step then need not know their values."""

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

    @classmethod
    def at_step(
        cls,
        step: int,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        device: torch.device | str = "cpu",
    ) -> "Hyperparameters":
        beta1, beta2 = betas
        corrections = (1 - beta1**step, 1 - beta2**step)
        values = (lr, beta1, 1 - beta1, beta2, 1 - beta2, *corrections, eps, weight_decay, 1 - lr * weight_decay)
        return cls(*torch.tensor(values, dtype=torch.float32, device=device).unbind())


class Tables(NamedTuple):
    """The look-up tables of both moments, on one device."""

    m_decode: Tensor
    m_encode: Tensor
    v_decode: Tensor
    v_encode: Tensor

    @classmethod
    def on(cls, device: torch.device) -> "Tables":
        return cls(
            m_decode=cached_map(signed=True, device=device),
            m_encode=carry_table(signed=True, device=device),
            v_decode=cached_map(signed=False, device=device),
            v_encode=carry_table(signed=False, device=device, keep_positive=True),  # the guard
        )


def adam_update_(p: Tensor, g: Tensor, m: Tensor, v: Tensor, h: Hyperparameters, *, decoupled: bool) -> None:
    """Adam on float32 moments, in place on m, v and p (any floating dtype). Every rounding is the reference's."""
    weight = p.float()  # p itself where it is float32
    g = g.float()
    if decoupled:
        weight.mul_(h.shrink)
    else:
        g = g + weight * h.weight_decay
    g = _contained(g)
    m.mul_(h.beta1).add_(g * h.one_minus_beta1)
    v.mul_(h.beta2).add_(g.square_().mul_(h.one_minus_beta2))
    denominator = (v / h.correction2).sqrt_().add_(h.eps)
    weight.sub_((m / h.correction1).div_(denominator).mul_(h.lr))
    p.copy_(weight)


def _contained(g: Tensor) -> Tensor:
    """A copy of the gradient whose square is finite everywhere: non-finite values are 0."""
    if torch.compiler.is_compiling():  # there nan_to_num is a scalar loop; outside, where is forty times slower
        g = torch.where(g.abs() < torch.inf, g, 0.0)
    else:
        g = g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return g.clamp_(-GRADIENT_LIMIT, GRADIENT_LIMIT)


def _decode_and_update(
    p: Tensor, g: Tensor, moments: Moments8bit, tables: Tables, h: Hyperparameters, *, decoupled: bool
) -> tuple[Tensor, Tensor]:
    """First stage, on rows (N, B): updates p and both absmax, returns the unquantized m and v."""
    m = _decode(moments.m_codes, moments.m_absmax, tables.m_decode)
    v = _decode(moments.v_codes, moments.v_absmax, tables.v_decode)
    adam_update_(p, g, m, v, h, decoupled=decoupled)
    moments.m_absmax.copy_(m.abs().amax(dim=1))
    moments.v_absmax.copy_(v.amax(dim=1))
    return m, v


def _encode(m: Tensor, v: Tensor, moments: Moments8bit, tables: Tables) -> None:
    """Second stage: m and v, divided by their block's new absmax, become codes."""
    m_unit = m / safe_scale(moments.m_absmax).unsqueeze(1)
    v_unit = v / safe_scale(moments.v_absmax).unsqueeze(1)
    moments.m_codes.copy_(nearest_code(m_unit, tables.m_encode, signed=True))
    moments.v_codes.copy_(nearest_code(v_unit, tables.v_encode, signed=False))


def _decode(codes: Tensor, absmax: Tensor, table: Tensor) -> Tensor:
    values = table.index_select(0, codes.flatten().int()).view(codes.shape)
    return values.mul_(absmax.unsqueeze(1))


class Stages(NamedTuple):
    """The two stages of a step, and how many elements to give them at a time."""

    decode_and_update: Callable[..., tuple[Tensor, Tensor]]
    encode: Callable[..., None]
    chunk: int


def plain_stages(device: torch.device) -> Stages:
    return Stages(_decode_and_update, _encode, PLAIN_CHUNK.get(device.type, LARGE_CHUNK))


@cache
def compiled_stages(device: torch.device) -> Stages:
    """The same two functions through torch.compile; the plain ones, with one warning, where that does not work.

    Two stages over chunks that stay in cache, not one graph over everything: a block's codes need its absmax, which
    needs all of its new moments, so these are written once and read once whatever the compiler does.
    """
    stages = Stages(
        torch.compile(_decode_and_update, dynamic=True),
        torch.compile(_encode, dynamic=True),
        COMPILED_CHUNK.get(device.type, LARGE_CHUNK),
    )
    try:
        p = torch.ones(2, 256, device=device)
        hyperparameters = Hyperparameters.at_step(
            1, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, device=device
        )
        moments = Moments8bit.zeros_like(p, 256)
        step_8bit_(p, p.clone(), moments, hyperparameters, decoupled=True, block_size=256, stages=stages)
    except Exception as error:  # whatever keeps a compiler from working here, the plain path does not need it
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"8-bit Adam runs uncompiled, which is slower: {type(error).__name__}: {reason}", stacklevel=2)
        return plain_stages(device)
    return stages


def step_8bit_(
    p: Tensor,
    grad: Tensor,
    moments: Moments8bit,
    h: Hyperparameters,
    *,
    decoupled: bool,
    block_size: int,
    stages: Stages,
) -> None:
    """One step in place on p and its moments, a chunk of whole blocks at a time; a shorter last block on its own.

    p and the codes must be contiguous; grad has p's shape.
    """
    tables = Tables.on(p.device)
    flat_p, flat_grad = p.view(-1), grad.reshape(-1)
    flat = moments._replace(m_codes=moments.m_codes.view(-1), v_codes=moments.v_codes.view(-1))
    chunk = max(stages.chunk // block_size, 1) * block_size
    in_whole_blocks = p.numel() // block_size * block_size
    starts = range(0, in_whole_blocks, chunk)
    spans = [(start, min(start + chunk, in_whole_blocks), block_size) for start in starts]
    if in_whole_blocks < p.numel():
        spans.append((in_whole_blocks, p.numel(), p.numel() - in_whole_blocks))
    plain = plain_stages(p.device)
    for start, end, width in spans:
        blocks = slice(start // block_size, n_blocks(end, block_size))
        rows = Moments8bit(
            flat.m_codes[start:end].view(-1, width),
            flat.m_absmax[blocks],
            flat.v_codes[start:end].view(-1, width),
            flat.v_absmax[blocks],
        )
        # A single row would be compiled for its own: sizes 0 and 1 are never dynamic.
        update, encode, _ = stages if end - start > width else plain
        p_rows, grad_rows = flat_p[start:end].view(-1, width), flat_grad[start:end].view(-1, width)
        m, v = update(p_rows, grad_rows, rows, tables, h, decoupled=decoupled)
        encode(m, v, rows, tables)
