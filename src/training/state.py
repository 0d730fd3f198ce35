"""Everything a run needs to go on after a stop: trainable weights, optimizer, random generators, place in the data.

    output/checkpoints/step-00000120/
        trainable.safetensors    trainable parameters under their own names, in their own dtypes
        optimizer.pt             the optimizer's state_dict, 8-bit codes as they are
        random.pt                states of the random generators
        run.json                 step, tokens seen, and the settings that must not change

The place in the data is the step alone: the order of the rows is a pure function of seed and epoch (`data.plan`).
A checkpoint is written beside its final name and renamed when complete.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

TRAINABLE, OPTIMIZER, RANDOM, RUN = "trainable.safetensors", "optimizer.pt", "random.pt", "run.json"


@dataclass(frozen=True)
class Progress:
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
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, *, keep: int
) -> Path:
    """Write a checkpoint under `folder`, drop all but the newest `keep`, and return the new one's path."""
    final = folder / f"step-{progress.step:08d}"
    draft = folder / f".{final.name}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(_trainable(model), draft / TRAINABLE)
    torch.save(optimizer.state_dict(), draft / OPTIMIZER)
    torch.save(_random_state(), draft / RANDOM)
    (draft / RUN).write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(draft, final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints under `folder`, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{RUN}"))


def load_state(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: dict[str, str]
) -> Progress:
    """Put model, optimizer and random generators back to where `checkpoint` was written.

    Raises:
        ValueError: the checkpoint belongs to other settings (each is named with both values) or to other parameters.
    """
    try:
        progress = Progress(**json.loads((checkpoint / RUN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{checkpoint}: not a checkpoint of a run: {error}") from error
    differences = [
        f"{name}: {progress.fingerprint.get(name, '(unset)')} then, {fingerprint.get(name, '(unset)')} now"
        for name in sorted(progress.fingerprint.keys() | fingerprint.keys())
        if progress.fingerprint.get(name) != fingerprint.get(name)
    ]
    if differences:
        raise ValueError(f"{checkpoint} belongs to a run with other settings; {'; '.join(differences)}")
    saved, own = load_file(checkpoint / TRAINABLE), _trainable(model)
    if saved.keys() != own.keys():
        raise ValueError(f"{checkpoint} holds other parameters: {sorted(saved.keys() ^ own.keys())[:6]}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])
    optimizer.load_state_dict(torch.load(checkpoint / OPTIMIZER, weights_only=True, map_location="cpu"))
    _set_random_state(torch.load(checkpoint / RANDOM, weights_only=True))
    return progress


def _trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _random_state() -> dict[str, torch.Tensor | list[torch.Tensor]]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
