import pytest

from data.exams import Question
from evaluation import draw_shots


def questions(*texts: str, prefix: str = "q") -> list[Question]:
    return [Question(f"{prefix}{i}", text, {"A": "x", "B": "y"}, "A") for i, text in enumerate(texts)]


EXAM = questions(*"abcdefghij")


def test_each_question_gets_other_questions_of_its_exam() -> None:
    shots = draw_shots(EXAM, EXAM, 4, 0, shared=False)
    for question, shown in zip(EXAM, shots, strict=True):
        assert len({shot.id for shot in shown}) == 4
        assert question not in shown
    assert len({tuple(shot.id for shot in shown) for shown in shots}) > 1


def test_a_question_asked_twice_is_never_its_own_shot() -> None:
    exam = [*questions("What  IS it?", "other"), *questions("what is it?", "third", prefix="r")]
    for question, shown in zip(exam, draw_shots(exam, exam, 2, 0, shared=False), strict=True):
        texts = [" ".join(shot.text.lower().split()) for shot in shown]
        assert " ".join(question.text.lower().split()) not in texts
        assert len(set(texts)) == 2


def test_shots_of_another_exam_are_the_same_for_all_and_none_of_them() -> None:
    others = [*questions("A", "b", "C", prefix="o"), *questions("p", "q", "r", prefix="s")]
    shots = draw_shots(EXAM, others, 3, 0, shared=True)
    assert {tuple(sorted(shot.text for shot in shown)) for shown in shots} == {("p", "q", "r")}
    assert len({tuple(shot.id for shot in shown) for shown in shots}) == 1


def test_shots_depend_on_the_seed_and_the_question_alone() -> None:
    shots = draw_shots(EXAM, EXAM, 3, 7, shared=False)
    assert shots == draw_shots(EXAM, EXAM, 3, 7, shared=False)
    assert shots != draw_shots(EXAM, EXAM, 3, 8, shared=False)
    assert shots[::-1] == draw_shots(EXAM[::-1], EXAM, 3, 7, shared=False)


def test_no_shots_are_no_shots() -> None:
    assert draw_shots(EXAM, [], 0, 0, shared=True) == [[]] * 10


@pytest.mark.parametrize("shared", [True, False])
def test_too_small_a_pool_is_refused(shared: bool) -> None:
    pool = EXAM[:3] if not shared else [*EXAM, *questions("p", "q", prefix="s")]
    with pytest.raises(ValueError, match=r"--shots 3: only 2 other questions .* --shots-from"):
        draw_shots(EXAM[:3] if not shared else EXAM, pool, 3, 0, shared=shared)
