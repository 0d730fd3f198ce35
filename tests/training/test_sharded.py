"""Full fine-tuning over processes: the run of one, each rank holding its rows; saved, resumed and exported at any size.

One launch of 2 and one of 4 processes do all of it (`sharded_run`); the tests compare what they left.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_run
import torch
from ranks import run_ranks
from safetensors.torch import save_file
from sharded_run import OPTIMIZERS, SAVED, SHAPE, begin, go_on, settings
from tiny_models import train_tokenizer

from files import read_safetensors
from files.errors import DamagedFileError, UnsuitableFileError
from llama import Llama, save_checkpoint
from training import ALONE
from training.sharded import load_shards, save_shards
from training.state import load_state

SIZES = (2, 4)
Losses = dict[str, list[float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "base").mkdir()
    train_tokenizer(folder / "base")
    model = Llama(SHAPE).init_weights(torch.Generator().manual_seed(0), std=0.05)
    save_checkpoint(model, folder / "base")
    return folder


@pytest.fixture(scope="module")
def losses(folder: Path) -> dict[int, Losses]:
    """Losses of each number of processes, by what was done; on several they are the same on every rank."""
    found = {1: sharded_run.alone(folder)}
    for size in SIZES:
        run_ranks(Path(sharded_run.__file__), size, folder)
        ranks = [json.loads((folder / f"losses-{size}-{rank}.json").read_text()) for rank in range(size)]
        assert all(rank == ranks[0] for rank in ranks)
        found[size] = {name: list(map(float.fromhex, values)) for name, values in ranks[0].items()}
    return found


def state_of(folder: Path, run: str, optimizer_name: str) -> dict[str, torch.Tensor]:
    """Weights and moments of a run's checkpoint, whole, as one process reads them."""
    engine, optimizer = begin(settings(folder, "reader", optimizer_name), ALONE)
    load_state(folder / run / "checkpoints" / f"step-{SAVED:08d}", engine.model, optimizer, {})
    found = {name: p.detach() for name, p in engine.model.named_parameters()}
    for name, p in engine.model.named_parameters():
        found |= {f"{name}.{key}": torch.as_tensor(value) for key, value in optimizer.state[p].items()}
    return found


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["loaded", "drawn"])
def test_weights_loaded_or_drawn_in_parts_are_saved_as_the_files_of_one_process(folder, losses, size, name):
    one, many = (folder / f"{name}-{n}" / "model" for n in (1, size))
    assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in many.iterdir())
    assert (one / "model.safetensors").stat().st_size > 10**5
    for file in one.iterdir():
        assert file.read_bytes() == (many / file.name).read_bytes(), file.name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_losses_are_those_of_one_process(losses, check_bound, size, optimizer):
    """Sums of gradients in another order: the first loss sees none of it, the others what Adam makes of it."""
    alone, together = losses[1][optimizer], losses[size][optimizer]
    errors = [abs(a - b) / a for a, b in zip(alone, together, strict=True)]
    check_bound("sharded: first loss vs one process (relative)", errors[0], 2**-22)
    check_bound("sharded: losses of 4 steps vs one process (relative)", max(errors), 1e-6)


def test_a_tied_head_is_trained_as_by_one_process(losses, check_bound):
    """But for moments in 32 bits instead of 8, of a rounding error of 1 % each, over steps of 1e-3."""
    errors = [abs(a - b) / a for a, b in zip(losses[1]["tied"], losses[2]["tied"], strict=True)]
    check_bound("sharded: first loss vs one process (relative)", errors[0], 2**-22)
    check_bound("sharded, moments in 32 bits: losses of 4 steps vs 8 bits in one process (relative)", max(errors), 1e-5)


def test_mixed_precision_is_that_of_one_process_but_for_the_gains(losses, check_bound):
    """Gathered in bf16, the gains of a block's norms are off by up to 2⁻⁹; products round their weights anyway."""
    errors = [abs(a - b) / a for a, b in zip(losses[1]["mixed"], losses[2]["mixed"], strict=True)]
    check_bound("sharded bf16-mixed: losses of 4 steps vs one process (relative)", max(errors), 2**-9)


@pytest.mark.parametrize(("size", "optimizer"), [(2, "adamw"), (2, "adamw8bit"), (4, "adamw8bit")])
def test_as_many_processes_go_on_bit_for_bit(losses, size, optimizer):
    undisturbed, resumed = losses[size][optimizer][SAVED:], losses[size][f"{optimizer} again"]
    assert [loss.hex() for loss in resumed] == [loss.hex() for loss in undisturbed]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_another_number_of_processes_goes_on_from_the_same_state(folder, losses, check_bound, optimizer):
    for written_by, read_by in ((1, 2), (2, 4)):
        saved = state_of(folder, f"run-{written_by}-{optimizer}", optimizer)
        assert len(saved) > 80
        assert_equal(state_of(folder, f"again-{written_by}-{read_by}-{optimizer}", optimizer), saved)
        undisturbed = losses[written_by][optimizer][SAVED:]
        resumed = losses[read_by][f"{optimizer} from {written_by}"]
        error = max(abs(a - b) / a for a, b in zip(undisturbed, resumed, strict=True))
        check_bound("sharded: losses after resuming on other numbers of processes (relative)", error, 1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_process_goes_on_from_the_files_of_many(folder, losses, check_bound, optimizer):
    resumed = go_on(folder, optimizer, 4, ALONE)
    error = max(abs(a - b) / a for a, b in zip(losses[4][optimizer][SAVED:], resumed, strict=True))
    check_bound("sharded: losses after resuming on other numbers of processes (relative)", error, 1e-6)
    assert_equal(
        state_of(folder, f"again-4-1-{optimizer}", optimizer), state_of(folder, f"run-4-{optimizer}", optimizer)
    )


# --- Files of rows, read by one process ---


def shards(copy: Path, folder: Path) -> Path:
    """A copy of what 4 processes saved."""
    copy.mkdir()
    for file in (folder / "run-4-adamw8bit" / "checkpoints" / f"step-{SAVED:08d}").glob("shard-*"):
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def targets() -> dict[str, torch.Tensor]:
    return {"output.weight": torch.full((330, 256), 7.0), "layers.0.attention.wk.weight": torch.full((128, 256), 7.0)}


def test_a_missing_file_is_noticed_and_nothing_changes(tmp_path, folder, losses, count_faults):
    for number in range(1, 5):
        copy = shards(tmp_path / str(number), folder)
        [removed] = copy.glob(f"shard-{number:05d}-*")
        removed.unlink()
        into = targets()
        with pytest.raises((DamagedFileError, UnsuitableFileError), match="missing"):
            load_shards(copy, into, ALONE)
        assert all((tensor == 7).all() for tensor in into.values())
        count_faults("missing or swapped files")


def test_a_file_there_twice_is_noticed(tmp_path, folder, losses, count_faults):
    copy = shards(tmp_path / "copy", folder)
    [first] = copy.glob("shard-00002-*")
    (copy / "shard-00009-model-00001-of-00001.safetensors").write_bytes(first.read_bytes())
    with pytest.raises(DamagedFileError, match="there twice"):
        load_shards(copy, targets(), ALONE)
    count_faults("missing or swapped files")


def test_a_cut_file_is_named(tmp_path, folder, losses, count_faults):
    for sixteenth in range(16):
        copy = shards(tmp_path / str(sixteenth), folder)
        [file] = copy.glob("shard-00003-*")
        content = file.read_bytes()
        file.write_bytes(content[: len(content) * sixteenth // 16])
        into = targets()
        with pytest.raises(DamagedFileError, match="shard-00003"):
            load_shards(copy, into, ALONE)
        assert all((tensor == 7).all() for tensor in into.values())
        count_faults("truncated files")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"output.weight": torch.zeros(331, 256)}, r"\(330, 256\), but \(331, 256\) is needed"),
        ({"output.weight": torch.zeros(330, 256, dtype=torch.bfloat16)}, r"torch\.bfloat16 of shape"),
        ({"output.weight": torch.zeros(330)}, r"of shape \(330,\) is needed"),
        ({"nothing.weight": torch.zeros(3)}, "nothing.weight: not there"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, folder, losses, wanted, message):
    with pytest.raises(UnsuitableFileError, match=message):
        load_shards(shards(tmp_path / "copy", folder), wanted, ALONE)


@pytest.mark.parametrize(
    "place",
    ["[]", "{", "{}", '{"a": 3}', '{"a": {}}']
    + [json.dumps({"a": {"saved_offsets": offsets}}) for offsets in (None, [0], [-1, 0], [0.5, 0], [True, 0], [0, 1])],
)
def test_a_part_that_does_not_say_where_it_belongs_is_refused(tmp_path, place, count_faults):
    file = tmp_path / "shard-00001-model-00001-of-00001.safetensors"
    save_file({"a": torch.ones(4, 2)}, file, {"DCP_SHARDING_INFO": place})
    into = {"a": torch.zeros(4, 2)}
    with pytest.raises((DamagedFileError, UnsuitableFileError), match=r"shard-00001|parts in 1 file"):
        load_shards(tmp_path, into, ALONE)
    assert not into["a"].any()
    count_faults("hostile metadata")


def test_parts_that_overlap_or_leave_rows_out_are_refused(tmp_path, count_faults):
    for second, message in (([1, 0], "there twice"), ([3, 0], "missing")):
        for number, offset, n_rows in ((1, [0, 0], 2), (2, second, 5 - second[0])):
            place = json.dumps({"a": {"saved_offsets": offset}})
            file = tmp_path / f"shard-0000{number}-model-00001-of-00001.safetensors"
            save_file({"a": torch.ones(n_rows, 2)}, file, {"DCP_SHARDING_INFO": place})
        with pytest.raises(DamagedFileError, match=message):
            load_shards(tmp_path, {"a": torch.zeros(5, 2)}, ALONE)
        count_faults("hostile metadata")


def test_a_full_disk_is_the_systems_error_and_names_the_place(tmp_path):
    """A limit on file sizes stands for the disk; the process that has it must not outlive the test."""
    code = f"""
import resource, signal, sys, torch
from pathlib import Path
from training import ALONE
from training.sharded import save_shards
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_shards(Path({str(tmp_path)!r}), {{"a": torch.zeros(1000)}}, ALONE)
except OSError as error:
    sys.exit(error.filename != {str(tmp_path)!r})
sys.exit(2)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_files_are_small_and_any_kind_of_tensor_comes_back(tmp_path):
    """So that serialising one never takes as much memory again as all of them; a large tensor has a file to itself."""
    tensors = {
        "a": torch.arange(100.0),
        "big": torch.arange(1000, dtype=torch.bfloat16).view(10, 100),
        "codes": torch.arange(200, dtype=torch.uint8).view(2, 100),
        "count": torch.tensor(3),
        "empty": torch.zeros(0, 4),
    }
    files = save_shards(tmp_path, tensors, ALONE, shard_bytes=700)
    assert len(files) == 3 and sorted(tmp_path.iterdir()) == files
    assert sorted(read_safetensors(files[1])) == ["big"]
    into = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load_shards(tmp_path, into, ALONE)
    assert_equal(into, tensors)
