"""data.self_instruct.journal: lines come back; what is cut is cut off; what is not its own is refused."""

import json
import os
from collections import Counter

import pytest

from data.self_instruct import Kept, Round, open_journal, read_journal
from data.self_instruct.journal import FORMAT
from files import DamagedFileError, FileError, UnsuitableFileError
from files.lines import BLOCK

SETTINGS = {"seed": 0, "shots": 3, "base": "miniature", "threshold": 0.7, "adapter": None}


def a_round(number: int, size: int = 2) -> Round:
    kept = [Kept(f"task {number} {k} …", "", "x\n", {"a": 0.5}, 0.25) for k in range(size)]
    return Round(number, 8, number % 2, Counter({"cut": number, "similar": 1}), kept)


ROUNDS = [a_round(1), a_round(2, 0), a_round(3)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.journal.jsonl"
    with open_journal(path, SETTINGS) as journal:
        for done in ROUNDS:
            journal.append(done)
    return path


def test_rounds_come_back(path):
    assert read_journal(path) == read_journal(path, SETTINGS) == ROUNDS
    with open_journal(path, SETTINGS) as journal:
        assert journal.rounds == ROUNDS
        journal.append(a_round(4))
    assert read_journal(path) == [*ROUNDS, a_round(4)]


def test_cut_anywhere_the_whole_lines_stay(path, count_faults):
    content = path.read_bytes()
    ends = [n + 1 for n, byte in enumerate(content) if byte == ord("\n")]
    around_ends = {end + shift for end in [0, *ends] for shift in range(-2, 3)}
    for length in sorted(around_ends & set(range(len(content))) | set(range(0, len(content), 29))):
        path.write_bytes(content[:length])
        whole = max(0, sum(end <= length for end in ends) - 1)  # the first line is the settings'
        assert read_journal(path) == ROUNDS[:whole]
        with open_journal(path, SETTINGS) as journal:
            for done in ROUNDS[whole:]:
                journal.append(done)
        assert path.read_bytes() == content
        count_faults("journals cut short")


def test_a_cut_line_longer_than_a_block_is_cut_off(path):
    content = path.read_bytes()
    path.write_bytes(content + b'{"round": 4, "x": "' + b"x" * (3 * BLOCK))
    with open_journal(path, SETTINGS):
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("shots", 2, "shots 3, now it is 2"),
        ("base", "DIR", "base 'miniature', now it is 'DIR'"),
        ("adapter", "A", "adapter None, now it is 'A'"),
        ("new", 1, "new None, now it is 1"),
    ],
)
def test_other_settings_are_refused_by_name_and_change_nothing(path, name, value, words):
    content = path.read_bytes()
    with pytest.raises(UnsuitableFileError, match=words), open_journal(path, SETTINGS | {name: value}):
        pass
    assert path.read_bytes() == content


def test_another_model_is_refused_by_name_and_changes_nothing(tmp_path):
    path = tmp_path / "x.journal.jsonl"
    with open_journal(path, SETTINGS) as journal:
        journal.set_model({"shape": "7B", "weights": "a"})
        journal.append(a_round(1))
        journal.set_model({"shape": "7B", "weights": "a"})
    content = path.read_bytes()
    with open_journal(path, SETTINGS) as journal:
        for other in ({"shape": "7B", "weights": "b"}, {"shape": "7B"}, {}):
            with pytest.raises(UnsuitableFileError, match=r"it was begun with (weights 'a'|shape '7B'), now it is"):
                journal.set_model(other)
        journal.set_model({"shape": "7B", "weights": "a"})
        journal.append(a_round(2))
    assert path.read_bytes().startswith(content) and read_journal(path) == [a_round(1), a_round(2)]


def test_a_model_that_made_no_round_binds_nobody(tmp_path):
    path = tmp_path / "x.journal.jsonl"
    header = {"format": FORMAT, "settings": SETTINGS, "model": {"weights": "a"}}
    path.write_text(json.dumps(header) + "\n", encoding="utf-8")
    with open_journal(path, SETTINGS) as journal:
        journal.append(a_round(1))
        journal.set_model({})


def test_without_a_round_other_settings_begin_anew(tmp_path):
    path = tmp_path / "x.journal.jsonl"
    with open_journal(path, SETTINGS):
        pass
    path.write_text(json.dumps({"format": FORMAT, "settings": SETTINGS, "model": {}}) + "\n", encoding="utf-8")
    with open_journal(path, SETTINGS | {"shots": 1}) as journal:
        journal.append(a_round(1))
    assert read_journal(path, SETTINGS | {"shots": 1}) == [a_round(1)]


def test_a_second_process_is_refused(path):
    refused = pytest.raises(UnsuitableFileError, match="another process is writing it")
    with open_journal(path, SETTINGS), refused, open_journal(path, SETTINGS):
        pass


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "x.journal.jsonl"
    for content in (b"notes without a newline", b'{"instruction": "x"}\n', b"\0" * 100, b'{"format": 1}'[:-1] + b"\n"):
        path.write_bytes(content)
        with pytest.raises(FileError), open_journal(path, SETTINGS):
            pass
        assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "x.journal.jsonl"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    with pytest.raises(UnsuitableFileError, match=f"it is a {kind}"), open_journal(path, SETTINGS):
        pass


BAD_LINES = {
    "another format": {"format": FORMAT - 1, "settings": {}, "model": {}},
    "settings that are a list": {"format": FORMAT, "settings": [], "model": {}},
    "a model that is a list": {"format": FORMAT, "settings": {}, "model": []},
    "no model": {"format": FORMAT, "settings": {}},
    "a header that is a list": [1],
}
BAD_ROUNDS = {
    "a round twice": {"round": 2},
    "a round left out": {"round": 4},
    "a negative count": {"requests": -1},
    "a count that is a boolean": {"redraws": True},
    "an unknown reason": {"dropped": {"boring": 1}},
    "a reason that is negative": {"dropped": {"cut": -1}},
    "kept tasks that are an object": {"kept": {}},
    "a kept task that is a text": {"kept": ["x"]},
    "a kept task without an output": {"kept": [{"instruction": "a", "input": "", "output": None}]},
}


@pytest.mark.parametrize("name", BAD_LINES | BAD_ROUNDS)
def test_a_bad_line_is_named(path, count_faults, name):
    lines = path.read_text(encoding="utf-8").splitlines()
    if name in BAD_LINES:
        lines[0] = json.dumps(BAD_LINES[name])
    else:
        lines[3] = json.dumps(json.loads(lines[3]) | BAD_ROUNDS[name])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(FileError) as refused:
        read_journal(path)
    assert refused.value.file == path
    count_faults("bad journals")


def test_a_line_that_is_no_json_in_the_middle_is_damage(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:40] + b"\n" + lines[2])
    with pytest.raises(DamagedFileError, match="line 2"):
        read_journal(path)
