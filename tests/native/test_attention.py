"""Attention block by block in C: against float64 and beside PyTorch's kernel, forward and backward."""

import ctypes
import math
import platform
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import native.attention
from native import library
from native.attention import attention_applies, attention_backward, attention_forward

DTYPES = [torch.float32, torch.bfloat16]

# B, T, H, G, D: T around the edges of tiles (4, 16) and blocks (64, 256), D around those of vectors.
SHAPES = [
    (1, 1, 1, 1, 2),
    (2, 5, 2, 1, 8),
    (1, 64, 4, 4, 16),
    (2, 67, 4, 2, 64),
    (1, 321, 3, 1, 20),
    (1, 97, 2, 2, 256),
]

pytestmark = pytest.mark.skipif(native.attention._library() is None, reason="install a C compiler")


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Queries, keys, values and the gradient of the output."""
    batch, tokens, heads, groups, size = shape
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, tokens, n, size, generator=generator).to(dtype) for n in (heads, groups, groups, heads)]


def spans(*lengths: int) -> Tensor:
    """Documents that follow each other, the longest first."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return torch.tensor(sorted(zip(starts, lengths, strict=True), key=lambda span: -span[1]))


def blockwise(q: Tensor, k: Tensor, v: Tensor, dy: Tensor, documents: Tensor | None = None) -> dict[str, Tensor]:
    documents = spans(*[q.shape[1]] * q.shape[0]) if documents is None else documents
    forward = attention_forward(q, k, v, documents)
    assert forward is not None
    backward = attention_backward(dy, q, k, v, *forward, documents)
    assert backward is not None
    return dict(zip(("O", "L", "dQ", "dK", "dV"), (*forward, *backward), strict=True))


def with_gradients(attend, q: Tensor, k: Tensor, v: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """What PyTorch makes of `attend`, a function of tensors (B, H or G, T, D)."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    y = attend(*(x.transpose(1, 2) for x in leaves)).transpose(1, 2)
    gradients = torch.autograd.grad(y, leaves, dy)
    return dict(zip(("O", "dQ", "dK", "dV"), (y.detach(), *gradients), strict=True))


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula with a whole table of scores."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return torch.softmax(masked_scores(q, k), dim=-1) @ v


def masked_scores(q: Tensor, k: Tensor) -> Tensor:
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(future, -math.inf)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def check_accuracy(check_bound, label: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """At most half as much again as PyTorch's kernel errs, one rounding of the largest number, and 2⁻²² for exp."""
    tensors = drawn(shape, dtype)
    exact = with_gradients(plain, *(x.double() for x in tensors))
    theirs, mine = with_gradients(sdpa, *tensors), blockwise(*tensors)
    for name, expected in exact.items():
        rounding = (torch.finfo(dtype).eps / 2 + 2**-22) * expected.abs().max()
        bound = 1.5 * (theirs[name] - expected).abs().max() + rounding
        check_bound(f"{label}: {name}, {dtype}", (mine[name] - expected).abs().max(), bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_close_to_float64_as_pytorch(check_bound, shape, dtype):
    check_accuracy(check_bound, "blockwise attention vs float64", shape, dtype)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flags are those of x86")
def test_on_a_processor_without_avx512(check_bound, tmp_path, monkeypatch):
    flags = ("-std=gnu11", "-O1", "-mavx2", "-mfma", "-mno-avx512f", "-fopenmp", "-fPIC", "-fno-strict-aliasing")
    monkeypatch.setattr(library, "FLAGS", flags)
    compiler = next(filter(None, map(shutil.which, library.COMPILERS)))
    older = ctypes.CDLL(str(library.compiled(native.attention.SOURCES, compiler, tmp_path)))
    monkeypatch.setattr(native.attention, "_library", lambda: native.attention._declare(older))
    for dtype in DTYPES:
        check_accuracy(check_bound, "blockwise attention without AVX-512 vs float64", (2, 67, 4, 2, 20), dtype)


def test_log_sum_exp(check_bound):
    q, k, v, _ = drawn((1, 300, 2, 1, 16), torch.float32)
    _, mine = attention_forward(q, k, v, spans(300))
    exact = masked_scores(q.double().transpose(1, 2), k.double().transpose(1, 2)).logsumexp(-1)[0]
    # Of order 8, rounded to float32, over scores that are sums of 16 products.
    check_bound("blockwise attention: log Σ exp vs float64", (mine - exact).abs().max(), 16 * 2**-23)


def test_scores_far_from_zero(check_bound):
    """exp(1000) would overflow, and a softmax that is one-hot has no gradient."""
    q, k, v, dy = drawn((1, 20, 1, 1, 4), torch.float32)
    mine = blockwise(1000 * q, k, v, dy)
    exact = with_gradients(plain, 1000 * q.double(), k.double(), v.double(), dy.double())
    # Scores of order 1000 carry an error of 1000 · 2⁻²⁴, which their exponentials multiply.
    check_bound("blockwise attention: O of large scores", (mine["O"] - exact["O"]).abs().max(), 1000 * 2**-22)
    check_bound("blockwise attention: dV of large scores", (mine["dV"] - exact["dV"]).abs().max(), 1000 * 2**-21)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(3, 1, 70, 6), (40, 40), (1,) * 8 + (72,)], ids=str)
def test_packed_documents_equal_documents_alone(lengths, dtype):
    """To the last bit: a document does not know what stands beside it."""
    tensors = drawn((1, 80, 4, 2, 16), dtype)
    packed = blockwise(*tensors, spans(*lengths))
    for start, length in spans(*lengths).tolist():
        here = slice(start, start + length)
        alone = blockwise(*(x[:, here].contiguous() for x in tensors))
        assert torch.equal(packed["L"][:, here], alone.pop("L"))
        # G · N tasks are many in one case and few in the other: then heads sum apart, in float32.
        shared = {name: alone.pop(name) for name in ("dK", "dV")}
        assert all(torch.equal(packed[name][:, here], alone[name]) for name in alone)
        for name, gradient in shared.items():
            torch.testing.assert_close(packed[name][:, here], gradient, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_no_leak_from_what_is_not_finite(dtype, poison):
    tensors = drawn((2, 40, 2, 1, 8), dtype)
    documents = spans(30, 10, 17, 23)
    clean = blockwise(*tensors, documents)
    spoilt = [x.clone() for x in tensors]
    for x in spoilt:
        x[0, 30:] = poison
    dirty = blockwise(*spoilt, documents)
    elsewhere = torch.ones(2, 40, dtype=torch.bool)
    elsewhere[0, 30:] = False
    assert not dirty["O"][0, 30:].isfinite().any()
    for name in ("O", "dQ", "dK", "dV"):
        assert torch.equal(dirty[name][elsewhere], clean[name][elsewhere])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_strides_do_not_matter(dtype, batch):
    """With many documents the tasks are the same, so the results are."""
    q, k, v, dy = drawn((batch, 50, 4, 2, 8), dtype)
    documents, before = spans(*[5] * 10 * batch), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = blockwise(q, k, v, dy, documents)
        torch.set_num_threads(3)
        by_heads = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, dy)]
        beside_others = torch.cat((q, k, v), dim=2).split([4, 2, 2], dim=2)
        of_longer_rows = [F.pad(x, (0, 0, 0, 0, 0, 3))[:, :50] for x in (q, k, v)]
        for tensors in (by_heads, (*beside_others, dy), (*of_longer_rows, dy)):
            mine = blockwise(*tensors, documents)
            assert all(torch.equal(mine[name], expected[name]) for name in expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_documents_share_out_heads(check_bound, dtype):
    """One document and key head, two threads: each query head sums dK and dV for itself."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        check_accuracy(check_bound, "blockwise attention, heads apart, vs float64", (1, 90, 4, 1, 16), dtype)
    finally:
        torch.set_num_threads(before)


def test_where_it_does_not_apply(monkeypatch):
    q, k, v, dy = drawn((1, 6, 4, 2, 8), torch.float32)
    assert attention_applies(q, k, v)
    documents = spans(6)
    others = {
        "float16": [x.half() for x in (q, k, v)],
        "float64": [x.double() for x in (q, k, v)],
        "two dtypes": [q.bfloat16(), k, v],
        "another device": [x.to("meta") for x in (q, k, v)],
        "odd D": [x[..., :7] for x in (q, k, v)],
        "large D": [x.repeat(1, 1, 1, 33) for x in (q, k, v)],
        "H not a multiple of G": [q[:, :, :3], k, v],
        "other lengths": [q, k[:, :5], v[:, :5]],
        "no tokens": [x[:, :0] for x in (q, k, v)],
    }
    for tensors in others.values():
        assert attention_forward(*tensors, documents) is None
    monkeypatch.setattr(native.attention, "_library", lambda: None)
    assert attention_forward(q, k, v, documents) is None
    assert attention_backward(dy, q, k, v, q, torch.zeros(4, 6), documents) is None


def test_documents_beyond_the_tensors_are_refused():
    q, k, v, _ = drawn((1, 6, 2, 2, 8), torch.float32)
    for documents in ([[0, 7]], [[-1, 3]], [[0, 2], [2, 4]], [[0, 0]]):
        with pytest.raises(AssertionError):
            attention_forward(q, k, v, torch.tensor(documents))
