"""What a run leaves: its adapter or model in files, from one process or many; and the same tried before it begins.

A run of days should not end with a full disk, a directory that may not be written to, or weights that cannot be saved.
"""

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from data import PromptTemplate
from llama import Llama
from llama.checkpoint.read import open_checkpoint
from lora import load_adapter
from recipe import RunConfig, save_result
from training.parallel import Engine

TRIAL = ".trial-save"


def save_run(engine: Engine, config: RunConfig, template: PromptTemplate, *, require_trained: bool = True) -> Path:
    """`save_result` of what the team trained, written by its first process; the directory, on every rank.

    Raises:
        ValueError, OSError: as `save_result`, on rank 0.
        LostProcessError: on the others, then.
    """
    model = engine.model
    if engine.sharded:
        from training.sharded import export  # a second of imports, which only shares need

        return export(model, engine.team, lambda read: save_result(model, config, template, read=read))
    folder = None
    with engine.team.together():
        if engine.team.leads:
            folder = save_result(model, config, template, require_trained=require_trained)
    return cast(Path, engine.team.leaders(folder))


def try_save(engine: Engine, config: RunConfig, template: PromptTemplate) -> None:
    """Save the model as at the run's end, into a directory beside, read it back, and remove it.

    An adapter is loaded into the model again, and every bit must come back. Of a whole model all names and shapes are.

    Raises:
        OSError: there is too little space, with both numbers; or the system refuses, on rank 0.
        ValueError: what was written is not what was saved.
        LostProcessError: on the others, then.
    """
    trial = config.output / TRIAL
    with engine.team.together():
        if engine.team.leads:
            shutil.rmtree(trial, ignore_errors=True)  # of a process that was killed
            _check_space(config.output, result_bytes(engine.model))
    try:
        there = replace(config, train=replace(config.train, output=str(trial)))
        folder = save_run(engine, there, template, require_trained=False)
        with engine.team.together():
            if engine.team.leads:
                _read_back(engine.model, folder, config)
    finally:
        if engine.team.leads:
            shutil.rmtree(trial, ignore_errors=True)


def result_bytes(model: Llama) -> int:
    """Bytes of the numbers in the run's result: of what is trained, over all processes.

    >>> from llama import LlamaConfig
    >>> result_bytes(Llama(LlamaConfig(8, 4, 1, 1, 1, 4)).requires_grad_(False))
    0
    """
    return sum(p.numel() * p.dtype.itemsize for p in model.parameters() if p.requires_grad)


def _check_space(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the run's result takes {needed:,} bytes, {free:,} are free: make room, or choose another --output",
            str(folder),
        )


def _read_back(model: Llama, folder: Path, config: RunConfig) -> None:
    if config.train.method == "full":
        open_checkpoint(folder)
        return
    before = _trained(model)
    load_adapter(model, folder)
    after = _trained(model)
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    if changed:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in before:
                    parameter.copy_(before[name])
        raise ValueError(f"{folder}: {changed[0]} came back from a trial save changed; check the disk")


def _trained(model: Llama) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
