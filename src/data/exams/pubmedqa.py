"""PubMedQA: one JSON object of articles, each a QUESTION about an abstract (CONTEXTS), answered yes, no or maybe."""

from pathlib import Path
from typing import Any

from data.exams.question import Question, question_of, read_object
from files import shown
from files.fields import Place, check_text, field, text_field

OPTIONS = {"A": "yes", "B": "no", "C": "maybe"}


def read_pubmedqa(path: Path, articles: dict[str, dict[str, Any]]) -> list[Question]:
    """Articles by PubMed id, read with their abstracts.

    If the published list of test articles (`test_ground_truth.json`, or any name that ends so) lies beside the file,
    only those are read: the other 500 are for training.
    """
    listings = sorted(path.parent.glob("*test_ground_truth.json"))
    if listings:
        truth = read_object(listings[0], str)
        if not truth:
            raise Place(listings[0]).unsuitable("lists no articles", "complete it, or remove it to read all articles")
        if missing := truth.keys() - articles.keys():
            raise Place(path).unsuitable(
                f"{len(missing):,} articles of {listings[0].name} are missing, such as {shown(min(missing))}",
                "take both files from one release",
            )
    else:
        truth = {pmid: text_field(row, "final_decision", _place(path, pmid)) for pmid, row in articles.items()}
    letters = {option: letter for letter, option in OPTIONS.items()}
    questions = []
    for pmid, decision in truth.items():
        place = _place(path, pmid)
        check_text(pmid, "the article's id", place)
        if decision not in letters:
            raise place.unsuitable(f"the answer is {shown(decision)}", f"it must be one of {', '.join(letters)}")
        contexts = field(articles[pmid], "CONTEXTS", place, list)
        paragraphs = {str(index): paragraph for index, paragraph in enumerate(contexts)}
        question = question_of(
            place,
            id=pmid,
            text=text_field(articles[pmid], "QUESTION", place),
            options=OPTIONS,
            answer=letters[decision],
            context="\n".join(text_field(paragraphs, index, place.at("CONTEXTS")) for index in paragraphs),
        )
        questions.append(question)
    return questions


def _place(path: Path, pmid: str) -> Place:
    return Place(path, f"article {pmid if pmid.isdigit() else shown(pmid)}")
