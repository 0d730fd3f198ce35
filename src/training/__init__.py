"""The training loop's parts; `train.py` puts them in order.

the step      loss.py      the objective                       step.py       accumulate, clip, update; validate
              schedule.py  learning rate over the run          parallel.py   the same work on several processes
              batches.py   rows of examples → tensors
              team.py      who they are, how they agree        fsdp.py       a model in shares
              roll_call.py who is gone
before it     preflight.py, preflight_rows.py, preflight_step.py             everything tried once
after it      state.py     what a checkpoint holds             resume.py     which one a run goes on from
              manifest.py  run.json, sizes and sums            fingerprint.py  what makes two runs the same
              optimizer_state.py  moments by name              generators.py random generators
              sharded.py   the same in shares                  result.py     the adapter or model in files
              signals.py   stopping well
beside it     metrics.py   metrics.jsonl, TensorBoard, plot    progress.py, console.py  what the terminal shows
              facts.py     what a page tells besides curves  report.py, report_parts.py  report.html
"""

from training.batches import to_batch, validation_batches
from training.console import answer_aloud, print_end, print_start
from training.loss import causal_lm_loss, causal_lm_loss_reference
from training.metrics import MetricsLog, plot_losses, read_metrics
from training.parallel import Engine, agree_on_run, blank, build_engine, check_team, own_share
from training.preflight import preflight
from training.progress import peak_memory_gb, training_progress
from training.result import save_run, try_save
from training.resume import abandon_later, alone_in, check_same_run, find_checkpoint
from training.schedule import learning_rate_factor, learning_rates, warmup_steps
from training.signals import StopRequest, stop_requests
from training.state import RunPosition, load_state, save_state
from training.step import (
    NonFiniteError,
    StepResult,
    autocast_of,
    check_weights,
    dropout_seed,
    optimizer_step,
    validation_loss,
)
from training.team import ALONE, LostProcessError, Team, joined_team

__all__ = [
    "ALONE",
    "Engine",
    "LostProcessError",
    "MetricsLog",
    "NonFiniteError",
    "RunPosition",
    "StepResult",
    "StopRequest",
    "Team",
    "abandon_later",
    "agree_on_run",
    "alone_in",
    "answer_aloud",
    "autocast_of",
    "blank",
    "build_engine",
    "causal_lm_loss",
    "causal_lm_loss_reference",
    "check_same_run",
    "check_team",
    "check_weights",
    "dropout_seed",
    "find_checkpoint",
    "joined_team",
    "learning_rate_factor",
    "learning_rates",
    "load_state",
    "optimizer_step",
    "own_share",
    "peak_memory_gb",
    "plot_losses",
    "preflight",
    "print_end",
    "print_start",
    "read_metrics",
    "save_run",
    "save_state",
    "stop_requests",
    "to_batch",
    "training_progress",
    "try_save",
    "validation_batches",
    "validation_loss",
    "warmup_steps",
]
