import pytest
from exam_results import exam, result
from hypothesis import given
from hypothesis import strategies as st

from data.exams import Question
from evaluation import accuracies, check_same_questions, compare

# --- Groups ---


def test_groups_are_steps_then_seen_then_all() -> None:
    results = [
        result("1", True, "step2", seen=True),
        result("2", False, "step2", seen=False),
        result("3", True, "step1", seen=True),
        result("4", True, "step1"),
    ]
    groups = accuracies(results)
    assert list(groups) == ["step2", "step1", "seen", "unseen", "all"]
    assert {name: (group.correct, group.n) for name, group in groups.items()} == {
        "step2": (1, 2),
        "step1": (2, 2),
        "seen": (2, 2),
        "unseen": (0, 1),
        "all": (3, 4),
    }


def test_a_single_step_is_not_repeated() -> None:
    assert list(accuracies(exam("rw", "step1"))) == ["all"]


# --- Comparing ---


def test_compare_counts_changed_verdicts_by_group() -> None:
    before = exam("rrww", "step1") + exam("wwww", "step2")
    after = exam("rwrr", "step1") + exam("rrrw", "step2")
    comparisons = compare(before, list(reversed(after)))  # paired by id, not by place
    assert {name: (row.gained, row.lost) for name, row in comparisons.items()} == {
        "step2": (3, 0),
        "step1": (2, 1),
        "all": (5, 1),
    }
    assert comparisons["all"].p_value == 14 / 64
    assert (comparisons["all"].before.correct, comparisons["all"].after.correct) == (2, 6)


@given(st.text("rw", min_size=1, max_size=40), st.randoms())
def test_gained_minus_lost_is_the_difference(before: str, random) -> None:
    after = "".join(random.choice("rw") for _ in before)
    [row] = compare(exam(before), exam(after)).values()
    assert row.gained - row.lost == row.after.correct - row.before.correct


def test_compare_refuses_other_questions() -> None:
    with pytest.raises(ValueError, match=r"2 occur in one only, such as /2; score both with the same --exam"):
        compare(exam("rrrr"), exam("rr"))


def test_compare_refuses_another_answer_key_and_other_options() -> None:
    for changed in ({"answer": "C"}, {"letters": ("A", "B")}, {"letters": tuple("BACD")}):
        with pytest.raises(ValueError, match=r"had the answer B of A, B, C, D, now .*same version of the exam"):
            compare([result("1", True)], [result("1", True, **changed)])


def test_questions_can_be_checked_before_they_are_scored() -> None:
    question = Question("1", "Which?", {"A": "w", "B": "x", "C": "y", "D": "z"}, "B")
    check_same_questions([result("1", False)], [question])
    with pytest.raises(ValueError, match="not about the same questions"):
        check_same_questions([result("2", False)], [question])
