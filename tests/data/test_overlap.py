import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import data.miniature
from data.exams import Question, load_exam
from data.overlap import find_overlap, normalised_words, training_texts
from files import FileError

STEM = "A 35-year-old man comes to the physician because of chest pain for three hours."


def ask(*texts: str) -> list[Question]:
    return [Question(str(i), text, {"A": "Liver", "B": "Pancreas"}, "B") for i, text in enumerate(texts)]


def rows(*texts: str) -> list[tuple[str, str]]:
    return [(f"row {number}", text) for number, text in enumerate(texts, start=1)]


def test_a_question_copied_into_the_training_set_is_found_whatever_its_dress() -> None:
    dressed = STEM.upper().replace(" ", " \n ").replace("-", "–")
    texts = ["Nothing.", f"Read this: {dressed} What is it?"]
    overlap = find_overlap(ask("Which organ makes insulin in a man who is well?", STEM), rows(*texts))
    [untouched, copied] = overlap.rows
    assert (untouched.found, untouched.longest, untouched.where) == (0, "", "")
    assert copied.found == copied.total == 16 - 8 + 1 and copied.share == 1
    assert copied.longest == " ".join(normalised_words(STEM)) and copied.where == "row 2"
    assert overlap.contaminated == [copied] and overlap.n_texts == 2


def test_a_shared_phrase_is_no_contamination() -> None:
    asked = f"{STEM} Which of the following is the most likely diagnosis?"
    other = "She has a rash. Which of the following is the most likely diagnosis? Measles."
    overlap = find_overlap(ask(asked), rows(other))
    assert overlap.rows[0].longest == "which of the following is the most likely diagnosis"
    assert overlap.rows[0].found == 2 and not overlap.contaminated
    assert find_overlap(ask(asked), rows(other), threshold=0.1).contaminated == [*overlap.rows]


def test_the_longest_run_is_shown_and_the_text_that_holds_most_named() -> None:
    words = [f"w{i}" for i in range(20)]
    texts = ["w15 w16 w17", "w2 w3 w4 w5 w6", "w2 w3 w4 w5 w6", "w2 w3 w4"]
    [row] = find_overlap(ask(" ".join(words)), rows(*texts), n=3).rows
    assert (row.longest, row.found, row.where) == ("w2 w3 w4 w5 w6", 4, "row 2")


def test_the_row_named_holds_the_question_not_its_beginning() -> None:
    asked = f"Which of the following is the most likely diagnosis in this man? {STEM}"
    beginning = "Which of the following is the most likely diagnosis in this woman?"
    overlap = find_overlap(ask("Another one", asked), rows(beginning, STEM, asked, asked))
    assert [row.where for row in overlap.rows] == ["row 3"]


def test_questions_shorter_than_a_gram_are_counted_apart() -> None:
    overlap = find_overlap(ask("What is gout?", STEM, "One two three four five six seven"), [])
    assert overlap.too_short == ("0", "2") and [row.id for row in overlap.rows] == ["1"]
    assert "2 questions are shorter than 8 words and were not judged" in overlap.sentences()


def test_a_repeated_gram_counts_once() -> None:
    [row] = find_overlap(ask("ha ha ha ha ho"), rows("ha ha ha"), n=2).rows
    assert (row.found, row.total) == (1, 2)


def test_options_and_context_are_not_looked_for() -> None:
    question = Question("1", "Which organ makes insulin?", {"A": STEM, "B": "Pancreas"}, "B", context=STEM)
    assert find_overlap([question], rows(STEM), n=4).rows[0].found == 0


def test_examples_come_worst_first_and_sentences_are_short() -> None:
    exam = ask("one two three four", "one two three five", "six seven eight", STEM * 20)
    overlap = find_overlap(exam, rows("one two three four", STEM * 20), n=3)
    assert [row.id for row in overlap.examples(9)] == ["0", "3", "1"]
    assert [row.id for row in overlap.examples(1)] == ["0"]
    first, *examples = overlap.sentences(2)
    assert first == "3 of 4 questions have 50% or more of their 3-word runs in the 2 training texts, 3 have any"
    assert examples[0] == "0, 100%, most in row 1: one two three four"
    assert len(examples) == 2 and all(len(line) < 140 for line in examples)


words = st.lists(st.sampled_from("abc"), max_size=12).map(" ".join)


@given(st.lists(words.filter(str.strip), max_size=4), st.lists(words, max_size=4), st.integers(1, 4))
def test_shares_are_what_comparing_every_place_gives(stems: list[str], texts: list[str], n: int) -> None:
    overlap = find_overlap(ask(*stems), rows(*texts), n=n)
    found = {row.id: row for row in overlap.rows}
    for number, stem in enumerate(stems):
        asked = stem.split()
        grams = {tuple(asked[i : i + n]) for i in range(len(asked) - n + 1)}
        holders = [{tuple(text.split()[i : i + n]) for i in range(len(text.split()) - n + 1)} & grams for text in texts]
        if not grams:
            assert str(number) in overlap.too_short
            continue
        row = found[str(number)]
        assert (row.found, row.total) == (len(set().union(*holders)), len(grams))
        assert (row.where == "") == (row.found == 0)
        counts = list(map(len, holders))
        assert not row.where or row.where == f"row {counts.index(max(counts)) + 1}"
        assert row.longest in stem and (row.longest == "") == (row.found == 0)
        assert len(row.longest.split()) >= n or not row.found


def test_a_question_is_wholly_found_in_itself() -> None:
    assert find_overlap(ask(STEM), rows(STEM)).rows[0].share == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"n": 0}, "n = 0 words"), ({"threshold": 0}, "threshold = 0 "), ({"threshold": 50}, "= 50")],
)
def test_senseless_settings_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        find_overlap(ask(STEM), [], **options)


# --- Files ---


def test_training_texts_come_from_records_rows_and_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "cards.json").write_text(json.dumps([{"instruction": "What?", "input": "This.", "output": "That."}]))
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Why?", "output": "So."}\n{"text": "Plain."}\n')
    (tmp_path / "book.txt").write_text("One\ntwo.\n\nThree.\n")
    texts = training_texts([tmp_path / "cards.json", tmp_path / "rows.jsonl", tmp_path / "book.txt"])
    assert list(texts) == [
        (f"{tmp_path}/cards.json, row 1", "What?\nThis.\nThat."),
        (f"{tmp_path}/rows.jsonl, line 1", "Why?\n\nSo."),
        (f"{tmp_path}/rows.jsonl, line 2", "Plain."),
        (f"{tmp_path}/book.txt, paragraph 1", "One\ntwo."),
        (f"{tmp_path}/book.txt, paragraph 2", "Three."),
    ]


def test_a_hit_names_its_file_and_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "Nothing."}] * 3))
    (tmp_path / "b.json").write_text(json.dumps([{"text": "Nothing."}, {"text": STEM}]))
    [_, hit] = find_overlap(ask(STEM), training_texts([tmp_path / "a.json", tmp_path / "b.json"])).sentences()
    assert hit.startswith(f"0, 100%, most in {tmp_path}/b.json, row 2: a 35 year old man")


@pytest.mark.parametrize("name", ["nowhere.json", "nowhere.jsonl", "nowhere.txt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match=rf"{name}: no such file; check the path of the training file$"):
        list(training_texts([tmp_path / name]))


@pytest.mark.parametrize(
    "content",
    ["", "3", "[3]", "[{}]", '[{"text": 3}]', '[{"instruction": "x"}]', '[{"instruction": "x", "output": null}]', "[{"],
)
def test_a_file_that_is_no_training_data_is_named(
    tmp_path: Path, count_faults: Callable[..., None], content: str
) -> None:
    path = tmp_path / "cards.json"
    path.write_text(content)
    with pytest.raises(FileError, match=r"cards\.json"):
        list(training_texts([path]))
    count_faults("bad training files")


def test_the_miniatures_exams_are_new_to_what_it_was_trained_on() -> None:
    folder = data.miniature.folder()
    texts = [*training_texts([*sorted((folder / "meadow").glob("*.json")), folder / "corpus.txt"])]
    exam = load_exam(folder / "exams")
    overlap = find_overlap(exam, texts)
    assert overlap.n_texts == len(texts) > 19_000
    assert len(overlap.rows) > 550 and not overlap.examples(1)
    # Four words in a row can be an entity's name ("of the adrenal cortex"), never most of a question.
    short = find_overlap(exam, texts, n=4)
    assert short.examples(1) and not short.contaminated


def test_medqa_is_new_to_the_patient_information(real_data: Path) -> None:
    exam = load_exam(real_data / "exams" / "medqa_5options_test.jsonl")
    files = [real_data / "medical_meadow" / "medical_meadow_small.json"]
    overlap = find_overlap(exam, training_texts(files))
    assert (len(overlap.rows), overlap.too_short, overlap.n_texts) == (1273, (), 5942)
    assert [(row.found, row.longest) for row in overlap.examples(9)] == [(1, "go away on their own by the time")]


def test_a_leak_among_real_rows_is_found(real_data: Path) -> None:
    exam = load_exam(real_data / "exams" / "medqa_5options_test.jsonl")
    texts = list(training_texts([real_data / "medical_meadow" / "medical_meadow_small.json"]))
    leaked = exam[100:110]
    for place, question in enumerate(leaked):
        leak = "Answer this.\n" + re.sub(r"\s+", "  ", question.text) + "\nYes."
        texts.insert(500 * place, (f"leak {place}", leak))
    overlap = find_overlap(exam, texts)
    assert [row.id for row in overlap.contaminated] == [question.id for question in leaked]
    assert [row.where for row in overlap.contaminated] == [f"leak {place}" for place in range(10)]
