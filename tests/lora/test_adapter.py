import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llama import Llama, LlamaConfig
from lora import LoraConfig, LoraLinear, add_lora, load_adapter, lora_layers, merge_lora, save_adapter

PREFIX = "base_model.model.model.layers.0."
ALPACA_LORA = {  # the fields of the adapters that alpaca-lora published, in their order
    "base_model_name_or_path": "decapoda-research/llama-7b-hf",
    "bias": "none",
    "enable_lora": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "merge_weights": False,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}


def adapters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def edit(folder: Path, **changes: Any) -> None:
    """Change settings of a saved adapter."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors))


@pytest.mark.parametrize("targets", [("wq", "wv"), ("wk", "w1", "w2", "w3", "wo"), ("output", "q_proj")])
def test_round_trip_is_bit_exact(
    make_adapted: Callable, make_llama: Callable, token_ids: Tensor, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    model = make_adapted(targets)
    save_adapter(model, tmp_path, base_model="some/base")
    loaded = load_adapter(make_llama().eval(), tmp_path)
    assert same(adapters_of(loaded), adapters_of(model))
    assert torch.equal(loaded(token_ids), model(token_ids))
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == set(adapters_of(model))
    again = tmp_path / "again"
    save_adapter(loaded, again, base_model="some/base")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()
    assert sorted(path.name for path in again.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_files_are_pefts(make_adapted: Callable, tmp_path: Path) -> None:
    model = make_adapted(("wq", "w2"), r=3, alpha=6, dropout=0.05)
    save_adapter(model, tmp_path, base_model="some/base")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA" and settings["task_type"] == "CAUSAL_LM"
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (3, 6, 0.05)
    assert settings["target_modules"] == ["down_proj", "q_proj"]
    assert settings["base_model_name_or_path"] == "some/base"
    tensors = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    assert {name for name in tensors if name.startswith(PREFIX)} == {
        f"{PREFIX}{module}.lora_{matrix}.weight" for module in ("self_attn.q_proj", "mlp.down_proj") for matrix in "AB"
    }
    # Rows of a head of size 8: the first elements of its four pairs, then the second ones.
    rows = [head * 8 + row for head in range(4) for row in (0, 2, 4, 6, 1, 3, 5, 7)]
    layer = model.layers[0].attention.wq
    assert torch.equal(tensors[f"{PREFIX}self_attn.q_proj.lora_B.weight"], layer.lora_B[rows])
    assert torch.equal(tensors[f"{PREFIX}self_attn.q_proj.lora_A.weight"], layer.lora_A)
    assert torch.equal(tensors[f"{PREFIX}mlp.down_proj.lora_B.weight"], model.layers[0].feed_forward.w2.lora_B)


def test_part_of_the_layers_is_named_in_full(make_adapted: Callable, make_llama: Callable, tmp_path: Path) -> None:
    model = make_adapted(("1.attention.wq",))
    save_adapter(model, tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    assert [name for name, _ in lora_layers(load_adapter(make_llama(), tmp_path))] == ["layers.1.attention.wq"]


def test_models_without_a_layout_keep_their_names(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))

    model = add_lora(make(), LoraConfig(r=2, alpha=3.5, dropout=0.0, targets=("0", "2"), rslora=True))
    save_adapter(model, tmp_path)
    loaded = load_adapter(make(), tmp_path)
    assert same(adapters_of(loaded), adapters_of(model))
    assert loaded.lora_config == model.lora_config


def test_loading_leaves_the_global_generator_alone(
    make_adapted: Callable, make_llama: Callable, tmp_path: Path
) -> None:
    save_adapter(make_adapted(), tmp_path)
    model, state = make_llama(), torch.get_rng_state()
    load_adapter(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_adapted_model_takes_an_adapter_of_its_kind(make_adapted: Callable, tmp_path: Path) -> None:
    trained, other = make_adapted(("wq", "wv"), seed=3), make_adapted(("wq", "wv"), seed=4, dropout=0.5)
    save_adapter(trained, tmp_path)
    load_adapter(other, tmp_path)
    assert same(adapters_of(other), adapters_of(trained))
    assert other.lora_config.dropout == 0.5  # its own

    for settings, message in [({"r": 2}, r"\(2, 8, False\)"), ({"alpha": 4}, r"\(4, 4, False\)")]:
        with pytest.raises(ValueError, match=rf"\(4, 8, False\).*{message}"):
            load_adapter(make_adapted(("wq", "wv"), **settings), tmp_path)
    with pytest.raises(ValueError, match="adapts 4 modules, the present adapter 2"):
        load_adapter(make_adapted(("wq",)), tmp_path)
    with pytest.raises(ValueError, match=r"merged.*unmerge_lora"):
        load_adapter(merge_lora(other), tmp_path)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_settings_of_old_adapters_suffice(
    make_adapted: Callable, make_llama: Callable, tmp_path: Path, file: str
) -> None:
    model = make_adapted(("wq", "wv"), alpha=16)
    save_adapter(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(ALPACA_LORA))
    if file.endswith("bin"):
        weights = tmp_path / "adapter_model.safetensors"
        torch.save(safetensors.torch.load_file(weights), tmp_path / file)
        weights.unlink()
    assert same(adapters_of(load_adapter(make_llama(), tmp_path)), adapters_of(model))


def test_half_precision_files_widen_exactly(make_adapted: Callable, make_llama: Callable, tmp_path: Path) -> None:
    save_adapter(make_adapted(("wq",)), tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({name: t.half() for name, t in tensors.items()}))
    layer = load_adapter(make_llama(), tmp_path).layers[0].attention.wq
    assert layer.lora_A.dtype == torch.float32 and torch.equal(layer.lora_A, layer.lora_A.half().float())


def test_a_pattern_of_targets_is_resolved_by_the_tensors(
    make_adapted: Callable, make_llama: Callable, tmp_path: Path
) -> None:
    model = make_adapted(("wq", "w1"))
    save_adapter(model, tmp_path)
    edit(tmp_path, target_modules=r".*\.(q_proj|gate_proj)$")
    assert same(adapters_of(load_adapter(make_llama(), tmp_path)), adapters_of(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"layers_to_transform": 0}, "layers_to_transform = 0"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"lora_bias": True}, "lora_bias"),
        ({"some_feature_of_the_future": "on"}, "some_feature_of_the_future"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"peft_type": None}, "lack peft_type"),
        ({"r": None}, "lack r"),
        ({"r": "8"}, "r = '8'"),
        ({"lora_alpha": -1}, "alpha = -1"),
        ({"target_modules": None}, "lack target_modules"),
        ({"target_modules": []}, "at least one"),
        ({"target_modules": {"q_proj": 1}}, "target_modules must be a list"),
        ({"target_modules": [1]}, "at least one"),
        ({"target_modules": ["q_proj", "c_attn"]}, "'c_attn'"),
        ({"r": 8}, r"lora_A.weight is \(4, 32\) in the file, but model and settings \(r = 8\) need \(8, 32\)"),
        ({"r": 10**400}, "need"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    make_adapted: Callable, make_llama: Callable, tmp_path: Path, change: dict, message: str
) -> None:
    save_adapter(make_adapted(("wq", "wv")), tmp_path)
    edit(tmp_path, **change)
    model = make_llama()
    with pytest.raises(ValueError, match=message) as caught:
        load_adapter(model, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert not list(lora_layers(model)) and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{PREFIX}self_attn.q_proj.lora_B.weight"), r"1 of the 8 tensors.*missing: .*q_proj.lora_B"),
        (lambda t: t.update({"extra": torch.zeros(1)}), "1 of its 9 tensors have no place in the model: extra"),
        (lambda t: t.update({f"{PREFIX}self_attn.q_proj.lora_A.weight": torch.zeros(4, 33)}), r"\(4, 33\).*\(4, 32\)"),
        (lambda t: t.update({f"{PREFIX}self_attn.q_proj.lora_B.weight": torch.zeros(32, 4, 1)}), r"\(32, 4, 1\)"),
        (lambda t: t[f"{PREFIX}self_attn.v_proj.lora_A.weight"].fill_(math.nan), "v_proj.lora_A.weight.*finite"),
        (
            lambda t: t.update({f"{PREFIX}self_attn.q_proj.lora_A.weight": torch.zeros(4, 32, dtype=torch.int32)}),
            "floating-point",
        ),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    make_adapted: Callable, make_llama: Callable, tmp_path: Path, change: Callable, message: str
) -> None:
    save_adapter(make_adapted(("wq", "wv")), tmp_path)
    edit_tensors(tmp_path, change)
    model = make_llama()
    with pytest.raises(ValueError, match=message) as caught:
        load_adapter(model, tmp_path)
    assert str(tmp_path / "adapter_model.safetensors") in str(caught.value)
    assert not list(lora_layers(model))


def test_an_adapter_of_a_deeper_or_wider_model_is_refused(make_adapted: Callable, tmp_path: Path) -> None:
    save_adapter(make_adapted(("wq", "wv")), tmp_path, base_model="the-deeper-one")
    with pytest.raises(ValueError, match=r"made for the-deeper-one.*4 of its 8 tensors have no place.*layers\.1"):
        load_adapter(Llama(LlamaConfig(50, 32, 1, 4, 2, 48)), tmp_path)
    with pytest.raises(ValueError, match=r"4 of the 12 tensors it needs are missing.*layers\.2"):
        load_adapter(Llama(LlamaConfig(50, 32, 3, 4, 2, 48)), tmp_path)
    with pytest.raises(ValueError, match=r"\(4, 32\).*\(4, 64\)"):
        load_adapter(Llama(LlamaConfig(50, 64, 2, 4, 2, 48)), tmp_path)


def test_nothing_is_not_saved(make_llama: Callable, tmp_path: Path) -> None:
    model = make_llama()
    with pytest.raises(ValueError, match="no LoRA adapters"):
        save_adapter(model, tmp_path / "a")
    add_lora(model, LoraConfig(r=2, alpha=2, dropout=0.0, targets=("wq",)))
    with pytest.raises(ValueError, match="never trained"):
        save_adapter(model, tmp_path / "a", require_trained=True)
    by_hand = nn.Sequential(LoraLinear(nn.Linear(2, 2), r=1, alpha=1, dropout=0.0))
    with pytest.raises(ValueError, match="no lora_config"):
        save_adapter(by_hand, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    save_adapter(model, tmp_path / "a")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("matrix", ["lora_A", "lora_B"])
def test_what_is_not_finite_is_not_saved(make_adapted: Callable, tmp_path: Path, matrix: str, value: float) -> None:
    model = make_adapted(("wq", "wv"))
    save_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    getattr(model.layers[1].attention.wv, matrix).data[1, 1] = value
    with pytest.raises(ValueError, match=rf"layers\.1\.self_attn\.v_proj\.{matrix}\.weight holds NaN or infinite"):
        save_adapter(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_wrapped_models_are_refused(make_adapted: Callable, tmp_path: Path) -> None:
    compiled = torch.compile(make_adapted(("wq",)), backend="eager")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(make_adapted(("wq",)))
        for wrapped, inside in ((compiled, "_orig_mod"), (parallel, "module")):
            for function in (save_adapter, load_adapter):
                with pytest.raises(ValueError, match=rf"model\.{inside}"):
                    function(wrapped, tmp_path)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("empty_443_bytes", ["adapter_model.bin", "holds no tensors (443 bytes)", "state_dict"]),
        (
            "gpt2_r8_safetensors",
            ["openai-community/gpt2", "'attn.c_attn'", "'attn.c_proj'", "wq = q_proj", "fan_in_fan_out = True"],
        ),
        ("bloom_r8_bin", ["bigscience/bloom-560m", "'query_key_value'", "wq = q_proj", "enable_lora"]),
    ],
)
def test_real_adapters_that_do_not_fit(real_data: Path, make_llama: Callable, name: str, messages: list[str]) -> None:
    model = make_llama()
    with pytest.raises(ValueError) as caught:
        load_adapter(model, real_data / "adapters" / name)
    assert not [message for message in messages if message not in str(caught.value)]
    assert not list(lora_layers(model))
