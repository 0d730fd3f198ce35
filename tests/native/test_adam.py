"""Adam in C: where it applies, and that threads and neighbours do not matter. Its numbers: tests/optim8bit."""

import pytest
import torch

import native.adam
from native.adam import AdamTensors, adam_applies, adam_step
from optim8bit import dequantize_blockwise
from optim8bit.dynamic_map import cached_map, code_boundaries
from optim8bit.fast_step import codecs, scalars_at_step

pytestmark = pytest.mark.skipif(native.adam._library() is None, reason="install a C compiler")

CPU = torch.device("cpu")


def drawn(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> AdamTensors:
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = (torch.randn(n, generator=generator).to(dtype) for _ in range(2))
    codes = [torch.randint(256, (n,), dtype=torch.uint8, generator=generator) for _ in range(2)]
    scales = [torch.rand(-(-n // 256), generator=generator) for _ in range(2)]
    return AdamTensors(weight, gradient, *codes, *scales)


def stepped(parameters: list[AdamTensors], **changes: float) -> list[AdamTensors]:
    m_codec, v_codec = codecs(CPU)
    scalars = scalars_at_step(2, **({"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0} | changes))
    copies = [AdamTensors(*(tensor.clone() for tensor in tensors)) for tensors in parameters]
    adam_step(copies, scalars, m_codec.flat, v_codec.flat, block_size=256, decoupled=True)
    return copies


def equal(mine: AdamTensors, theirs: AdamTensors) -> bool:
    return all(map(torch.equal, mine, theirs))


def test_many_parameters_in_one_call_are_many_calls() -> None:
    sizes = [0, 1, 256, 5000, 0, 40_000, 255, 257, *range(1, 80)]
    parameters = [drawn(n, seed) for seed, n in enumerate(sizes)]
    for mine, before in zip(stepped(parameters), parameters, strict=True):
        assert equal(mine, stepped([before])[0])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_does_not_matter(threads: int) -> None:
    parameters, before = [drawn(100_000), drawn(777, dtype=torch.bfloat16)], torch.get_num_threads()
    expected = stepped(parameters)
    try:
        torch.set_num_threads(threads)
        assert all(map(equal, stepped(parameters), expected))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_change_exactly_beyond_their_boundaries(signed: bool) -> None:
    """Gradients that make the moment's share of its scale a boundary, or the next float32: the guess may not decide."""
    boundaries = code_boundaries(signed)
    above = torch.nextafter(boundaries, torch.ones(()))
    units = torch.cat([boundaries, above, -boundaries, -above] if signed else [boundaries, above])
    tiny = 2.0 ** -torch.arange(20.0, 60.0)
    units = torch.cat([units, tiny, tiny.new_zeros(1)])
    blocks = torch.nn.functional.pad(units, (0, -len(units) % 63)).view(-1, 63)
    blocks = torch.cat([torch.ones(len(blocks), 1), blocks], dim=1)  # the scale is 1
    n = blocks.numel()
    gradient = (blocks if signed else blocks.sqrt()).flatten()
    # β = 0: the moment is the gradient or its square.
    tensors = drawn(n)._replace(gradient=gradient, m_absmax=torch.zeros(n // 64), v_absmax=torch.zeros(n // 64))
    scalars = scalars_at_step(1, lr=0.0, betas=(0.0, 0.0), eps=1.0, weight_decay=0.0)
    m_codec, v_codec = codecs(CPU)
    adam_step([tensors], scalars, m_codec.flat, v_codec.flat, block_size=64, decoupled=True)
    moment = gradient if signed else gradient.square()
    codes, absmax = (tensors.m, tensors.m_absmax) if signed else (tensors.v, tensors.v_absmax)
    assert torch.equal(absmax, torch.ones(n // 64))
    found = dequantize_blockwise(codes, absmax, signed=signed, block_size=64)
    distance = (moment[:, None].double() - cached_map(signed, CPU).double()).abs()
    if not signed:  # the guard
        distance[moment > 0, 0] = torch.inf
    assert torch.equal((moment.double() - found.double()).abs(), distance.amin(1))


def test_where_c_does_not_apply() -> None:
    tensors = drawn(512)
    assert adam_applies(tensors, 256)
    assert not adam_applies(tensors, native.adam.MAX_BLOCK + 1)
    assert not adam_applies(tensors._replace(gradient=tensors.gradient.bfloat16()), 256)
    assert not adam_applies(tensors._replace(weight=tensors.weight.half(), gradient=tensors.gradient.half()), 256)
    assert not adam_applies(tensors._replace(gradient=torch.ones(1024)[::2]), 256)
    assert not adam_applies(tensors._replace(m=tensors.m.float()), 256)
    assert not adam_applies(AdamTensors(*(tensor.to("meta") for tensor in tensors)), 256)
