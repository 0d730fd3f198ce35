"""A tuned model less its base and back: bit for bit, whatever the weights; another base or a damaged file is named."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from oracles.checkpoint_files import State, hf_state, random_state, write_hf, write_meta
from safetensors.torch import load_file, save_file

from llama.checkpoint import apply_diff, convert_checkpoint, is_weight_diff, load_checkpoint, make_diff, open_checkpoint

GATE = "model.layers.0.mlp.gate_proj.weight"

make = partial(make_diff, progress=False)
apply = partial(apply_diff, progress=False)


def tuned_state(dtype: torch.dtype, *, tied: bool = False, more_rows: int = 0) -> State:
    """The base's weights, moved a little, with every kind of number among them."""
    state = random_state(dtype, tied=tied)
    moves = random_state(dtype, seed=1, tied=tied)
    state = {name: weight + 1e-3 * moves[name] for name, weight in state.items()}
    smallest = torch.finfo(dtype).smallest_normal / 4
    odd = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 2.0**-14, -65504.0, smallest]).to(dtype)
    state["layers.0.feed_forward.w1.weight"][3, :8] = odd
    state["layers.1.attention.wq.weight"][5, :8] = odd
    for name in ("tok_embeddings.weight", "output.weight"):
        state[name] = torch.cat([state[name], moves[name][:more_rows]])
    return state


def assert_same_bits(folder: Path, state: State, *, tied: bool = False) -> None:
    tensors = {name: stored.read() for name, stored in open_checkpoint(folder).tensors.items()}
    assert tensors.keys() == state.keys() - ({"output.weight"} if tied else set())
    for name, tensor in tensors.items():
        wanted = state[name]
        assert tensor.dtype == wanted.dtype and tensor.shape == wanted.shape, name
        assert torch.equal(tensor.contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8)), name


def safetensors(folder: Path, state: State, **config: object) -> Path:
    return write_hf(folder, state, suffix="safetensors", **config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_tuned_model_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    base = safetensors(tmp_path / "base", random_state(dtype))
    tuned = safetensors(tmp_path / "tuned", tuned_state(dtype))
    make(base, tuned, tmp_path / "diff")
    assert is_weight_diff(tmp_path / "diff") and not is_weight_diff(tuned)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tuned, tmp_path / "diff")]
    assert abs(sizes[1] - sizes[0]) < 1000  # but for the header, as large
    assert apply(base, tmp_path / "diff", tmp_path / "out") is None
    assert_same_bits(tmp_path / "out", tuned_state(dtype))
    convert_checkpoint(tuned, tmp_path / "copy", progress=False)
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "copy")}) == 1


def test_subtraction_in_floating_point_would_not_do() -> None:
    """Why the difference is one of bit patterns."""
    base, tuned = torch.tensor([1.0, -0.0]), torch.tensor([2.0**-30, -0.0])
    back = base + (tuned - base)
    assert back[0] == 0 and not back[1].signbit()


@pytest.mark.parametrize("kind", ["bin", "Meta in 2 shards", "Meta in float32"])
def test_base_and_difference_may_be_in_any_layout_and_pieces(kind: str, tmp_path: Path) -> None:
    """The base may even be kept in more bits, if rounding gives those that the difference was made with."""
    made_with = safetensors(tmp_path / "base", random_state(torch.float16))
    tuned = write_meta(tmp_path / "tuned", tuned_state(torch.float16))
    make(made_with, tuned, tmp_path / "diff", 40_000)
    assert len(list((tmp_path / "diff").glob("model-*.safetensors"))) > 2
    match kind:
        case "bin":
            base = write_hf(tmp_path / "other", random_state(torch.float16), suffix="bin", n_files=2, index=True)
        case "Meta in 2 shards":
            base = write_meta(tmp_path / "other", random_state(torch.float16), 2)
        case _:
            base = write_meta(tmp_path / "other", random_state(torch.float32))
    apply(base, tmp_path / "diff", tmp_path / "out", 60_000)
    assert_same_bits(tmp_path / "out", tuned_state(torch.float16))


@pytest.mark.parametrize("tied", ["neither", "base", "both"])
def test_a_grown_vocabulary(tied: str, tmp_path: Path) -> None:
    state = tuned_state(torch.bfloat16, tied=tied == "both", more_rows=3)
    base_state = random_state(torch.bfloat16, tied=tied != "neither")
    base = safetensors(tmp_path / "base", base_state, tie_word_embeddings=tied != "neither")
    tuned = safetensors(tmp_path / "tuned", state, tie_word_embeddings=tied == "both", vocab_size=99)
    make(base, tuned, tmp_path / "diff")
    stored = load_file(tmp_path / "diff/model.safetensors")
    assert stored[GATE].dtype == torch.int16
    assert torch.equal(
        stored["model.embed_tokens.weight"][96:].view(torch.bfloat16), state["tok_embeddings.weight"][96:]
    )
    apply(base, tmp_path / "diff", tmp_path / "out")
    assert_same_bits(tmp_path / "out", state, tied=tied == "both")
    config = open_checkpoint(tmp_path / "out").config
    assert (config.vocab_size, config.tie_embeddings) == (99, tied == "both")


def test_a_dtype_is_rounded_to_after_the_check(tmp_path: Path) -> None:
    base = safetensors(tmp_path / "base", random_state())
    make(base, safetensors(tmp_path / "tuned", tuned_state(torch.float32)), tmp_path / "diff")
    apply(base, tmp_path / "diff", tmp_path / "out", dtype=torch.bfloat16)
    assert_same_bits(tmp_path / "out", {name: w.bfloat16() for name, w in tuned_state(torch.float32).items()})


# --- Plain differences ---


def plain_difference(base: State, tuned: State) -> State:
    """As Alpaca's was made: in float32, the base's vocabulary extended by the mean of its rows."""
    difference = {}
    for name, weight in tuned.items():
        before = base[name].float()
        if len(before) < len(weight):
            before = torch.cat([before, before.mean(dim=0, keepdim=True)])
        difference[name] = weight.float() - before
    return difference


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_published_plain_difference_is_added(
    suffix: str, tmp_path: Path, check_bound: Callable[[str, float, float], None]
) -> None:
    base, tuned = random_state(torch.float16), random_state(seed=1)
    for name in ("tok_embeddings.weight", "output.weight"):
        tuned[name] = torch.cat([tuned[name], tuned[name][:1]])
    write_meta(tmp_path / "base", base)
    write_hf(tmp_path / "diff", plain_difference(base, tuned), suffix=suffix, n_files=2, index=True, vocab_size=97)
    total = apply(tmp_path / "base", tmp_path / "diff", tmp_path / "out")
    recovered = {name: stored.read() for name, stored in open_checkpoint(tmp_path / "out").tensors.items()}
    assert recovered.keys() == tuned.keys()
    for name, weight in tuned.items():
        # The difference and the sum are each rounded once, at most 2⁻²⁴ of numbers below 16.
        error = (recovered[name] - weight).abs().max().item()
        check_bound("plain difference: recovered weights", error, 2 * 16 * 2**-24)
    wanted = sum(weight.double().sum().item() for weight in recovered.values())
    assert total == pytest.approx(wanted, abs=1e-6)  # float64 sums in another order
    apply(tmp_path / "base", tmp_path / "diff", tmp_path / "half", dtype=torch.float16)
    assert_same_bits(tmp_path / "half", {name: weight.half() for name, weight in recovered.items()})


# --- What is refused ---


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    base = safetensors(tmp_path / "base", random_state(torch.float16))
    make(base, safetensors(tmp_path / "tuned", tuned_state(torch.float16)), tmp_path / "diff")
    return tmp_path


def refused(folders: Path, message: str, base: str = "base") -> None:
    with pytest.raises(ValueError, match=message):
        apply(folders / base, folders / "diff", folders / "out")
    assert not (folders / "out").exists()


@pytest.mark.parametrize("name", ["tok_embeddings.weight", "layers.1.attention.wk.weight", "norm.weight"])
def test_another_base_is_named_and_leaves_nothing(name: str, folders: Path) -> None:
    state = random_state(torch.float16)
    state[name].view(torch.int16).flatten()[-1] ^= 1
    key = next(
        key
        for key, weight in hf_state(state).items()
        if not torch.equal(weight, hf_state(random_state(torch.float16))[key])
    )
    safetensors(folders / "other", state)
    refused(folders, rf"other: {key} has other values than the base that .*diff was made with", base="other")


def test_a_damaged_difference_is_named(folders: Path) -> None:
    tensors = load_file(folders / "diff/model.safetensors")
    tensors[GATE][7, 7] ^= 256
    save_file(tensors, folders / "diff/model.safetensors")
    refused(folders, rf"diff: {GATE} is damaged")


def test_other_shapes_are_refused(folders: Path, tmp_path: Path) -> None:
    narrow = random_state(torch.float16)
    narrow["tok_embeddings.weight"], narrow["output.weight"] = (
        torch.cat([narrow[name]] * 2) for name in ("tok_embeddings.weight", "output.weight")
    )
    safetensors(folders / "larger", narrow, vocab_size=192)
    refused(folders, r"not made with .*larger: .* is \(192, 128\) in the base, \(96, 128\) in the other", base="larger")
    shallow = {name: weight for name, weight in random_state().items() if not name.startswith("layers.1")}
    with pytest.raises(ValueError, match=r"not a base and a model tuned from it: model\.layers\.1\..* and 8 more"):
        make(folders / "base", write_shallow(folders / "shallow", shallow), folders / "again")
    assert not (folders / "again").exists()


def write_shallow(folder: Path, state: State) -> Path:
    """A model of one layer, in Meta's layout."""
    write_meta(folder, state, n_layers=1)
    return folder


def test_a_difference_is_no_model(folders: Path) -> None:
    with pytest.raises(ValueError, match=r"the difference between two models .*convert\.py diff apply"):
        load_checkpoint(folders / "diff", progress=False)
    with pytest.raises(ValueError, match="the difference between two models"):
        make(folders / "base", folders / "diff", folders / "again")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((), None, "must hold method = 'xor' and tensors"),
        (("method",), "sum", "must hold method = 'xor' and tensors"),
        (("tensors",), [], "must hold method = 'xor' and tensors"),
        (("tensors", GATE), None, f"{GATE} does not fit"),
        (("tensors", GATE, "dtype"), "F32", f"{GATE} does not fit"),
        (("tensors", GATE, "dtype"), "I16", f"{GATE} does not fit"),
        (("tensors", GATE, "dtype"), "F17", f"{GATE} does not fit"),
        (("tensors", GATE, "base"), 5, f"{GATE} does not fit"),
        (("tensors", GATE, "tuned"), "00", f"{GATE} is damaged"),
        (("tensors", "lm_foot"), {}, "lm_foot does not fit"),
    ],
)
def test_a_damaged_config_is_refused(place: tuple[str, ...], value: object, message: str, folders: Path) -> None:
    file = folders / "diff/config.json"
    config = json.loads(file.read_text())
    parent, *keys = config, "weight_diff", *place
    for key in keys[:-1]:
        parent = parent[key]
    parent[keys[-1]] = value
    file.write_text(json.dumps(config))
    refused(folders, message)


def test_missing_files_are_named(folders: Path) -> None:
    (folders / "diff/model.safetensors").unlink()
    refused(folders, r"diff: it holds no model\*\.safetensors")
    refused(folders, "nowhere: it is not a directory", base="nowhere")
