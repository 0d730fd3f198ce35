"""torchao's 8-bit AdamW: the same map, the same nearest codes, the same step."""

import pytest
import torch
from torch import nn

from optim8bit import AdamW8bit, dequantize_blockwise, dynamic_map, quantize_blockwise

torchao_optim = pytest.importorskip("torchao.optim", reason="install the extra: parity")
quant_utils = pytest.importorskip("torchao.optim.quant_utils", reason="install the extra: parity")


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_equal(signed: bool) -> None:
    assert torch.equal(dynamic_map(signed), torch.tensor(quant_utils.create_dynamic_map(signed)))


@pytest.mark.parametrize("signed", [True, False])
def test_codes_and_scales_are_equal(signed: bool) -> None:
    x = torch.randn(1024, 256, generator=torch.Generator().manual_seed(0))
    x = x if signed else x.abs()
    unit, scale = quant_utils.scale_tensor(x, 256)
    theirs = quant_utils.quantize_8bit_with_qmap(unit, torch.tensor(quant_utils.create_dynamic_map(signed)))
    codes, absmax = quantize_blockwise(x, signed=signed)
    assert torch.equal(absmax, scale)
    # They round half up and ours to the code nearer zero; halfway to the last bit is rare.
    assert (codes != theirs).sum() <= 2
    assert (codes.int() - theirs.int()).abs().max() <= 1


def test_one_step_and_its_state(check_bound) -> None:
    start = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(2)) * 0.01
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    first = AdamW8bit([ours], lr=1e-3, weight_decay=0.1)
    # Uncompiled: their compiler step takes half a minute and changes nothing here.
    second = torchao_optim.AdamW8bit([theirs], lr=1e-3, weight_decay=0.1, block_size=256)
    ours.grad, theirs.grad = grad, grad.clone()
    first.step()
    with torch.compiler.set_stance("force_eager"):
        second.step()
    check_bound(
        "AdamW8bit vs torchao, one step: parameters", (ours - theirs).detach().abs().max(), 2**-21
    )  # an ulp of |p| < 8
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        state = first.state[ours]
        decoded = dequantize_blockwise(state[f"{name}_codes"], state[f"{name}_absmax"], signed=signed)
        peer = second.state[theirs][name].dequantize()
        different = (decoded - peer).abs() > 1e-6 * decoded.abs()
        if signed:
            # m = lerp(m, g, 1 − β₁) there, rounded differently: some values at a boundary take the neighbouring code.
            check_bound("AdamW8bit vs torchao, one step: m codes that differ", different.float().mean(), 1e-3)
        else:
            # There a small v underflows to 0, here it is kept at the smallest code.
            guarded = state[f"{name}_codes"] == 1
            assert (peer[different & guarded] == 0).all()
            check_bound(
                "AdamW8bit vs torchao, one step: v codes that differ", (different & ~guarded).float().mean(), 1e-3
            )
