"""SIGTERM and Ctrl-C at any moment, once or twice: the run ends with the shell's code for it, and no bit is lost."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.injections import POINTS
from faults.runs import DEADLINE, VARIANTS, Lab, strays, thinned, whole_checkpoints

ROOT = Path(__file__).parents[2]
CODES = {signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2)}
"""Of a run that ended by itself, and of one that the system ended: a shell makes the same of both."""
MOMENTS = 30
SECOND = (0.005, 0.05)
"""Seconds between two signals."""


def stopped_and_resumed(lab: Lab, variant: str, *signals: tuple[float, int]) -> int:
    """Send real signals from outside at those seconds; resume. The exit code of the run that was stopped."""
    with lab.scratch() as output:
        ended = lab.run(variant, output, signals=signals)
        allowed = {0} | {code for _, number in signals for code in CODES[signal.Signals(number)]}
        assert ended.code in allowed, ended.text
        assert "Traceback" not in ended.text
        if "saved" in ended.text:
            assert ended.code == 128 + signals[0][1], ended.text
            assert not strays(output)
        if output.exists():
            whole_checkpoints(output)
        if ended.code == 0:
            lab.is_as_undisturbed(variant, output)
        else:
            lab.ends_as_undisturbed(variant, output)
        return ended.code


def moments(lab: Lab, variant: str, n: int, seed: int) -> list[tuple[tuple[float, int], ...]]:
    """Signals at random moments of the run's whole life, every second time followed by another one."""
    lab.whole(variant)
    chance = random.Random(seed)
    chosen = []
    for number in range(n):
        first = (chance.uniform(0, lab.seconds[variant]), chance.choice(list(CODES)))
        second = (chance.uniform(*SECOND), first[1] if number % 4 else chance.choice(list(CODES)))
        chosen.append((first, second) if number % 2 else (first,))
    return chosen


@pytest.mark.parametrize("variant", VARIANTS)
def test_signals_at_some_moments_lose_nothing(lab, variant, count_faults):
    for signals in moments(lab, variant, 2, seed=len(variant)):
        stopped_and_resumed(lab, variant, *signals)
        count_faults("signals from outside at random moments", len(signals))


@pytest.mark.faults
@pytest.mark.parametrize("variant", VARIANTS)
def test_signals_at_many_moments_lose_nothing(lab, variant, count_faults):
    codes = set()
    for signals in moments(lab, variant, MOMENTS, seed=10 + len(variant)):
        codes.add(stopped_and_resumed(lab, variant, *signals))
        count_faults("signals from outside at random moments", len(signals))
    assert codes & {143, 130}


@pytest.mark.faults
def test_a_process_of_its_own_is_no_different(lab, count_faults):
    """Not forked but started: it imports everything, ends with the interpreter's own end, and gets signals in both."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    settings = ("--config", str(lab.folder / "lora.toml"), "--output")

    def start(output: Path, *flags: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "train.py"), *settings, str(output), *flags]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)

    with lab.scratch() as output:
        started = time.perf_counter()
        assert start(output).wait(DEADLINE) == 0
        seconds = time.perf_counter() - started
        lab.is_as_undisturbed("lora", output)
    for number, share in enumerate((0.02, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)):
        kind = list(CODES)[number % 2]
        with lab.scratch() as output:
            process = start(output)
            time.sleep(share * seconds)
            process.send_signal(kind)
            assert process.wait(DEADLINE) in (0, *CODES[kind])
            lab.ends_as_undisturbed("lora", output)
            count_faults("signals to a process of its own, imports included")


# --- At chosen moments: the process sends them to itself at one of its calls that change files ---


def saving_calls(lab: Lab, variant: str) -> list[int]:
    """The calls of all saves but the last two steps': what comes in the one before the last is answered after that."""
    calls = list(enumerate(lab.file_calls(variant), start=1))
    number = lab.n_steps(variant) - 1
    end = next(place for place, call in calls if f".saving-step-{number:08d}" in call.path)
    return [place for place, call in calls[: end - 1] if "/checkpoints/" in call.path]


@pytest.mark.parametrize("first", CODES)
@pytest.mark.parametrize("second", CODES)
def test_signals_while_a_checkpoint_is_saved_do_not_touch_the_save(lab, first, second, count_faults):
    for number in thinned(saving_calls(lab, "lora"), 1, seed=first + second):
        with lab.scratch() as output:
            faults = {"signals": {"root": str(output.parent), "number": number, "signals": [first, second]}}
            ended = lab.run("lora", output, faults=faults)
            assert ended.code == 128 + first, ended.text
            assert "saved" in ended.last_line and not strays(output)
            assert whole_checkpoints(output)
            lab.ends_as_undisturbed("lora", output)
            count_faults("two signals in a save", 2)


@pytest.mark.parametrize("variant", ["full", "lora-8bit"])
@pytest.mark.parametrize("number", CODES)
def test_signals_while_the_result_is_saved_do_not_touch_it(lab, variant, number, count_faults):
    """The run is over but for its result: it is written whole, and nothing is lost that no checkpoint has."""
    folder = "model" if variant == "full" else "adapter"
    calls = enumerate(lab.file_calls(variant), start=1)
    saving = [place for place, call in calls if f"/run/{folder}/" in call.path]
    for place in thinned(saving, 1, seed=number):
        with lab.scratch() as output:
            faults = {"signals": {"root": str(output.parent), "number": place, "signals": [number, number]}}
            ended = lab.run(variant, output, faults=faults)
            assert ended.code in (0, 128 + number), ended.text
            lab.is_as_undisturbed(variant, output)
            count_faults("two signals in the save of the result", 2)


@pytest.mark.parametrize(
    ("signals", "code", "point"),
    [
        ([2, 2], 130, "before backward"),
        ([15, 15], 143, "before forward"),
        ([15, 2], 143, "before update"),
        ([2, 15], 130, "after update"),
    ],
)
def test_a_second_ctrl_c_ends_a_step_at_once_and_other_signals_do_not(lab, signals, code, point, count_faults):
    two_in_a_step(lab, signals, code, point)
    count_faults("two signals in a step", 2)


@pytest.mark.faults
@pytest.mark.parametrize("point", POINTS)
def test_two_signals_at_any_point_of_a_step_lose_nothing(lab, point, count_faults):
    for signals, code in (([2, 2], 130), ([15, 15], 143), ([15, 2], 143), ([2, 15], 130)):
        two_in_a_step(lab, signals, code, point)
        count_faults("two signals in a step", 2)


def two_in_a_step(lab: Lab, signals: list[int], code: int, point: str) -> None:
    """Ctrl-C twice ends the step at once, without a new checkpoint; all else lets it end and saves."""
    with lab.scratch() as output:
        place = {"step": 2, "micro_batch": 0, "point": point, "signals": signals}
        ended = lab.run("lora", output, faults={"interrupt": place})
        assert ended.code == code, ended.text
        assert whole_checkpoints(output) == ([1] if signals == [2, 2] else [1, 2])
        assert not strays(output)
        lab.ends_as_undisturbed("lora", output)


def test_without_checkpoints_a_signal_makes_one(lab, count_faults):
    """`save_every` 0: only what is stopped is saved."""
    for number, code in ((15, 143), (2, 130)):
        with lab.scratch() as output:
            place = {"step": 3, "micro_batch": 0, "point": "before forward", "signals": [number]}
            ended = lab.run("lora-8bit", output, "--train.save-every", "0", faults={"interrupt": place})
            assert ended.code == code and whole_checkpoints(output) == [3], ended.text
            lab.ends_as_undisturbed("lora-8bit", output)
            count_faults("one signal in a step")
