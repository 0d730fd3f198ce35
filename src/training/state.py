"""Everything a run needs to go on after a stop: trainable weights, optimizer, random generators, place in the data.

    output/checkpoints/step-00000120/
        trainable.safetensors    trainable parameters under their own names, in their own dtypes
        optimizer.safetensors    moments, 8-bit codes as they are (`training.optimizer_state`)
        random.safetensors       states of the random generators (`training.generators`)
        config.toml              the run's settings, to read; what must not change is in run.json
        run.json                 step, tokens seen, those settings, sizes and SHA-256 of all files (`training.manifest`)

Where parameters are sharded over several processes, each writes its rows of the first two into `shard-….safetensors`
files (`training.sharded`). Either kind can be read by any number of processes. There is no pickle in it.

The place in the data is the step alone: the order of the rows is a pure function of seed and epoch (`data.plan`).
A checkpoint is written beside its final name, forced to the disk, and renamed when complete; only then older ones go.
It is read and checked whole before anything of the run changes.
"""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from files import (
    StoredTensor,
    UnsuitableFileError,
    open_tensor_file,
    remove_folder,
    write_safetensors,
)
from files.writing import check_space, draft_of, drafted, publish
from optim8bit.sharding import is_sharded
from training.fingerprint import check_fingerprint
from training.generators import generator_tensors, read_generators
from training.manifest import RUN, RunFile, measured, read_run, step_folders, step_name, verify
from training.optimizer_state import form, optimizer_tensors, pending_states
from training.team import ALONE, Team

TRAINABLE, OPTIMIZER, RANDOM = "trainable.safetensors", "optimizer.safetensors", "random.safetensors"
CONFIG = "config.toml"

HEADER_BYTES = 256
"""Per tensor, for its name, shape and place in the header of a file and in run.json: generous."""


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


def save_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: RunPosition,
    *,
    keep: int,
    config_text: str = "",
    team: Team = ALONE,
) -> Path:
    """Write a checkpoint under `folder`, drop all but the newest `keep`, and return the new one's path.

    All ranks call it; what fails on one fails on all. Rank 0 writes, and where parameters are sharded every rank.

    Args:
        config_text: the settings as a file, to be read by people.

    Raises:
        ValueError: `keep` is not positive.
        OSError: the system refuses the write, or there is not room enough for it; earlier checkpoints are unchanged,
            and nothing is left of this one.
        LostProcessError: another rank failed.
    """
    if keep < 1:
        raise ValueError(f"keep = {keep} would drop the checkpoint just written: it must be at least 1")
    parameters = trainable(model)
    moments, steps = optimizer_tensors(parameters, optimizer)
    tensors = parameters | moments
    final = folder / step_name(position.step)
    draft = draft_of(final)
    with ExitStack() as held:
        with team.together():
            if team.leads:
                check_space(folder, sum(tensor.nbytes + HEADER_BYTES for tensor in tensors.values()))
                held.enter_context(drafted(final))
        own = _write_shards(draft, tensors, team) if any(map(is_sharded, parameters.values())) else []
        with team.together():
            if team.leads:
                own += _write_files(draft, {} if own else parameters, {} if own else moments, config_text)
            sums = measured(draft, own)
        manifest = {name: entry for each in team.everyones(sums) for name, entry in each.items()}
        with team.together():
            if team.leads:
                forms = {name: form(tensor) for name, tensor in tensors.items()}
                place = (position.step, position.tokens, position.fingerprint)
                (draft / RUN).write_bytes(RunFile(*place, team.size, steps, forms, manifest).text())
                publish(draft, final)
    with team.together():
        if team.leads:
            _drop_old(folder, final, keep)
    return final


def load_state(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fingerprint: Mapping[str, str],
    *,
    team: Team = ALONE,
    may_change: Collection[str] = (),
) -> RunPosition:
    """Put model, optimizer and random generators back to where `checkpoint` was written.

    All ranks call it. Parameters are read into memory of their own first, which until the first step is free: later
    it is the gradients'. The optimizer's options stay as they are.

    Args:
        may_change: settings that may differ from those of the run that wrote it, for the message.

    Raises:
        DamagedFileError: a file is damaged or missing.
        UnsuitableFileError: the checkpoint belongs to other settings (each is named with both values) or to other
            parameters. Nothing has changed then, nor after any other error.
        LostProcessError: another rank failed.
    """
    verify(checkpoint, team)
    parameters = trainable(model)
    with team.together():
        run = read_run(checkpoint)
        check_fingerprint(checkpoint, run.fingerprint, fingerprint, may_change)
        _check_parameters(checkpoint / RUN, run.tensors, parameters)
        rest = {name: each for name, each in run.tensors.items() if name not in parameters}
        pending = pending_states(checkpoint / RUN, parameters, optimizer, rest, run.optimizer_steps)
        restore_generators = read_generators(checkpoint / RANDOM)
        values = {name: torch.empty_like(parameter) for name, parameter in parameters.items()}
        moments = {f"{name}.{key}": part for name, each in pending.items() for key, part in each.parts.items()}
    if TRAINABLE not in run.manifest or any(map(is_sharded, parameters.values())):
        _fill_from_shards(checkpoint, values | moments, team)
    else:
        with team.together():
            _fill(checkpoint / TRAINABLE, values)
            _fill(checkpoint / OPTIMIZER, moments)
    with team.together():
        states = {name: each.finished() for name, each in pending.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values.pop(name))
    for name, parameter in parameters.items():
        optimizer.state.pop(parameter, None)
        if name in states:
            optimizer.state[parameter] = states[name]
    restore_generators()
    return RunPosition(run.step, run.tokens, run.fingerprint)


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name; the very tensors that the optimizer knows."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# --- Parts ---


def _write_shards(draft: Path, tensors: Mapping[str, Tensor], team: Team) -> list[str]:
    from training.sharded import save_shards  # a second of imports, which only shares need

    return [path.name for path in save_shards(draft, tensors, team)]


def _fill_from_shards(checkpoint: Path, tensors: Mapping[str, Tensor], team: Team) -> None:
    from training.sharded import load_shards

    load_shards(checkpoint, tensors, team)


def _write_files(
    draft: Path, parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor], config_text: str
) -> list[str]:
    """Write what one process writes, and return the files' names. Nothing about parameters where there are none."""
    contents = {RANDOM: generator_tensors()}
    if parameters:
        contents |= {TRAINABLE: dict(parameters), OPTIMIZER: dict(moments)}
    for file, tensors in contents.items():
        write_safetensors(draft / file, {name: StoredTensor.of(tensor) for name, tensor in tensors.items()})
    if config_text:
        (draft / CONFIG).write_bytes(config_text.encode())
    return [*contents, CONFIG] if config_text else [*contents]


def _drop_old(folder: Path, new: Path, keep: int) -> None:
    """Remove all but the newest; never the one just written, which is known to be good."""
    others = [path for path in step_folders(folder) if path != new]
    for old in others[: max(0, len(others) - (keep - 1))]:
        remove_folder(old)


def _check_parameters(file: Path, saved: Mapping[str, str], own: Mapping[str, Tensor]) -> None:
    for name, parameter in own.items():
        if saved.get(name) != form(parameter):
            raise UnsuitableFileError(
                f"it is {saved.get(name, 'not there')}, but the model needs {form(parameter)}",
                file=file,
                place=name,
                remedy="was it another base's run?",
            )


def _fill(file: Path, targets: Mapping[str, Tensor]) -> None:
    """Copy a file's tensors into these, after all of them were found to be there in the right form."""
    stored = open_tensor_file(file)
    found = {name: f"{each.shape} {each.dtype}" for name, each in stored.items()}
    for name in sorted(found.keys() | targets.keys()):
        needed = form(targets[name]) if name in targets else "none of that name"
        if found.get(name) != needed:
            raise UnsuitableFileError(
                f"it is {found.get(name, 'not there')}, but {needed} is needed",
                file=file,
                place=name,
                remedy="resume from an earlier checkpoint",
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(stored[name].read())
