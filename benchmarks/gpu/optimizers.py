"""One step of AdamW on a billion parameters, and on the adapters of a 7B model, against the bytes that it must move.

    bytes per parameter and step = p read and written + g read + both moments read and written (+ their scales)

so that a step takes at least numel · bytes / bandwidth, with the bandwidth of a copy, which also reads and writes.
In 16 bits torch's own AdamW keeps its moments in bfloat16, where they lose what is below a 256th of them; with float32
parameters it keeps them in float32. Before the billion is timed, each contender's change of some small parameters over
a few steps is compared with that of torch's AdamW in float32.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from harness import relative_error
from optimizer_state import adapter_shapes, state_bytes
from peers import DTYPE
from timing import Row, Setting, Work, busy_seconds, ratio, reason, seconds, times
from torch import Tensor, nn

from llama import LlamaConfig
from optim8bit import AdamW8bit

PARITY_STEPS = 5
PARITY = 0.2  # of the change; 8-bit codes of small moments are off by up to a tenth, and a step is their ratio

OURS, TORCH = "ours AdamW8bit", "torch AdamW, fused"
Shapes = list[tuple[int, int]]
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def measure(setting: Setting) -> Iterator[Row]:
    """Rows of three cases."""
    large = [(64, 96)] * 2 if setting.tiny else [(8192, 8192)] * 15  # 1.007 billion
    yield from _rows("1B, bf16", large, DTYPE, setting)
    yield from _rows("1B, float32", large, torch.float32, setting)
    config = LlamaConfig.named("7B")
    adapters = adapter_shapes(replace(config, n_layers=1) if setting.tiny else config)  # 448 tensors of 32 blocks
    yield from _rows("adapters of 7B, float32", adapters, torch.float32, setting)


def _rows(case: str, shapes: Shapes, dtype: torch.dtype, setting: Setting) -> Iterator[Row]:
    parameters = [nn.Parameter(torch.randn(shape, device=setting.device).to(dtype)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    works: dict[str, Work] = {}
    state: dict[str, int] = {}
    errors: dict[str, float] = {}
    failures: dict[str, str] = {}
    makers = _makers(peers=setting.peers, one_shape=len(set(shapes)) == 1)
    for name, make in makers.items():
        try:
            errors[name] = _error_of_change(make, dtype, setting.device)
            if not errors[name] <= PARITY:
                raise ValueError("its steps are too far from AdamW's in float32 for a timing to mean anything")
            optimizer = make(parameters)  # the same for all: what their values are changes no step's time
            optimizer.step()
            state[name] = state_bytes(optimizer)
            works[name] = optimizer.step
        except Exception as error:  # whatever keeps one contender from running must not cost the others their row
            failures[name] = reason(error)

    taken = seconds(works, setting)
    numel = sum(parameter.numel() for parameter in parameters)
    for name in makers:
        moved = 3 * numel * dtype.itemsize + 2 * state[name] if name in taken else None
        rate = ratio(moved, taken.get(name))
        yield {
            "case": case,
            "what": name,
            "ms": times(1e3, taken.get(name)),
            "device ms": times(1e3, busy_seconds(works[name], setting.device)) if name in taken else None,
            "÷ torch fused": ratio(taken.get(name), taken.get(TORCH)),
            "bytes per parameter": ratio(moved, numel),
            "GB/s": times(1e-9, rate),
            "of copy": ratio(rate, setting.rates.get("copy")),
            "state bytes per parameter": ratio(state.get(name), numel),
            "error of change": errors.get(name),
            "note": failures.get(name, ""),
        }


def _makers(*, peers: bool, one_shape: bool) -> dict[str, Make]:
    makers: dict[str, Make] = {OURS: AdamW8bit, TORCH: partial(torch.optim.AdamW, fused=True)}
    if peers:
        makers["bitsandbytes AdamW8bit"] = _bitsandbytes
        if one_shape:  # for each further one it compiles for a minute
            makers["torchao AdamW8bit"] = _torchao
    return makers


def _bitsandbytes(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters)


def _torchao(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    import torchao.optim

    return torchao.optim.AdamW8bit(parameters)


def _error_of_change(make: Make, dtype: torch.dtype, device: torch.device) -> float:
    """Relative difference to torch's AdamW in float32, after some steps of parameters that begin at 0."""
    ends: list[Tensor] = []
    for maker, kind in ((make, dtype), (torch.optim.AdamW, torch.float32)):
        generator = torch.Generator(device).manual_seed(0)
        parameter = nn.Parameter(torch.zeros(64, 256, dtype=kind, device=device))
        optimizer = maker([parameter])
        for _ in range(PARITY_STEPS):
            parameter.grad = torch.randn(parameter.shape, generator=generator, device=device).to(dtype).to(kind)
            optimizer.step()
        ends.append(parameter.detach().float())
    return relative_error(*ends)
