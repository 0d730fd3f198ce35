"""Full fine-tuning cut over processes, for `tests/training/test_sharded.py`: as one rank of a script, or alone.

Everything a rank does is written into FOLDER; the test compares what 1, 2 and 4 processes wrote.
"""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import joined
from torch.distributed.tensor import DTensor

from data import Example, PromptTemplate, collate
from llama import LlamaConfig, Tokenizer
from recipe import RunConfig, build_optimizer
from recipe.config import DataSection, ModelSection, OptimSection, ShapeSection, TrainSection
from training import ALONE, Engine, LostProcessError, RunPosition, Team, blank, build_engine, optimizer_step, own_share
from training.result import TRIAL, save_run, try_save
from training.sharded import export
from training.state import load_state, save_state

CPU = torch.device("cpu")
SHAPE = LlamaConfig(330, 256, 2, 4, 2, 512, max_seq_len=64, tie_embeddings=False)  # 330 rows: uneven on 4 processes
TEMPLATE = PromptTemplate.named("alpaca")
STEPS, SAVED = 4, 2
OPTIMIZERS = ("adamw", "adamw8bit")


def settings(folder: Path, name: str, optimizer: str = "adamw", precision: str = "float32") -> RunConfig:
    """A full run from FOLDER/base, or where name is "drawn" from random weights with a tied head."""
    drawn = name == "drawn"
    return RunConfig(
        model=ModelSection(base="" if drawn else str(folder / "base"), tokenizer=str(folder / "base")),
        shape=ShapeSection(dim=64, n_layers=1, n_heads=2, hidden_dim=100, max_seq_len=64) if drawn else ShapeSection(),
        data=DataSection(max_length=64),
        optim=OptimSection(name=optimizer, lr=1e-3, weight_decay=0.1),
        train=TrainSection(method="full", precision=precision, output=str(folder / name), gradient_checkpointing=drawn),
    )


def example(seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    length = 6 + seed % 5
    ids = torch.randint(3, 330, (length,), generator=generator).tolist()
    return Example(ids, [i > 2 for i in range(length)])


ROWS = [example(seed) for seed in range(40)]


def begin(config: RunConfig, team: Team) -> tuple[Engine, torch.optim.Optimizer]:
    engine = build_engine(config, Tokenizer(Path(config.model.tokenizer)), CPU, team)
    return engine, build_optimizer(engine.model, config.optim)


def step(engine: Engine, optimizer: torch.optim.Optimizer, number: int, config: RunConfig) -> float:
    """The loss of one step of five micro-batches of two rows: one too many for 2 and for 4 processes."""
    first = 10 * (number - 1)
    share = own_share([[[first + i], [first + i + 1]] for i in range(0, 10, 2)], engine.team)
    made = [(index, collate([[ROWS[i] for i in row] for row in rows], pad_id=0)) for index, rows in share]
    batches = [batch if index >= 0 else blank(batch) for index, batch in made]
    mixed = config.train.precision == "bf16-mixed"
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=mixed)
    return optimizer_step(engine, optimizer, batches, clip=1.0, autocast=autocast).loss


def train(folder: Path, optimizer_name: str, team: Team) -> list[float]:
    """Four steps, saved after the second; the losses."""
    config = settings(folder, f"run-{team.size}-{optimizer_name}", optimizer_name)
    engine, optimizer = begin(config, team)
    losses = []
    for number in range(1, STEPS + 1):
        losses.append(step(engine, optimizer, number, config))
        if number == SAVED:
            save(config, engine, optimizer)
    return losses


def save(config: RunConfig, engine: Engine, optimizer: torch.optim.Optimizer) -> Path:
    place = RunPosition(SAVED, 0, {})
    return save_state(config.output / "checkpoints", engine.model, optimizer, place, keep=1, team=engine.team)


def go_on(folder: Path, optimizer_name: str, written_by: int, team: Team) -> list[float]:
    """Resume at the second step what `written_by` processes saved, save it again as read, and take the other steps."""
    config = settings(folder, f"again-{written_by}-{team.size}-{optimizer_name}", optimizer_name)
    engine, optimizer = begin(config, team)
    checkpoints = folder / f"run-{written_by}-{optimizer_name}" / "checkpoints"
    load_state(checkpoints / f"step-{SAVED:08d}", engine.model, optimizer, {}, team=team)
    again = save(config, engine, optimizer)
    assert any(again.glob("shard-*")) == (team.size > 1)
    return [step(engine, optimizer, number, config) for number in range(SAVED + 1, STEPS + 1)]


def mixed(folder: Path, team: Team) -> list[float]:
    config = settings(folder, f"mixed-{team.size}", precision="bf16-mixed")
    engine, optimizer = begin(config, team)
    return [step(engine, optimizer, number, config) for number in range(1, STEPS + 1)]


def tied(folder: Path, team: Team) -> list[float]:
    """A head that is the embedding, from random weights, activations recomputed; 8-bit blocks that would be split."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        config = settings(folder, "drawn", "adamw8bit")
        engine, optimizer = begin(config, team)
    said = [str(each.message) for each in said if "32-bit moments" in str(each.message)]
    assert len(said) == (team.leads and team.size > 1)
    assert all(
        "layers.0.feed_forward.w1.weight (100, 64)" in text and f"on {team.size} processes" in text for text in said
    )
    return [step(engine, optimizer, number, config) for number in range(1, STEPS + 1)]


def write_results(folder: Path, team: Team) -> None:
    """The base as loaded, and random weights, saved as a run's result; tried before, with nothing left behind."""
    for name in ("loaded", "drawn"):
        config = settings(folder, name)
        engine, _ = begin(config, team)
        assert all(isinstance(p, DTensor) for p in engine.model.parameters()) == (team.size > 1)
        assert engine.model.training and all(p.requires_grad for p in engine.model.parameters())
        assert (engine.model.output.weight is engine.model.tok_embeddings.weight) == (name == "drawn")
        config = replace(config, train=replace(config.train, output=str(folder / f"{name}-{team.size}")))
        try_save(engine, config, TEMPLATE)
        assert not (team.leads and (config.output / TRIAL).exists())
        assert save_run(engine, config, TEMPLATE) == config.output / "model"


def fail_together(folder: Path, team: Team) -> None:
    """A full disk on rank 0 as it writes ends all ranks; so does a base that is damaged where rank 1 reads it."""
    engine, _ = begin(settings(folder, "loaded"), team)

    def full_disk(read: Callable[[str], torch.Tensor]) -> Path:
        assert read("norm.weight").shape == (256,)
        raise OSError(28, "No space left on device", "there")

    try:
        export(engine.model, team, full_disk)
    except OSError as error:
        assert team.leads and error.filename == "there"
    except LostProcessError as error:
        assert not team.leads and "rank 0" in str(error) and "No space left on device" in str(error)
    else:
        raise AssertionError("nobody noticed")

    config = settings(folder, "loaded")
    if team.rank == 1:
        damaged = folder / f"damaged-{team.size}"
        shutil.copytree(folder / "base", damaged)
        weights = damaged / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-9])
        config = replace(config, model=replace(config.model, base=str(damaged)))
    try:
        begin(config, team)
    except LostProcessError as error:
        assert team.rank != 1 and "rank 1" in str(error) and "model.safetensors" in str(error)
    except ValueError as error:
        assert team.rank == 1 and "model.safetensors" in str(error)
    else:
        raise AssertionError("nobody noticed")
    assert team.everyones(team.rank) == list(range(team.size))  # and all are still in step


def main(rank: int, size: int, folder: Path) -> None:
    team = Team(rank, size)
    results: dict[str, list[float]] = {}
    with joined(rank, size, folder):
        write_results(folder, team)
        fail_together(folder, team)
        for name in OPTIMIZERS:
            results[name] = train(folder, name, team)
            if size == 2 or name == "adamw8bit":
                results[f"{name} again"] = go_on(folder, name, size, team)
            results[f"{name} from {size // 2}"] = go_on(folder, name, size // 2, team)
        if size == 2:
            results["tied"] = tied(folder, team)
            results["mixed"] = mixed(folder, team)
        dist.barrier()
    (folder / f"losses-{size}-{rank}.json").write_text(
        json.dumps({k: [x.hex() for x in v] for k, v in results.items()})
    )


def alone(folder: Path) -> dict[str, list[float]]:
    """What one process gets, in this one."""
    write_results(folder, ALONE)
    results = {name: train(folder, name, ALONE) for name in OPTIMIZERS}
    return results | {"tied": tied(folder, ALONE), "mixed": mixed(folder, ALONE)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
