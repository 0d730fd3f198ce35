import sys

import pytest
import torch
from adam_steps import LR, fast_step, generator, uneven_gradients

import native.adam
import optim8bit.fast_step
from native.adam import AdamTensors
from optim8bit import Moments8bit, adam8bit_step_reference
from optim8bit.fast_step import Scalars, scalars_at_step, step_

WITHOUT_C = native.adam._library() is None


@pytest.fixture(params=["C", "operators"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How float32 and bfloat16 steps are computed; other dtypes always go by operators."""
    if request.param == "operators":
        monkeypatch.setattr(optim8bit.fast_step, "adam_applies", lambda *_: False)
    elif WITHOUT_C:
        pytest.skip("install a C compiler")
    return request.param


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7,), (256,), (1000,), (300, 301), (70_000,)])
def test_fast_equals_reference(shape: tuple[int, ...], dtype: torch.dtype, decoupled: bool, way: str) -> None:
    p = torch.randn(shape, generator=generator(0)).to(dtype)
    fast, reference = (p, Moments8bit.zeros_like(p, 256)), (p, Moments8bit.zeros_like(p, 256))
    for step, grad in enumerate(uneven_gradients(shape, 2), start=1):
        grad.view(-1)[[1, 3]] = torch.tensor([torch.nan, -torch.inf])
        options = {"step": step, "weight_decay": 0.1, "decoupled": decoupled, "gradient_scale": 0.7}
        fast = fast_step(fast[0], grad.to(dtype), fast[1], **options)
        reference = adam8bit_step_reference(reference[0], grad.to(dtype), reference[1], lr=LR, **options)
        assert fast[0].dtype == dtype
        assert torch.equal(fast[0], reference[0])
        assert all(map(torch.equal, fast[1], reference[1]))


@pytest.mark.parametrize("block_size", [1, 10, 64, 100, 2048, 10**6])
def test_fast_equals_reference_in_other_block_sizes(block_size: int, way: str) -> None:
    p = torch.randn(5000, generator=generator(0))
    grad = torch.randn(5000, generator=generator(1))
    moments = Moments8bit.zeros_like(p, block_size)
    fast = fast_step(p, grad, moments, step=1, block_size=block_size)
    reference = adam8bit_step_reference(p, grad, moments, step=1, lr=LR, block_size=block_size)
    assert torch.equal(fast[0], reference[0])
    assert all(map(torch.equal, fast[1], reference[1]))


@pytest.mark.skipif(WITHOUT_C, reason="install a C compiler")
@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_float32_moments_c_equals_the_operators(
    dtype: torch.dtype, decoupled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = torch.randn(1000, generator=generator(0)).to(dtype)
    results = []
    for in_c in (True, False):
        tensors = AdamTensors(start.clone(), start, torch.zeros(1000), torch.zeros(1000))
        with monkeypatch.context() as patch:
            if not in_c:
                patch.setattr(optim8bit.fast_step, "adam_applies", lambda *_: False)
            for step, grad in enumerate(uneven_gradients((1000,), 3), start=1):
                scalars = scalars_at_step(step, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
                step_([tensors._replace(gradient=grad.to(dtype))], scalars, decoupled=decoupled, block_size=256)
        results.append(tensors)
    for mine, theirs in zip(results[0][:4], results[1][:4], strict=True):
        assert torch.equal(mine, theirs)


def test_scalars_given_as_tensors_are_those_given_as_numbers() -> None:
    options = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    numbers = scalars_at_step(3, lr=0.125, gradient_scale=0.5, **options)
    tensors = scalars_at_step(3, lr=torch.tensor([0.125]), gradient_scale=torch.tensor(0.5), **options)
    assert torch.equal(numbers, tensors)
    assert Scalars(*numbers.tolist()).shrink == torch.tensor(1 - 0.125 * 0.1).item()


def test_without_triton_a_device_goes_by_operators_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optim8bit.cuda", None)
    monkeypatch.delattr(optim8bit, "cuda", raising=False)  # where it has been imported before
    optim8bit.fast_step._cuda.cache_clear()
    with pytest.warns(UserWarning, match="goes by operators"):
        assert optim8bit.fast_step._cuda() is None
    assert optim8bit.fast_step._cuda() is None
    optim8bit.fast_step._cuda.cache_clear()
