"""A step of 8-bit AdamW: its time against peers, against 32-bit AdamW, and against the bytes it must move.

    python benchmarks/adam.py

Two cases: one large float32 parameter, and the 448 small ones of a rank-8 adapter on every projection of a 7B. A step
reads weight, gradient and both moments, and writes all but the gradient:

    bytes per parameter = 12 + 2·(bytes of state),    state = 8 (32-bit) or 2 + 8/256 (8-bit)

Before anything is timed, every contender takes ten steps from the same start, and the distance of its weights from
those of float32 AdamW is compared with the way these have gone. The contenders then update the same weights in turns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import tyro
from harness import interleaved, medians, record, relative_error
from optimizer_state import adapter_shapes, state_bytes
from peers import result_name
from torch import nn

from llama import LlamaConfig
from optim8bit import AdamW8bit
from recipe import plain_errors

CLAIM = "a step of 8-bit AdamW: at least 8 × faster than the better 8-bit peer, within 2 × of fused 32-bit AdamW"
OURS, FUSED = "ours, 8 bits", "torch fused, 32 bits"
PARITY_STEPS, PARITY = 10, 0.05  # of the way: moments in 8 bits are off by 1.5 % on average
LR = 1e-4

Parameters = Sequence[nn.Parameter]
MakeOptimizer = Callable[[Parameters], torch.optim.Optimizer]


@dataclass(frozen=True)
class Options:
    """Milliseconds per step of 8-bit AdamW, against peers and 32-bit AdamW."""

    size: int = 2**26
    """Elements of the one large parameter."""
    repeats: int = 5
    skip_peers: bool = False
    """Time ours and torch's alone."""
    device: str = "cpu"


def main() -> None:
    """Compare, time, record."""
    options = tyro.cli(Options, description=__doc__)
    with plain_errors():
        run(options)


def run(options: Options) -> None:
    """The benchmark."""
    device = torch.device(options.device)
    makers = contenders(skip_peers=options.skip_peers)
    errors = {name: parity_error(make, device) for name, make in makers.items()}
    if failed := [name for name, error in errors.items() if error > PARITY]:
        raise ValueError(f"off by more than {PARITY} of the way from float32 AdamW: {failed}; nothing was timed")
    rows = []
    adapter = adapter_shapes(LlamaConfig.named("7B"))
    cases = {f"one of {options.size / 1e6:.0f}M": [(options.size,)], f"{len(adapter)} of an adapter": adapter}
    for case, shapes in cases.items():
        parameters = drawn(shapes, device)
        optimizers = {name: make(parameters) for name, make in makers.items()}
        works = {name: step_of(optimizer, device) for name, optimizer in optimizers.items()}
        seconds = medians(interleaved(works, options.repeats))
        n = sum(p.numel() for p in parameters)
        peers = [seconds[name] for name in seconds if name.startswith(("bitsandbytes", "torchao"))]
        for name, optimizer in optimizers.items():
            state = state_bytes(optimizer) / n
            rows.append(
                {
                    "case": case,
                    "what": name,
                    "ms": 1e3 * seconds[name],
                    "times faster than the better peer": min(peers) / seconds[name] if peers else None,
                    "time / torch fused": seconds[name] / seconds[FUSED],
                    "GB/s": n * (12 + 2 * state) / seconds[name] / 1e9,
                    "bytes of state per parameter": state,
                    "distance from float32 AdamW / way": errors[name],
                }
            )
    notes = [
        f"{options.repeats} steps of each, in turns; float32 weights and gradients",
        f"{sum(map(math.prod, adapter)):,} parameters in the adapter",
    ]
    record(result_name("adam", device, options.skip_peers), rows, claim=CLAIM, notes=notes)


def contenders(*, skip_peers: bool) -> dict[str, MakeOptimizer]:
    """Names and constructors; all have the same hyperparameters."""
    makers: dict[str, MakeOptimizer] = {
        OURS: lambda parameters: AdamW8bit(parameters, lr=LR),
        "ours, 32 bits": lambda parameters: AdamW8bit([{"params": parameters, "bits": 32}], lr=LR),
        FUSED: lambda parameters: torch.optim.AdamW(parameters, lr=LR, fused=True),
    }
    if not skip_peers:
        from bitsandbytes.optim import AdamW8bit as Bitsandbytes
        from torchao.optim import AdamW8bit as Torchao

        makers["bitsandbytes, 8 bits"] = lambda parameters: Bitsandbytes(parameters, lr=LR, weight_decay=0.01)
        makers["torchao, 8 bits"] = lambda parameters: Torchao(parameters, lr=LR, weight_decay=0.01)
    return makers


def drawn(shapes: Sequence[tuple[int, ...]], device: torch.device) -> list[nn.Parameter]:
    """Parameters with gradients, random."""
    generator = torch.Generator(device).manual_seed(0)
    parameters = []
    for shape in shapes:
        parameters.append(nn.Parameter(torch.randn(shape, generator=generator, device=device)))
        parameters[-1].grad = torch.randn(shape, generator=generator, device=device).mul_(0.01)
    return parameters


def step_of(optimizer: torch.optim.Optimizer, device: torch.device) -> Callable[[], None]:
    """A work of one step, waited for."""

    def step() -> None:
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def parity_error(make: MakeOptimizer, device: torch.device) -> float:
    """‖w − w₃₂‖ / ‖w₃₂ − w₀‖ after ten steps on the same gradients, w₃₂ those of torch's float32 AdamW."""
    shape = (256, 256)
    start, reference, theirs = (drawn([shape], device) for _ in range(3))
    exact, optimizer = torch.optim.AdamW(reference, lr=LR), make(theirs)
    generator = torch.Generator(device).manual_seed(1)
    for _ in range(PARITY_STEPS):
        gradient = torch.randn(shape, generator=generator, device=device).mul_(0.01)
        reference[0].grad, theirs[0].grad = gradient, gradient.clone()
        exact.step()
        optimizer.step()
    return relative_error(theirs[0] - start[0], reference[0] - start[0])


if __name__ == "__main__":
    main()
