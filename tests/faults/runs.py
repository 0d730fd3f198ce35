"""Runs of train.py on a tiny model, to be broken; and what it means that nothing came of it.

A broken and resumed run ends as the undisturbed one if every loss, every validation loss, every file of the result and
the last checkpoint's weights and optimizer are the same, bit for bit, and nothing else is left lying about.
"""

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from faults.injections import POINTS
from tiny_models import tiny_llama, train_tokenizer

from llama import save_checkpoint
from training import read_metrics
from training.manifest import checkpoints, verify

DEADLINE = 60.0
"""Seconds after which a run counts as hung; an undisturbed one takes less than one."""

Point = TypeVar("Point")

COMMON = """
[model]
base = "BASE"
[data]
folder = "BASE"
files = ["some.json:9", "all.json"]
template = "alpaca_short"
max_length = 160
validation_rows = 4
[train]
epochs = 2
batch_size = 4
micro_batch_size = 2
precision = "float32"
device = "cpu"
save_every = 1
keep_checkpoints = 3
sample_answers = 0
"""

LORA = '[lora]\nr = 4\ndropout = 0.1\ntargets = ["q_proj", "v_proj", "down_proj"]\n'

VARIANTS = {
    "full": "[optim]\nlr = 0.01\n",
    "full-8bit": '[optim]\nname = "adamw8bit"\nlr = 0.01\nmin_8bit_size = 256\nweight_decay = 0.1\n',
    "lora": f"[optim]\nlr = 0.01\n{LORA}",
    "lora-8bit": f'[optim]\nname = "adamw8bit"\nlr = 0.01\nmin_8bit_size = 64\n{LORA}',
}
"""What differs between the runs that are broken, beside the method: between them all orders of rows and optimizers."""

DATA = {"full-8bit": "packing = true", "lora": "group_by_length = true", "lora-8bit": "packing = true"}
METHODS = {"full-8bit": "full"}

KEPT = ".abandoned-"
"""A checkpoint later than the one a run went on from stays under such a name, by design."""


@dataclass
class Ended:
    """How a run ended: its exit code as `subprocess` counts, and what it printed."""

    code: int
    text: str

    @property
    def last_line(self) -> str:
        """Where an error stands."""
        return self.text.strip().splitlines()[-1] if self.text.strip() else ""


class Call(NamedTuple):
    """One call of the system that changes files, as `disk.watch` writes it down."""

    name: str
    path: str
    size: int


@dataclass
class Lab:
    """A base, data, configs, and the process that forks the runs.

    Attributes:
        folder: all of that, and the undisturbed runs.
    """

    folder: Path
    endings: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    found_places: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    runs: int = 0

    def __post_init__(self) -> None:
        base = self.folder / "base"
        base.mkdir()
        train_tokenizer(base)
        save_checkpoint(tiny_llama(0, vocab_size=330, max_seq_len=256, std=0.1), base)
        rows = [
            {"instruction": "Answer this question.", "input": f"What of case {n}{'?' * n}", "output": f"drug {n % 5}"}
            for n in range(17)
        ]
        (base / "some.json").write_text(json.dumps(rows[:12]))
        (base / "all.json").write_text(json.dumps(rows[12:]))
        for name, settings in VARIANTS.items():
            text = COMMON.replace("BASE", str(base)).replace("[train]", f"{DATA.get(name, '')}\n[train]")
            method = f'method = "{METHODS.get(name, name)}"\n'
            (self.folder / f"{name}.toml").write_text(f"{text}{method}{settings}")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).parent / "zygote.py")]
        self.zygote = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
        )

    def close(self) -> None:
        """End the forking process."""
        assert self.zygote.stdin is not None
        self.zygote.stdin.close()
        self.zygote.wait(DEADLINE)

    def run(
        self,
        variant: str,
        output: Path,
        *flags: str,
        faults: Mapping[str, Mapping[str, Any]] | None = None,
        signals: Sequence[tuple[float, int]] = (),
    ) -> Ended:
        """One run to its end; one that does not end is an error.

        Args:
            faults: functions of `disk` and `injections` with their arguments.
            signals: seconds after the one before (the first after the start), and what is sent then.
        """
        self.runs += 1
        log = self.folder / f"log-{self.runs}"
        arguments = ["--config", str(self.folder / f"{variant}.toml"), "--output", str(output), *flags]
        assert self.zygote.stdin is not None
        print(json.dumps({"arguments": arguments, "faults": faults or {}, "log": str(log)}), file=self.zygote.stdin)
        pid = int(self._answer())
        for delay, number in signals:
            time.sleep(delay)
            os.kill(pid, number)
        try:
            code = int(self._answer())
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            self._answer()
            raise AssertionError(f"no end after {DEADLINE} s: {log.read_text()}") from None
        text = log.read_text()
        log.unlink()
        return Ended(code, text)

    def _answer(self) -> str:
        assert self.zygote.stdout is not None
        if not select.select([self.zygote.stdout], [], [], DEADLINE)[0]:
            raise TimeoutError
        return self.zygote.stdout.readline() or self._dead()

    def _dead(self) -> str:
        raise AssertionError("the forking process is gone: see its error above")

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A place for the output of a run that will be broken; what lies there goes at the end."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            root = Path(folder, "work")
            root.mkdir()
            yield root / "run"

    # --- What counts ---

    def file_calls(self, variant: str) -> list[Call]:
        """Every call by which the variant's undisturbed run changes files, in order."""
        if variant not in self.calls:
            log = self.folder / f"calls-{variant}"
            with self.scratch() as output:
                ended = self.run(variant, output, faults={"watch": {"root": str(output.parent), "log": str(log)}})
                assert ended.code == 0, ended.text
                self.is_as_undisturbed(variant, output)  # to be watched changes nothing
            lines = (line.split("\t") for line in log.read_text().splitlines())
            self.calls[variant] = [Call(name, path, int(size)) for name, path, size in lines]
        return self.calls[variant]

    def places(self, variant: str) -> list[dict[str, Any]]:
        """Every point of every micro-batch of the run; an update is listed with the step's last one."""
        if variant not in self.found_places:
            with self.scratch() as output:
                log = output.parent / "places"
                assert self.run(variant, output, faults={"survey": {"log": str(log)}}).code == 0
                forwards = [(int(step), int(number)) for step, number in map(str.split, log.read_text().splitlines())]
            last = dict(forwards)
            self.found_places[variant] = [
                {"step": step, "micro_batch": number, "point": point}
                for step, number in forwards
                for point in (POINTS if number == last[step] else POINTS[:2])
            ]
        return self.found_places[variant]

    def n_steps(self, variant: str) -> int:
        """Optimizer steps of the variant's run."""
        return int(max(line["step"] for line in read_metrics(self.whole(variant) / "metrics.jsonl")))

    def stopped(self, variant: str, output: Path) -> list[Path]:
        """Put a run there that was killed before its last step ended; its three checkpoints, oldest first."""
        kept = self.folder / f"stopped-{variant}"
        if not kept.exists():
            place = {"step": self.n_steps(variant), "micro_batch": 0, "point": "before backward"}
            assert self.run(variant, kept, faults={"kill": place}).code == -9
        shutil.copytree(kept, output)
        found = sorted((output / "checkpoints").glob("step-*"))
        assert len(found) == 3
        return found

    def whole(self, variant: str) -> Path:
        """The directory of the variant's undisturbed run, which is made once."""
        output = self.folder / f"whole-{variant}"
        if variant not in self.endings:
            started = time.perf_counter()
            ended = self.run(variant, output)
            assert ended.code == 0, ended.text
            self.seconds[variant] = time.perf_counter() - started
            self.endings[variant] = ending(output)
        return output

    def ends_as_undisturbed(self, variant: str, output: Path, *flags: str) -> Ended:
        """Resume what is there, or begin anew where there is nothing; it must end as if nothing had happened."""
        self.whole(variant)
        ended = self.run(variant, output, "--resume", "auto", *flags)
        assert ended.code == 0, ended.text
        self.is_as_undisturbed(variant, output)
        return ended

    def is_as_undisturbed(self, variant: str, output: Path, *, tidy: bool = True) -> None:
        """Losses, result and last checkpoint are the undisturbed run's, and, if `tidy`, nothing else lies about."""
        self.whole(variant)
        found, wanted = ending(output), self.endings[variant]
        different = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        assert not different, f"{output}: these differ from the undisturbed run: {different}"
        assert not tidy or not strays(output)


def ending(output: Path) -> dict[str, str]:
    """What must be the same: every loss in hexadecimal, every byte that was trained or keeps the training going."""
    values = {
        f"{key} of step {line['step']}": float(line[key]).hex()
        for line in read_metrics(output / "metrics.jsonl")
        for key in ("loss", "validation_loss", "gradient_norm", "tokens")
        if key in line
    }
    results = [file for name in ("adapter", "model") for file in sorted((output / name).glob("*"))]
    last = max((output / "checkpoints").glob("step-*"), default=output)
    results += [last / name for name in ("trainable.safetensors", "optimizer.safetensors")]
    return values | {str(file.relative_to(output)): file.read_bytes().hex() for file in results}


def whole_checkpoints(output: Path) -> list[int]:
    """The steps of the run's checkpoints, each of which must be whole if it has its name."""
    there = checkpoints(output / "checkpoints")
    assert sorted(there) == sorted((output / "checkpoints").glob("step-*")), "a checkpoint without its run.json"
    for checkpoint in there:
        verify(checkpoint)
    return [int(path.name.removeprefix("step-")) for path in there]


def saved(calls: list[Call]) -> int:
    """How many checkpoints were given their name, and that forced to the disk: the next call after the rename."""
    renamed = [n for n, call in enumerate(calls) if call.name == "replace" and Path(call.path).name.startswith("step-")]
    return sum(n + 1 < len(calls) for n in renamed)


def contents(output: Path) -> dict[str, bytes]:
    """Every file of a run and what is in it."""
    return {str(file): file.read_bytes() for file in sorted(output.rglob("*")) if file.is_file()}


def thinned(points: Sequence[Point], n: int, seed: int) -> list[Point]:
    """So many of the points, by chance but the same each time, in their order."""
    chosen = random.Random(seed).sample(range(len(points)), min(n, len(points)))
    return [points[i] for i in sorted(chosen)]


def strays(output: Path) -> list[str]:
    """What interruptions left and nobody removed."""
    return [str(path) for path in output.rglob(".*") if not path.name.startswith(KEPT)]
