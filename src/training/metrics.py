"""A run's figures: one JSON object per line in `metrics.jsonl`, optionally TensorBoard events, and a plot of the loss.

Each line has `step` and whatever was measured there: `loss`, `lr`, `gradient_norm`, `tokens`, `tokens_per_second`,
`memory_gb` while training, `validation_loss` at a validation.
"""

import json
from pathlib import Path
from typing import Any

from files import write_whole


class MetricsLog:
    """Appends lines to `folder/metrics.jsonl`.

    Args:
        folder: the run's directory; created if missing.
        after_step: keep the lines up to this step and drop later ones, which a resumed run will write again.
        tensorboard: also write events to `folder/tensorboard`.
    """

    def __init__(self, folder: Path, *, after_step: int = 0, tensorboard: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= after_step] if after_step else []
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._writer = _tensorboard_writer(folder / "tensorboard") if tensorboard else None

    def write(self, step: int, **values: float) -> None:
        """Append one line, on disk when the call returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All whole lines of a metrics file; a line that a crash cut short is left out, a missing file is empty."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def plot_losses(metrics: Path, image: Path) -> bool:
    """Draw the losses and the learning rate over the steps. Returns False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines = read_metrics(metrics)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for key, style in (("loss", {"alpha": 0.7}), ("validation_loss", {"marker": "o", "markersize": 4})):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=key.replace("_", " "), **style)
    axes.set(xlabel="optimizer step", ylabel="nats per supervised token")
    rates = [(line["step"], line["lr"]) for line in lines if "lr" in line]
    if rates:
        right = axes.twinx()
        right.plot(*zip(*rates, strict=True), color="gray", linestyle=":", label="learning rate")
        right.set_ylabel("learning rate (dotted)")
    axes.legend()
    figure.savefig(image, dpi=120)
    return True


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("train.tensorboard needs the extra: pip install -e '.[logging]'") from error
    return SummaryWriter(folder)
