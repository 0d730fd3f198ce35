"""Everything a run needs to go on after a stop: trainable weights, optimizer, random generators, place in the data.

    output/checkpoints/step-00000120/
        trainable.safetensors    trainable parameters under their own names, in their own dtypes
        optimizer.pt             the optimizer's state_dict, 8-bit codes as they are
        random.pt                states of the random generators
        run.json                 step, tokens seen, the settings that must not change, and SHA-256 of all four files

The place in the data is the step alone: the order of the rows is a pure function of seed and epoch (`data.plan`).
A checkpoint is written beside its final name, forced to the disk, and renamed when complete. It is read and checked
whole before anything of the run changes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from files import (
    StoredTensor,
    json_text,
    read_json_object,
    read_pickle,
    read_safetensors,
    remove_folder,
    sha256_of,
    whole_folder,
    write_pickle,
    write_safetensors,
)
from optim8bit import Adam8bit

ADDED_SETTINGS = {"int8.backward": repr("exact")}
"""Settings that earlier checkpoints do not name, with what their runs did."""

TRAINABLE, OPTIMIZER, RANDOM, RUN = "trainable.safetensors", "optimizer.pt", "random.pt", "run.json"


@dataclass(frozen=True)
class RunPosition:
    """How far a run has come.

    Attributes:
        step: optimizer steps taken.
        tokens: real tokens seen.
        fingerprint: what makes two runs the same run (settings that shape the result); checked on resume.
    """

    step: int
    tokens: int
    fingerprint: dict[str, str]

    def sha256(self) -> str:
        """Of its values, however a file spells them."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def save_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, position: RunPosition, *, keep: int
) -> Path:
    """Write a checkpoint under `folder`, drop all but the newest `keep`, and return the new one's path.

    Raises:
        ValueError: `keep` is not positive.
        OSError: the system refuses the write; earlier checkpoints are unchanged, and nothing is left of this one.
    """
    if keep < 1:
        raise ValueError(f"keep = {keep} would drop the checkpoint just written: it must be at least 1")
    final = folder / f"step-{position.step:08d}"
    with whole_folder(final) as draft:
        tensors = {name: StoredTensor.of(parameter) for name, parameter in _trainable(model).items()}
        write_safetensors(draft / TRAINABLE, tensors)
        write_pickle(draft / OPTIMIZER, optimizer.state_dict())
        write_pickle(draft / RANDOM, _random_state())
        sums = {name: sha256_of(draft / name) for name in (TRAINABLE, OPTIMIZER, RANDOM)}
        sums[RUN] = position.sha256()
        (draft / RUN).write_bytes(json_text(asdict(position) | {"sha256": sums}))
    for old in checkpoints(folder)[:-keep]:
        remove_folder(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints under `folder`, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{RUN}"))


def load_state(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: dict[str, str]
) -> RunPosition:
    """Put model, optimizer and random generators back to where `checkpoint` was written.

    Raises:
        ValueError: a file is damaged or missing; or the checkpoint belongs to other settings (each is named with both
            values) or to other parameters. No parameter has changed then.
    """
    position = _read_position(checkpoint)
    _check_fingerprint(checkpoint, position.fingerprint, fingerprint)
    own, saved = _trainable(model), read_safetensors(checkpoint / TRAINABLE)
    _check_parameters(checkpoint / TRAINABLE, saved, own)
    random_state = read_pickle(checkpoint / RANDOM)
    _check_random_state(checkpoint / RANDOM, random_state)
    optimizer_state = read_pickle(checkpoint / OPTIMIZER)
    _check_optimizer_state(checkpoint / OPTIMIZER, optimizer_state, optimizer)
    try:
        optimizer.load_state_dict(optimizer_state)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{checkpoint / OPTIMIZER} is not the state of this run's optimizer: {error}") from error
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])
    torch.set_rng_state(random_state["cpu"])
    if random_state["cuda"]:
        torch.cuda.set_rng_state_all(random_state["cuda"])
    return position


# --- Checks ---


def _read_position(checkpoint: Path) -> RunPosition:
    """What `run.json` says, once it is found to vouch for itself and for the files beside it."""
    for name in (RUN, TRAINABLE, OPTIMIZER, RANDOM):
        if not (checkpoint / name).is_file():
            raise ValueError(f"{checkpoint / name} is missing: the checkpoint is not whole; resume from an earlier one")
    content = read_json_object(checkpoint / RUN)
    sums = content.pop("sha256", None)
    try:
        position = RunPosition(**content)
    except TypeError as error:
        raise ValueError(f"{checkpoint / RUN} does not describe a run: {error}") from error
    if not isinstance(sums, dict) or sums.get(RUN) != position.sha256():
        raise ValueError(
            f"{checkpoint / RUN} is damaged: it is not what was written; resume from an earlier checkpoint"
        )
    for name in (TRAINABLE, OPTIMIZER, RANDOM):
        if sums.get(name) != sha256_of(checkpoint / name):
            raise ValueError(
                f"{checkpoint / name} is damaged: its SHA-256 is not that in {RUN}; resume from an earlier checkpoint"
            )
    return position


def _check_fingerprint(checkpoint: Path, then: dict[str, str], now: dict[str, str]) -> None:
    then = {name: value for name, value in ADDED_SETTINGS.items() if name in now} | then
    differences = [
        f"{name}: {then.get(name, '(unset)')} then, {now.get(name, '(unset)')} now"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if differences:
        raise ValueError(f"{checkpoint} belongs to a run with other settings; {'; '.join(differences)}")


def _check_parameters(file: Path, saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    if saved.keys() != own.keys():
        raise ValueError(f"{file} holds other parameters: {sorted(saved.keys() ^ own.keys())[:6]}")
    for name, parameter in own.items():
        found, needed = _form(saved[name]), _form(parameter)
        if found != needed:
            raise ValueError(f"{file}: {name} is {found}, but the model needs {needed}: was it another base's run?")


def _check_optimizer_state(file: Path, saved: Any, optimizer: torch.optim.Optimizer) -> None:
    """Refuse state of other parameters. torch's optimizers would take any shape and fail in the next step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        indices = [index for group in saved["param_groups"] for index in group["params"]]
        states: dict[int, dict[str, Any]] = dict(saved["state"])
        values = [(index, name, value) for index, state in states.items() for name, value in state.items()]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is not an optimizer's state: {type(error).__name__}: {error}") from error
    if len(indices) != len(parameters) or not states.keys() <= set(indices):
        raise ValueError(f"{file} is about {len(indices)} parameters, but {len(parameters)} are trained")
    if isinstance(optimizer, Adam8bit):
        return  # its load_state_dict compares shapes itself: it knows how codes and scales are laid out
    shapes = {index: parameter.shape for index, parameter in zip(indices, parameters, strict=True)}
    for index, name, value in values:
        if isinstance(value, Tensor) and value.ndim and value.shape != shapes[index]:
            raise ValueError(
                f"{file}: {name} of parameter {index} is {tuple(value.shape)}, but the parameter {tuple(shapes[index])}"
            )


def _check_random_state(file: Path, state: Any) -> None:
    try:
        torch.Generator().set_state(state["cpu"])
        devices = [_form(generator) for generator in state["cuda"]]
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{file} is not the state of random generators: {error}") from error
    here = [_form(generator) for generator in _random_state()["cuda"]]
    if devices and devices != here:
        raise ValueError(
            f"{file} has the generators of {len(devices)} GPUs, but there are {len(here)} here: go on where as many are"
        )


# --- Parts ---


def _form(tensor: Tensor) -> str:
    """Shape and dtype, to compare and to print."""
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
