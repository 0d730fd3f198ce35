"""convert.py from the shell's side: what it writes, what it takes along, what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles.checkpoint_files import random_state, write_hf, write_meta

import convert
from data import PromptTemplate
from llama import TOKENIZER_FILE
from llama.checkpoint import load_checkpoint, save_checkpoint
from lora import LoraConfig, add_lora, save_adapter
from recipe.companions import read_prompt, write_prompt


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write_hf(tmp_path / "source", random_state(), suffix="safetensors")
    (folder / "tokenizer.model").write_bytes(b"pieces")
    return folder


def test_layout_changes_layout_and_dtype(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta, back = tmp_path / "meta", tmp_path / "back"
    convert.main(["layout", str(source), str(meta), "--layout", "meta", "--dtype", "bfloat16", "--model-parallel", "2"])
    names = {"params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model"}
    assert {file.name for file in meta.iterdir()} == names
    convert.main(["layout", str(meta), str(back), "--max-shard-size", "50KB"])
    assert (back / "tokenizer.model").read_bytes() == b"pieces"
    assert len(list(back.glob("model-*.safetensors"))) > 2
    held = load_checkpoint(back, progress=False).state_dict()
    for name, weight in random_state().items():
        assert torch.equal(held[name], weight.bfloat16()), name
    assert capsys.readouterr().out == ""


def test_merge_adds_the_update(source: Path, tmp_path: Path, check_bound: Callable[[str, float, float], None]) -> None:
    model = load_checkpoint(source, progress=False)
    add_lora(model, LoraConfig(r=2, alpha=4, dropout=0.0, targets=("q_proj", "down_proj")))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(generator=generator)
    save_adapter(model, tmp_path / "adapter")
    convert.main(["merge", str(source), str(tmp_path / "adapter"), str(tmp_path / "merged")])
    assert (tmp_path / "merged/tokenizer.model").exists()
    merged = load_checkpoint(tmp_path / "merged", progress=False)
    state = random_state()
    adapted = dict(model.named_modules())
    for name, weight in merged.state_dict().items():
        layer = adapted[name.removesuffix(".weight")]
        if hasattr(layer, "lora_A"):
            update = (layer.lora_B.detach().double() @ layer.lora_A.detach().double()) * layer.scaling
            error = (weight - (state[name].double() + update)).abs().max()
            # One rounding to float32 of numbers below 16.
            check_bound("convert.py merge: weights against W₀ + (α/r) B A", error, 16 * 2**-24)
            assert update.abs().max() > 0.1
        else:
            assert torch.equal(weight, state[name]), name


def test_the_prompt_template_goes_along(source: Path, tmp_path: Path) -> None:
    """Of layout's source; of merge the adapter's, which was trained last, or else the base's."""
    write_prompt(PromptTemplate.named("context_question"), source)
    convert.main(["layout", str(source), str(tmp_path / "meta"), "--layout", "meta"])
    assert read_prompt(tmp_path / "meta").name == "context_question"
    adapter = tmp_path / "adapter"
    save_adapter(add_lora(load_checkpoint(source, progress=False), LoraConfig(2, 4, 0.0, ("q_proj",))), adapter)
    (adapter / TOKENIZER_FILE).write_bytes(b"not the base's")
    for saved, expected in ((None, "context_question"), ("medalpaca", "medalpaca")):
        if saved:
            write_prompt(PromptTemplate.named(saved), adapter)
        out = tmp_path / f"merged-{expected}"
        convert.main(["merge", str(source), str(adapter), str(out)])
        assert read_prompt(out).name == expected
        assert (out / TOKENIZER_FILE).read_bytes() == b"pieces"


def test_a_missing_tokenizer_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_meta(tmp_path / "meta", random_state())
    convert.main(["layout", str(source), str(tmp_path / "hf")])
    assert f"{source} holds no tokenizer.model" in capsys.readouterr().err
    assert json.loads((tmp_path / "hf/config.json").read_text())["vocab_size"] == 96


@pytest.mark.parametrize("command", [["layout"], ["merge", "ADAPTER"]])
def test_nothing_is_overwritten(command: list[str], source: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    arguments = [command[0], str(source), *command[1:], str(tmp_path / "taken")]
    with pytest.raises(SystemExit, match=r"error: .*taken exists and is not an empty directory"):
        convert.main(arguments)
    assert [file.name for file in (tmp_path / "taken").iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-shard-size", "5 bananas"], "size '5 bananas' must be a number with one of the units KB, MB, GB"),
        (["--max-shard-size", "0"], "max_shard_bytes = 0 must be positive"),
        (["--model-parallel", "2"], "model_parallel = 2 belongs to layout 'meta'"),
        (["--layout", "meta", "--model-parallel", "5"], "model_parallel = 5 must divide"),
    ],
)
def test_refusals_are_one_line_and_a_failure(arguments: list[str], message: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        convert.main(["layout", str(source), str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_int8_or_foreign_bases_are_not_merged_into(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*adapter"):
        convert.main(["merge", str(source), str(tmp_path / "no-adapter"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_real_model_through_bfloat16_and_back(real_data: Path, tmp_path: Path) -> None:
    convert.main(["layout", str(real_data / "stories260K"), str(tmp_path / "meta"), "--layout", "meta"])
    convert.main(["layout", str(tmp_path / "meta"), str(tmp_path / "hf"), "--dtype", "bfloat16"])
    original = load_checkpoint(real_data / "stories260K", progress=False)
    exact = load_checkpoint(tmp_path / "meta", progress=False)
    assert exact.config == original.config
    save_checkpoint(original, tmp_path / "rounded", dtype=torch.bfloat16)
    rounded = load_checkpoint(tmp_path / "hf", progress=False)
    expected = load_checkpoint(tmp_path / "rounded", progress=False)
    for name, weight in original.state_dict().items():
        assert torch.equal(exact.state_dict()[name], weight)
        assert torch.equal(rounded.state_dict()[name], weight.bfloat16())
        assert torch.equal(expected.state_dict()[name], weight.bfloat16())
    assert (tmp_path / "hf/tokenizer.model").read_bytes() == (real_data / "stories260K/tokenizer.model").read_bytes()
