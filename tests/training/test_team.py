"""A team's processes agree on everything, meet or say why they did not, and end together."""

import socket
from datetime import timedelta

import forked_team
import pytest
import torch
from forked_team import Ended, Teams

from training import ALONE, joined_team
from training import team as team_module

teams = forked_team.teams
CPU = torch.device("cpu")

TOGETHER = """
with joined_team(torch.device("cpu")) as found:
    print(found.total(1, rank / 4), found.largest(rank, -rank), found.everyones({"rank": rank}), found.leaders(rank))
    found.agree({"lr": "0.1"})
    try:
        found.agree({"lr": f"0.{max(rank, 1)}", "same": "1"}, "start them alike")
    except ValueError as error:
        print("refused:", error)
    with found.together():
        pass
    try:
        with found.together():
            if rank == 1:
                raise OSError(28, "No space left on device", "adapter")
    except Exception as error:
        print("failed:", type(error).__name__, error)
    print(found.total(1))
"""

ADDING = """
with joined_team(torch.device("cpu")) as found:
    for round in range(400):
        print(found.total(1), flush=True)
        if round == 3 and rank == 1:
            FAULT
"""


def test_what_is_agreed_on_is_the_same_everywhere(teams: Teams):
    ended = teams.run(3, program=TOGETHER)
    assert ended.codes == [0, 0, 0], ended.texts
    for rank, text in enumerate(ended.texts):
        first, refused, failed, last = text.splitlines()
        assert first == "[3.0, 0.75] [2.0, 0.0] [{'rank': 0}, {'rank': 1}, {'rank': 2}] 0"
        assert refused == "refused: lr is 0.1 on rank 0 and 0.2 on rank 2: start them alike"
        own = rank == 1
        assert failed.startswith("failed: OSError" if own else "failed: LostProcessError rank 1 of 3 failed: OSError")
        assert "No space left on device: 'adapter'" in failed
        assert last == "[3.0]"  # nobody was left waiting


def test_alone_nothing_is_sent():
    assert ALONE.total(1, 2.5) == [1, 2.5] and ALONE.largest(3) == [3]
    assert ALONE.everyones("a") == ["a"] and ALONE.leaders("b") == "b" and ALONE.leads
    ALONE.agree({"lr": "0.1"})
    with pytest.raises(OSError, match="full"), ALONE.together():
        raise OSError("full")


def test_without_torchrun_or_with_one_process_one_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_team(CPU) as found:
        assert found == ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined_team(CPU) as found:
        assert found == ALONE


# --- One ends, the others with it ---


def broken(teams: Teams, fault: str, size: int = 3, before: str = "", **options) -> Ended:
    return teams.run(size, program=ADDING.replace("FAULT", fault), before=before, **options)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("die()", "rank 1 of 3 is gone (killed, or out of memory?)"),
        ("os._exit(0)", "rank 1 of 3 is gone"),
        ("fail(ValueError('row 7 is empty'))", "rank 1 of 3 failed (ValueError: row 7 is empty)"),
        ("fail(torch.OutOfMemoryError('3 GB'))", "rank 1 of 3 failed (OutOfMemoryError: 3 GB)"),
        ("fail(RuntimeError('shapes differ'))", "rank 1 of 3 failed (RuntimeError: shapes differ)"),
        ("fail(KeyboardInterrupt())", "rank 1 of 3 failed (KeyboardInterrupt"),
    ],
    ids=["killed", "left", "ValueError", "OutOfMemoryError", "RuntimeError", "Ctrl-C"],
)
def test_who_ends_takes_the_others_along_and_is_named(teams: Teams, fault, message, count_faults):
    ended = broken(teams, fault, before="roll_call.PATIENCE = 2.0")
    for rank in (0, 2):
        assert ended.codes[rank] == 1
        last = ended.texts[rank].strip().splitlines()[-1]
        assert f"{message}" in last and f"so rank {rank} ends too; go on with --resume auto" in last, ended.texts
    assert max(ended.seconds) < 10  # 2 s of patience, and the rest for a machine that is busy with other tests
    if "fail" in fault:  # its own error stays itself
        assert "LostProcessError" not in ended.texts[1]
        assert ended.codes[1] != 0
    count_faults("processes of a team that ended alone")


def test_an_error_of_ones_own_is_not_held_up(teams: Teams):
    """A RuntimeError may be anything: the roll is called, all answer, and within a second it goes on its way."""
    program = ADDING.replace("FAULT", "started = time.monotonic(); fail(RuntimeError('shapes differ'))")
    program = f"import time\ntry:\n{'    '.join(('', *program.splitlines(True)))}\n"
    ended = teams.run(2, program=program + "finally:\n    print('took', time.monotonic() - started if rank else 0)")
    took = float(ended.texts[1].partition("took ")[2].split()[0])
    assert took < team_module.PATIENCE + 1


def test_a_rank_that_is_busy_is_not_taken_for_dead(teams: Teams):
    """It computes for longer than anybody's patience; it is the thread that answers."""
    fault = "die()\n        if round == 3 and rank == 2:\n            import time; time.sleep(4)"
    ended = broken(teams, fault, before="roll_call.PATIENCE = 1.0")
    assert "rank 1 of 3 is gone" in ended.texts[0].splitlines()[-1]
    assert "rank 1 of 3 is gone" in ended.texts[2].splitlines()[-1]


def test_a_rank_that_waits_for_ever_is_ended(teams: Teams, count_faults):
    """As one waits on a GPU for a dead one: no Python runs in its main thread any more."""
    fault = "die()\n        if round == 3 and rank == 2:\n            import threading; threading.Lock().acquire(); "
    fault += "lock = threading.Lock(); lock.acquire(); lock.acquire()"
    ended = broken(teams, fault, before="roll_call.PATIENCE, roll_call.GRACE = 1.0, 2.0")
    assert ended.codes == [1, -9, 1]
    assert "rank 2 of 3 still waits for it; go on with --resume auto" in ended.texts[2]
    assert max(ended.seconds) < 10
    count_faults("processes of a team that ended alone")


def test_torchruns_sigterm_does_not_take_away_the_last_words(teams: Teams):
    """It comes while the roll is called, as soon as torchrun has noticed the death too."""
    own = "import threading\nthreading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM))"
    before = f"roll_call.PATIENCE = 2.0\n{own}.start() if rank != 1 else None\nimport time"
    fault = "die()"
    program = ADDING.replace("FAULT", fault)
    ended = teams.run(2, program=program, before=before)
    assert ended.codes == [1, -9]
    assert "rank 1 of 2 is gone" in ended.texts[0].splitlines()[-1]


def test_when_torchrun_is_gone_each_process_is_asked_to_stop(teams: Teams):
    """A run that went on would write beside the one that is started in its place."""
    program = ADDING.replace("range(400)", "range(10**9)")
    program = program.replace("FAULT", "os.kill(int(os.environ['KEEPER']), signal.SIGKILL)")
    ended = teams.run(2, program=program, before="signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))")
    assert 143 in ended.codes  # the first; the other may meet its closed connection before it is asked
    assert any("rank 0's machine, or the torchrun on it, is gone: stopping" in text for text in ended.texts)
    assert max(ended.seconds) < 10


# --- The environment is not torchrun's ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = two in the environment must be a number from 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = 0"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE = ²"),
        ({"RANK": None}, r"RANK = \(unset\)"),
        ({"RANK": "2"}, "RANK = 2 in the environment must be a number from 0 to 1"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK = -1"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT = 65536"),
        ({"MASTER_PORT": None}, r"MASTER_PORT = \(unset\)"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set, but WORLD_SIZE = 2 is: start with torchrun, or unset"),
    ],
)
def test_an_environment_that_describes_no_team_is_refused_by_name(monkeypatch, changes, message):
    in_environment(monkeypatch, 29999, changes)
    with pytest.raises(ValueError, match=message), joined_team(CPU):
        pytest.fail("a team was joined")


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        in_environment(monkeypatch, port)
        named = f"rank 0 of 2 did not find the others at 127.0.0.1:{port}"
        with pytest.raises(ConnectionError, match=named), joined_team(CPU):
            pytest.fail("a team was joined")


def test_a_process_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(team_module, "MEETING", timedelta(seconds=1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    in_environment(monkeypatch, port)
    named = f"at 127.0.0.1:{port}: .*; is the port taken, or a process missing"
    with pytest.raises(ConnectionError, match=named), joined_team(CPU):
        pytest.fail("a team was joined")


def in_environment(monkeypatch: pytest.MonkeyPatch, port: int, changes: dict[str, str | None] | None = None) -> None:
    variables: dict[str, str | None] = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | (changes or {})
    for name, value in variables.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
