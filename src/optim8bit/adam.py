"""Adam8bit and AdamW8bit: `torch.optim.Adam` and `AdamW` with a quarter of the state.

Two moments of a parameter take 2 bytes and 2·4/256 for the scales instead of 8. The step is `optim8bit.step`. Where
8 bits are not worth their error the moments are float32, and the step is torch's own formula:
- tensors under `min_8bit_size` elements (norms, biases): nothing to gain;
- groups with `"bits": 32`. Made for embeddings, whose gradients are unevenly scaled. The paper adds a LayerNorm to them
  ("stable embedding"), which a pretrained LLaMA can't take: `embeddings_in_32bit(model)` makes the groups instead.

Adapters of a small model can all be under `min_8bit_size`: ask `state_bytes()` whether 8-bit state is really in use.

Parameters cut by rows over several processes (FSDP2) have their moments cut likewise; see `optim8bit.sharding`. Where a
block would lie on two processes, moments are float32, too: `split_blocks()` lists these parameters.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from optim8bit.blockwise import n_blocks
from optim8bit.fast_step import scalars_at_step, step_
from optim8bit.moments import CODES, FLOATS, fresh_moments, in_order, restored_state
from optim8bit.sharding import blocks_are_whole, check_cut_by_rows, local_part

MIN_8BIT_SIZE = 4096


class StateBytes(NamedTuple):
    """Bytes of the moments by kind, of those on this process; the scales count as 8-bit state."""

    in_8bit: int
    in_32bit: int


def planned_state_bytes(
    numel: int, *, bits: int = 8, block_size: int = 256, min_8bit_size: int = MIN_8BIT_SIZE
) -> StateBytes:
    """Bytes that the moments of a parameter of `numel` elements will take.

    >>> planned_state_bytes(4096 * 4096), planned_state_bytes(4095)
    (StateBytes(in_8bit=34078720, in_32bit=0), StateBytes(in_8bit=0, in_32bit=32760))
    """
    if bits == 8 and numel >= min_8bit_size:
        return StateBytes(2 * (numel + 4 * n_blocks(numel, block_size)), 0)
    return StateBytes(0, 2 * 4 * numel)


def embeddings_in_32bit(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups for an 8-bit optimizer: the trainable parameters, those of nn.Embedding with float32 moments.

    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10))
    >>> [(len(group["params"]), group.get("bits")) for group in embeddings_in_32bit(model)]
    [(2, None), (1, 32)]
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if id(p) not in embeddings]},
        {"params": [p for p in trainable if id(p) in embeddings], "bits": 32},
    ]
    return [group for group in groups if group["params"]]


class Adam8bit(torch.optim.Optimizer):
    """Adam with 8-bit moments; weight decay, as in `torch.optim.Adam`, is λp added to the gradient.

    Args:
        params: parameters or groups. A group may override every option, and `bits` (8, or 32: float32).
        lr: η, a number or a tensor of one element.
        block_size: B, how many neighbours share a scale. 256; the paper has 2048.
        min_8bit_size: a tensor with fewer elements has float32 moments.

    Raises:
        ValueError: an option out of range; a complex parameter, or one that is not cut by rows; in `step`, a sparse
            gradient; in `load_state_dict`, state that doesn't fit its parameter.

    >>> weight = nn.Parameter(torch.zeros(64, 64))
    >>> optimizer = Adam8bit([weight], lr=0.1)
    >>> weight.grad = torch.full((64, 64), 3.0)
    >>> optimizer.step()
    >>> round(weight[0, 0].item(), 6), optimizer.state_bytes()  # the first step is η·sign(g)
    (-0.1, StateBytes(in_8bit=8320, in_32bit=0))
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        block_size: int = 256,
        min_8bit_size: int = MIN_8BIT_SIZE,
        *,
        decoupled_weight_decay: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "block_size": block_size,
            "min_8bit_size": min_8bit_size,
            "bits": 8,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, and checks the group's options."""
        super().add_param_group(param_group)
        try:
            _check_options(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None, *, gradient_scale: float | Tensor = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float], *, gradient_scale: float | Tensor = ...) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, gradient_scale: float | Tensor = 1.0) -> float | None:
        """Update every parameter that has a gradient; with a closure, evaluate it first and return its loss.

        Args:
            gradient_scale: what the gradients count times, such as clipping's min(1, c / ‖g‖): this saves the pass over
                them that scaling them takes. A tensor of one element is not waited for.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            together: dict[tuple[int, torch.device], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.layout != torch.strided:
                    raise ValueError(
                        f"a gradient is {p.grad.layout}: 8-bit Adam takes dense ones (Embedding sparse=False)"
                    )
                state = self.state[p] or self._fresh_state(p, group)
                state["step"] += 1
                together[state["step"], p.device].append(p)
            for (step, device), parameters in together.items():
                self._update(parameters, step, device, group, gradient_scale)
        return loss

    def prepare_state(self) -> None:
        """Give every parameter that has none yet its moments, as before the first step: to be filled in place."""
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    self._fresh_state(p, group)

    def split_blocks(self) -> list[Tensor]:
        """Parameters that have float32 moments only because a block of theirs would lie on two processes."""
        return [
            p
            for group in self.param_groups
            for p in group["params"]
            if _asks_for_8bit(p, group) and not blocks_are_whole(p, group["block_size"])
        ]

    def _fresh_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        in_8bit = _asks_for_8bit(p, group) and blocks_are_whole(p, group["block_size"])
        state = self.state[p]
        state.update(step=0, **fresh_moments(p, group["block_size"], in_8bit=in_8bit))
        return state

    def _update(
        self,
        parameters: Sequence[Tensor],
        step: int,
        device: torch.device,
        group: dict[str, Any],
        gradient_scale: float | Tensor,
    ) -> None:
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        scalars = scalars_at_step(step, gradient_scale=gradient_scale, device=device, **options)
        tensors = [in_order(p, self.state[p]) for p in parameters]
        step_(tensors, scalars, decoupled=group["decoupled_weight_decay"], block_size=group["block_size"])
        for p, (weight, *_) in zip(parameters, tensors, strict=True):
            if weight is not (part := local_part(p)):  # its strides are not those of its flat order
                part.copy_(weight)

    def state_bytes(self) -> StateBytes:
        """Bytes that the moments take now; a parameter that has not been stepped yet has none."""
        sizes = [0, 0]
        for state in self.state.values():
            for kind, names in enumerate((CODES, FLOATS)):
                sizes[kind] += sum(local_part(state[name]).nbytes for name in names if name in state)
        return StateBytes(*sizes)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, except that the state keeps its dtypes: torch would cast codes and scales to the parameter's."""
        own = [p for group in self.param_groups for p in group["params"]]
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        super().load_state_dict({**state_dict, "state": {}})  # options, hooks, and whether the groups match
        groups = [group for group in self.param_groups for _ in group["params"]]
        for p, index, group in zip(own, saved, groups, strict=True):
            if index in state_dict["state"]:
                self.state[p] = restored_state(state_dict["state"][index], p, group["block_size"], index)


class AdamW8bit(Adam8bit):
    """Adam8bit with decoupled weight decay: p ← (1 − ηλ) p before the step, as in `torch.optim.AdamW`."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        block_size: int = 256,
        min_8bit_size: int = MIN_8BIT_SIZE,
    ) -> None:
        options = (lr, betas, eps, weight_decay, block_size, min_8bit_size)
        super().__init__(params, *options, decoupled_weight_decay=True)


def _asks_for_8bit(p: Tensor, group: dict[str, Any]) -> bool:
    """Whether the options give it 8-bit moments: by its size over all processes."""
    return group["bits"] == 8 and p.numel() >= group["min_8bit_size"]


def _check_options(group: dict[str, Any]) -> None:
    lr, eps, weight_decay = group["lr"], group["eps"], group["weight_decay"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr has shape {tuple(lr.shape)}: pass a number or a tensor of one element")
    for name, value in (("lr", float(lr)), ("eps", eps), ("weight_decay", weight_decay)):
        if not value >= 0:  # NaN fails too
            raise ValueError(f"{name} is {value}: it must be at least 0")
    if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas are {group['betas']}: pass two numbers in [0, 1), for example (0.9, 0.999)")
    if group["block_size"] < 1:
        raise ValueError(f"block_size is {group['block_size']}: it must be at least 1 (256 is the usual size)")
    if group["bits"] not in (8, 32):
        raise ValueError(f"bits is {group['bits']}: moments are stored in 8 bits, or in 32 (float32)")
    for p in group["params"]:
        check_cut_by_rows(p)
        if not p.is_floating_point():
            raise ValueError(f"a parameter is {p.dtype}: 8-bit Adam takes real floating ones (torch.view_as_real)")
