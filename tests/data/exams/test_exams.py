"""Which layout a file has; and that any file at all is an exam or an error that names it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.exams import Question, load_exam
from files import FileError


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("content", ["3", "null", "[1]", '{"a": 1}', '[{"x": 1}]', '{"a": {"b": "c"}}'])
def test_an_unknown_layout_is_refused_with_the_known_ones(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "exam.json", content)
    with pytest.raises(
        ValueError, match=r"exam\.json: no exam layout is recognised; expected .*MedQA.*PubMedQA.*MedMCQA.*MMLU"
    ):
        load_exam(path)


EMPTY = [(name, text) for name in ("exam.json", "step1.json", "exam.jsonl", "exam_test.csv") for text in ("", " \n\n")]
EMPTY += [(name, text) for name in ("exam.json", "step1.json") for text in ("[]", " [ ] ", "{}")]


@pytest.mark.parametrize(("name", "content"), EMPTY)
def test_an_empty_exam_is_called_so(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(FileError, match=rf"{name}: holds no questions; an exam needs at least one"):
        load_exam(path)


def test_an_empty_folder_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no step1\.json; name a folder of step files, or an exam file"):
        load_exam(tmp_path)
    with pytest.raises(ValueError, match="no such file or folder; check the path"):
        load_exam(tmp_path / "nowhere")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = ["no", "question", "options", "answer_idx", "QUESTION", "CONTEXTS", "final_decision", "A", "1"]
keys += ["opa", "opb", "opc", "opd", "cop"]
exam_like = st.recursive(
    json_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys), inner, max_size=5),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(exam_like)
def test_any_json_is_an_exam_or_a_named_error(tmp_path: Path, content: Any) -> None:
    write(tmp_path / "step1_solutions.json", {"1": "A"})
    for name in ("exam.json", "step1.json"):
        path = write(tmp_path / name, json.dumps(content))
        try:
            assert all(isinstance(question, Question) for question in load_exam(path))
        except ValueError as error:
            assert str(tmp_path) in str(error)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_bytes_are_an_exam_or_a_named_error(tmp_path: Path, content: bytes) -> None:
    for name in ("exam.json", "exam.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match="exam"):
            load_exam(path)
