"""A run of two layers and forty rows, ready for its preflight, and what the preflight says of it."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_llama, train_tokenizer

from data import collate
from llama import Tokenizer, save_checkpoint
from recipe import RunConfig, RunData, RunPlan, load_run_data, load_tokenizer, plan_steps
from recipe.config import DataSection, LoraSection, ModelSection, TrainSection
from training import ALONE, Engine, Team, build_engine, preflight

ROWS = [
    {"instruction": "Answer this question.", "input": f"What is the treatment of case {n}?", "output": f"drug {n % 5}"}
    for n in range(40)
]


@dataclass
class PreparedRun:
    """What `train.py` has at hand when it calls the preflight."""

    config: RunConfig
    tokenizer: Tokenizer
    data: RunData
    plan: RunPlan
    engine: Engine

    def preflight(self, *, verbose: bool = False) -> list[str]:
        """The lines it says."""
        said: list[str] = []
        preflight(
            self.config, self.data, self.plan, self.tokenizer, self.engine,
            lambda rows: collate(rows, pad_id=self.tokenizer.pad_id), nullcontext, say=said.append, verbose=verbose,
        )  # fmt: skip
        return said

    def warnings(self) -> list[str]:
        """Those that are warnings."""
        return [line for line in self.preflight() if line.startswith("warning")]


def make_base(folder: Path, **tokenizer_options: object) -> Path:
    """A checkpoint with its tokenizer, and rows to train on."""
    train_tokenizer(folder, **tokenizer_options)
    save_checkpoint(tiny_llama(0, vocab_size=330, max_seq_len=256, std=0.1), folder)
    write_rows(folder, ROWS)
    return folder


def write_rows(folder: Path, rows: Sequence[dict[str, str]]) -> None:
    (folder / "rows.json").write_text(json.dumps(rows))


def tiny_config(base: Path, output: Path, method: str = "lora", **data_options: Any) -> RunConfig:
    """Forty rows in steps of eight; `data_options` replace those of `[data]`."""
    data = DataSection(folder=str(base), files=("rows.json",), template="alpaca_short", max_length=200)
    return RunConfig(
        model=ModelSection(base=str(base)),
        lora=LoraSection(r=4, dropout=0.1, targets=("q_proj", "v_proj", "down_proj")),
        data=replace(data, **data_options),
        train=TrainSection(
            method=method, output=str(output), epochs=1, batch_size=8, micro_batch_size=4, precision="float32"
        ),
    )


def prepare(
    config: RunConfig,
    *,
    tokenizer: Tokenizer | None = None,
    team: Team = ALONE,
    device: torch.device = torch.device("cpu"),  # noqa: B008, it is a value
) -> PreparedRun:
    """Everything loaded, as `train.py` does it."""
    tokenizer = tokenizer or load_tokenizer(config.model.tokenizer, config.model.base)
    data = load_run_data(config, tokenizer, progress=False)
    plan = plan_steps(config, list(map(len, data.train)))
    return PreparedRun(config, tokenizer, data, plan, build_engine(config, tokenizer, device, team))
