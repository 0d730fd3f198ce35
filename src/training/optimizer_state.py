"""An optimizer's state as named tensors and step counts, and back.

A moment is `PARAMETER.KEY`, under the key by which the optimizer knows it, bit for bit as the optimizer holds it:

    exp_avg_codes, exp_avg_sq_codes      uint8       (R, C)        8-bit Adam's codes
    exp_avg_absmax, exp_avg_sq_absmax    float32     (R, C / B)    its scales; (N,) where a block may end within a row
    exp_avg, exp_avg_sq                  float32 or the parameter's dtype, and its shape

A matrix of whole blocks has its scales in rows in a file, however they lie in memory: so a tensor that is cut by rows
over several processes and one that is whole are the same tensor. Options (learning rate, decay) are the config's.

Letters: R rows, C columns, B block size, N blocks.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from files import UnsuitableFileError
from optim8bit import Adam8bit, dequantize_blockwise
from optim8bit.blockwise import n_blocks
from optim8bit.moments import CODES, FLOATS, fresh_moments
from optim8bit.sharding import blocks_are_whole, own_rows, with_rows_of


def form(tensor: Tensor) -> str:
    """Shape (of a sharded one, over all processes) and dtype, to compare and to print.

    >>> form(torch.zeros(2, 3))
    '(2, 3) torch.float32'
    """
    return _spelled(tensor.shape, tensor.dtype)


def optimizer_tensors(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Moments by `PARAMETER.KEY`, in their shapes in a file, and step counts by parameter. No moment is copied.

    Args:
        parameters: what is trained, by name: all that the optimizer has state of.

    Raises:
        ValueError: state of a parameter that is not among them, or of a kind that is not Adam's.
    """
    moments: dict[str, Tensor] = {}
    steps: dict[str, int] = {}
    blocks = _block_sizes(optimizer)
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter)
        if not state:
            continue
        kept = {
            key: _in_file(value, key, parameter, blocks[parameter]) if isinstance(value, Tensor) else value
            for key, value in state.items()
            if key != "step"
        }
        forms = {key: form(value) if isinstance(value, Tensor) else repr(value) for key, value in kept.items()}
        if forms not in _layouts(parameter, optimizer, blocks[parameter]):
            raise ValueError(f"the state of {name} is not one of Adam's, which is all that can be saved: {forms}")
        steps[name] = int(state["step"])
        moments |= {f"{name}.{key}": value for key, value in kept.items()}
    if (unnamed := sum(map(bool, optimizer.state.values())) - len(steps)) > 0:
        raise ValueError(f"the optimizer has state of parameters that the model does not train: {unnamed}")
    return moments, steps


@dataclass(frozen=True)
class Pending:
    """A parameter's state on its way from a file.

    Attributes:
        parts: the tensors to fill, by key, as the file has them; `state` shares their memory where it can.
        state: what the optimizer gets.
    """

    parameter: Tensor
    state: dict[str, Any]
    parts: dict[str, Tensor]
    block_size: int

    def finished(self) -> dict[str, Any]:
        """The state, once all parts are filled."""
        if set(self.parts) <= self.state.keys():
            return self.state
        # Codes whose blocks would now lie on two processes: their values, in float32, are still the same.
        decoded = {
            key: dequantize_blockwise(
                self.parts[f"{key}_codes"],
                self.parts[f"{key}_absmax"].view(-1),
                signed=key == "exp_avg",
                block_size=self.block_size,
            )
            for key in FLOATS
        }
        shape = tuple(self.parameter.shape)
        rows = {key: own_rows(value, self.parameter).clone() for key, value in decoded.items()}
        return self.state | {key: with_rows_of(self.parameter, part, shape) for key, part in rows.items()}


def pending_states(
    file: Path,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, str],
    steps: Mapping[str, int],
) -> dict[str, Pending]:
    """New state, yet to be filled, for every parameter that has some in a file. The optimizer does not change.

    Args:
        file: says what follows; for the message.
        tensors: `form` of each moment, by `PARAMETER.KEY`.
        steps: step counts, by parameter.

    Raises:
        UnsuitableFileError: it is the state of other parameters, or of another optimizer.
    """
    blocks = _block_sizes(optimizer)
    by_parameter: dict[str, dict[str, str]] = defaultdict(dict)
    for full_name, each in tensors.items():
        name, _, key = full_name.rpartition(".")
        by_parameter[name][key] = each
    pending = {}
    for name, step in steps.items():
        if name not in parameters or parameters[name] not in blocks:
            raise UnsuitableFileError(
                "the optimizer's state is of a parameter that is not trained here",
                file=file,
                place=name,
                remedy="resume with the settings of the run that wrote it",
            )
        parameter = parameters[name]
        layouts = _layouts(parameter, optimizer, blocks[parameter])
        found = by_parameter.get(name, {})
        if found not in layouts:
            raise UnsuitableFileError(
                f"the optimizer's state is {found}, but shape {tuple(parameter.shape)} has {_either(layouts)}",
                file=file,
                place=name,
                remedy="resume with the settings of the run that wrote it",
            )
        pending[name] = _pending(parameter, optimizer, blocks[parameter], step, found)
    if extra := sorted(by_parameter.keys() - steps.keys()):
        name = next(full_name for full_name in tensors if full_name.startswith(extra[0]))
        raise UnsuitableFileError(
            "no parameter that is trained here has it",
            file=file,
            place=name,
            remedy="resume with the settings of the run that wrote it",
        )
    return pending


# --- Parts ---


def _pending(
    parameter: Tensor, optimizer: torch.optim.Optimizer, block_size: int, step: int, forms: Mapping[str, str]
) -> Pending:
    if not isinstance(optimizer, Adam8bit):
        moments = {key: torch.zeros_like(parameter, requires_grad=False) for key in FLOATS}
        return Pending(parameter, {"step": _torch_step(parameter, optimizer, step)} | moments, moments, block_size)
    in_8bit = CODES[0] in forms
    if in_8bit and not blocks_are_whole(parameter, block_size):
        device = parameter.device
        parts = {
            key: torch.zeros(shape, dtype=dtype, device=device)
            for key, (shape, dtype) in _code_forms(parameter, block_size).items()
        }
        return Pending(parameter, {"step": step}, parts, block_size)
    moments = fresh_moments(parameter, block_size, in_8bit=in_8bit)
    parts = {key: _in_file(moment, key, parameter, block_size) for key, moment in moments.items()}
    return Pending(parameter, {"step": step} | moments, parts, block_size)


def _in_file(moment: Tensor, key: str, parameter: Tensor, block_size: int) -> Tensor:
    """A moment in the shape that it has in a file, sharing its memory."""
    shape = _scales_shape(parameter, block_size)
    return moment.view(shape) if key.endswith("_absmax") and tuple(moment.shape) != shape else moment


def _scales_shape(parameter: Tensor, block_size: int) -> tuple[int, ...]:
    if parameter.ndim == 2 and parameter.shape[1] % block_size == 0:
        return parameter.shape[0], parameter.shape[1] // block_size
    return (n_blocks(parameter.numel(), block_size),)


def _code_forms(parameter: Tensor, block_size: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    codes = (tuple(parameter.shape), torch.uint8)
    scales = (_scales_shape(parameter, block_size), torch.float32)
    return {key: scales if key.endswith("_absmax") else codes for key in CODES}


def _layouts(parameter: Tensor, optimizer: torch.optim.Optimizer, block_size: int) -> list[dict[str, str]]:
    """The forms that a parameter's moments may have in a file, by key."""
    if not isinstance(optimizer, Adam8bit):
        return [dict.fromkeys(FLOATS, form(parameter))]
    codes = {key: _spelled(*each) for key, each in _code_forms(parameter, block_size).items()}
    return [codes, dict.fromkeys(FLOATS, _spelled(parameter.shape, torch.float32))]


def _block_sizes(optimizer: torch.optim.Optimizer) -> dict[Tensor, int]:
    """Values per scale of each of the optimizer's parameters; 1 where there are none."""
    return {p: group.get("block_size", 1) for group in optimizer.param_groups for p in group["params"]}


def _torch_step(parameter: Tensor, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
    """The count as torch's Adam keeps it: on the CPU, unless a kernel on the device counts."""
    [group] = [group for group in optimizer.param_groups if any(p is parameter for p in group["params"])]
    on_device = group.get("capturable") or group.get("fused")
    return torch.tensor(float(step), dtype=torch.float32, device=parameter.device if on_device else "cpu")


def _either(layouts: list[dict[str, str]]) -> str:
    return " or ".join(map(str, layouts))


def _spelled(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{tuple(shape)} {dtype}"
