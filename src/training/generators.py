"""States of the random generators, to a file and back: PyTorch's on the CPU and on each GPU, Python's, NumPy's.

    torch     uint8, as PyTorch gives it        python    int64: 624 words, place, has_gauss, gauss
    cuda.0    the same, of the first GPU        numpy     the same (both are MT19937, and keep the second of a pair of
              ...                                         normal numbers: gauss, its float64's bits as an integer)

Dropout needs none of them: its seeds follow from the place in the run (`training.step.dropout_seed`). So a run may go
on where there are fewer GPUs, or more: those that are there take up the state of those that were.
"""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from files import DamagedFileError, read_safetensors

N_WORDS = 624
_LENGTH = N_WORDS + 3


def generator_tensors() -> dict[str, Tensor]:
    """The states now."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    _, (*words, place), gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    if numpy["bit_generator"] != "MT19937":
        raise ValueError(f"NumPy's generator is {numpy['bit_generator']}: only its default, MT19937, can be saved")
    key, numpy_place = numpy["state"]["key"], numpy["state"]["pos"]
    return {
        "torch": torch.get_rng_state(),
        **{f"cuda.{number}": state for number, state in enumerate(cuda)},
        "python": torch.tensor([*words, place, gauss is not None, _bits(gauss or 0.0)], dtype=torch.int64),
        "numpy": torch.tensor(
            [*key.tolist(), numpy_place, numpy["has_gauss"], _bits(numpy["gauss"])], dtype=torch.int64
        ),
    }


def read_generators(file: Path) -> Callable[[], None]:
    """Read states and try them on generators of their own. Returns what puts them into the real ones.

    Raises:
        DamagedFileError: it is not the states of generators.
    """
    tensors = read_safetensors(file)
    try:
        torch.Generator().set_state(tensors["torch"])
        python, numpy = _mersenne_twister(tensors["python"]), _mersenne_twister(tensors["numpy"])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise DamagedFileError(
            f"it is not the states of random generators ({error})",
            file=file,
            remedy="resume from an earlier checkpoint",
        ) from error
    here = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    for number, state in enumerate(here):
        saved = tensors.get(f"cuda.{number}", state)
        if (saved.dtype, saved.shape) != (state.dtype, state.shape):
            problem = f"it is {tuple(saved.shape)} {saved.dtype}, no state of a GPU's generator"
            raise DamagedFileError(
                problem, file=file, place=f"cuda.{number}", remedy="resume from an earlier checkpoint"
            )
        here[number] = saved

    def restore() -> None:
        words, place, has_gauss, gauss = python
        random.setstate((3, (*words, place), gauss if has_gauss else None))
        words, place, has_gauss, gauss = numpy
        np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), place, has_gauss, gauss))
        torch.set_rng_state(tensors["torch"])
        if here:
            torch.cuda.set_rng_state_all(here)

    return restore


def _mersenne_twister(state: Tensor) -> tuple[list[int], int, int, float]:
    """Words, place among them, whether a normal number is kept, and which. Python and NumPy trust all of it."""
    if state.dtype != torch.int64 or state.shape != (_LENGTH,):
        raise ValueError(f"{tuple(state.shape)} {state.dtype}, not ({_LENGTH},) torch.int64")
    *words, place, has_gauss, _ = state.tolist()
    if not all(0 <= word < 2**32 for word in words) or not 0 <= place <= N_WORDS or has_gauss not in (0, 1):
        raise ValueError("a word, a place or a flag is out of range")
    return words, place, has_gauss, state[-1:].view(torch.float64).item()


def _bits(number: float) -> int:
    return int(torch.tensor(number, dtype=torch.float64).view(torch.int64).item())
