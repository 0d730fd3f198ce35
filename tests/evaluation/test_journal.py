import json
from pathlib import Path

import pytest
from byte_mutations import EXAMPLES, damaged, retyped
from hypothesis import given, settings

from data.exams import Question
from evaluation import Journal, Result, open_journal
from files import DamagedFileError, FileError

SETTINGS = {"protocol": "medalpaca", "seed": "42", "template": "x" * 100}


def result(name: str) -> Result:
    question = Question(name, "Which?", {"A": "x", "B": "y"}, "A", step="step1", seen=False)
    return Result.said(question, None, ("Hm.\n\u2028\0", "§ </s>")) if int(name) % 2 else scored(question)


def scored(question: Question) -> Result:
    return Result.scored(question, {"A": -1 / 3, "B": -1e-300}, truncated=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with two lines of two results each."""
    path = tmp_path / "new" / "before.journal.jsonl"
    with open_journal(path, SETTINGS) as journal:
        assert (journal.kept, journal.story(4)) == ({}, [])
        journal.record([result("1"), result("2")])
        journal.record([result("3"), result("4")])
    return path


def reopened(path: Path, settings: dict[str, str] = SETTINGS) -> Journal:
    with open_journal(path, settings) as journal:
        return journal


def test_what_was_recorded_is_kept_to_the_last_bit(path: Path) -> None:
    journal = reopened(path)
    assert journal.kept == {name: result(name) for name in "1234"}
    assert journal.story(10) == [f"{path}: 4 of 10 questions were answered before; going on"]
    assert reopened(path).kept == journal.kept  # looking does not change it


def test_it_goes_on(path: Path) -> None:
    with open_journal(path, SETTINGS) as journal:
        journal.record([result("5")])
    assert list(reopened(path).kept) == list("12345")


def refused(path: Path, settings: dict[str, str]) -> str:
    """Why, on the way to nothing being changed."""
    before = path.read_bytes()
    with pytest.raises(FileError) as caught:
        reopened(path, settings)
    assert path.read_bytes() == before
    return str(caught.value)


def test_results_of_other_settings_are_refused_by_what_differs_and_kept(path: Path) -> None:
    now = SETTINGS | {"instruction": "y" * 100, "seed": "7", "template": "y" * 100, "weights": "0"}
    assert refused(path, now) == (
        f"{path}: it holds answers given under other settings; instruction: (unset) then, {'y' * 60}... now; "
        "seed: 42 then, 7 now; other words of the prompt template; other weights of the model; "
        "delete it to begin anew, or name another --out"
    )
    assert len(reopened(path).kept) == 4


def test_other_settings_begin_anew_where_no_result_would_be_lost(path: Path) -> None:
    path.write_text(path.read_text().split("\n")[0] + "\n" + '{"results": [{"id"')
    assert reopened(path, SETTINGS | {"seed": "7"}).kept == {}
    assert '"seed": "7"' in path.read_text() and path.read_text().count("\n") == 1


def test_another_format_is_refused(path: Path) -> None:
    path.write_text(path.read_text().replace('"format": "1"', '"format": "0"', 1))
    assert "format: 0 then, 1 now" in refused(path, SETTINGS)


@pytest.mark.parametrize("content", ["my notes", "my notes\n", '{"mine": 1}\n', '{"journalist": 1'])
def test_a_file_of_somebody_elses_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "exam.journal.jsonl"
    path.write_text(content)
    assert "it is no journal of an exam; delete it" in refused(path, SETTINGS)


def test_wherever_a_line_is_cut_the_lines_before_it_are_kept(path: Path, count_faults) -> None:
    whole = path.read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(whole) if byte == ord("\n"))]
    near = {start + offset for start in starts for offset in (-2, -1, 0, 1)}
    for length in sorted({*range(0, len(whole), 29), *near} & {*range(len(whole))}):
        path.write_bytes(whole[:length])
        finished = sum(start <= length for start in starts) - 1
        with open_journal(path, SETTINGS) as journal:
            assert list(journal.kept) == list("1234")[: 2 * max(0, finished - 1)]
            journal.record([result("5")])
        assert list(reopened(path).kept)[-1] == "5"  # the new line did not join the cut one
        count_faults("journals cut")


DAMAGE = [
    (1, lambda line: line.replace('"A"', "A"), "line 2: not valid JSON"),
    (1, lambda line: "[]", 'line 2: the row is a list, expected an object with the key "results"'),
    (2, lambda line: line.replace('"results"', '"result"'), 'line 3: the key "results" is missing'),
    (2, lambda line: line.replace('"answer": "A"', '"answer": "F"'), "line 3, result 1: its answer 'F'"),
    (2, lambda line: line.replace('"id": "3"', '"id": "1"'), "line 3: question '1' was answered before"),
    (2, lambda line: line.replace("-1e-300", "-1e999"), 'the score of "B" is no finite number'),
    (0, lambda line: "{}", "it is no journal of an exam"),
    (0, lambda line: '{"journal": {"seed": 3}}', 'line 1, journal: "seed" is a number'),
    (0, lambda line: '{"journal": ', "line 1: not valid JSON"),
]


@pytest.mark.parametrize(("number", "damage", "problem"), DAMAGE, ids=[problem for _, _, problem in DAMAGE])
def test_a_damaged_line_is_named_and_nothing_is_lost(
    path: Path, number: int, damage, problem: str, count_faults
) -> None:
    lines = path.read_text().split("\n")
    broken = damage(lines[number])
    assert broken != lines[number]
    path.write_text("\n".join([*lines[:number], broken, *lines[number + 1 :]]))
    before = path.read_bytes()
    with pytest.raises(FileError, match="delete it to begin anew") as refused, open_journal(path, SETTINGS):
        pass
    assert problem in str(refused.value) and path.name in str(refused.value)
    assert path.read_bytes() == before
    count_faults("journals damaged")


@pytest.mark.parametrize(
    "damage",
    [
        ('"1"', '"7"'),
        ('"answer": "A"', '"answer": "B"'),
        ("step1", "step2"),
        ('"seen": false', '"seen": true'),
        ('"B"', '"C"'),
    ],
)
def test_a_result_of_another_question_is_damage(path: Path, damage: tuple[str, str], count_faults) -> None:
    questions = [Question(name, "Which?", {"A": "x", "B": "y"}, "A", step="step1", seen=False) for name in "1234"]
    reopened(path).check(questions)
    header, *lines = path.read_text().split("\n")
    path.write_text("\n".join([header, *(line.replace(*damage) for line in lines)]))
    with pytest.raises(
        DamagedFileError, match=r"before\.journal\.jsonl: the result of question '\d' is not .*delete it"
    ):
        reopened(path).check(questions)
    count_faults("journals damaged")


def test_a_damaged_journal_is_read_or_refused_by_name(path: Path, count_faults) -> None:
    whole, tried = path.read_bytes(), 0

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(damaged(whole) | retyped(whole))
    def survives(content: bytes) -> None:
        nonlocal tried
        tried += 1
        path.write_bytes(content)
        try:
            reopened(path)
        except FileError as error:
            said = str(error)
            assert path.name in said and error.problem and error.remedy
            assert said.isprintable() and len(said) < 2000

    survives()
    count_faults("fuzzed journals", tried)


def test_two_processes_do_not_mix(path: Path) -> None:
    with open_journal(path, SETTINGS), pytest.raises(ValueError, match="another process is writing this journal"):
        reopened(path)
    assert len(reopened(path).kept) == 4


def test_a_full_disk_names_the_journal_and_keeps_what_was_recorded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with open_journal(path, SETTINGS) as journal:
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"No space left on device.*before\.journal\.jsonl"):
            journal.record([result("5")])
    monkeypatch.undo()
    assert list(reopened(path).kept)[:4] == list("1234")


def test_a_line_is_on_the_disk_before_record_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(path.read_text().count("\n")))
    with open_journal(path, SETTINGS) as journal:
        journal.record([result("5")])
    assert synced == [4]


def test_it_can_be_removed(path: Path) -> None:
    journal = reopened(path)
    journal.remove()
    journal.remove()
    assert not path.exists()


def test_each_line_is_one_json_object(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()[:1]]
    assert rows == [{"journal": {"format": "1"} | SETTINGS}]
