import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.exams import Question, load_exam

ROW = {"no": 1, "question": "Which organ makes insulin?", "options": {"A": "Liver", "B": "Pancreas"}}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_step(folder: Path, rows: Any, key: Any, step: int = 1) -> Path:
    write(folder / f"step{step}.json", rows)
    write(folder / f"step{step}_solutions.json", key)
    return folder


def numbered(n: int) -> list[dict[str, Any]]:
    return [ROW | {"no": number} for number in range(1, n + 1)]


# --- USMLE step files ---


def test_reads_a_step_folder(tmp_path: Path) -> None:
    write_step(tmp_path, [ROW | {"no": 7, "seen": True}, ROW | {"no": "8"}], {"7": "B", "8": " a "})
    write_step(tmp_path, [ROW | {"seen": False}], {"1": "B"}, step=2)
    assert load_exam(tmp_path) == [
        Question("step1/7", ROW["question"], ROW["options"], "B", step="step1", seen=True),  # type: ignore[arg-type]
        Question("step1/8", ROW["question"], ROW["options"], "A", step="step1", seen=None),  # type: ignore[arg-type]
        Question("step2/1", ROW["question"], ROW["options"], "B", step="step2", seen=False),  # type: ignore[arg-type]
    ]


def test_steps_come_in_the_order_of_their_numbers_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for step in (10, 2, 1):
        write_step(tmp_path, numbered(1), {"1": "A"}, step)
    write(tmp_path / "notes.json", "not an exam")
    write(tmp_path / "step1_notes.json", "not an exam")
    assert [question.step for question in load_exam(tmp_path)] == ["step1", "step2", "step10"]


def test_questions_with_images_are_left_out_before_they_are_checked(tmp_path: Path) -> None:
    rows = [*numbered(3), ROW | {"no": 4, "options": {}}]
    write_step(tmp_path, rows, {"1": "A", "2": "A", "3": "A", "4": "C"})
    write_step(tmp_path, numbered(2), {"1": "A", "2": "A"}, step=2)
    write(tmp_path / "question_with_images.json", {"step1": [2, "4"], "step3": [1]})
    assert [question.id for question in load_exam(tmp_path)] == ["step1/1", "step1/3", "step2/1", "step2/2"]
    assert [question.id for question in load_exam(tmp_path / "step1.json")] == ["step1/1", "step1/3"]


@pytest.mark.parametrize(
    ("rows", "key", "message"),
    [
        ([ROW], {"1": "C"}, r"question step1/1: the answer 'C' is not among the options A, B; correct the answer key"),
        (
            [ROW],
            {"2": "A"},
            r"question 1: has no solution; add it to step1_solutions.json, or list it in",
        ),
        ([ROW], {}, r"question 1: has no solution"),
        ([ROW], {"1": 2}, r"step1_solutions.json: '1' is int, expected str"),
        ([ROW], ["A"], r"step1_solutions.json: the root is list, expected an object"),
        ([ROW, ROW], {"1": "A"}, r"question step1/1 occurs twice; number the questions uniquely"),
        ([], {}, r"no question left to ask"),
        ({}, {}, r"step1.json: the root is dict, expected a list of questions"),
        ([None], {"1": "A"}, r"step1.json, row 1: the row is null, expected an object"),
        ([ROW | {"no": True}], {"1": "A"}, r"row 1: 'no' is bool, expected int or str"),
        ([{"no": 1}], {"1": "A"}, r'question 1: the key "question" is missing'),
        ([ROW | {"question": " "}], {"1": "A"}, r"question step1/1: the text is empty; write it, or remove"),
        ([ROW | {"question": None}], {"1": "A"}, r'question 1: "question" is null'),
        ([ROW | {"question": "\ud83d?"}], {"1": "A"}, r"question 1: .*lone surrogate U\+D83D"),
        ([ROW | {"options": {"A": "x"}}], {"1": "A"}, r"question step1/1: 1 option\(s\), at least 2 .* complete them"),
        ([ROW | {"options": {"A": "x", "B": ""}}], {"1": "A"}, r"question step1/1: option B is empty"),
        ([ROW | {"options": {"A": "x", "B": 3}}], {"1": "A"}, r'question 1, options: "B" is a number'),
        ([ROW | {"options": ["x", "y"]}], {"1": "A"}, r"question 1: 'options' is list, expected dict"),
        ([ROW | {"seen": "yes"}], {"1": "A"}, r"question 1: 'seen' is str, expected bool"),
        ([ROW | {"seen": 1}], {"1": "A"}, r"question 1: 'seen' is int, expected bool"),
        ("[{", {"1": "A"}, r"step1.json: not valid JSON"),
        ("", {"1": "A"}, r"step1.json: not valid JSON"),
        ("[" * 100_000, {"1": "A"}, r"step1.json: not valid JSON"),
        (
            '[{"no": 1, "options": {"A": "x", "A": "y"}}]',
            {},
            r"the key 'A' occurs twice in one object",
        ),
        ([ROW], '{"1": "A", "1": "B"}', r"step1_solutions.json: the key '1' occurs twice"),
    ],
)
def test_a_bad_step_file_is_named(tmp_path: Path, rows: Any, key: Any, message: str) -> None:
    write_step(tmp_path, rows, key)
    with pytest.raises(ValueError, match=message) as caught:
        load_exam(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_answer_key_is_named(tmp_path: Path) -> None:
    write(tmp_path / "step3.json", numbered(1))
    with pytest.raises(ValueError, match=r"step3\.json: its answer key step3_solutions\.json is missing"):
        load_exam(tmp_path)


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    write_step(tmp_path, numbered(1), {"1": "A"})
    (tmp_path / "step1.json").write_bytes(b'[{"no": 1, "question": "caf\xe9"}]')
    with pytest.raises(ValueError, match=r"step1\.json, line 1: byte 0xe9"):
        load_exam(tmp_path)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    write_step(tmp_path, "\ufeff" + json.dumps(numbered(1)), {"1": "A"})
    assert len(load_exam(tmp_path)) == 1


# --- Which layout ---


@pytest.mark.parametrize("content", ["[]", "{}", "3", "null", "[1]", '{"a": 1}', '[{"x": 1}]', '{"a": {"b": "c"}}'])
def test_an_unknown_layout_is_refused_with_the_known_ones(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "exam.json", content)
    with pytest.raises(ValueError, match=r"exam\.json: no exam layout is recognised; expected .*MedQA.*PubMedQA"):
        load_exam(path)


def test_an_empty_folder_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no step1\.json; name a folder of step files, or an exam file"):
        load_exam(tmp_path)
    with pytest.raises(ValueError, match="no such file or folder; check the path"):
        load_exam(tmp_path / "nowhere")


# --- Other publishers ---

MEDQA = {"question": "Q?", "answer": "x", "options": {"A": "x", "B": "y"}, "meta_info": "step1", "answer_idx": "A"}


def test_reads_medqa_lines_and_lists(tmp_path: Path) -> None:
    # A line separator within a string ends no line of JSON.
    rows = [MEDQA, MEDQA | {"answer_idx": "B", "question": "Two\u2028lines?"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    from_lines = load_exam(write(tmp_path / "medqa.jsonl", lines))
    assert from_lines == load_exam(write(tmp_path / "medqa.json", rows))
    assert [(q.id, q.answer, q.step) for q in from_lines] == [("medqa/1", "A", "step1"), ("medqa/2", "B", "step1")]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "medqa.jsonl", f"{json.dumps(MEDQA)}\n\n{{")
    with pytest.raises(ValueError, match=r"medqa\.jsonl, line 3: not valid JSON"):
        load_exam(path)
    path = write(tmp_path / "medqa.jsonl", f"{json.dumps(MEDQA)}\n[]\n")
    with pytest.raises(ValueError, match="no exam layout is recognised"):
        load_exam(path)
    path = write(tmp_path / "medqa.jsonl", f"{json.dumps(MEDQA)}\n{json.dumps(MEDQA | {'answer_idx': 'F'})}\n")
    with pytest.raises(ValueError, match="question medqa/2: the answer 'F' is not among the options A, B"):
        load_exam(path)


def test_lines_without_the_suffix_get_a_hint(tmp_path: Path) -> None:
    path = write(tmp_path / "medqa.json", f"{json.dumps(MEDQA)}\n{json.dumps(MEDQA)}\n")
    with pytest.raises(ValueError, match=r"needs the suffix \.jsonl"):
        load_exam(path)


def test_medbullets_columns_must_be_complete(tmp_path: Path) -> None:
    columns = {"question": {"0": "Q?", "1": "R?"}, "answer_idx": {"0": "A", "1": "B"}}
    columns |= {"opa": {"0": "x", "1": "x"}, "opb": {"0": "y", "1": "y"}}
    path = write(tmp_path / "bullets.json", columns)
    assert [(q.id, q.options, q.answer) for q in load_exam(path)] == [
        ("bullets/0", {"A": "x", "B": "y"}, "A"),
        ("bullets/1", {"A": "x", "B": "y"}, "B"),
    ]
    write(path, columns | {"opb": {"0": "y"}})
    with pytest.raises(ValueError, match=r'bullets\.json, opb: the key "1" is missing'):
        load_exam(path)


ARTICLE = {"QUESTION": "Does it?", "CONTEXTS": ["One.", "Two."], "final_decision": "maybe"}


def test_pubmedqa_reads_the_abstract_and_keeps_to_the_test_articles(tmp_path: Path) -> None:
    path = write(tmp_path / "pqal.json", {"11": ARTICLE, "22": ARTICLE | {"final_decision": "no"}})
    first, second = load_exam(path)
    assert (first.text, first.context, first.answer) == ("Does it?", "One.\nTwo.", "C")
    assert first.options == {"A": "yes", "B": "no", "C": "maybe"}
    assert second.answer == "B"
    write(tmp_path / "test_ground_truth.json", {"22": "no"})
    assert load_exam(path) == [second]


@pytest.mark.parametrize(
    ("change", "truth", "message"),
    [
        ({"final_decision": "perhaps"}, None, r"article 11: the answer is 'perhaps'; it must be one of yes, no, maybe"),
        ({"CONTEXTS": "One."}, None, r"article 11: 'CONTEXTS' is str, expected list"),
        ({"CONTEXTS": ["One.", 2]}, None, r'article 11, CONTEXTS: "1" is a number'),
        ({}, {"33": "yes"}, r"1 articles of test_ground_truth.json are missing, such as 33"),
        ({}, {"11": "YES"}, r"article 11: the answer is 'YES'"),
    ],
)
def test_bad_pubmedqa_is_named(tmp_path: Path, change: Any, truth: Any, message: str) -> None:
    path = write(tmp_path / "pqal.json", {"11": ARTICLE | change})
    if truth:
        write(tmp_path / "test_ground_truth.json", truth)
    with pytest.raises(ValueError, match=message):
        load_exam(path)


# --- The real files ---


def test_real_medqa(real_data: Path) -> None:
    exam = load_exam(real_data / "exams" / "medqa_5options_test.jsonl")
    assert len(exam) == 1273
    assert Counter(question.step for question in exam) == {"step1": 679, "step2&3": 594}
    assert Counter(question.answer for question in exam) == {"A": 273, "B": 277, "C": 252, "D": 269, "E": 202}
    assert {tuple(question.options) for question in exam} == {("A", "B", "C", "D", "E")}
    assert exam[0].options[exam[0].answer] == "Tell the attending that he cannot fail to disclose this mistake"


def test_real_medbullets(real_data: Path) -> None:
    exam = load_exam(real_data / "exams" / "medbullets_op5.json")
    assert len(exam) == 308
    assert Counter(question.answer for question in exam) == {"A": 61, "B": 74, "C": 53, "D": 67, "E": 53}
    assert exam[0].options[exam[0].answer] == "Acetazolamide"
    columns = json.loads((real_data / "exams" / "medbullets_op5.json").read_text())
    assert [q.options[q.answer] for q in exam] == list(columns["answer"].values())  # letters and texts agree


def test_real_pubmedqa(real_data: Path) -> None:
    exam = load_exam(real_data / "exams" / "pubmedqa_ori_pqal.json")
    assert len(exam) == 500
    assert Counter(question.options[question.answer] for question in exam) == {"yes": 276, "no": 169, "maybe": 55}
    assert all(question.context for question in exam)


# --- Properties ---

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
words = words.filter(str.strip)
letters = st.sampled_from(["AB", "ABCD", "ABCDE", "DCBA"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # every example overwrites the same files
@given(st.lists(st.tuples(words, letters, words, st.none() | st.booleans()), min_size=1, max_size=6), st.booleans())
def test_what_is_written_is_read(tmp_path: Path, drawn: list[tuple[str, str, str, bool | None]], ascii: bool) -> None:
    questions = [
        Question(f"step1/{i}", text, {letter: f"{option} {letter}" for letter in names}, names[-1], "step1", seen=seen)
        for i, (text, names, option, seen) in enumerate(drawn)
    ]
    rows = [
        {"no": i, "question": q.text, "options": q.options} | ({} if q.seen is None else {"seen": q.seen})
        for i, q in enumerate(questions)
    ]
    write(tmp_path / "step1.json", json.dumps(rows, ensure_ascii=ascii))
    write(tmp_path / "step1_solutions.json", {str(i): q.answer.lower() for i, q in enumerate(questions)})
    assert load_exam(tmp_path) == questions


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = ["no", "question", "options", "answer_idx", "QUESTION", "CONTEXTS", "final_decision", "opa", "opb", "A", "1"]
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
