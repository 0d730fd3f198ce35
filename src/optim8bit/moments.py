"""What an 8-bit Adam keeps of each parameter: names, dtypes and shapes; made fresh, and from a saved state.

    step                                  int
    exp_avg_codes, exp_avg_sq_codes       uint8, the parameter's shape
    exp_avg_absmax, exp_avg_sq_absmax     float32, a scale for each block: (N,), or of a sharded matrix (R, C / B)
or  exp_avg, exp_avg_sq                   float32, the parameter's shape, under torch's names

Of a sharded parameter they are DTensors, cut as it is (`optim8bit.sharding`).
"""

import math
from typing import Any

import torch
from torch import Tensor

from native.adam import AdamTensors
from optim8bit.sharding import blocks_are_whole, is_sharded, local_part, own_rows, scales_shape, with_rows_of
from optim8bit.step import Moments8bit

CODES = ("exp_avg_codes", "exp_avg_absmax", "exp_avg_sq_codes", "exp_avg_sq_absmax")
FLOATS = ("exp_avg", "exp_avg_sq")


def fresh_moments(p: Tensor, block_size: int, *, in_8bit: bool) -> dict[str, Tensor]:
    """Zero moments of a parameter, on its device."""
    part = local_part(p)
    if in_8bit:
        parts = dict(zip(CODES, Moments8bit.zeros_like(part, block_size), strict=True))
    else:
        parts = {name: torch.zeros(part.shape, dtype=torch.float32, device=part.device) for name in FLOATS}
    return {name: _placed(moment, p, name, block_size) for name, moment in parts.items()}


def in_order(p: Tensor, state: dict[str, Any]) -> AdamTensors:
    """The part of a parameter, its gradient and its state that lies here, in its flat order: copies where it is not."""
    assert p.grad is not None
    weight, gradient = local_part(p).contiguous(), local_part(p.grad).contiguous()
    if CODES[0] not in state:
        return AdamTensors(weight, gradient, local_part(state["exp_avg"]), local_part(state["exp_avg_sq"]))
    m_codes, m_absmax, v_codes, v_absmax = (local_part(state[name]) for name in CODES)
    return AdamTensors(weight, gradient, m_codes, v_codes, m_absmax.view(-1), v_absmax.view(-1))


def restored_state(saved: dict[str, Any], p: Tensor, block_size: int, index: int) -> dict[str, Any]:
    """A parameter's saved state, copied to its device.

    Args:
        saved: as this parameter has it. A sharded one takes whole tensors, too, and copies its rows of them.
        index: the parameter's, for the message.

    Raises:
        ValueError: it can't be that parameter's state.
    """
    tensors = {name: value for name, value in saved.items() if isinstance(value, Tensor)}
    if is_sharded(p):
        tensors = {name: _in_rows(value, p, name, block_size) for name, value in tensors.items()}
    found = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    expected = [{name: _form(p, name, block_size) for name in names} for names in (CODES, FLOATS)]
    if found not in expected or not isinstance(saved.get("step"), int):
        raise ValueError(
            f"the saved state of parameter {index} is {found}: it doesn't fit shape {tuple(p.shape)} in blocks of "
            f"{block_size}. Load a state dict that an 8-bit Adam saved for this model"
        )
    if CODES[0] in tensors and not blocks_are_whole(p, block_size):
        raise ValueError(
            f"the saved state of parameter {index}, shape {tuple(p.shape)}, is in 8 bits, but here a block of "
            f"{block_size} would lie on two processes, so it must be float32: go on with as many processes as before"
        )
    if misplaced := [name for name, value in tensors.items() if is_sharded(value) and not _cut_alike(value, p)]:
        raise ValueError(
            f"the saved {misplaced[0]} of parameter {index} is cut over processes in another way than the parameter: "
            "give whole tensors, or those of the same mesh"
        )
    parts = {name: local_part(value) if is_sharded(value) else own_rows(value, p) for name, value in tensors.items()}
    copies = {name: part.detach().to(p.device, copy=True) for name, part in parts.items()}
    return saved | {name: _placed(part, p, name, block_size) for name, part in copies.items()}


def _form(p: Tensor, name: str, block_size: int) -> tuple[torch.dtype, tuple[int, ...]]:
    """dtype and shape, over all processes, of the state tensor of that name."""
    if name.endswith("_absmax"):
        return torch.float32, scales_shape(p, block_size)
    return torch.uint8 if name.endswith("_codes") else torch.float32, tuple(p.shape)


def _placed(part: Tensor, p: Tensor, name: str, block_size: int) -> Tensor:
    """A state tensor from the part that lies here."""
    if not is_sharded(p):
        return part
    _, shape = _form(p, name, block_size)
    return with_rows_of(p, part.reshape(local_part(p).shape[:1] + shape[1:] if len(shape) > 1 else (-1,)), shape)


def _in_rows(value: Tensor, p: Tensor, name: str, block_size: int) -> Tensor:
    """A whole tensor of scales in the shape in which a sharded parameter has them, if it has as many."""
    shape = scales_shape(p, block_size)
    if not name.endswith("_absmax") or is_sharded(value) or value.numel() != math.prod(shape):
        return value
    return value.view(shape)


def _cut_alike(value: Any, p: Any) -> bool:
    return is_sharded(p) and value.device_mesh == p.device_mesh and value.placements == p.placements
