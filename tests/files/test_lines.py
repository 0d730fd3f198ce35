"""Journals: a row is whole on the disk or not there, wherever its writing ended."""

import errno
import os
from pathlib import Path

import pytest

from files import lines
from files.lines import append_rows, cut_unfinished_line
from files.rows import rows_of_lines


def rows_in(path: Path) -> list[object]:
    return [row for _, _, row in rows_of_lines(path, own=True)]


def test_rows_are_added_in_their_order(tmp_path):
    path = tmp_path / "journal.jsonl"
    append_rows(path, {"a": 1}, {"é": "\u2028 line\nbreak"})
    append_rows(path, {"b": None})
    assert rows_in(path) == [{"a": 1}, {"é": "\u2028 line\nbreak"}, {"b": None}]
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("block", [1, 2, 7, 2**16])
def test_wherever_a_line_was_cut_only_that_line_is_dropped(tmp_path, monkeypatch, block):
    monkeypatch.setattr(lines, "BLOCK", block)
    path = tmp_path / "journal.jsonl"
    append_rows(path, {"a": 1}, {"b": "some length"})
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        cut_unfinished_line(path)
        assert path.read_bytes() == content[: len(content) if length == len(content) else first * (length >= first)]
        append_rows(path, {"c": 3})
        assert rows_in(path)[-1] == {"c": 3}


def test_rows_are_forced_to_the_disk_before_it_returns(tmp_path, monkeypatch):
    path, forced = tmp_path / "journal.jsonl", []
    monkeypatch.setattr(lines.os, "fsync", lambda descriptor: forced.append(os.fstat(descriptor).st_size))
    append_rows(path, {"a": 1})
    assert forced == [path.stat().st_size]


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "journal.jsonl"
    append_rows(path, {"a": 1})
    monkeypatch.setattr(lines.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*journal"):
        append_rows(path, {"b": 2})
    assert rows_in(path)[0] == {"a": 1}
