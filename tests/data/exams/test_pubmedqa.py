"""PubMedQA: abstracts, three answers, and the list of test articles."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.exams import load_exam

ARTICLE = {"QUESTION": "Does it?", "CONTEXTS": ["One.", "Two."], "final_decision": "maybe"}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


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
        ({"CONTEXTS": "One."}, None, r'article 11: "CONTEXTS" is a string, expected a list'),
        ({"CONTEXTS": ["One.", 2]}, None, r'article 11, CONTEXTS: "1" is a number'),
        ({}, {"33": "yes"}, r"1 articles of test_ground_truth.json are missing, such as '33'"),
        ({}, {"11": "YES"}, r"article 11: the answer is 'YES'"),
    ],
)
def test_bad_pubmedqa_is_named(tmp_path: Path, change: Any, truth: Any, message: str) -> None:
    path = write(tmp_path / "pqal.json", {"11": ARTICLE | change})
    if truth:
        write(tmp_path / "test_ground_truth.json", truth)
    with pytest.raises(ValueError, match=message):
        load_exam(path)


def test_real_pubmedqa(real_data: Path) -> None:
    exam = load_exam(real_data / "exams" / "pubmedqa_ori_pqal.json")
    assert len(exam) == 500
    assert Counter(question.options[question.answer] for question in exam) == {"yes": 276, "no": 169, "maybe": 55}
    assert all(question.context for question in exam)
