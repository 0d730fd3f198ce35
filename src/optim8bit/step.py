"""One step of Adam on 8-bit moments: the formula, its fast form, and the guard against underflow.

    m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²              m, v dequantized, computed in float32
    p ← p − η · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)             with these m and v, not yet rounded again
    codes, absmax ← quantize(m, signed), quantize(v, unsigned)       (arXiv 2110.02861, §2; Adam: 1412.6980, alg. 1)

The guard. v spans the square of m's range, while the unsigned map ends at 3.25e-7 of the block's largest v: wherever
|g| is below 4e-4 of the block's largest |g|, v rounds to 0 although m, with the same map, is still there. The next step
with a zero gradient then divides by ε alone. (A block with one |g| = 1 and one 3e-4 takes a step of 12,700 η; gradients
of log-normal spread take millions.) So in the optimizer no positive v becomes code 0: it is kept at the map's smallest
value. That makes v too large and the step too small, never the reverse, and costs nothing: it is one other entry in the
table of `nearest_code`. With R = |m|/√v this is a bound: rounding m up multiplies it by at most 2 (at half its smallest
value), rounding v down divides it by at most 1.871 (between 7.75e-7 and 2.125e-6), so storing multiplies R by at most
2·√1.871 = 2.74; by Cauchy's inequality the next step then has

    R_t² ≤ (β₁²/β₂)·(2.74·R_{t−1})² + (1 − β₁)²/(1 − β₂),            unguarded: no bound but |m| / ε

32-bit Adam has R ≤ 7.27, so this is R ≤ 18.2 after one storing. Over hundreds of steps of very uneven, sparse and
decaying gradients no update above 2.7 η was seen. Of the guards compared (also: v kept when decoding, at half the
smallest value; only where m ≠ 0; m dropped along with v) none follows 32-bit Adam more closely on all of those.
The remaining way out, v / N_b below float32's own range while m survives, needs gradients 22 decades apart in a block.

Non-finite gradients. A NaN or ±Inf counts as a zero gradient, and a finite one is clamped to ±1.8e19 so that its square
is finite: one bad value spoils neither its element's moments nor its block's scale. It is containment, not a remedy: a
training loop ought to stop before the update.

Rounding. bf16 and fp16 parameters are updated in float32 and rounded to the nearest: a change below half a unit in the
last place (2⁻⁹ relative, in bf16) is lost. Keep float32 master weights where learning rates are that small.

Letters: N blocks (rows), B block size.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from optim8bit.blockwise import (
    dequantize_blockwise_reference,
    n_blocks,
    quantize_blockwise_reference,
    safe_scale,
)
from optim8bit.dynamic_map import SIGNED_ZERO, cached_map, carry_table, nearest_code

GRADIENT_LIMIT = 1.8e19  # the square root of float32's largest number, rounded down
# Elements handled at a time. CPU: the half dozen float32 temporaries of a chunk stay in a core's second-level cache.
# Elsewhere memory is not a cache but a budget (64 MiB a temporary), and launches are what costs.
PLAIN_CHUNK = {"cpu": 2**16}
COMPILED_CHUNK = {"cpu": 2**17}
LARGE_CHUNK = 2**24


class Moments8bit(NamedTuple):
    """Adam's two moments of one parameter: codes in its shape (uint8), scales (N,) float32."""

    m_codes: Tensor
    m_absmax: Tensor
    v_codes: Tensor
    v_absmax: Tensor

    @classmethod
    def zeros_like(cls, p: Tensor, block_size: int) -> "Moments8bit":
        def absmax() -> Tensor:
            return torch.zeros(n_blocks(p.numel(), block_size), dtype=torch.float32, device=p.device)

        m_codes = torch.full(p.shape, SIGNED_ZERO, dtype=torch.uint8, device=p.device)
        return cls(m_codes, absmax(), torch.zeros_like(m_codes), absmax())


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
        m_decode, v_decode = cached_map(True, device), cached_map(False, device)
        return cls(m_decode, carry_table(True, device), v_decode, carry_table(False, device, keep_positive=True))


def adam8bit_step_reference(
    p: Tensor,
    grad: Tensor,
    moments: Moments8bit,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
    block_size: int = 256,
    guard: bool = True,
) -> tuple[Tensor, Moments8bit]:
    """The formula, line by line. Returns the new parameter, in p's dtype, and the new moments; changes nothing.

    Args:
        step: t, counted from 1.
        decoupled: weight decay shrinks p (AdamW) instead of adding λp to the gradient (L2).
        guard: False lets v underflow, as the plain quantizer does.
    """
    beta1, beta2 = betas
    dtype, p, g = p.dtype, p.float(), grad.float()
    if decoupled:
        p = p * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * p
    g = torch.where(g.isfinite(), g, 0.0).clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT)

    m = dequantize_blockwise_reference(moments.m_codes, moments.m_absmax, signed=True, block_size=block_size)
    v = dequantize_blockwise_reference(moments.v_codes, moments.v_absmax, signed=False, block_size=block_size)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * (g * g)
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    p = p - lr * (m_hat / (v_hat.sqrt() + eps))

    m_codes, m_absmax = quantize_blockwise_reference(m, signed=True, block_size=block_size)
    v_codes, v_absmax = quantize_blockwise_reference(v, signed=False, block_size=block_size)
    if guard:
        v_codes = torch.where(v > 0, v_codes.clamp(min=1), v_codes)
    return p.to(dtype), Moments8bit(m_codes, m_absmax, v_codes, v_absmax)


def adam_update_(p: Tensor, g: Tensor, m: Tensor, v: Tensor, h: Hyperparameters, decoupled: bool) -> None:
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
    p: Tensor, g: Tensor, moments: Moments8bit, tables: Tables, h: Hyperparameters, decoupled: bool
) -> tuple[Tensor, Tensor]:
    """First stage, on rows (N, B): updates p and both absmax, returns the unquantized m and v."""
    m = _decode(moments.m_codes, moments.m_absmax, tables.m_decode)
    v = _decode(moments.v_codes, moments.v_absmax, tables.v_decode)
    adam_update_(p, g, m, v, h, decoupled)
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
        step_8bit_(p, p.clone(), Moments8bit.zeros_like(p, 256), hyperparameters, True, 256, stages)
    except Exception as error:  # whatever keeps a compiler from working here, the plain path does not need it
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"8-bit Adam runs uncompiled, which is slower: {type(error).__name__}: {reason}", stacklevel=2)
        return plain_stages(device)
    return stages


def step_8bit_(
    p: Tensor, grad: Tensor, moments: Moments8bit, h: Hyperparameters, decoupled: bool, block_size: int, stages: Stages
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
        m, v = update(
            flat_p[start:end].view(-1, width), flat_grad[start:end].view(-1, width), rows, tables, h, decoupled
        )
        encode(m, v, rows, tables)
