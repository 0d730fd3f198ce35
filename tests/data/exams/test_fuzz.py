"""Valid MedMCQA and MMLU files, damaged at random: read as questions, or refused by an error that names them.

`FUZZ_EXAMPLES=5000 pytest tests/data/exams/test_fuzz.py` for a long run.
"""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from byte_mutations import EXAMPLES, damaged, retyped
from hypothesis import given, settings

from data.exams import Question, load_exam
from files import FileError

ROW = {"question": "Q «1»?", "cop": 4, "opa": "w", "opb": "x", "opc": "y", "opd": "z", "subject_name": "ENT", "id": "7"}
KINDS = {
    "medmcqa.json": json.dumps([ROW, ROW | {"cop": 1, "id": "8"}], ensure_ascii=False),
    "medmcqa.jsonl": json.dumps(ROW) + "\n" + json.dumps(ROW | {"cop": "b", "id": "8"}) + "\n",
    "anatomy_test.csv": 'Q «1»?,w,x,y,z,A\n"a, ""b""\nc?",1,2,"3, 4",5,d\n',
}


@pytest.mark.parametrize("name", KINDS)
def test_damaged_they_are_read_or_refused_by_name(
    name: str, tmp_path: Path, count_faults: Callable[[str, int], None]
) -> None:
    file, whole = tmp_path / name, KINDS[name].encode()
    file.write_bytes(whole)
    assert len(load_exam(file)) == 2
    tried = 0

    @settings(max_examples=EXAMPLES, deadline=timedelta(seconds=5), derandomize=True, database=None)
    @given(damaged(whole) | retyped(whole))
    def survives(content: bytes) -> None:
        nonlocal tried
        tried += 1
        file.write_bytes(content)
        try:
            assert all(isinstance(question, Question) for question in load_exam(file))
        except FileError as error:
            assert str(file) in str(error) and error.problem, "it names the file, and what is wrong"
            assert str(error).isprintable() and len(str(error)) < 2000, "it is one line that a terminal can print"

    survives()
    count_faults("fuzzed data bytes", tried)
