"""Moments to named tensors and back: the same shapes in a file however they lie in memory, and nothing but Adam's."""

from pathlib import Path

import pytest
import torch
from tiny_runs import make, train
from torch import Tensor, nn

from files import UnsuitableFileError
from optim8bit import Adam8bit, AdamW8bit
from training.optimizer_state import form, optimizer_tensors, pending_states

FILE = Path("run.json")


def stepped(*shapes: tuple[int, ...], **options: object) -> tuple[dict[str, Tensor], Adam8bit]:
    parameters = {f"p{i}": nn.Parameter(torch.zeros(shape)) for i, shape in enumerate(shapes)}
    optimizer = AdamW8bit(parameters.values(), **options)  # type: ignore[arg-type]
    for i, parameter in enumerate(parameters.values()):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    optimizer.step()
    return dict(parameters), optimizer


def test_scales_are_in_rows_where_rows_are_whole_blocks():
    parameters, optimizer = stepped((8, 512), (8, 520), (4096,), (2, 4, 512), (5, 3))
    moments, steps = optimizer_tensors(parameters, optimizer)
    shapes = [tuple(moments[f"p{i}.exp_avg_absmax"].shape) for i in range(4)]
    assert shapes == [(8, 2), (17,), (16,), (16,)]
    assert {key for key in moments if key.startswith("p4")} == {"p4.exp_avg", "p4.exp_avg_sq"}
    assert steps == dict.fromkeys(parameters, 1)
    for i in range(4):
        state = optimizer.state[parameters[f"p{i}"]]
        assert moments[f"p{i}.exp_avg_absmax"].data_ptr() == state["exp_avg_absmax"].data_ptr()  # no copy
        assert torch.equal(moments[f"p{i}.exp_avg_absmax"].flatten(), state["exp_avg_absmax"])


@pytest.mark.parametrize("optimizer", [AdamW8bit, torch.optim.AdamW])
def test_filled_parts_make_the_same_state(optimizer):
    model, own = make(0, optimizer)
    train(model, own, 3)
    parameters = dict(model.named_parameters())
    moments, steps = optimizer_tensors(parameters, own)
    forms = {name: form(tensor) for name, tensor in moments.items()}
    pending = pending_states(FILE, parameters, own, forms, steps)
    assert pending.keys() == steps.keys()
    for name, each in pending.items():
        for key, part in each.parts.items():
            part.copy_(moments[f"{name}.{key}"])
        state, expected = each.finished(), own.state[parameters[name]]
        assert state.keys() == expected.keys() and type(state["step"]) is type(expected["step"])
        for key, value in expected.items():
            if isinstance(value, Tensor):
                assert torch.equal(state[key], value) and state[key].shape == value.shape
                assert state[key].dtype == value.dtype and state[key].data_ptr() != value.data_ptr()
            else:
                assert state[key] == value == 3


def test_float32_moments_go_on_as_such():
    """As after a run on so many processes that a block would have lain on two of them."""
    parameters, _ = stepped((8, 512))
    forms = {f"p0.{key}": form(torch.zeros(8, 512)) for key in ("exp_avg", "exp_avg_sq")}
    [pending] = pending_states(FILE, parameters, AdamW8bit(parameters.values()), forms, {"p0": 7}).values()
    assert pending.finished().keys() == {"step", "exp_avg", "exp_avg_sq"} and pending.finished()["step"] == 7


def test_torchs_count_lies_where_torch_wants_it():
    parameters = {"p": nn.Parameter(torch.zeros(2))}
    forms = dict.fromkeys(("p.exp_avg", "p.exp_avg_sq"), form(torch.zeros(2)))
    [pending] = pending_states(FILE, parameters, torch.optim.AdamW(parameters.values()), forms, {"p": 7}).values()
    step = pending.finished()["step"]
    assert step.dtype == torch.float32 and step.shape == () and step.item() == 7 and step.device.type == "cpu"


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"p0.exp_avg_codes": None}, "p0"),
        ({"p0.exp_avg_codes": "(8, 512) torch.int8"}, "p0"),
        ({"p0.exp_avg_absmax": "(16,) torch.float32"}, "p0"),
        ({"p0.momentum_buffer": "(8, 512) torch.float32"}, "p0"),
        ({"p1.exp_avg": "(2,) torch.float32"}, "p1.exp_avg"),
    ],
    ids=str,
)
def test_state_that_does_not_fit_is_refused_by_name(change, place):
    parameters, optimizer = stepped((8, 512))
    moments, steps = optimizer_tensors(parameters, optimizer)
    forms = {name: form(tensor) for name, tensor in moments.items()} | change
    forms = {name: each for name, each in forms.items() if each is not None}
    with pytest.raises(UnsuitableFileError, match=rf"run\.json, {place}: "):
        pending_states(FILE, parameters, optimizer, forms, steps)
    with pytest.raises(UnsuitableFileError, match="of a parameter that is not trained here"):
        pending_states(FILE, {}, optimizer, forms, steps)


def test_what_could_not_be_restored_is_not_saved():
    _, optimizer = stepped((8, 512))
    with pytest.raises(ValueError, match="state of parameters that the model does not train: 1"):
        optimizer_tensors({}, optimizer)
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    for other in (
        torch.optim.SGD([parameter], lr=1.0, momentum=0.9),
        torch.optim.Adam([parameter], lr=1.0, amsgrad=True),
    ):
        other.step()
        with pytest.raises(ValueError, match="the state of p is not one of Adam's"):
            optimizer_tensors({"p": parameter}, other)
