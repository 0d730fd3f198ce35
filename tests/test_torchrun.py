"""train.py under torchrun itself, by the scripts of configs/launch: restarts, two machines, and Slurm's requeue."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import forked_team
import pytest
import team_runs
from team_runs import arguments, same, trained, values

from training import read_metrics

teams, base = forked_team.teams, team_runs.base
ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "configs/launch"
FLAGS = ("--train.method", "lora", "--train.save-every", "1", "--train.epochs", "6")
LONG = 120.0
"""Seconds: every launch imports torch five times, on machines that do other things as well."""


@pytest.fixture(scope="module")
def undisturbed(teams, base, tmp_path_factory) -> Path:
    """What every broken run must end as."""
    return trained(teams, 2, base, tmp_path_factory.mktemp("undisturbed") / "run", *FLAGS)


@pytest.fixture
def launch(tmp_path) -> Iterator["Launch"]:
    made = Launch(tmp_path)
    yield made
    made.clean_up()


class Launch:
    """Starts launch scripts, finds the ranks beneath, and leaves none behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen] = []

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        """Run a script of configs/launch; what it prints goes to the file `log`."""
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen(
                ["bash", str(LAUNCH / script), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | environment,
            )
        self.started.append(process)
        return process

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def at_step(self, step: int, output: Path) -> None:
        """Return when the run has written that step."""
        self.until(lambda: any(line["step"] >= step for line in read_metrics(output / "metrics.jsonl")))

    def until(self, there) -> None:
        """Wait for something, which is looked for all the time."""
        end = time.monotonic() + LONG
        while not there():
            assert time.monotonic() < end, self.log()
            time.sleep(0.002)

    def end(self, process: subprocess.Popen) -> int:
        """Wait for a script, and return its exit code."""
        return process.wait(LONG)

    def pid_of_rank(self, rank: int) -> int:
        """The process that torchrun has made this rank of the run in this test's folder."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
                mine = str(self.folder).encode() in (entry / "cmdline").read_bytes()
            except OSError:  # it has ended, or is not ours
                continue
            if mine and f"RANK={rank}".encode() in variables:
                return int(entry.name)
        raise AssertionError(f"no rank {rank}: {self.log()}")

    def clean_up(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.terminate()
                process.wait(LONG)


def test_a_killed_rank_is_named_and_torchrun_restarts_the_run(launch, teams, base, tmp_path, undisturbed, count_faults):
    """With --max-restarts and --resume auto: the second start goes on where the first one's checkpoint is."""
    output = tmp_path / "run"
    run = launch.start("one-node.sh", "2", *arguments(base, output, *FLAGS, "--resume", "auto"), RESTARTS="1")
    launch.at_step(3, output)
    os.kill(launch.pid_of_rank(1), signal.SIGKILL)
    assert launch.end(run) == 0, launch.log()
    assert (
        "rank 1 of 2 is gone (killed, or out of memory?), so rank 0 ends too; go on with --resume auto" in launch.log()
    )
    assert launch.log().count("going on from") == 1
    assert same(output, undisturbed)
    assert list(values(output, "loss")) == list(values(undisturbed, "loss"))  # written once, in order
    count_faults("ranks killed under torchrun")


@pytest.mark.faults
def test_two_machines_stop_together_and_slurm_queues_the_run_again(launch, teams, base, tmp_path, undisturbed):
    """Two machines are two torchruns that meet at a port; Slurm is three commands that do what it would do."""
    output = tmp_path / "run"
    flags = arguments(base, output, *FLAGS)
    meeting = f"localhost:{forked_team.free_port()}"
    machines = [
        launch.start("several-nodes.sh", "2", "1", meeting, "a name", *flags, LOCAL_ADDR="localhost") for _ in range(2)
    ]
    launch.at_step(3, output)
    machines[1].send_signal(signal.SIGTERM)
    # torchrun's own exit code when it was asked to stop, or when its ranks ended by the signal's code
    assert [launch.end(machine) for machine in machines] == [1, 1], launch.log()
    assert launch.log().count("saved") == 1
    stopped_at = max(values(output, "loss"))
    assert f"stopped after step {stopped_at} of " in launch.log()

    job = slurm(tmp_path)
    run = launch.start("slurm.sbatch", *flags, **job)
    launch.at_step(stopped_at + 2, output)
    run.send_signal(signal.SIGTERM)
    assert launch.end(run) == 0, launch.log()
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    assert launch.log().count("going on from") == 1
    assert same(trained(teams, 2, base, output, *FLAGS, "--resume", "auto"), undisturbed)


@pytest.mark.parametrize(("python", "code"), [("true", 0), ("false", 1)])
def test_slurm_does_not_queue_again_what_ended_by_itself(launch, tmp_path, python, code):
    """Well or not: nobody has asked it to stop."""
    run = launch.start("slurm.sbatch", "--config", "none", **(slurm(tmp_path) | {"PYTHON": python}))
    assert launch.end(run) == code, launch.log()
    assert not (tmp_path / "requeued").exists()


def slurm(folder: Path) -> dict[str, str]:
    """A job's environment on one machine, with stand-ins for Slurm's commands."""
    commands = folder / "slurm"
    commands.mkdir()
    bodies = {
        "srun": f'echo $$ > {folder}/step; exec "$@"',
        "scancel": f"kill -TERM $(cat {folder}/step)",
        "scontrol": f'if [[ $1 = show ]]; then echo localhost; else echo "$@" > {folder}/requeued; fi',
    }
    for name, body in bodies.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    return {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "PROCESSES_PER_NODE": "2",
        "LOCAL_ADDR": "localhost",
    }


@pytest.mark.faults
def test_a_machine_that_is_lost_ends_the_run_on_the_others(launch, teams, base, tmp_path, undisturbed, count_faults):
    """Its torchrun and its rank die at once, as when the power goes."""
    output = tmp_path / "run"
    flags = arguments(base, output, *FLAGS, "--resume", "auto")
    meeting = f"localhost:{forked_team.free_port()}"
    machines = [
        launch.start("several-nodes.sh", "2", "1", meeting, "a name", *flags, LOCAL_ADDR="localhost") for _ in range(2)
    ]
    launch.at_step(3, output)
    rank = launch.pid_of_rank(1)
    lost = machines[0] if Path(f"/proc/{rank}/stat").read_text().split()[3] == str(machines[0].pid) else machines[1]
    started = time.monotonic()
    os.kill(lost.pid, signal.SIGKILL)
    os.kill(rank, signal.SIGKILL)
    [other] = [machine for machine in machines if machine is not lost]
    assert launch.end(other) == 1
    assert time.monotonic() - started < 30
    assert "rank 1 of 2 is gone" in launch.log()
    assert same(trained(teams, 2, base, output, *FLAGS, "--resume", "auto"), undisturbed)
    count_faults("machines lost")


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.iterdir()))
def test_launch_scripts_are_sound(script):
    """The shell can read them; without arguments those that need some say which."""
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)
    text = (LAUNCH / script).read_text()
    assert "set -euo pipefail" in text
    if script.endswith(".sh"):
        done = subprocess.run(["bash", str(LAUNCH / script)], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("usage: ")
    else:
        assert "#SBATCH --signal=B:TERM@600" in text and "#SBATCH --requeue" in text
