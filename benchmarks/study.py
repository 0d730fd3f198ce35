"""Many small runs of `train.py` and `evaluate.py`: arms of a study, over seeds, some at once, all resumable.

An arm is a configuration; a run is an arm with a seed, in a directory of its own:

    <folder>/<arm>/seed-42/    what train.py and evaluate.py leave, their output in log.txt, which run it is in run.json

Runs are processes of their own, so that each has the memory and time of the programs that people start. They share the
cores: `workers` at once, each with its part of the threads, which for small models does more than one after another.
A stopped study goes on where it was: what is done is kept, what had begun goes on from its last checkpoint, and what
was another run (other settings, another base, other data) is begun anew.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import tyro
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

import data.miniature
import evaluation
from files import json_text, sha256_of, write_whole
from recipe import (
    RunConfig,
    config_text,
    count_parameters,
    load_run_data,
    load_tokenizer,
    model_shape,
    plan_steps,
    read_config,
)
from recipe.memory import meta_model, predict_memory
from training import read_metrics

ROOT = Path(__file__).parent.parent
CHECKPOINT_EVERY = 200
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Arm:
    """One configuration of a study.

    Attributes:
        name: of its directory.
        config: file in configs/, without suffix; None examines the base as it is.
        flags: for train.py, over the config.
    """

    name: str
    config: str | None
    flags: tuple[str, ...] = ()

    @cache  # noqa: B019 (arms are constants)
    def settings(self) -> RunConfig | None:
        """The resolved config, by the parser of train.py's flags."""
        if self.config is None:
            return None
        return tyro.cli(RunConfig, args=self.flags, default=read_config(self._file()))

    def _file(self) -> Path:
        return ROOT / "configs" / f"{self.config}.toml"

    def training(self, folder: Path, seed: int) -> list[str]:
        """The command that trains it."""
        where = ["--output", str(folder), "--resume", "auto", "--train.seed", str(seed)]
        saving = ["--train.save-every", str(CHECKPOINT_EVERY), "--train.sample-answers", "0"]
        return [sys.executable, str(ROOT / "train.py"), "--config", str(self._file()), *where, *saving, *self.flags]

    def examination(self, folder: Path, exam: Sequence[str]) -> list[str]:
        """The command that examines it."""
        settings = self.settings()
        model: list[str] = []
        if settings is not None and settings.train.method == "full":
            model = ["--base", str(folder / "model")]
        elif settings is not None:
            model = ["--adapter", str(folder / "adapter")]
            model += ["--int8"] if settings.train.method == "lora-8bit" else []
        return [sys.executable, str(ROOT / "evaluate.py"), *model, *exam, "--out", str(folder / "exam.json")]


@dataclass(frozen=True)
class Plan:
    """What an arm's training will be, before it is done.

    Attributes:
        steps: optimizer steps.
        trainable: parameters that are trained.
        memory_mb: predicted for weights, gradients, optimizer and activations; the framework not counted.
    """

    steps: int
    trainable: int
    memory_mb: float


@cache
def plan_of(arm: Arm) -> Plan:
    """Count steps and parameters without training."""
    config = arm.settings()
    if config is None:
        return Plan(0, 0, 0.0)
    tokenizer = load_tokenizer(config.model.tokenizer, config.model.base)
    data = load_run_data(config, tokenizer, progress=False)
    steps = len(plan_steps(config, list(map(len, data.train))).steps)
    model = meta_model(config, model_shape(config, tokenizer.vocab_size))
    trainable = sum(count.trainable for count in count_parameters(model).values())
    return Plan(steps, trainable, predict_memory(model, config).total / 1e6)


@dataclass(frozen=True)
class Run:
    """What came of an arm with a seed.

    Attributes:
        results: of the exam's questions.
        seconds: of all training steps together, loading and validation not counted.
        memory_gb: the training process's largest resident memory, PyTorch included; None for the base.
        validation_loss: at the end; None for the base.
    """

    arm: str
    seed: int
    results: list[evaluation.Result]
    seconds: float
    memory_gb: float | None
    validation_loss: float | None


def run_study(
    arms: Sequence[Arm], seeds: Sequence[int], folder: Path, *, exam: Sequence[str] = (), workers: int = 2
) -> dict[str, list[Run]]:
    """Train and examine every arm with every seed, and return what came of it, by arm.

    Args:
        exam: flags for evaluate.py.
        workers: runs at once; each takes its share of the cores.

    Raises:
        RuntimeError: a run failed; the message has the end of its log. The others are stopped, and go on later.
    """
    todo = [(arm, seed) for seed in seeds for arm in arms if arm.config is not None or seed == seeds[0]]
    runs: dict[str, list[Run]] = {arm.name: [] for arm in arms}
    for arm in arms:
        plan_of(arm)  # here, not in the threads: flags that do not parse end the study before it begins
    threads = max(1, (os.cpu_count() or 1) // workers)
    with _bars() as bars, ThreadPoolExecutor(workers) as pool:
        whole = bars.add_task("all runs", total=len(todo), detail="")
        work = _Work(folder.resolve(), tuple(exam), os.environ | {"OMP_NUM_THREADS": str(threads)}, bars)
        futures = {pool.submit(work.done, arm, seed): arm for arm, seed in todo}
        try:
            for future in as_completed(futures):
                runs[futures[future].name].append(future.result())
                bars.advance(whole)
        except BaseException:
            work.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {name: sorted(members, key=lambda run: run.seed) for name, members in runs.items()}


@dataclass(frozen=True)
class _Work:
    """What the runs of a study share.

    Attributes:
        stop: set where another run has failed or the study is interrupted.
    """

    folder: Path
    exam: tuple[str, ...]
    environment: dict[str, str]
    bars: Progress
    stop: Event = field(default_factory=Event)

    def done(self, arm: Arm, seed: int) -> Run:
        """One run to its end, or its result from the last time."""
        place = self.folder / arm.name / (f"seed-{seed}" if arm.config else "as-it-is")
        commands = [arm.training(place, seed)] if arm.config else []
        commands.append(arm.examination(place, self.exam))
        known, stamp, end = identity(arm, commands, place), place / "run.json", place / "done"
        if place.exists() and (not stamp.exists() or json.loads(stamp.read_text("utf-8")) != known):
            shutil.rmtree(place)  # it is another run: of other settings, or on other files
        if not end.exists():
            place.mkdir(parents=True, exist_ok=True)
            write_whole(stamp, json_text(known))
            name, steps = f"{arm.name}, {place.name}", plan_of(arm).steps
            bar = self.bars.add_task(name, total=max(steps, 1), detail="")
            try:
                for command in commands:
                    self._call(command, place / "log.txt", lambda: _show(self.bars, bar, place))
            finally:
                self.bars.remove_task(bar)
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
            write_whole(end, b"")
        run = read_run(arm.name, seed, place)
        right = sum(result.correct for result in run.results) / len(run.results)
        self.bars.console.print(f"{arm.name}, {place.name}: {right:.1%} right, {run.seconds:.0f} s", highlight=False)
        return run

    def _call(self, command: Sequence[str], log: Path, meanwhile: Callable[[], Any]) -> None:
        with log.open("a", encoding="utf-8") as output:
            output.write(f"$ {' '.join(command)}\n")
            output.flush()
            if self.stop.is_set():
                raise RuntimeError("stopped")
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.environment, cwd=ROOT)
            try:
                while process.poll() is None and not self.stop.wait(POLL_SECONDS):
                    meanwhile()
            finally:
                if process.poll() is None:
                    process.terminate()  # train.py saves a checkpoint and ends
                    process.wait()
        if process.returncode:
            end = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-15:])
            raise RuntimeError(
                f"exit status {process.returncode}; put right what its log says and start the study again, it goes on. "
                f"The end of {log}:\n{end}"
            )


def identity(arm: Arm, commands: Sequence[Sequence[str]], place: Path) -> dict[str, Any]:
    """All that makes a run the same run: its commands, its settings as resolved, and the bundled files."""
    settings = arm.settings()
    told = [[_portable(word, place) for word in command[1:]] for command in commands]
    return {"commands": told, "settings": config_text(settings) if settings else "", "files": _bundled_files()}


@cache
def _bundled_files() -> str:
    """One sum over base, instruction sets and exams."""
    files = sorted(file for file in data.miniature.folder().rglob("*") if file.is_file())
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


def read_run(arm: str, seed: int, place: Path) -> Run:
    """What a finished run left in its directory."""
    results = evaluation.read_report(place / "exam.json").results
    metrics = read_metrics(place / "metrics.jsonl")
    steps = [line for line in metrics if "tokens_per_second" in line]
    validations = [line["validation_loss"] for line in metrics if "validation_loss" in line]
    seconds, before = 0.0, 0.0
    for line in steps:
        seconds += (line["tokens"] - before) / line["tokens_per_second"]
        before = line["tokens"]
    memory = max((line["memory_gb"] for line in steps), default=None)
    return Run(arm, seed, results, seconds, memory, validations[-1] if validations else None)


def _show(bars: Progress, bar: TaskID, place: Path) -> None:
    """The last whole line of the run's log of figures."""
    try:
        with (place / "metrics.jsonl").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 2000))
            line = json.loads(file.read().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return
    loss = f"loss {line['loss']:.3f}" if "loss" in line else ""
    bars.update(bar, completed=line["step"], detail=loss)


def _portable(word: str, place: Path) -> str:
    """A word of a command without this machine's directories."""
    return word.replace(str(place), "RUN").replace(f"{ROOT}{os.sep}", "")


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[detail]}")) as bars:
        yield bars
