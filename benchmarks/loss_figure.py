"""The figure of loss_curves.py: a column per case, curves above, differences beside the spread of seeds below."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

SMOOTH = 25  # steps that every drawn or smoothed point is the mean of

STYLES = {
    "float32": {"color": "#333333", "linewidth": 2.6},
    "bf16": {"color": "#1f77b4", "linewidth": 1.6},
    "int8 exact": {"color": "#ff7f0e", "linewidth": 1.6},
    "int8 fast": {"color": "#d62728", "linewidth": 1.2, "linestyle": "--"},
}


def smooth(values: Sequence[float], width: int = SMOOTH) -> list[float]:
    """Means of `width` neighbours, for as many places as have them."""
    return torch.tensor(values, dtype=torch.float64).unfold(0, width, 1).mean(1).tolist()


def draw(content: Mapping[str, Any], file: Path) -> None:
    """A column per case: the curves above; below, how far apart int8's two are, beside how far seeds are."""
    matplotlib.rcParams.update({"svg.hashsalt": file.stem, "svg.fonttype": "none", "font.size": 9})
    curves, per_point = content["curves"], content["steps per point"]
    width = SMOOTH // per_point
    figure = Figure(figsize=(4 * len(curves), 6), layout="constrained", facecolor="white")
    grid = figure.subplots(2, len(curves), sharex=True, sharey="row", height_ratios=(3, 2), squeeze=False)
    for (title, arms), (above, below) in zip(curves.items(), grid.T, strict=True):
        smoothed = {name: torch.tensor(smooth(points, width)) for name, points in arms.items()}
        steps = per_point * (torch.arange(len(smoothed["float32"])) + width / 2)
        for name, style in STYLES.items():
            above.plot(steps, smoothed[name], label=name, **style)
        seeds = torch.stack([smoothed[name] - smoothed["float32"] for name in arms if "seed" in name])
        spread = seeds.abs().amax(0)
        below.fill_between(steps, -spread, spread, color="#bbbbbb", label="largest difference of another seed, float32")
        below.plot(steps, smoothed["bf16"] - smoothed["float32"], label="bf16 − float32", **STYLES["bf16"])
        for seed in ("", ", seed 43", ", seed 44"):
            if (fast := f"int8 fast{seed}") in arms:
                difference = smoothed[fast] - smoothed[f"int8 exact{seed}"]
                label = None if seed else "int8 fast − int8 exact (dotted: other seeds)"
                below.plot(steps, difference, ":" if seed else "-", color="#d62728", label=label)
        above.set_title(title)
        below.set_xlabel("optimizer step")
        for axes in (above, below):
            axes.grid(alpha=0.3)
    grid[0][0].set_ylabel("training loss, nats per token")
    grid[1][0].set_ylabel("difference, nats per token")
    grid[0][0].legend(fontsize=8)
    grid[1][len(curves) // 2].legend(fontsize=8, loc="upper center")
    figure.suptitle(f"LoRA on Medical Meadow, every curve a mean over {SMOOTH} steps; same batches in the same order")
    figure.savefig(file, metadata={"Date": None})
    print(f"drawn: {file.name}")
