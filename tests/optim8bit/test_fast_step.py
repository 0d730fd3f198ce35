import warnings
from collections.abc import Iterator

import pytest
import torch
from adam_steps import CPU, LR, fast_step, generator, uneven_gradients

from optim8bit import Moments8bit, adam8bit_step_reference
from optim8bit.fast_step import compiled_stages, plain_stages


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7,), (256,), (1000,), (300, 301), (70_000,)])
def test_fast_equals_reference(shape: tuple[int, ...], dtype: torch.dtype, decoupled: bool) -> None:
    p = torch.randn(shape, generator=generator(0)).to(dtype)
    fast, reference = (p, Moments8bit.zeros_like(p, 256)), (p, Moments8bit.zeros_like(p, 256))
    for step, grad in enumerate(uneven_gradients(shape, 2), start=1):
        options = {"step": step, "weight_decay": 0.1, "decoupled": decoupled}
        fast = fast_step(fast[0], grad.to(dtype), fast[1], **options)
        reference = adam8bit_step_reference(reference[0], grad.to(dtype), reference[1], lr=LR, **options)
        assert fast[0].dtype == dtype
        assert torch.equal(fast[0], reference[0])
        assert all(map(torch.equal, fast[1], reference[1]))


@pytest.mark.parametrize("block_size", [1, 10, 2048, 10**6])
def test_fast_equals_reference_in_other_block_sizes(block_size: int) -> None:
    p = torch.randn(5000, generator=generator(0))
    grad = torch.randn(5000, generator=generator(1))
    moments = Moments8bit.zeros_like(p, block_size)
    fast = fast_step(p, grad, moments, step=1, block_size=block_size)
    reference = adam8bit_step_reference(p, grad, moments, step=1, lr=LR, block_size=block_size)
    assert torch.equal(fast[0], reference[0])
    assert all(map(torch.equal, fast[1], reference[1]))


@pytest.fixture
def freshly_compiled() -> Iterator[None]:
    compiled_stages.cache_clear()
    torch.compiler.reset()
    yield
    compiled_stages.cache_clear()
    torch.compiler.reset()


def test_compiled_equals_plain(freshly_compiled: None, check_bound) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="8-bit Adam runs uncompiled")
        stages = compiled_stages(CPU)
    assert stages.encode is not plain_stages(CPU).encode
    small = stages._replace(chunk=1024)  # several chunks, the last of another length, and a shorter last block
    p = torch.randn(3_000, generator=generator(0))
    plain = compiled = p, Moments8bit.zeros_like(p, 256)
    grads = uneven_gradients((3_000,), 3)
    grads[1][[5, 600]] = torch.tensor([torch.nan, torch.inf])
    for step, grad in enumerate(grads, start=1):
        plain = fast_step(*plain[:1], grad, plain[1], step=step, weight_decay=0.1)
        compiled = fast_step(*compiled[:1], grad, compiled[1], step=step, weight_decay=0.1, stages=small)
        assert all(map(torch.equal, plain[1], compiled[1]))
        # The plain square root may be a vector library's that is off in the last place: then so is the parameter.
        check_bound("Adam8bit step: compiled vs plain, parameters", (plain[0] - compiled[0]).abs().max(), 3 * 2**-22)


def test_without_a_compiler_the_plain_step_runs_and_says_so_once(
    freshly_compiled: None, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # or an earlier run's object code would do
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "no-such-compiler"),))
    with pytest.warns(UserWarning, match="8-bit Adam runs uncompiled, which is slower"):
        stages = compiled_stages(CPU)
    assert stages == plain_stages(CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled_stages(CPU) == stages
