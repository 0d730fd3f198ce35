"""Assembly: what a run's settings build, and what does not fit together."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_llama, train_tokenizer
from torch import nn

from data import PromptTemplate
from int8 import Int8Linear
from llama import Llama, Tokenizer, save_checkpoint
from lora import LoraLinear
from recipe import RunConfig, build_model, build_optimizer, load_for_inference, pick_device, save_result
from recipe.assemble import empty_model, fill_model
from recipe.companions import read_prompt
from recipe.config import DataSection, LoraSection, ModelSection, OptimSection, ShapeSection, TrainSection

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train_tokenizer(folder)
    save_checkpoint(tiny_llama(0, vocab_size=330), folder)
    return folder


def config(base: Path, method: str, precision: str = "float32") -> RunConfig:
    return RunConfig(
        model=ModelSection(base=str(base)),
        data=DataSection(max_length=64),
        lora=LoraSection(r=2, targets=("q_proj", "v_proj")),
        train=TrainSection(method=method, precision=precision),
    )


def build(settings: RunConfig) -> Llama:
    return build_model(settings, Tokenizer(Path(settings.model.base)), CPU, progress=False)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_lora_8bit_stacks_adapters_on_codes(base, precision):
    model = build(config(base, "lora-8bit", precision))
    layer = model.layers[0].attention
    assert isinstance(layer.wq, LoraLinear) and isinstance(layer.wq.base, Int8Linear)
    assert isinstance(layer.wk, Int8Linear) and isinstance(model.output, nn.Linear)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"layers.{i}.attention.{n}.lora_{m}" for i in range(2) for n in ("wq", "wv") for m in "AB"}
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert model.tok_embeddings.weight.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_full_trains_everything_in_the_precision_asked_for(base):
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16), ("bf16-mixed", torch.float32)):
        model = build(config(base, "full", precision))
        assert all(p.requires_grad and p.dtype == dtype for p in model.parameters())


def test_adapters_start_from_the_seed(base):
    first, second = (build(config(base, "lora")).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build(replace(config(base, "lora"), train=TrainSection(method="lora", precision="float32", seed=1)))
    assert not torch.equal(first["layers.0.attention.wq.lora_A"], other.state_dict()["layers.0.attention.wq.lora_A"])


def test_random_weights_need_sizes_and_take_the_tokenizers_vocabulary(base):
    settings = RunConfig(
        model=ModelSection(tokenizer=str(base)),
        shape=ShapeSection(dim=16, n_layers=1, n_heads=2, hidden_dim=24),
        train=TrainSection(method="full"),
    )
    model = build_model(settings, Tokenizer(base), CPU)
    assert (model.config.vocab_size, model.config.n_kv_heads) == (330, 2)
    with pytest.raises(ValueError, match="nothing to train"):
        build_model(replace(settings, shape=ShapeSection()), Tokenizer(base), CPU)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_an_empty_model_is_filled_with_what_a_built_one_has(base, precision):
    """In place, and by rows if asked: here those of the lower half, as a second process of two would have them."""
    drawn = RunConfig(
        model=ModelSection(tokenizer=str(base)),
        shape=ShapeSection(dim=16, n_layers=2, n_heads=2, hidden_dim=24),
        train=TrainSection(method="full", precision=precision),
    )
    for settings in (config(base, "full", precision), drawn):
        built = build_model(settings, Tokenizer(base), CPU, progress=False)
        empty = empty_model(settings, Tokenizer(base))
        assert all(p.is_meta and p.requires_grad for p in empty.parameters()) and empty.training
        assert {n: p.dtype for n, p in empty.named_parameters()} == {n: p.dtype for n, p in built.named_parameters()}
        whole = empty.to_empty(device=CPU)
        whole.tie_weights()
        lower = {id(p): p.shape[0] // 2 for p in whole.parameters()}

        def put_lower_half(parameter: torch.Tensor, values: torch.Tensor, lower=lower) -> None:
            assert parameter.shape == values.shape
            parameter.zero_()[lower[id(parameter)] :].copy_(values[lower[id(parameter)] :])

        fill_model(whole, settings, torch.Tensor.copy_, progress=False)
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), built.parameters(), strict=True))
        fill_model(whole, settings, put_lower_half, progress=False)
        for a, b in zip(whole.parameters(), built.parameters(), strict=True):
            assert torch.equal(a[lower[id(a)] :], b[lower[id(a)] :]) and not a[: lower[id(a)]].any()


def test_a_model_of_another_shape_is_not_filled(base):
    other = tiny_llama(0, vocab_size=331)
    before = [p.detach().clone() for p in other.parameters()]
    with pytest.raises(ValueError, match="does not fit the model"):
        fill_model(other, config(base, "full"), torch.Tensor.copy_, progress=False)
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before, strict=True))


def test_optimizer_groups(base):
    model = build(config(base, "full"))
    for name in ("adamw", "adamw8bit"):
        optimizer = build_optimizer(model, OptimSection(name=name, weight_decay=0.1))
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
        for group in optimizer.param_groups:
            decayed = group["weight_decay"] > 0
            assert all((p.ndim >= 2) == decayed for p in group["params"])
            embedding = any(p is model.tok_embeddings.weight for p in group["params"])
            if name == "adamw8bit":
                assert (group["bits"] == 32) == embedding


def test_rows_longer_than_the_window_are_refused(base):
    settings = replace(config(base, "lora"), data=DataSection(max_length=65))
    with pytest.raises(ValueError, match=r"max_length = 65 exceeds the model's window of 64"):
        build(settings)


def test_16_bit_weights_get_32_bit_moments(base):
    """torch's AdamW would keep bf16 moments, where v·0.999 rounds back to v and a large gradient is never forgotten."""
    model = build(config(base, "full", "bf16"))
    optimizer = build_optimizer(model, OptimSection(name="adamw", lr=1e-3))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert all(value.dtype == torch.float32 for value in moments if value.numel() > 1)
    assert isinstance(build_optimizer(build(config(base, "full")), OptimSection(name="adamw")), torch.optim.AdamW)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    train_tokenizer(tmp_path)
    save_checkpoint(tiny_llama(0, vocab_size=300), tmp_path)
    with pytest.raises(ValueError, match="330 pieces, the embedding 300 rows"):
        build(config(tmp_path, "lora"))


def test_shape_is_checked_before_weights(base):
    settings = replace(config(base, "lora"), shape=ShapeSection(name="13B"))
    with pytest.raises(ValueError, match="is not a 13B"):
        build(settings)


def test_results_carry_their_template(base, tmp_path):
    settings = config(base, "lora")
    settings = replace(settings, train=replace(settings.train, output=str(tmp_path)))
    model = build(settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_()
    folder = save_result(model, settings, PromptTemplate.named("medalpaca"))
    loaded = load_for_inference(base, adapter=folder, progress=False)
    assert loaded.template.name == "medalpaca"
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(loaded.model(ids), model.eval()(ids))


def test_a_full_result_is_a_base_of_its_own(base, tmp_path):
    """Whatever the tokenizer's file was called, the result has it under the usual name, and the run's template."""
    named_otherwise = tmp_path / "pieces.model"
    named_otherwise.write_bytes((base / "tokenizer.model").read_bytes())
    settings = config(base, "full")
    settings = replace(
        settings,
        model=replace(settings.model, tokenizer=str(named_otherwise)),
        train=replace(settings.train, output=str(tmp_path)),
    )
    folder = save_result(build(settings), settings, PromptTemplate.named("medalpaca"))
    assert (folder / "tokenizer.model").read_bytes() == named_otherwise.read_bytes()
    assert read_prompt(folder).name == "medalpaca"
    assert load_for_inference(folder, progress=False).template.name == "medalpaca"


def test_devices():
    assert pick_device("cpu") == CPU
    with pytest.raises(ValueError, match="cannot be used here"):
        pick_device("warp")
