"""The training loop's parts; `train.py` puts them in order.

loss.py      the objective                        schedule.py    learning rate over the run
step.py      accumulate, clip, update; validate   state.py       save and resume
metrics.py   metrics.jsonl, TensorBoard, plot     progress.py    what the terminal shows
"""

from training.loss import causal_lm_loss, causal_lm_loss_reference
from training.metrics import MetricsLog, plot_losses, read_metrics
from training.progress import peak_memory_gb, training_progress
from training.schedule import learning_rate_factor, warmup_steps
from training.state import RunPosition, checkpoints, load_state, save_state
from training.step import NonFiniteError, StepResult, optimizer_step, validation_loss

__all__ = [
    "MetricsLog",
    "NonFiniteError",
    "RunPosition",
    "StepResult",
    "causal_lm_loss",
    "causal_lm_loss_reference",
    "checkpoints",
    "learning_rate_factor",
    "load_state",
    "optimizer_step",
    "peak_memory_gb",
    "plot_losses",
    "read_metrics",
    "save_state",
    "training_progress",
    "validation_loss",
    "warmup_steps",
]
