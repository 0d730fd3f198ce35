import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optim8bit import (
    Adam8bit,
    AdamW8bit,
    Moments8bit,
    adam8bit_step_reference,
    dequantize_blockwise,
    embeddings_in_32bit,
    planned_state_bytes,
)

Pair = tuple[type[Adam8bit], type[torch.optim.Optimizer]]
BOTH: list[Pair] = [(Adam8bit, torch.optim.Adam), (AdamW8bit, torch.optim.AdamW)]


def parameter(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def gradients(shape: tuple[int, ...], seed: int = 1, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(shape, generator=generator).to(dtype) * 0.01


def states(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]


def assert_same_state(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, Tensor):
            assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name
        else:
            assert value == theirs[name], name


@pytest.mark.parametrize(("ours", "decoupled"), [(Adam8bit, False), (AdamW8bit, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_optimizer_takes_the_reference_step(ours: type[Adam8bit], decoupled: bool, dtype: torch.dtype) -> None:
    p = parameter(70, 71, dtype=dtype)
    expected, moments = p.detach().clone(), Moments8bit.zeros_like(p, 256)
    optimizer = ours([p], lr=1e-2, weight_decay=0.1)
    for step, grad in zip(range(1, 4), gradients(p.shape, dtype=dtype), strict=False):
        p.grad = grad
        optimizer.step()
        expected, moments = adam8bit_step_reference(
            expected, grad, moments, step=step, lr=1e-2, weight_decay=0.1, decoupled=decoupled
        )
    assert p.dtype == dtype and torch.equal(p, expected)
    assert_same_state(
        optimizer.state[p],
        {
            "step": 3,
            "exp_avg_codes": moments.m_codes,
            "exp_avg_absmax": moments.m_absmax,
            "exp_avg_sq_codes": moments.v_codes,
            "exp_avg_sq_absmax": moments.v_absmax,
        },
    )


@pytest.mark.parametrize(("ours", "torchs"), BOTH)
def test_small_tensors_follow_torch(ours: type[Adam8bit], torchs: Any, check_bound: Callable[..., None]) -> None:
    a, b = parameter(63, 65), parameter(63, 65)  # 4095 elements
    optimizer, reference = ours([a], lr=1e-2, weight_decay=0.1), torchs([b], lr=1e-2, weight_decay=0.1)
    for _, grad in zip(range(20), gradients(a.shape), strict=False):
        a.grad, b.grad = grad, grad.clone()
        optimizer.step()
        reference.step()
    assert optimizer.state_bytes() == (0, 2 * 4 * 4095)
    # Twenty steps in another order of roundings, each to half an ulp of a parameter below 4.
    check_bound("Adam8bit: float32 state vs torch, 20 steps", (a - b).detach().abs().max(), 20 * 2**-23)


@pytest.mark.parametrize("columns", [32, 1024, 4097])
def test_fifty_steps_with_the_state_synchronised(columns: int, check_bound: Callable[..., None]) -> None:
    """As bitsandbytes tests itself: after each step the 32-bit optimizer gets our dequantized state and parameters."""
    a = parameter(1024, columns)
    b = nn.Parameter(a.detach().clone())
    options = {"lr": 1e-3, "weight_decay": 0.01}
    optimizer, reference = AdamW8bit([a], **options), torch.optim.AdamW([b], **options)
    for _, grad in zip(range(50), gradients(a.shape), strict=False):
        a.grad, b.grad = grad, grad.clone()
        optimizer.step()
        reference.step()
        excess = ((a - b).abs() - 1e-3 * b.abs()).detach().max()  # atol 1e-5 on top of rtol 1e-3
        check_bound("AdamW8bit vs AdamW, synchronised: parameters (atol over rtol 1e-3)", excess, 1e-5)
        state, exact = optimizer.state[a], reference.state[b]
        for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            decoded = dequantize_blockwise(state[f"{name}_codes"], state[f"{name}_absmax"], signed=signed)
            excess = ((decoded - exact[name]).abs() - 1e-3 * exact[name].abs()).max()
            check_bound("AdamW8bit vs AdamW, synchronised: state (atol over rtol 1e-3)", excess, 3e-3)
            # That holds of gradients this small whatever one stores. What does not: half the widest gap of the map.
            scale = state[f"{name}_absmax"].max()
            error = (decoded - exact[name]).abs().max() / scale
            check_bound("AdamW8bit vs AdamW, synchronised: state / largest scale", error, 0.00703125 + 2**-20)
            exact[name].copy_(decoded)
        b.data.copy_(a)


def test_fifty_steps_running_free(check_bound: Callable[..., None]) -> None:
    a = parameter(512, 512)
    b = nn.Parameter(a.detach().clone())
    start = a.detach().clone()
    optimizer, reference = AdamW8bit([a], lr=1e-3), torch.optim.AdamW([b], lr=1e-3)
    for _, grad in zip(range(50), gradients(a.shape), strict=False):
        a.grad, b.grad = grad, grad.clone()
        optimizer.step()
        reference.step()
    # A stored moment is off by 1.5 % on average (see the quantizer's own bound); errors of a step are independent and
    # partly cancel. Peers do not state a bound here.
    distance = (b - start).detach().square().mean().sqrt()
    difference = (a - b).detach().square().mean().sqrt()
    check_bound("AdamW8bit vs AdamW, 50 free steps: rms difference / distance", difference / distance, 0.03)


def regression() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 64, generator=generator)
    teacher = torch.randn(64, 8, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 8))
    return model, x, (x @ teacher).tanh()


def train(
    make_optimizer: Callable[[Any], torch.optim.Optimizer], steps: int = 150
) -> tuple[float, torch.optim.Optimizer]:
    model, x, y = regression()
    optimizer = make_optimizer(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    return nn.functional.mse_loss(model(x), y).item(), optimizer


@pytest.mark.parametrize(("ours", "torchs"), BOTH)
def test_training_converges_like_32_bit(ours: Any, torchs: Any, check_bound: Callable[..., None]) -> None:
    initial, _ = train(lambda params: torchs(params, lr=3e-3), steps=0)
    exact, _ = train(lambda params: torchs(params, lr=3e-3))
    quantized, optimizer = train(lambda params: ours(params, lr=3e-3, min_8bit_size=0))
    assert isinstance(optimizer, Adam8bit) and optimizer.state_bytes().in_32bit == 0
    assert exact < initial / 100  # there was something to learn
    check_bound("Adam8bit regression: final loss / that of 32-bit Adam", quantized / exact, 1.1)


@pytest.mark.parametrize("ours", [Adam8bit, AdamW8bit])
def test_first_step_is_lr_times_the_sign(ours: type[Adam8bit], check_bound: Callable[..., None]) -> None:
    p = parameter(64, 64)
    before = p.detach().clone()
    p.grad = next(gradients(p.shape)) + 0.001
    ours([p], lr=0.1, weight_decay=0.0).step()
    away_from_eps = p.grad.abs() > 1e-4
    error = (p - before + 0.1 * p.grad.sign()).abs()[away_from_eps].detach().max()
    # ε = 1e-8 against |g| > 1e-4, times η; and half an ulp of p.
    check_bound("Adam8bit: first step vs lr·sign(g)", error, 0.1 * 1e-4 + 2**-23)


def test_zero_gradients_from_a_fresh_state() -> None:
    p = parameter(64, 65)
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    Adam8bit([p]).step()
    assert torch.equal(p, before)
    AdamW8bit([p], lr=0.5, weight_decay=0.5).step()
    assert torch.equal(p, before * 0.75)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_round_trip_is_bit_exact(dtype: torch.dtype) -> None:
    def pair() -> list[nn.Parameter]:
        return [parameter(70, 71, dtype=dtype), parameter(10, seed=2, dtype=dtype)]

    a, b = pair(), pair()
    first, second = AdamW8bit(a, lr=1e-2), AdamW8bit(b, lr=5.0)
    stream = gradients((70, 71), dtype=dtype)
    for _ in range(3):
        a[0].grad = next(stream)
        a[1].grad = a[0].grad.flatten()[:10]
        first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.param_groups[0]["lr"] == 1e-2
    for ours, loaded in zip(states(first), states(second), strict=True):
        assert_same_state(ours, loaded)
    assert states(second)[0]["exp_avg_codes"].dtype == torch.uint8
    assert states(second)[0]["exp_avg_absmax"].dtype == torch.float32
    assert states(second)[1]["exp_avg"].dtype == torch.float32
    grad = next(stream)
    for p, q in zip(a, b, strict=True):
        q.data.copy_(p.detach())
    for optimizer, params in ((first, a), (second, b)):
        params[0].grad, params[1].grad = grad.clone(), grad.flatten()[:10].clone()
        optimizer.step()
    assert all(map(torch.equal, a, b))
    for ours, loaded in zip(states(first), states(second), strict=True):
        assert_same_state(ours, loaded)


def test_a_loaded_state_is_a_copy_and_survives_other_groupings_of_options() -> None:
    p, q = parameter(70, 71), parameter(70, 71)
    first, second = AdamW8bit([p], block_size=64), AdamW8bit([q], block_size=256)
    p.grad = next(gradients(p.shape))
    first.step()
    saved = first.state_dict()
    second.load_state_dict(saved)
    assert second.param_groups[0]["block_size"] == 64
    q.grad = p.grad.clone()
    codes = saved["state"][0]["exp_avg_codes"].clone()
    second.step()
    assert torch.equal(saved["state"][0]["exp_avg_codes"], codes)


def test_loading_a_state_that_does_not_fit_is_an_error() -> None:
    p = parameter(70, 71)
    p.grad = torch.ones_like(p)
    optimizer, foreign = AdamW8bit([p]), torch.optim.AdamW([p])
    optimizer.step()
    foreign.step()
    with pytest.raises(ValueError, match=r"parameter 0.*\(70, 72\).*saved for this model"):
        AdamW8bit([parameter(70, 72)]).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="saved for this model"):
        state = foreign.state_dict()
        state["param_groups"] = optimizer.state_dict()["param_groups"]
        AdamW8bit([p]).load_state_dict(state)
    with pytest.raises(ValueError, match="parameter group"):
        AdamW8bit([p, parameter(3)]).load_state_dict(optimizer.state_dict())
    before = copy.deepcopy(optimizer.state_dict())
    truncated = copy.deepcopy(before)
    truncated["state"][0]["exp_avg_absmax"] = truncated["state"][0]["exp_avg_absmax"][:-1]
    with pytest.raises(ValueError, match="blocks of 256"):
        optimizer.load_state_dict(truncated)


def test_groups_override_every_option() -> None:
    big, embedding, coarse = parameter(64, 64), parameter(64, 64), parameter(64, 64)
    optimizer = AdamW8bit(
        [
            {"params": [big], "min_8bit_size": 5000},
            {"params": [embedding], "bits": 32, "lr": 0.0, "weight_decay": 0.0},
            {"params": [coarse], "block_size": 2048, "betas": (0.5, 0.5)},
        ],
        lr=1e-2,
    )
    frozen = embedding.detach().clone()
    for p in (big, embedding, coarse):
        p.grad = torch.ones_like(p)
    optimizer.step()
    in_32bit, in_8bit = 2 * 4 * 4096, 2 * (4096 + 4 * 2)
    assert optimizer.state_bytes() == (in_8bit, 2 * in_32bit)
    assert torch.equal(embedding, frozen)
    assert optimizer.state[coarse]["exp_avg_absmax"].tolist() == [0.5, 0.5]


def test_embeddings_keep_32_bit_state() -> None:
    model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 100, bias=False), nn.Linear(100, 64))
    model[1].weight = model[0].weight  # tied
    model[2].bias.requires_grad_(False)
    optimizer = AdamW8bit(embeddings_in_32bit(model))
    model(torch.arange(8)).sum().backward()
    optimizer.step()
    assert optimizer.state_bytes() == (2 * (6400 + 4 * 25), 2 * 4 * 6400)
    assert len(embeddings_in_32bit(nn.Linear(3, 3))) == 1


@pytest.mark.parametrize("shape", [(4095,), (4096,), (4097,), (300, 301)])
def test_planned_bytes_are_the_actual_ones(shape: tuple[int, ...]) -> None:
    p = parameter(*shape)
    optimizer = AdamW8bit([p])
    assert optimizer.state_bytes() == (0, 0)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state_bytes() == planned_state_bytes(p.numel())


def test_strides_of_parameters_and_gradients_do_not_matter() -> None:
    a = parameter(80, 60)
    b = nn.Parameter(a.detach().clone().t().contiguous().t())
    assert not b.is_contiguous()
    first, second = AdamW8bit([a]), AdamW8bit([b])
    for _, grad in zip(range(3), gradients(a.shape), strict=False):
        a.grad, b.grad = grad, grad.t().contiguous().t()
        first.step()
        second.step()
    assert torch.equal(a, b) and not b.is_contiguous()
    assert_same_state(first.state[a], second.state[b])


def test_a_closure_is_evaluated_with_gradients() -> None:
    p = parameter(64, 64)
    optimizer = Adam8bit([p])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    before = p.square().sum()
    assert optimizer.step(closure) == before
    assert p.square().sum() < before
    assert optimizer.step() is None


def test_lr_may_be_a_tensor_and_schedulers_work() -> None:
    a, b = parameter(64, 64), parameter(64, 64)
    first, second = AdamW8bit([a], lr=0.1), AdamW8bit([b], lr=torch.tensor(0.1))
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)) for optimizer in (first, second)
    ]
    for _, grad in zip(range(3), gradients(a.shape), strict=False):
        a.grad, b.grad = grad, grad.clone()
        for optimizer, scheduler in zip((first, second), schedulers, strict=True):
            optimizer.step()
            scheduler.step()
    assert torch.allclose(a, b, atol=1e-6)
    assert float(second.param_groups[0]["lr"]) == pytest.approx(0.025)


def test_parameters_without_gradient_have_no_state_and_their_own_step_count() -> None:
    p, q = parameter(64, 64), parameter(64, 64, seed=1)
    optimizer = AdamW8bit([p, q])
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert q not in optimizer.state
    before = q.detach().clone()
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    assert (optimizer.state[p]["step"], optimizer.state[q]["step"]) == (2, 1)
    assert torch.allclose(q, before * (1 - 1e-5) - 1e-3, atol=1e-6)


def test_empty_parameters_are_left_alone() -> None:
    p = nn.Parameter(torch.empty(0, 5))
    p.grad = torch.empty(0, 5)
    for size in (0, 4096):
        AdamW8bit([p], min_8bit_size=size).step()


def test_a_nan_gradient_is_contained_in_8_and_32_bit_state() -> None:
    for shape in ((64, 64), (10,)):
        p, q = parameter(*shape), parameter(*shape)
        grad = next(gradients(p.shape))
        first, second = AdamW8bit([p]), AdamW8bit([q])
        p.grad, q.grad = grad.clone(), grad.clone()
        p.grad.view(-1)[3], q.grad.view(-1)[3] = torch.nan, 0.0
        first.step()
        second.step()
        assert torch.equal(p, q)
        assert p.grad.view(-1)[3].isnan()  # the gradient itself is not the optimizer's to change
        assert_same_state(first.state[p], second.state[q])


def test_gradients_count_times_a_scale_and_stay_as_they_are() -> None:
    for shape in ((64, 65), (10,)):
        p, q = parameter(*shape), parameter(*shape)
        p.grad = next(gradients(p.shape))
        q.grad, before = p.grad * 0.3, p.grad.clone()
        first, second = AdamW8bit([p]), AdamW8bit([q])
        first.step(gradient_scale=torch.tensor(0.3))
        second.step()
        assert torch.equal(p, q) and torch.equal(p.grad, before)
        assert_same_state(first.state[p], second.state[q])


def test_many_parameters_of_different_dtypes_and_ages_step_together() -> None:
    shapes = [(64, 65), (3,), (5000,), (64, 64), (0, 4), (70, 80)]
    dtypes = [torch.float32, torch.bfloat16, torch.float16]

    def drawn() -> list[nn.Parameter]:
        return [parameter(*shape, dtype=dtypes[i % 3]) for i, shape in enumerate(shapes)]

    together, alone = drawn(), drawn()
    optimizer, optimizers = AdamW8bit(together, lr=1e-2), [AdamW8bit([p], lr=1e-2) for p in alone]
    for step in range(3):
        for i, (p, q) in enumerate(zip(together, alone, strict=True)):
            p.grad = next(gradients(p.shape, seed=step, dtype=p.dtype)) if step or i != 2 else None  # one begins later
            q.grad = None if p.grad is None else p.grad.clone()
        optimizer.step()
        for each in optimizers:
            each.step()
    assert [optimizer.state[p]["step"] for p in together] == [3, 3, 2, 3, 3, 3]
    for p, q, each in zip(together, alone, optimizers, strict=True):
        assert torch.equal(p, q)
        assert_same_state(optimizer.state[p], each.state[q])


def test_errors_name_the_value_and_the_remedy() -> None:
    p = parameter(64, 64)
    for options, message in (
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": torch.ones(2)}, r"lr has shape \(2,\)"),
        ({"eps": -1e-8}, "eps is -1e-08"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\)"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"block_size": 0}, "block_size is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            AdamW8bit([p], **options)
    with pytest.raises(ValueError, match="bits is 4"):
        AdamW8bit([{"params": [p], "bits": 4}])
    with pytest.raises(ValueError, match=r"torch\.complex64"):
        AdamW8bit([nn.Parameter(torch.ones(3, dtype=torch.complex64))])
    embedding = nn.Embedding(100, 64, sparse=True)
    optimizer = AdamW8bit(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        optimizer.step()
    rejected = parameter(3)
    with pytest.raises(ValueError, match="bits is 4"):
        optimizer.add_param_group({"params": [rejected], "bits": 4})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("bits", [8, 32])
def test_a_graph_that_kept_the_old_weights_is_refused(bits):
    weight = nn.Parameter(torch.randn(64, 64))
    optimizer = AdamW8bit([{"params": [weight], "bits": bits}], lr=0.1)
    loss = (weight * weight).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()
