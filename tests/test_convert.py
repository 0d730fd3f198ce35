"""convert.py from the shell's side: what it writes, what it takes along, what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles.checkpoint_files import random_state, write_hf, write_meta

import convert
from data import PromptTemplate
from int8 import Int8Linear
from llama import TOKENIZER_FILE
from llama.checkpoint import load_checkpoint, save_checkpoint
from lora import LoraConfig, add_lora, save_adapter
from recipe.companions import read_prompt, write_prompt
from recipe.int8_checkpoint import load_int8_checkpoint


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


def test_int8_halves_a_checkpoint_and_takes_its_companions_along(source: Path, tmp_path: Path) -> None:
    write_prompt(PromptTemplate.named("medalpaca"), source)
    half, codes = tmp_path / "half", tmp_path / "codes"
    convert.main(["layout", str(source), str(half), "--dtype", "float16"])
    convert.main(["int8", str(half), str(codes), "--threshold", "5", "--max-shard-size", "50KB"])
    assert (codes / "tokenizer.model").read_bytes() == b"pieces" and read_prompt(codes).name == "medalpaca"
    assert len(list(codes.glob("model-*.safetensors"))) > 2
    model = load_int8_checkpoint(codes, progress=False)
    assert {module.threshold for module in model.modules() if isinstance(module, Int8Linear)} == {5.0}


@pytest.mark.parametrize(
    "command",
    [
        ["layout", "CODES", "OUT"],
        ["int8", "CODES", "OUT"],
        ["merge", "CODES", "ADAPTER", "OUT"],
        ["diff", "make", "CODES", "SOURCE", "OUT"],
        ["diff", "make", "SOURCE", "CODES", "OUT"],
        ["diff", "apply", "CODES", "SOURCE", "OUT"],
    ],
)
def test_an_int8_checkpoint_is_refused_with_a_remedy(command: list[str], source: Path, tmp_path: Path) -> None:
    folders = {"SOURCE": source, "CODES": tmp_path / "codes", "OUT": tmp_path / "out", "ADAPTER": tmp_path / "adapter"}
    convert.main(["int8", str(source), str(folders["CODES"])])
    with pytest.raises(SystemExit, match=r"error: .*codes/config\.json: the weights are quantized .*16 or 32 bits"):
        convert.main([str(folders.get(word, word)) for word in command])
    assert not folders["OUT"].exists()


def test_a_difference_is_made_and_applied(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned, diff, out = tmp_path / "tuned", tmp_path / "diff", tmp_path / "out"
    write_hf(tuned, random_state(seed=1), suffix="safetensors")
    write_prompt(PromptTemplate.named("medalpaca"), tuned)
    convert.main(["diff", "make", str(source), str(tuned), str(diff)])
    assert f"{tuned} holds no tokenizer.model" in capsys.readouterr().err
    convert.main(["diff", "apply", str(source), str(diff), str(out)])
    assert "sum of all weights" not in capsys.readouterr().err
    assert (out / "tokenizer.model").read_bytes() == b"pieces"  # the base's: the tuned model had none
    assert read_prompt(diff).name == read_prompt(out).name == "medalpaca"
    held = load_checkpoint(out, progress=False).state_dict()
    assert all(torch.equal(held[name], weight) for name, weight in random_state(seed=1).items())


def test_the_sum_stands_in_for_checksums_of_a_plain_difference(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_hf(tmp_path / "plain", random_state(seed=1), suffix="bin")
    (plain / "tokenizer.model").write_bytes(b"theirs")
    convert.main(["diff", "apply", str(source), str(plain), str(tmp_path / "out"), "--dtype", "bfloat16"])
    total = sum((weight + random_state(seed=1)[name]).sum().item() for name, weight in random_state().items())
    printed = float(capsys.readouterr().err.partition("the sum of all weights is ")[2].split()[0])
    assert printed == pytest.approx(total, abs=0.1)  # printed with two decimals; float32 sums of 10⁴ numbers here
    assert (tmp_path / "out/tokenizer.model").read_bytes() == b"theirs"
    assert load_checkpoint(tmp_path / "out", progress=False).output.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("command", [["layout"], ["int8"], ["merge"], ["diff", "make"], ["diff", "apply"]])
def test_nothing_is_overwritten(command: list[str], source: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    between = [] if command in (["layout"], ["int8"]) else [str(source)]
    with pytest.raises(SystemExit, match=r"error: .*taken exists and is not an empty directory"):
        convert.main([*command, str(source), *between, str(tmp_path / "taken")])
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


def test_a_missing_adapter_is_named(source: Path, tmp_path: Path) -> None:
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
