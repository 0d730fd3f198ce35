"""Saving: the files other programs expect, refusals that name the remedy, and never half a checkpoint."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles.checkpoint_files import hf_state, random_state, write_hf, write_meta
from safetensors import safe_open

import int8
import lora
from llama.checkpoint import convert_checkpoint, load_checkpoint, open_checkpoint, save_checkpoint
from llama.config import LlamaConfig
from llama.model import Llama

CONFIG = LlamaConfig(vocab_size=96, dim=128, n_layers=2, n_heads=16, n_kv_heads=8, hidden_dim=352, norm_eps=1e-5)


def a_model(seed: int = 0) -> Llama:
    model = Llama(CONFIG)
    model.load_state_dict(random_state(seed=seed))
    return model


def seed_of(folder: Path) -> int:
    """Which of `a_model`'s weights a checkpoint holds, whole."""
    held = load_checkpoint(folder, progress=False).state_dict()
    return next(
        seed
        for seed in range(3)
        if all(torch.equal(weight, held[name]) for name, weight in random_state(seed=seed).items())
    )


def test_safetensors_are_cut_at_the_size_asked_for(tmp_path: Path) -> None:
    limit = 200_000
    save_checkpoint(a_model(), tmp_path, "hf", max_shard_bytes=limit)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    expected = hf_state(random_state())
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in expected.values())
    sizes = []
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            names = list(opened.keys())
            sizes.append(sum(opened.get_tensor(name).nbytes for name in names))
            for name in names:
                assert index["weight_map"].pop(name) == file.name
                assert torch.equal(opened.get_tensor(name), expected.pop(name))
    assert not index["weight_map"] and not expected
    assert max(sizes) <= limit and sum(sizes[:2]) > limit  # full, not scattered


def test_a_tensor_larger_than_a_shard_gets_one_to_itself(tmp_path: Path) -> None:
    save_checkpoint(a_model(), tmp_path, max_shard_bytes=1)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(random_state())
    assert seed_of(tmp_path) == 0


@pytest.mark.parametrize("n_ranks", [1, 2, 4, 8])
def test_meta_shards_are_cut_as_metas_code_cuts(n_ranks: int, tmp_path: Path) -> None:
    save_checkpoint(a_model(), tmp_path / "ours", "meta", model_parallel=n_ranks)
    write_meta(tmp_path / "oracle", random_state(), n_ranks)
    for rank in range(n_ranks):
        file = f"consolidated.{rank:02d}.pth"
        ours = torch.load(tmp_path / "ours" / file, weights_only=True)
        oracle = torch.load(tmp_path / "oracle" / file, weights_only=True)
        del oracle["rope.freqs"]
        assert sorted(ours) == sorted(oracle)
        for name, weight in oracle.items():
            assert torch.equal(ours[name], weight) and ours[name].untyped_storage().nbytes() == weight.nbytes
    total = sum(weight.nbytes for weight in random_state().values())
    on_disk = sum(file.stat().st_size for file in (tmp_path / "ours").glob("*.pth"))
    assert on_disk < total + n_ranks * 20_000  # slices, not the whole storages behind them


def test_config_says_what_the_weights_are(tmp_path: Path) -> None:
    save_checkpoint(a_model(), tmp_path, dtype=torch.float16)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["torch_dtype"] == "float16" and config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0


@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_a_checkpoint_is_replaced_whole(layout: str, tmp_path: Path) -> None:
    options = {"max_shard_bytes": 20_000} if layout == "hf" else {"model_parallel": 4}
    (tmp_path / "tokenizer.model").write_text("stays")
    save_checkpoint(a_model(1), tmp_path, layout, **options)
    save_checkpoint(a_model(2), tmp_path, layout)
    names = {"config.json", "model.safetensors"} if layout == "hf" else {"params.json", "consolidated.00.pth"}
    assert {file.name for file in tmp_path.iterdir()} == names | {"tokenizer.model"}
    assert seed_of(tmp_path) == 2


class Killed(BaseException):
    """Not an Exception, so that nothing but clean-up can meet it."""


@pytest.mark.parametrize("layout", ["hf", "meta"])
@pytest.mark.parametrize(("call", "n_old"), [("fsync", 1), ("fsync", 2), ("replace", 1), ("replace", 2), ("unlink", 2)])
def test_killed_at_any_moment_leaves_the_old_the_new_or_a_refusal(
    call: str, n_old: int, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old checkpoint has `n_old` files of weights, the new one has one: from one to one there is no refusal."""
    options: dict[str, int] = {"model_parallel": n_old}
    if layout == "hf":
        options = {"max_shard_bytes": 2**40 if n_old == 1 else 500_000}
    original: Callable[..., object] = getattr(os, call)
    outcomes = []
    for n_calls in range(30):
        folder = tmp_path / str(n_calls)
        save_checkpoint(a_model(1), folder, layout, **options)
        calls = 0

        def dies(*arguments: object, limit: int = n_calls, **keywords: object) -> object:
            nonlocal calls
            calls += 1
            if calls > limit:
                raise Killed
            return original(*arguments, **keywords)

        with monkeypatch.context() as patched:
            patched.setattr(os, call, dies)
            patched.setattr("shutil.rmtree", lambda *_, **__: None)  # a killed process does not tidy up
            try:
                save_checkpoint(a_model(2), folder, layout)
            except Killed:
                pass
            else:
                break
        try:
            outcomes.append(seed_of(folder))
        except ValueError as error:
            assert "no LLaMA checkpoint" in str(error)
            outcomes.append(0)
        save_checkpoint(a_model(2), folder, layout)  # and the next save clears up
        assert seed_of(folder) == 2 and not list(folder.glob(".*"))
    assert outcomes == sorted(outcomes, key=[1, 0, 2].index)  # old, then refused, then new: never a mixture
    assert outcomes and seed_of(folder) == 2
    assert n_old > 1 or 0 not in outcomes


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_a_full_disk_leaves_what_was_there(layout: str, existing: bool, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if existing:
        save_checkpoint(a_model(1), folder, layout)
    before = {file.name: file.read_bytes() for file in folder.iterdir()} if existing else None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the system refuses, with EFBIG instead of ENOSPC
    try:
        with pytest.raises(OSError, match=r"while saving.*model"):
            save_checkpoint(a_model(2), folder, layout)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ({file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else None) == before


def test_adapters_and_int8_are_refused_with_the_remedy(tmp_path: Path) -> None:
    adapted = lora.add_lora(a_model(), lora.LoraConfig(r=2, alpha=4, dropout=0.0, targets=("q_proj",)))
    with pytest.raises(
        ValueError, match=r"holds adapters .*lora\.save_adapter.*lora\.merge_lora\(model, unload=True\)"
    ):
        save_checkpoint(adapted, tmp_path / "model")
    save_checkpoint(lora.merge_lora(adapted, unload=True), tmp_path / "merged")
    assert seed_of(tmp_path / "merged") == 0  # a fresh adapter changes nothing
    quantized = a_model()
    quantized.layers[0].attention.wq = int8.Int8Linear.from_linear(quantized.layers[0].attention.wq)
    with pytest.raises(ValueError, match=r"int8 weights .*load the 16-bit checkpoint without convert_linear"):
        save_checkpoint(quantized, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_models_that_are_not_their_config_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = Llama(CONFIG)
    with pytest.raises(ValueError, match=r"no numbers yet \(tok_embeddings.weight"):
        save_checkpoint(empty, tmp_path)
    with pytest.raises(ValueError, match="can only save a Llama, not a Linear"):
        save_checkpoint(torch.nn.Linear(2, 2), tmp_path)  # type: ignore[arg-type]
    resized = a_model()
    resized.output = torch.nn.Linear(128, 97, bias=True)
    with pytest.raises(ValueError, match=r"output\.weight, output\.bias differ"):
        save_checkpoint(resized, tmp_path)
    tied = Llama(LlamaConfig(96, 128, 2, 16, 8, 352, tie_embeddings=True))
    tied.output.weight = torch.nn.Parameter(torch.zeros(96, 128))
    with pytest.raises(ValueError, match=r"ties the head .* but they differ: call model\.tie_weights"):
        save_checkpoint(tied, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "gguf"}, "layout = 'gguf' must be one of hf, meta"),
        ({"max_shard_bytes": 0}, "max_shard_bytes = 0 must be positive"),
        ({"model_parallel": 2}, "belongs to layout 'meta'"),
        ({"layout": "meta", "model_parallel": 3}, "model_parallel = 3 must divide n_heads = 16, n_kv_heads = 8"),
        ({"layout": "meta", "model_parallel": 0}, "model_parallel = 0 must divide"),
        ({"dtype": torch.int8}, "must be a floating-point"),
        ({"dtype": "bfloat16"}, "dtype = 'bfloat16' must be a floating-point torch.dtype"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        save_checkpoint(a_model(), tmp_path / "model", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "model").exists()


def test_two_layouts_do_not_share_a_directory(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta", random_state())
    with pytest.raises(ValueError, match=r"holds consolidated.*another layout"):
        save_checkpoint(a_model(), tmp_path / "meta", "hf")
    write_hf(tmp_path / "hf", random_state(), suffix="bin")
    with pytest.raises(ValueError, match=r"holds pytorch_model.*another layout"):
        save_checkpoint(a_model(), tmp_path / "hf", "meta")
    with pytest.raises(ValueError, match="is the source itself"):
        convert_checkpoint(tmp_path / "hf", tmp_path / "meta/../hf")


def test_a_loaded_checkpoint_can_be_saved_where_it_came_from(tmp_path: Path) -> None:
    write_hf(tmp_path, random_state(seed=1), suffix="safetensors")
    model = load_checkpoint(tmp_path, progress=False)
    save_checkpoint(model, tmp_path)
    assert seed_of(tmp_path) == 1
    assert open_checkpoint(tmp_path).config == CONFIG
