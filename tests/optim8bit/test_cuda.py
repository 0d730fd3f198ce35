"""The Triton kernel in Triton's interpreter, in a process of its own: that is chosen when Triton is imported."""

import os
import subprocess
import sys

import pytest
import torch


def test_the_kernel_equals_the_reference() -> None:
    pytest.importorskip("triton", reason="install the extra: triton")
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@torch.no_grad()
def compare(dtype: torch.dtype, *, decoupled: bool) -> None:
    """Three steps on tensors of all sizes, in one launch each; every bit of parameters and moments."""
    from adam_steps import LR, OPTIONS, generator, uneven_gradients

    from native.adam import AdamTensors
    from optim8bit import Moments8bit, adam8bit_step_reference
    from optim8bit.cuda import adam_8bit_step_
    from optim8bit.fast_step import codecs, scalars_at_step

    shapes = [(1000,), (256,), (3, 700), (1,), (0,)]
    weights = [torch.randn(shape, generator=generator(i)).to(dtype) for i, shape in enumerate(shapes)]
    expected = [(weight, Moments8bit.zeros_like(weight, 256)) for weight in weights]
    mine = []
    for weight, moments in expected:
        m_codes, m_absmax, v_codes, v_absmax = (tensor.clone() for tensor in moments)
        own = torch.nn.Parameter(weight.clone())
        mine.append(AdamTensors(own, weight, m_codes, v_codes, m_absmax, v_absmax))
    streams = [uneven_gradients(shape, 3) for shape in shapes]
    for step in (1, 2, 3):
        gradients = [stream[step - 1].to(dtype) for stream in streams]
        gradients[0][3], gradients[2][1, 5] = torch.nan, torch.inf
        options = {"weight_decay": 0.1, "gradient_scale": 0.7}
        mine = [tensors._replace(gradient=gradient) for tensors, gradient in zip(mine, gradients, strict=True)]
        scalars = scalars_at_step(step, **OPTIONS, **options)
        adam_8bit_step_(mine, scalars, *codecs(scalars.device), block_size=256, decoupled=decoupled)
        for i, gradient in enumerate(gradients):
            if gradient.numel():
                weight, moments = expected[i]
                options |= {"step": step, "lr": LR, "decoupled": decoupled}
                weight, moments = adam8bit_step_reference(weight.float(), gradient, moments, **options)
                expected[i] = rounded(weight, dtype), moments
        for tensors, (weight, moments) in zip(mine, expected, strict=True):
            assert torch.equal(tensors.weight, weight), (dtype, decoupled, step, weight.shape)
            found = (tensors.m, tensors.m_absmax, tensors.v, tensors.v_absmax)
            assert all(map(torch.equal, found, moments)), (dtype, decoupled, step, weight.shape)


def rounded(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """To dtype as the interpreter does it: bfloat16 is cut off there, where a GPU rounds to the nearest."""
    if dtype == torch.bfloat16:
        weight = (weight.view(torch.int32) & ~0xFFFF).view(torch.float32)
    return weight.to(dtype)


if __name__ == "__main__":
    for each in (torch.float32, torch.bfloat16, torch.float16):
        compare(each, decoupled=True)
        compare(each, decoupled=False)
