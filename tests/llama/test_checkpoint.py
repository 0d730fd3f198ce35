"""Loading: every format to the same bits, in the dtype and on the device asked for, one tensor at a time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles.checkpoint_files import WRITERS, random_state, write_hf, write_meta
from torch import Tensor, nn

from int8 import Int8Linear
from llama.checkpoint import convert_checkpoint, load_checkpoint, open_checkpoint, read_config, save_checkpoint
from llama.checkpoint.names import hf_name, hf_rows, parameter_shapes, shard_dim
from llama.config import LlamaConfig
from llama.model import Llama

CONFIG = LlamaConfig(vocab_size=96, dim=128, n_layers=2, n_heads=16, n_kv_heads=8, hidden_dim=352, norm_eps=1e-5)
TARGETS = {
    "hf": {"layout": "hf"},
    "hf in pieces": {"layout": "hf", "max_shard_bytes": 20_000},
    "meta": {"layout": "meta"},
    "meta in 2 shards": {"layout": "meta", "model_parallel": 2},
    "meta in 8 shards": {"layout": "meta", "model_parallel": 8},
}


def assert_same_bits(model: Llama, state: dict[str, Tensor]) -> None:
    held = model.state_dict()
    assert sorted(held) == sorted(state)
    for name, weight in state.items():
        assert held[name].dtype == weight.dtype, name
        assert torch.equal(held[name].view(torch.uint8), weight.contiguous().view(torch.uint8)), name


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_loads_to_the_same_bits(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = random_state(dtype)
    folder = WRITERS[kind](tmp_path / "model", state)
    model = load_checkpoint(folder, progress=False)
    assert_same_bits(model, state)
    assert model.config == read_config(folder) == CONFIG
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["safetensors in 3 files", "bin", "Meta", "Meta in 4 shards"])
def test_round_trip_through_any_pair_of_formats_is_exact(kind: str, target: str, tmp_path: Path) -> None:
    state = random_state(torch.bfloat16)
    source = WRITERS[kind](tmp_path / "source", state)
    save_checkpoint(load_checkpoint(source, progress=False), tmp_path / "saved", **TARGETS[target])
    assert_same_bits(load_checkpoint(tmp_path / "saved", progress=False), state)
    convert_checkpoint(source, tmp_path / "converted", **TARGETS[target], progress=False)
    assert contents(tmp_path / "saved") == contents(tmp_path / "converted")


@pytest.mark.parametrize("layout", ["hf", "meta"])
@pytest.mark.parametrize("source", ["HF without a head", "HF with a copy", "Meta"])
def test_tied_head_stays_tied(source: str, layout: str, tmp_path: Path) -> None:
    state = random_state(tied=True)
    if source == "Meta":
        write_meta(tmp_path / "a", state, 2)
    else:
        write_hf(tmp_path / "a", state, suffix="bin", tie_word_embeddings=source == "HF without a head")
        config = json.loads((tmp_path / "a/config.json").read_text())
        (tmp_path / "a/config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model = load_checkpoint(tmp_path / "a", progress=False)
    assert model.output.weight is model.tok_embeddings.weight
    assert model.config == replace(CONFIG, tie_embeddings=True)
    assert_same_bits(model, state)
    save_checkpoint(model, tmp_path / "b", layout)
    again = load_checkpoint(tmp_path / "b", progress=False)
    assert again.config == model.config and again.output.weight is again.tok_embeddings.weight
    assert_same_bits(again, state)


def test_a_head_that_contradicts_its_tie_is_refused(tmp_path: Path) -> None:
    folder = write_hf(tmp_path, random_state(), suffix="safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(ValueError, match=r"lm_head.weight differs from .*set tie_word_embeddings to false"):
        load_checkpoint(folder, progress=False)


@pytest.mark.parametrize("kind", ["safetensors", "Meta in 2 shards"])
def test_dtype_casts_each_tensor_once(kind: str, tmp_path: Path) -> None:
    state = random_state(torch.float32)
    folder = WRITERS[kind](tmp_path / "model", state)
    expected = {name: weight.bfloat16() for name, weight in state.items()}
    assert_same_bits(load_checkpoint(folder, dtype=torch.bfloat16, progress=False), expected)
    convert_checkpoint(folder, tmp_path / "cast", "meta", dtype=torch.bfloat16, progress=False)
    assert_same_bits(load_checkpoint(tmp_path / "cast", progress=False), expected)
    with pytest.raises(ValueError, match=r"dtype = torch.int8 must be a floating-point"):
        load_checkpoint(folder, dtype=torch.int8)


def test_mixed_dtypes_are_kept(tmp_path: Path) -> None:
    state = {name: weight.half() if weight.ndim == 2 else weight for name, weight in random_state().items()}
    model = load_checkpoint(WRITERS["bin"](tmp_path / "model", state), progress=False)
    assert_same_bits(model, state)
    for layout in ("hf", "meta"):
        save_checkpoint(model, tmp_path / layout, layout)
        assert_same_bits(load_checkpoint(tmp_path / layout, progress=False), state)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "Meta", "Meta in 2 shards"])
def test_the_model_owns_its_memory(kind: str, tmp_path: Path) -> None:
    state = random_state()
    folder = WRITERS[kind](tmp_path / "model", state)
    model = load_checkpoint(folder, progress=False)
    for file in folder.iterdir():
        with file.open("r+b") as opened:  # in place: a map of the file would show it
            opened.write(b"\xff" * file.stat().st_size)
    assert_same_bits(model, state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_loads_onto_a_gpu_and_saves_from_it(tmp_path: Path) -> None:
    state = random_state(torch.bfloat16)
    folder = WRITERS["safetensors"](tmp_path / "model", state)
    model = load_checkpoint(folder, device="cuda", progress=False)
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    for layout in ("hf", "meta"):
        save_checkpoint(model, tmp_path / layout, layout)
        assert_same_bits(load_checkpoint(tmp_path / layout, progress=False), state)


def test_convert_linear_meets_one_full_linear_at_a_time(tmp_path: Path) -> None:
    state = random_state(torch.bfloat16)
    folder = WRITERS["Meta"](tmp_path / "model", state)
    seen: list[Tensor] = []

    class Converted(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.register_buffer("doubled", linear.weight.detach() * 2)

    def convert(linear: nn.Linear) -> nn.Module:
        assert linear.weight.device.type == "cpu"
        seen.append(linear.weight.detach().clone())
        return Converted(linear)

    model = load_checkpoint(folder, convert_linear=convert, progress=False)
    converted = [name for name, module in model.named_modules() if isinstance(module, Converted)]
    linears = [f"{part}.w{n}" for part, ns in (("attention", "qkvo"), ("feed_forward", "123")) for n in ns]
    assert sorted(converted) == sorted(f"layers.{layer}.{name}" for layer in (0, 1) for name in linears)
    for name, weight in zip(converted, seen, strict=True):
        assert torch.equal(weight, state[f"{name}.weight"])
        assert torch.equal(model.get_buffer(f"{name}.doubled"), 2 * weight)
    assert [n for n, module in model.named_modules() if isinstance(module, nn.Linear)] == ["output"]
    assert torch.equal(model.output.weight, state["output.weight"])
    assert not any(module.training for module in model.modules())


def test_int8_as_it_arrives_equals_int8_afterwards(tmp_path: Path) -> None:
    folder = WRITERS["safetensors"](tmp_path / "model", random_state())
    arriving = load_checkpoint(folder, convert_linear=Int8Linear.from_linear, progress=False)
    whole = load_checkpoint(folder, progress=False)
    for block in whole.layers:
        for parent in (block.attention, block.feed_forward):
            for name, linear in list(parent.named_children()):
                setattr(parent, name, Int8Linear.from_linear(linear))
    expected = whole.state_dict()
    assert any(tensor.dtype == torch.int8 for tensor in expected.values())
    assert_same_bits(arriving, expected)


def test_names_and_shapes_cover_the_whole_model() -> None:
    shapes = parameter_shapes(CONFIG)
    assert {name: tuple(tensor.shape) for name, tensor in Llama(CONFIG).state_dict().items()} == shapes
    assert len({hf_name(name) for name in shapes}) == len(shapes)
    layout = Llama(CONFIG).adapter_layout()  # the model's own translation, made for adapters, must agree
    for module, slot in layout.items():
        assert hf_name(f"{module}.weight") == f"{slot.key}.weight"
        rows = hf_rows(f"{module}.weight", CONFIG)
        assert (rows is None) == (slot.rows is None)
        assert rows is None or torch.equal(rows, slot.rows)
    assert {name for name, shape in shapes.items() if shard_dim(name) is None} == {
        name for name, shape in shapes.items() if len(shape) == 1
    }


@pytest.mark.parametrize("kind", ["safetensors in 3 files", "bin", "Meta in 2 shards"])
def test_everything_wrong_is_listed_before_anything_is_allocated(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_state()
    state["layers.1.attention.wo.weight"] = torch.zeros(128, 64)
    state["norm.weight"] = torch.zeros(126)
    state["layers.1.feed_forward.w1.weight"] = torch.zeros(352, 128, dtype=torch.int64)
    folder = WRITERS[kind](tmp_path / "model", state)
    for file in (*folder.glob("*.bin"), *folder.glob("*.pth")):
        content = torch.load(file, weights_only=True)
        content.pop("layers.0.ffn_norm.weight", None)
        content.pop("model.layers.0.post_attention_layernorm.weight", None)
        torch.save(content | {"extra.weight": torch.zeros(3)}, file)
    if "safetensors" in kind:
        _edit_safetensors(folder, "model.layers.0.post_attention_layernorm.weight")
    monkeypatch.setattr("llama.checkpoint.load.place", lambda *_: pytest.fail("a weight was placed"))
    with pytest.raises(ValueError) as caught:
        load_checkpoint(folder, progress=False)
    message = str(caught.value)
    meta = kind.startswith("Meta")
    for name, found, wanted in [
        ("layers.1.attention.wo.weight", "(128, 64)", "(128, 128)"),
        ("norm.weight", "(126,)", "(128,)"),
    ]:
        assert f"misshapen: {name if meta else hf_name(name)} is {found}, the config implies {wanted}" in message
    w1, ffn_norm = "layers.1.feed_forward.w1.weight", "layers.0.ffn_norm.weight"
    assert f"not floating-point: {w1 if meta else hf_name(w1)} is torch.int64" in message
    assert f"missing: {ffn_norm if meta else hf_name(ffn_norm)} (128,)" in message
    assert "unexpected: extra.weight (3,)" in message
    assert "5 tensors do not fit" in message and str(folder) in message


def _edit_safetensors(folder: Path, drop: str) -> None:
    from safetensors.torch import load_file, save_file

    for number, file in enumerate(sorted(folder.glob("*.safetensors"))):
        content = load_file(file)
        content.pop(drop, None)
        save_file(content | ({"extra.weight": torch.zeros(3)} if number == 0 else {}), file)


def test_shards_that_disagree_are_listed_by_name(tmp_path: Path) -> None:
    folder = write_meta(tmp_path, random_state(), 2, vocab_size=96)
    shard = torch.load(folder / "consolidated.01.pth", weights_only=True)
    del shard["layers.0.attention.wq.weight"]
    shard["layers.1.attention.wq.weight"] = torch.zeros(31, 128)
    torch.save(shard, folder / "consolidated.01.pth")
    with pytest.raises(ValueError) as caught:
        open_checkpoint(folder)
    assert "missing: layers.0.attention.wq.weight in consolidated.01.pth" in str(caught.value)
    assert "misshapen: layers.1.attention.wq.weight: the shards disagree" in str(caught.value)
    assert "(64, 128)" in str(caught.value) and "(31, 128)" in str(caught.value)
    (folder / "consolidated.00.pth").rename(folder / "consolidated.02.pth")
    with pytest.raises(ValueError, match=r"numbered without a gap .* there are consolidated.01.pth, consolidated.02"):
        open_checkpoint(folder)


def test_tables_of_rotary_frequencies_are_passed_over(tmp_path: Path) -> None:
    state = random_state()
    folder = write_hf(tmp_path, state, suffix="bin")  # Meta's writer above stores rope.freqs always
    content = torch.load(folder / "pytorch_model.bin", weights_only=True)
    content["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    torch.save(content, folder / "pytorch_model.bin")
    assert_same_bits(load_checkpoint(folder, progress=False), state)


def test_safetensors_come_before_pickles_of_the_same_model(tmp_path: Path) -> None:
    write_hf(tmp_path, random_state(seed=1), suffix="bin")
    write_hf(tmp_path, random_state(seed=2), suffix="safetensors")
    assert_same_bits(load_checkpoint(tmp_path, progress=False), random_state(seed=2))


def test_stale_files_are_an_error_not_a_guess(tmp_path: Path) -> None:
    folder = write_hf(tmp_path, random_state(), suffix="safetensors", n_files=2, index=True)
    write_hf(folder, random_state(seed=1), suffix="safetensors")
    with pytest.raises(ValueError, match=r"holds both model.safetensors and model.safetensors.index.json"):
        open_checkpoint(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"stored twice"):
        open_checkpoint(folder)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_what_is_no_checkpoint_is_said_to_be_none(make: object, tmp_path: Path) -> None:
    path = tmp_path / "somewhere"
    make(path)  # type: ignore[operator]
    for opener in (open_checkpoint, read_config):
        with pytest.raises(ValueError, match=r"somewhere"):
            opener(path)


def test_one_closing_line_off_a_terminal_and_none_unasked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = WRITERS["Meta in 2 shards"](tmp_path / "model", random_state())
    load_checkpoint(folder)
    out, err = capfd.readouterr()
    n_bytes = sum(weight.nbytes for weight in random_state().values())
    assert out == "" and err.count("\n") == 1
    assert "2 model-parallel shards" in err and f"{n_bytes / 1e6:.1f} MB in" in err
    load_checkpoint(folder, progress=False)
    assert capfd.readouterr() == ("", "")


def test_real_model_is_the_same_from_both_layouts(real_data: Path) -> None:
    hf = load_checkpoint(real_data / "stories260K", progress=False)
    meta = load_checkpoint(real_data / "stories260K-meta", progress=False)
    assert_same_bits(meta, hf.state_dict())
    # Meta's file does not say how long the context is.
    assert replace(meta.config, max_seq_len=512) == hf.config and hf.config.tie_embeddings
    golden = json.loads((real_data / "stories260K/golden.json").read_text())
    ids = torch.tensor(golden["ids_200"])
    assert torch.equal(meta(ids[None])[0, :-1].argmax(-1), ids[1:])


@pytest.mark.parametrize("target", [name for name in TARGETS if "8" not in name])  # it has 4 key/value heads
def test_real_model_survives_every_format(target: str, real_data: Path, tmp_path: Path) -> None:
    model = load_checkpoint(real_data / "stories260K", progress=False)
    save_checkpoint(model, tmp_path / "saved", **TARGETS[target])
    again = load_checkpoint(tmp_path / "saved", progress=False)
    assert again.config == model.config
    assert_same_bits(again, model.state_dict())
