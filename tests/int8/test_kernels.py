"""The Triton kernels against the formulas: by Triton's interpreter on a CPU (see conftest.py), for real on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from int8_operands import DTYPES, allowed, draw, expected_forward

from int8 import int8_matmul_reference, outlier_columns, quantize_rowwise
from int8.cuda import int8_input_gradient

pytest.importorskip("triton", reason="install the extra triton")

from int8 import launch
from int8.launch import Tiles, Way, forward, input_gradient, quantize

# The interpreter computes with NumPy, which warns of what a GPU does silently: 0 · ∞ and the like.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning:triton")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
TILES = Tiles(16, 32, 32, 4, 2)
WAYS = [Way(TILES), Way(None)]
WAYS_TURNED = [Way(each, copy) for each in (TILES, None) for copy in (False, True)]


def roundings(dtype: torch.dtype) -> int:
    """Of the output, in halves of an eps: the interpreter cuts bfloat16 off where a GPU rounds to nearest."""
    return 2 if dtype == torch.bfloat16 and not ON_GPU else 1


# ---------------------------------------------------------------------------------------------------------------------
# Quantization


@pytest.mark.parametrize("threshold", [0.0, 2.5])
@pytest.mark.parametrize(
    ("rows", "inner", "dtype"),
    [(1, 1, torch.float32), (3, 7, torch.bfloat16), (66, 20, torch.float16), (2, 5000, torch.bfloat16)],
)
def test_quantization_equals_plain_in_every_bit(rows, inner, dtype, threshold):
    """More rows than one program marks, 64; more columns than one block of a row, 4,096."""
    x = torch.randn(rows, inner, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    codes, absmax, outliers, count = quantize(x, threshold=threshold)
    expected = outlier_columns(x, threshold)
    if threshold:
        assert outliers[: count.item()].tolist() == expected.tolist()
    else:
        assert outliers is None and count is None
    expected_codes, expected_absmax = quantize_rowwise(x.index_fill(1, expected, 0))
    assert torch.equal(codes, expected_codes) and torch.equal(absmax, expected_absmax)


def test_ties_go_to_the_even_code():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]], device=DEVICE)
    assert quantize(x)[0].tolist() == [[127, 0, 2, 2, 0, -2, -126]]


def test_column_scale_comes_first():
    x, scale = torch.tensor([[1.0, 2.0], [0.0, 0.0]], device=DEVICE), torch.tensor([4.0, 1.0], device=DEVICE)
    codes, absmax, _, _ = quantize(x, column_scale=scale)
    assert codes.tolist() == [[127, 64], [0, 0]]
    assert absmax.tolist() == [4.0, 2.0**-119]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_value_is_an_outlier_or_its_rows_scale(bad):
    x = torch.randn(4, 40, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x[2, 30] = bad
    codes, absmax, outliers, count = quantize(x, threshold=1e30)
    assert outliers[: count.item()].tolist() == [30] and not codes[:, 30].any() and absmax.isfinite().all()
    _, absmax, _, _ = quantize(x)
    assert absmax.isfinite().tolist() == [True, True, False, True]


# ---------------------------------------------------------------------------------------------------------------------
# The product


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outliers", [0, 6, 70])
def test_forward_equals_reference(way, dtype, outliers, check_bound):
    """Several tiles and a rest in all sizes; rank 20 and 70 outliers are more than one step of a thin product."""
    operands = draw(18, 100, 45, dtype=dtype, outliers=outliers, rank=20, device=DEVICE)
    x, codes, absmax, left, right = operands
    output = forward(x, codes, absmax, 6.0, left, right, way)
    assert output.dtype == dtype
    error = (output.double() - expected_forward(*operands).double()).abs().cpu()
    bound = roundings(dtype) * allowed(*operands)
    check_bound(f"Triton int8 forward vs reference, {str(dtype)[6:]}", (error / bound).max(), 1.0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 1), (17, 1, 33), (3, 33, 2)])
def test_odd_shapes(way, shape):
    x, codes, absmax, left, right = draw(*shape, outliers=1, rank=1, device=DEVICE)
    expected = int8_matmul_reference(x, codes, absmax, 6.0)
    torch.testing.assert_close(forward(x, codes, absmax, 6.0, way=way), expected)
    torch.testing.assert_close(forward(x, codes, absmax, 6.0, left, right, way), expected + left @ right.T)
    assert forward(x[:0], codes, absmax, 6.0).shape == (0, shape[2])
    assert input_gradient(x[:0, :1].expand(0, shape[2]), codes, absmax).shape == (0, shape[1])


@pytest.mark.parametrize("way", WAYS)
def test_what_int8_can_represent_is_multiplied_exactly(way):
    """Integers with ±127 in every row have themselves as codes; sums beyond 2^24 are none here, so nothing rounds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (5, 300), generator=generator).float()
    weight = torch.randint(-127, 128, (40, 300), generator=generator).float()
    x[:, 3], weight[:, 5] = 127, -127
    codes, absmax = quantize_rowwise(weight.to(DEVICE))
    output = forward(x.to(DEVICE), codes, absmax, 0.0, way=way)
    assert torch.equal(output.cpu(), x @ weight.T)


@pytest.mark.parametrize("way", WAYS)
def test_extreme_codes_do_not_saturate(way):
    """Sums of 127 · 127 in 8, 16 or 24 bits would show."""
    codes, absmax = quantize_rowwise(torch.full((16, 2048), -1.0, device=DEVICE))
    output = forward(torch.ones(2, 2048, device=DEVICE), codes, absmax, 0.0, way=way)
    # 127² · 2048 takes 25 bits; its scales, 1/127 rounded twice, and four products.
    torch.testing.assert_close(output, torch.full_like(output, -2048.0), rtol=6 * 2**-24, atol=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_entry_stays_visible_and_stays_in_its_row(way, threshold, bad):
    x, codes, absmax, _, _ = draw(5, 40, 12, dtype=torch.bfloat16, device=DEVICE)
    x[3, 7] = bad
    output = forward(x, codes, absmax, threshold, way=way)
    assert output.isfinite().all(1).tolist() == [True, True, True, False, True]
    assert not output[3].isfinite().any()


@pytest.mark.parametrize("way", WAYS)
def test_zero_rows(way):
    x, codes, absmax, _, _ = draw(6, 40, 12, device=DEVICE)
    x[4] = 0
    assert not forward(x, codes, absmax, 6.0, way=way)[4].any()


@pytest.mark.parametrize("way", WAYS_TURNED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_input_gradient_equals_plain(way, dtype, check_bound):
    """The same integers and the same arithmetic: but for the interpreter's bfloat16, the same bits."""
    _, codes, absmax, _, _ = draw(18, 100, 45, device=DEVICE)
    grad = torch.randn(18, 45, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    output = input_gradient(grad, codes, absmax, way).double()
    expected = int8_input_gradient._init_fn(grad, codes, absmax).double()
    bound = (roundings(dtype) - 1) * torch.finfo(dtype).eps
    check_bound(
        f"Triton input gradient vs plain, {str(dtype)[6:]}", ((output - expected) / expected).abs().max(), bound
    )


# ---------------------------------------------------------------------------------------------------------------------
# The fastest way


@pytest.fixture
def no_answers_kept():
    launch.fastest_way.cache_clear()
    yield
    launch.fastest_way.cache_clear()


def test_the_fastest_of_all_ways_is_found_once(monkeypatch, no_answers_kept):
    timed = []

    def time(run, device):
        timed.append(run.args[-1])
        return 1.0 if run.args[-1] == Way(None, copy=True) else 2.0

    monkeypatch.setattr(launch, "_time", time)
    _, codes, absmax, _, _ = draw(device=DEVICE)
    for rows in (9, 16):  # both are 16, rounded up
        input_gradient(torch.randn(rows, 40, device=DEVICE), codes, absmax)
    assert timed == launch.ways(16, turned=True)
    assert launch.fastest_way(codes.device, 16, 96, 40, torch.float32, True) == Way(None, copy=True)
    assert len(timed) == len(launch.ways(16, turned=True)) == 6


def test_a_way_that_a_device_refuses_is_passed_over(monkeypatch, no_answers_kept):
    def refuse(run, device):
        if run.args[-1].tiles is None:
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        return 1.0

    monkeypatch.setattr(launch, "_time", refuse)
    device = torch.device(DEVICE)
    assert launch.fastest_way(device, 64, 48, 32, torch.float32).tiles is not None
    monkeypatch.setattr(launch, "ways", lambda rows, turned: [Way(None)])
    with pytest.raises(RuntimeError, match="64 × 32 × 49 works on"):
        launch.fastest_way(device, 64, 49, 32, torch.float32)


# ---------------------------------------------------------------------------------------------------------------------
# For the chip

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from int8.kernels import product_kernel
from int8.launch import GROUP, MANY_ROWS_TILES, THIN

cut = MANY_ROWS_TILES[0]
pointers = dict(codes="i8", weight="i8", row_absmax="fp32", column_absmax="fp32", x="bf16", outliers="i32", count="i32",
                left="bf16", right="bf16", y="bf16")
constants = dict(weight_column=1, X_PRECISION="tf32", UPDATE_PRECISION="tf32", GROUP=GROUP, BLOCK_THIN=THIN,
                 BLOCK_M=cut.m, BLOCK_N=cut.n, BLOCK_K=cut.k)
names = product_kernel.arg_names
signature = {n: "constexpr" if n in constants else "*" + pointers[n] if n in pointers else "i32" for n in names}
aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in (*pointers, "M", "N", "K", "weight_row")}
values = {(names.index(n),): value for n, value in constants.items()}
source = ASTSource(product_kernel, signature, values, aligned)
options = dict(num_warps=cut.warps, num_stages=cut.stages)
print(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])
"""


def test_the_product_compiles_to_hoppers_int8_instructions(tmp_path):
    """Triton and its assembler need no GPU for that; in a process of its own, where nothing is interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(launch.__file__).parent.parent)}
    command = [sys.executable, "-c", COMPILE]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8" in result.stdout
    assert "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32" in result.stdout  # outliers and update
