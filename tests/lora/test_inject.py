import hashlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llama import Llama, LlamaConfig
from lora import LoraConfig, LoraLinear, adapters_disabled, add_lora, lora_layers, trainable_summary
from lora.inject import match_targets

EVERYWHERE = ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "output")


def config(*targets: str, **settings: float) -> LoraConfig:
    return LoraConfig(**({"r": 4, "alpha": 8, "dropout": 0.0} | settings), targets=targets)


def digest(model: nn.Module) -> dict[str, str]:
    """Hash of the bytes of every tensor outside the adapters, under its name in the bare model."""
    return {
        name.replace(".base.", "."): hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }


def train(model: Llama, token_ids: Tensor, steps: int = 2) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(token_ids[:, :-1]).flatten(0, 1), token_ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("wq",), ["layers.0.attention.wq", "layers.1.attention.wq"]),
        (("q_proj",), ["layers.0.attention.wq", "layers.1.attention.wq"]),
        (("attention.wq",), ["layers.0.attention.wq", "layers.1.attention.wq"]),
        (("self_attn.q_proj", "wq"), ["layers.0.attention.wq", "layers.1.attention.wq"]),
        (("1.feed_forward.w2",), ["layers.1.feed_forward.w2"]),
        (("model.layers.1.mlp.down_proj",), ["layers.1.feed_forward.w2"]),
        (("lm_head", "layers.0.attention.wv"), ["layers.0.attention.wv", "output"]),
        (("output",), ["output"]),
    ],
)
def test_targets_are_named_in_either_scheme(make_llama: Callable, targets: tuple, expected: list[str]) -> None:
    model = add_lora(make_llama(), config(*targets))
    assert [name for name, _ in lora_layers(model)] == expected


@pytest.mark.parametrize(
    ("targets", "messages"),
    [
        (("q_porj",), ["'q_porj' (did you mean 'q_proj'?)", "wq = q_proj", "w2 = down_proj", "output = lm_head"]),
        (("wq", "c_attn"), ["'c_attn'", "available: wq = q_proj"]),
        (("q",), ["'q'"]),  # half a component is no match
        (("tok_embeddings",), ["'tok_embeddings'"]),  # exists, but is not linear
    ],
)
def test_a_target_that_names_nothing_is_an_error(make_llama: Callable, targets: tuple, messages: list[str]) -> None:
    model = make_llama()
    with pytest.raises(ValueError) as caught:
        add_lora(model, config(*targets))
    assert all(message in str(caught.value) for message in messages)
    assert not list(lora_layers(model)) and all(parameter.requires_grad for parameter in model.parameters())


def test_models_without_a_layout_keep_their_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2)))
    assert match_targets(model, ("0",)) == ["0", "2.0"]
    with pytest.raises(ValueError, match="no linear modules"):
        match_targets(nn.ReLU(), ("wq",))


def test_a_second_injection_is_refused(make_llama: Callable) -> None:
    model = add_lora(make_llama(), config("wq"))
    with pytest.raises(ValueError, match="already"):
        add_lora(model, config("wv"))
    assert {name.rpartition(".")[2] for name, _ in lora_layers(model)} == {"wq"}


def test_only_adapters_train(make_llama: Callable) -> None:
    model = add_lora(make_llama(), config("wq", "w2"))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{name}.lora_{matrix}" for name, _ in lora_layers(model) for matrix in "AB"}
    assert model.lora_config == config("wq", "w2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_leaves_the_model_as_it_is(
    make_llama: Callable, token_ids: Tensor, dtype: torch.dtype, capsys: pytest.CaptureFixture
) -> None:
    model = make_llama().to(dtype).eval()
    before = model(token_ids)
    add_lora(model, config(*EVERYWHERE, dropout=0.5))
    assert torch.equal(model(token_ids), before)
    assert not any(layer.training for _, layer in lora_layers(model))
    assert capsys.readouterr().out == ""


def test_a_seed_gives_the_same_adapter(make_llama: Callable) -> None:
    first, second = (
        add_lora(make_llama(), config(*EVERYWHERE), generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    for (_, one), (_, two) in zip(lora_layers(first), lora_layers(second), strict=True):
        assert torch.equal(one.lora_A, two.lora_A)
    layers = dict(lora_layers(first))
    assert not torch.equal(layers["layers.0.attention.wq"].lora_A, layers["layers.1.attention.wq"].lora_A)


@given(
    targets=st.sets(st.sampled_from(EVERYWHERE), min_size=1),
    seed=st.integers(0, 2**32 - 1),
    dropout=st.sampled_from([0.0, 0.3]),
    checkpointing=st.booleans(),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_training_never_touches_the_base(
    make_llama: Callable, token_ids: Tensor, targets: set[str], seed: int, dropout: float, checkpointing: bool
) -> None:
    torch.manual_seed(seed)
    model = make_llama()
    before, clean = digest(model), model.eval()(token_ids)
    add_lora(model, config(*sorted(targets), dropout=dropout)).train()
    model.gradient_checkpointing = checkpointing
    train(model, token_ids)
    assert digest(model) == before
    assert all(layer.lora_B.any() for _, layer in lora_layers(model))  # and every adapter did learn
    with adapters_disabled(model):
        assert torch.equal(model.eval()(token_ids), clean)
    assert not torch.equal(model(token_ids), clean)


def test_gradient_checkpointing_gives_the_same_gradients(
    make_adapted: Callable, token_ids: Tensor, check_bound: Callable
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_adapted(("wq", "wv"), dropout=0.25).train()
        model.gradient_checkpointing = checkpointing
        torch.manual_seed(0)
        model(token_ids).logsumexp(-1).sum().backward()
        found = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        assert len(found) == 8 and all(gradient is not None and gradient.any() for gradient in found)
        gradients.append(found)
    error = max((one - two).abs().max() for one, two in zip(*gradients, strict=True))
    # The recomputation repeats the same operations on the same numbers, dropout's masks included.
    check_bound("lora: gradients with and without checkpointing", error, 0.0)


def test_disabled_adapters_come_back(make_llama: Callable, make_adapted: Callable, token_ids: Tensor) -> None:
    model = make_adapted()
    tuned, base = model(token_ids), make_llama().eval()(token_ids)
    with adapters_disabled(model):
        assert torch.equal(model(token_ids), base)
        with adapters_disabled(model):
            pass
        assert torch.equal(model(token_ids), base)  # leaving the inner context does not switch them on
    assert torch.equal(model(token_ids), tuned)
    with pytest.raises(RuntimeError, match="inside"), adapters_disabled(model):
        raise RuntimeError("inside")
    assert torch.equal(model(token_ids), tuned)


def test_disabling_needs_adapters(make_llama: Callable) -> None:
    with pytest.raises(ValueError, match="no LoRA adapters"), adapters_disabled(make_llama()):
        pass


def test_mode_and_device_moves_change_no_value(make_adapted: Callable) -> None:
    model = make_adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train().eval().to("cpu").train().float().eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_parameter_count_of_the_published_adapters() -> None:
    """LLaMA-7B, r = 8 on q and v: the 4,194,304 trainable parameters that Alpaca-LoRA's training log prints."""
    with torch.device("meta"):
        model = Llama(LlamaConfig.named("7B"))
    add_lora(model, config("q_proj", "v_proj", r=8))
    # 32 layers × 2 modules × 8·(4096 + 4096)
    assert trainable_summary(model) == "64 adapters, 4,194,304 trainable parameters"
    assert all(layer.lora_A.is_meta for _, layer in lora_layers(model))
    assert isinstance(model.layers[0].attention.wq, LoraLinear)
