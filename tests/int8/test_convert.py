"""Converting a whole model: which layers, in what order, at what memory."""

import weakref

import pytest
import torch
from torch import nn

from int8 import Int8Linear, convert_to_int8, set_backward


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16, bias=False)
        self.down = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    def __init__(self, head: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        setattr(self, head, nn.Linear(8, 11, bias=False))
        self.head = head

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(token_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return getattr(self, self.head)(hidden)


def kinds(model: nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules() if "Linear" in type(module).__name__}


BLOCKS = {f"layers.{i}.{name}": "Int8Linear" for i in range(2) for name in ("up", "down")}


@pytest.mark.parametrize("head", ["output", "lm_head"])
def test_everything_but_the_head(head):
    model = Model(head)
    weights = {name: module.weight.detach().clone() for name, module in model.named_modules() if name in BLOCKS}
    assert convert_to_int8(model, threshold=3.0) is model
    assert kinds(model) == BLOCKS | {head: "Linear"}
    for name, weight in weights.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Int8Linear) and layer.threshold == 3.0
        assert torch.equal(layer.weight_codes, Int8Linear.from_linear(_linear(weight)).weight_codes)
    assert isinstance(model.embedding, nn.Embedding)


def _linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    return linear


def test_outputs_stay_close_and_gradients_flow():
    torch.manual_seed(0)
    model = Model("output")
    token_ids = torch.arange(11)[None]
    before = model(token_ids)
    after = convert_to_int8(model)(token_ids)
    # Two blocks of two products, each about 1 % off; the residual stream and the head are exact.
    assert (after - before).norm() / before.norm() < 0.01
    after.sum().backward()
    assert model.embedding.weight.grad is not None and model.output.weight.grad is not None


@pytest.mark.parametrize(
    ("skip", "kept"),
    [
        ((), set()),
        (("down",), {"layers.0.down", "layers.1.down"}),
        (["up", "output"], {"layers.0.up", "layers.1.up", "output"}),
    ],
)
def test_skip_compares_the_last_component(skip, kept):
    model = convert_to_int8(Model("output"), skip=skip)
    assert {name for name, kind in kinds(model).items() if kind == "Linear"} == kept


def test_shared_layers_stay_shared():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared, shared)})
    convert_to_int8(model)
    assert isinstance(model["a"][0], Int8Linear)
    assert model["a"][0] is model["b"][0] is model["b"][1]


def test_one_layer_at_a_time(monkeypatch):
    """When a layer is converted, the float weights of those before it are gone already."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    weights = [weakref.ref(layer.weight) for layer in model]
    alive: list[int] = []
    plain = Int8Linear.from_linear

    def counting(linear: nn.Linear, *options) -> Int8Linear:
        alive.append(sum(weight() is not None for weight in weights))
        return plain(linear, *options)

    monkeypatch.setattr(Int8Linear, "from_linear", counting)
    convert_to_int8(model)
    assert alive == [5, 4, 3, 2, 1]
    assert not any(weight() is not None for weight in weights)


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU()), nn.Linear(3, 3), convert_to_int8(Model("output"))])
def test_nothing_to_convert_is_an_error(model):
    with pytest.raises(ValueError, match=r"no nn.Linear to convert in \w+ \(skipping lm_head, output\).*from_linear"):
        convert_to_int8(model)


def test_meta_device():
    with torch.device("meta"):
        model = Model("output")
    convert_to_int8(model)
    assert kinds(model) == BLOCKS | {"output": "Linear"}
    assert model(torch.zeros(1, 3, dtype=torch.int64, device="meta")).shape == (1, 3, 11)


def test_a_way_back_for_all_layers():
    model = convert_to_int8(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    assert {layer.backward for layer in model} == {"exact"}
    set_backward(model, "fast")
    assert {layer.backward for layer in model} == {"fast"}
    with pytest.raises(ValueError, match=r"backward is 'slow'.*exact, fast"):
        set_backward(model, "slow")
