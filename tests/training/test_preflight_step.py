"""Preflight, the step: what one pass shows of a model, and that nothing is left of it."""

import math
from dataclasses import replace

import pytest
import torch
from preflight_run import PreparedRun, make_base, prepare, tiny_config
from torch import nn

from data import Example, collate
from lora import lora_layers
from recipe import RunPlan, build_optimizer
from training import optimizer_step
from training.preflight_step import MicroStep, check_memory, longest


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def run(base, tmp_path) -> PreparedRun:
    return prepare(tiny_config(base, tmp_path))


def state(model: nn.Module) -> dict[str, object]:
    """All that a pass could change: every tensor, every gradient, every mode, the generator."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())},
        "gradients": [name for name, parameter in model.named_parameters() if parameter.grad is not None],
        "modes": [module.training for module in model.modules()],
        "trained": [parameter.requires_grad for parameter in model.parameters()],
        "random": torch.get_rng_state(),
    }


def assert_same(before: dict, after: dict) -> None:
    assert before["tensors"].keys() == after["tensors"].keys()
    for name, tensor in before["tensors"].items():
        assert torch.equal(tensor, after["tensors"][name]), name
    assert torch.equal(before["random"], after["random"])
    assert before["gradients"] == after["gradients"] == []
    assert before["modes"] == after["modes"] and before["trained"] == after["trained"]


@pytest.mark.parametrize("evaluating", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "lora-8bit"])
def test_a_preflight_leaves_no_trace(base, tmp_path, method, evaluating):
    run = prepare(tiny_config(base, tmp_path / "out", method))
    run.engine.model.layers[1].train(not evaluating)
    before = state(run.engine.model)
    run.preflight()
    assert_same(before, state(run.engine.model))
    assert list(tmp_path.glob("out/*")) == []


@pytest.mark.parametrize("method", ["full", "lora-8bit"])
def test_the_steps_after_it_are_those_without_it(base, tmp_path, method):
    tensors = []
    for with_preflight in (False, True):
        run = prepare(tiny_config(base, tmp_path, method))
        if with_preflight:
            run.preflight()
        optimizer = build_optimizer(run.engine.model, run.config.optim)
        for _ in range(2):
            batch = collate([[example] for example in run.data.train[:4]], pad_id=0)
            optimizer_step(run.engine, optimizer, [batch], clip=1.0, seeds=[7])
        tensors.append(state(run.engine.model)["tensors"])
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_a_failed_preflight_leaves_no_trace_either(run):
    run.engine.model.layers[0].feed_forward.w2.lora_B.register_hook(lambda gradient: gradient * math.nan)
    before = state(run.engine.model)
    with pytest.raises(ValueError, match="not finite"):
        run.preflight()
    assert_same(before, state(run.engine.model))


def test_a_pass_that_dies_leaves_no_trace_either(run, monkeypatch):
    before = state(run.engine.model)
    loss = run.engine.loss

    def out_of_memory(*args):
        loss(*args).backward()
        raise torch.OutOfMemoryError("the pass does not fit")

    monkeypatch.setattr(run.engine, "loss", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        run.preflight()
    assert_same(before, state(run.engine.model))


def test_a_pass_that_writes_to_a_weight_is_refused(run):
    def add_noise(module, inputs) -> None:
        with torch.no_grad():
            module.weight.add_(1e-3)

    run.engine.model.layers[1].attention_norm.register_forward_pre_hook(add_noise)
    with pytest.raises(
        ValueError, match=r"preflight, trace: 1 tensors were written to .* layers.1.attention_norm.weight"
    ):
        run.preflight()


@pytest.mark.parametrize("method", ["full", "lora", "lora-8bit"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_spoilt_weight_of_the_base_is_named(base, tmp_path, method, poison):
    run = prepare(tiny_config(base, tmp_path, method))
    run.engine.model.layers[1].ffn_norm.weight.data[3] = poison
    with pytest.raises(
        ValueError, match=r"preflight, step: the loss of 4 x \d+ tokens is nan, .*layers.1.ffn_norm.weight"
    ):
        run.preflight()


def test_a_loss_that_only_overflows_says_so(run):
    run.engine.model.norm.weight.data.fill_(1e38)
    with pytest.raises(ValueError, match="not finite; every weight is finite"):
        run.preflight()


def test_a_gradient_that_is_not_finite_is_named(run):
    run.engine.model.layers[0].attention.wq.lora_B.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(ValueError, match=r"1 gradients are not finite at a loss of \d.*: layers.0.attention.wq.lora_B"):
        run.preflight()


def test_an_adapter_that_is_not_in_use_is_named(run):
    run.engine.model.layers[1].attention.wv.enabled = False
    with pytest.raises(ValueError, match=r"2 of 12 trained tensors .*: layers.1.attention.wv.lora_A, .*wv.lora_B;"):
        run.preflight()


def test_a_weight_that_is_not_in_use_is_named(base, tmp_path):
    run = prepare(tiny_config(base, tmp_path, "full"))
    run.engine.model.forgotten = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"1 of \d+ trained tensors get no gradient and would never learn: forgotten;"):
        run.preflight()


def test_a_weight_that_nothing_depends_on_is_named(base, tmp_path):
    run = prepare(tiny_config(base, tmp_path, "full"))
    run.engine.model.layers[0].feed_forward.w1.weight.data.zero_()  # SwiGLU of 0 is 0: nothing reaches w3
    with pytest.raises(ValueError, match=r"layers.0.feed_forward.w2.weight, layers.0.feed_forward.w3.weight"):
        run.preflight()


def test_a_needs_a_gradient_only_once_b_is_not_zero(run):
    """Fresh, B is zero and so is A's gradient; in a trained adapter both must learn."""
    layers = dict(lora_layers(run.engine.model))
    run.preflight()
    for layer in layers.values():
        layer.lora_B.data.normal_(generator=torch.Generator().manual_seed(0))
    run.preflight()
    layers["layers.1.attention.wq"].lora_A.register_hook(torch.zeros_like)
    with pytest.raises(ValueError, match=r"1 of 12 trained tensors .*: layers.1.attention.wq.lora_A;"):
        run.preflight()


def test_a_gradient_of_a_frozen_weight_is_named(run):
    run.engine.model.norm.weight.grad = torch.ones(32)
    with pytest.raises(ValueError, match=r"1 frozen tensors get a gradient: norm.weight;"):
        run.preflight()


def test_an_absurd_loss_is_a_warning_with_both_numbers(run):
    assert run.warnings() == []
    run.engine.model.output.weight.data.mul_(100)
    [warning] = run.warnings()
    assert warning.startswith("warning, step: the loss is ") and "guessing would cost ln V = 5.80" in warning


def test_the_longest_micro_batch_is_the_one_tried(run, monkeypatch):
    run.data.train[7] = Example([1] * 190 + [2], [False] * 185 + [True] * 6)
    run.data = replace(run.data, train=[replace(e) for e in run.data.train])
    step = next(k for k, batches in enumerate(run.plan.steps) if [7] in [row for rows in batches for row in rows])
    seen = []
    loss = run.engine.loss
    monkeypatch.setattr(run.engine, "loss", lambda batch, scale: (seen.append((batch, scale)), loss(batch, scale))[1])
    monkeypatch.setattr("training.preflight_rows.SAMPLE", 1)  # the row is no real one
    run.preflight()
    [(batch, scale)] = seen
    assert batch.token_ids.shape == (4, 192)
    supervised = [sum(run.data.train[i].supervised) for rows in run.plan.steps[step] for row in rows for i in row]
    assert scale == 1 / sum(supervised)  # a real step's


def test_longest_counts_padding():
    """Two rows of 5 take ten positions, one of 9 takes nine, three of (4, 1, 1) twelve."""
    plan = RunPlan([[[[0], [1]], [[2]]], [[[3], [4], [4]]]], frozenset({2}))
    assert longest(plan, [5, 5, 9, 4, 1]) == (1, [[3], [4], [4]])


def test_memory_far_over_the_prediction_is_a_warning_on_a_gpu_only():
    step = MicroStep(1.0, 4, 64, [], [], [], measured=13_000_000_000, predicted=10_000_000_000, what="peak")
    assert check_memory(step).warning == ""  # 1.25 times and half a gigabyte are allowed
    assert "peak 13.10 GB measured, 10.00 predicted" in check_memory(replace(step, measured=13_100_000_000)).warning
    assert check_memory(replace(step, measured=13_100_000_000, what="a pass takes")).warning == ""
    assert "not measured" in check_memory(replace(step, measured=None)).found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("method", ["full", "lora", "lora-8bit"])
def test_on_a_gpu_the_peak_begins_anew_and_the_generator_is_as_it_was(base, tmp_path, method):
    run = prepare(tiny_config(base, tmp_path, method), device=torch.device("cuda"))
    before = torch.cuda.get_rng_state_all()
    assert run.preflight()[-1].partition("; ")[2].startswith("peak ")
    assert all(map(torch.equal, before, torch.cuda.get_rng_state_all()))
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated()
