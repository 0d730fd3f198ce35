"""Random generators go on where they stopped; a state that would break one is refused before it is set."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from files import DamagedFileError, StoredTensor, read_safetensors, write_safetensors
from training.generators import generator_tensors, read_generators


def written(folder: Path, tensors: dict[str, Tensor]) -> Path:
    write_safetensors(folder / "random.safetensors", {name: StoredTensor.of(each) for name, each in tensors.items()})
    return folder / "random.safetensors"


@pytest.mark.parametrize("n_normal", [0, 1, 2])
def test_all_three_go_on(tmp_path, n_normal):
    """With and without a second normal number kept from a pair: they make them two at a time."""
    torch.manual_seed(1), random.seed(2), np.random.seed(3)
    for _ in range(n_normal):
        random.gauss(), np.random.normal(), torch.randn(1)

    def draw() -> list[float]:
        ours = [random.gauss(), random.random(), float(np.random.normal()), float(np.random.rand())]
        return [*ours, *torch.randn(3).tolist(), *torch.rand(2).tolist(), *torch.randn(20).tolist()]

    file = written(tmp_path, generator_tensors())
    expected = draw()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    restore = read_generators(file)
    assert draw() != expected  # reading alone sets nothing
    restore()
    assert draw() == expected
    assert all(tensor.dtype in (torch.uint8, torch.int64) for tensor in read_safetensors(file).values())


def changed(name: str, at: int, value: int) -> dict[str, Tensor]:
    tensors = {key: tensor.clone() for key, tensor in generator_tensors().items()}
    tensors[name][at] = value
    return tensors


@pytest.mark.parametrize("name", ["python", "numpy"])
@pytest.mark.parametrize(("at", "value"), [(0, -1), (623, 2**32), (624, 625), (624, -1), (625, 2)])
def test_numbers_out_of_range_are_refused(tmp_path, name, at, value):
    """NumPy would take a place beyond the last word, and read what lies behind it in memory."""
    with pytest.raises(DamagedFileError, match=r"random\.safetensors: it is not the states .*out of range"):
        read_generators(written(tmp_path, changed(name, at, value)))


@pytest.mark.parametrize("name", ["torch", "python", "numpy"])
@pytest.mark.parametrize("other", [None, torch.zeros(3, dtype=torch.int64), torch.zeros(627), torch.zeros(5056)])
def test_what_is_no_state_is_refused(tmp_path, name, other):
    tensors = generator_tensors() | {name: other}
    with pytest.raises(DamagedFileError, match="it is not the states of random generators"):
        read_generators(written(tmp_path, {key: each for key, each in tensors.items() if each is not None}))


def test_a_run_goes_on_where_there_are_fewer_gpus_or_more(tmp_path, monkeypatch):
    """Those that are here take up their state; dropout does not depend on it."""
    here = [torch.full((16,), 7, dtype=torch.uint8)] * 2
    set_states: list[list[Tensor]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: list(here))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", set_states.append)
    for n_saved in (0, 1, 3):
        saved = {f"cuda.{i}": torch.full((16,), i, dtype=torch.uint8) for i in range(n_saved)}
        tensors = {name: each for name, each in generator_tensors().items() if not name.startswith("cuda")}
        read_generators(written(tmp_path, tensors | saved))()
        assert [state[0].item() for state in set_states.pop()] == [0, 1][:n_saved] + [7, 7][n_saved:]
    bad = written(tmp_path, tensors | {"cuda.1": torch.zeros(3, dtype=torch.uint8)})
    with pytest.raises(DamagedFileError, match=r"random\.safetensors, cuda\.1: it is \(3,\) torch\.uint8"):
        read_generators(bad)


def test_another_generator_of_numpys_is_refused_when_saving(monkeypatch):
    monkeypatch.setattr(np.random, "get_state", lambda legacy: {"bit_generator": "PCG64"})
    with pytest.raises(ValueError, match="NumPy's generator is PCG64"):
        generator_tensors()
