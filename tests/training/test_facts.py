"""What a run keeps for its page, and that keeping it never costs the run."""

import json
from dataclasses import replace

import pytest
from reported import CONFIG, a_run

from files import FileError
from training.facts import ANSWERS, FACTS, Answer, AnswersLog, histogram_of, keep_facts, read_answers, read_facts


def test_facts_come_back_as_they_were_written(tmp_path):
    a_run(tmp_path, 20)
    facts = read_facts(tmp_path)
    assert facts.steps == 20 and facts.device == "cpu" and facts.memory["activations"] == 35_061_760
    assert facts.parameters["lora"] == {"trainable": 78_848} and "torch" in facts.versions
    assert facts.lengths[-1] == ("more, cut", sum(30 + i % 500 > 512 for i in range(4_000)))


def test_a_run_that_kept_nothing_has_no_facts_and_no_answers(tmp_path):
    assert read_facts(tmp_path) is None and read_answers(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": 2}, "its format is 2, expected 1"),
        ({"steps": "many"}, '"steps" is a string, expected a number'),
        ({"memory": {"optimizer": "large"}}, '"optimizer" is a string, expected a number'),
        ({"lengths": [["1 to 64"]]}, "lengths, 1: expected a text and a number"),
        ({"parameters": {"lora": 3}}, '"lora" is a number, expected an object'),
        ({"versions": None}, '"versions" is null, expected an object'),
    ],
)
def test_damaged_facts_are_named(tmp_path, change, complaint):
    a_run(tmp_path, 5)
    content = json.loads((tmp_path / FACTS).read_text())
    (tmp_path / FACTS).write_text(json.dumps(content | change))
    with pytest.raises(FileError) as refused:
        read_facts(tmp_path)
    assert complaint in str(refused.value) and str(refused.value).startswith(str(tmp_path / FACTS))


def test_facts_cut_short_at_any_byte_are_refused_by_name(tmp_path):
    a_run(tmp_path, 5)
    whole = (tmp_path / FACTS).read_bytes()
    for length in range(0, len(whole) - 2, 7):
        (tmp_path / FACTS).write_bytes(whole[:length])
        with pytest.raises(FileError, match=FACTS):
            read_facts(tmp_path)


def test_what_was_answered_aloud_is_kept_and_still_said(tmp_path):
    said = []
    listener = AnswersLog(tmp_path).listening(4, said.append)
    lines = ["  asked      What?  And why?", "  answers    ", "  reference  Because."]
    for line in lines:
        listener(line)
    assert said == lines
    assert read_answers(tmp_path) == [Answer(4, "What?  And why?", "", "Because.")]


def test_a_resumed_run_keeps_the_answers_before_it_and_a_new_one_none(tmp_path):
    log = AnswersLog(tmp_path)
    answers = [Answer(step, "asked", f"at {step}", "reference") for step in (0, 10, 20)]
    for answer in answers:
        log.write(answer)
    AnswersLog(tmp_path, after_step=10)
    assert read_answers(tmp_path) == answers[:2]
    AnswersLog(tmp_path)
    assert read_answers(tmp_path) == []


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path):
    log = AnswersLog(tmp_path)
    log.write(Answer(0, "a", "b", "c"))
    with log.path.open("a") as file:
        file.write('{"step": 1, "ask')
    assert [answer.step for answer in read_answers(tmp_path)] == [0]


def test_damaged_answers_are_dropped_with_a_word_when_a_run_is_resumed(tmp_path, capsys):
    (tmp_path / ANSWERS).write_text('{"step": "one"}\n')
    AnswersLog(tmp_path, after_step=5)
    assert "the answers so far are dropped" in capsys.readouterr().err
    assert read_answers(tmp_path) == []


def test_an_answer_that_cannot_be_kept_is_said_and_stops_nothing(tmp_path, capsys):
    log = AnswersLog(tmp_path)
    log.path.mkdir()
    said = []
    listener = log.listening(1, said.append)
    for label in ("asked", "answers", "reference"):
        listener(f"  {label:<10} text")
    assert len(said) == 3 and "an answer was not kept: IsADirectoryError" in capsys.readouterr().err


def test_facts_that_cannot_be_written_are_said_and_stop_nothing(tmp_path, capsys):
    nowhere = replace(CONFIG, train=replace(CONFIG.train, output=str(tmp_path / "missing")))
    keep_facts(nowhere, None, None, steps=1, device=None)
    assert "facts.json was not written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_length_is_in_one_bin_of_the_histogram():
    for window in (1, 3, 8, 100, 512):
        lengths = list(range(1, window + 10))
        bins = histogram_of(lengths, window)
        assert sum(n for _, n in bins) == len(lengths) and bins[-1] == ("more, cut", 9)
