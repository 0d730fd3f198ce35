"""A run's figures: one JSON object per line in `metrics.jsonl`, optionally TensorBoard events, and a plot of the loss.

Each line has `step` and whatever was measured there: `loss`, `lr`, `gradient_norm`, `tokens`, `tokens_per_second`,
`memory_gb` while training, `validation_loss` at a validation. A loss that was no number is there as NaN.
"""

import json
from pathlib import Path
from typing import Any

from files import FileError, sync, write_whole
from files.fields import Place, field, quoted
from files.rows import rows_of_lines
from files.writing import make_folder, naming

LARGEST = 2**63
"""Where whole numbers end: beyond, a plot could not place them."""


class MetricsLog:
    """Appends lines to `folder/metrics.jsonl`.

    Args:
        folder: the run's directory; created if missing.
        after_step: keep the lines up to this step and drop later ones, which a resumed run will write again.
        tensorboard: also write events to `folder/tensorboard`.
    """

    def __init__(self, folder: Path, *, after_step: int = 0, tensorboard: bool = False) -> None:
        make_folder(folder)
        self.path = folder / "metrics.jsonl"
        kept = [line for line in _log_so_far(self.path) if line["step"] <= after_step] if after_step else []
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._writer = _tensorboard_writer(folder / "tensorboard") if tensorboard else None

    def write(self, step: int, **values: float) -> None:
        """Append one line; a kill does not lose it when the call has returned, a power cut may before `force`."""
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def force(self) -> None:
        """Force all lines to the disk."""
        sync(self.path)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All whole lines of a metrics file; a line that a crash cut short is left out, a missing file is empty.

    Raises:
        FileError: a line is damaged, has no `step`, or a value that is no number.
        OSError: it is there and cannot be read.
    """
    if not path.exists():
        return []
    return [_checked(row, place) for _, place, row in rows_of_lines(path, own=True)]


def _log_so_far(path: Path) -> list[dict[str, float]]:
    try:
        return read_metrics(path)
    except FileError as error:
        remedy = "repair the line, or move the file away: only log and plot would miss it"
        raise type(error)(error.problem, file=path, place=error.place, remedy=remedy) from error


def _checked(row: Any, place: Place) -> dict[str, float]:
    field(row, "step", place, int)
    for key in row:
        if type(field(row, key, place, int, float)) is int and abs(row[key]) >= LARGEST:
            raise place.unsuitable(f"{quoted(key)} has {len(str(row[key]))} digits", "remove the line")
    return row


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
