"""PubMedQA: one JSON object of articles, each a QUESTION about an abstract (CONTEXTS), answered yes, no or maybe."""

from pathlib import Path
from typing import Any

from data.exams.question import Question, question_of, read_object
from data.records import field, text_field

OPTIONS = {"A": "yes", "B": "no", "C": "maybe"}


def read_pubmedqa(path: Path, articles: dict[str, dict[str, Any]]) -> list[Question]:
    """Articles by PubMed id, read with their abstracts.

    If the published list of test articles (`test_ground_truth.json`, or any name that ends so) lies beside the file,
    only those are read: the other 500 are for training.
    """
    listings = sorted(path.parent.glob("*test_ground_truth.json"))
    if listings:
        truth = read_object(listings[0], str)
        if missing := truth.keys() - articles.keys():
            raise ValueError(
                f"{path}: {len(missing)} articles of {listings[0].name} are missing, such as {min(missing)}; "
                "the two files belong to different releases"
            )
    else:
        truth = {pmid: text_field(row, "final_decision", f"{path}, article {pmid}") for pmid, row in articles.items()}
    letters = {option: letter for letter, option in OPTIONS.items()}
    questions = []
    for pmid, decision in truth.items():
        where = f"{path}, article {pmid}"
        if decision not in letters:
            raise ValueError(f"{where}: the answer is {decision!r}; it must be one of {', '.join(letters)}")
        contexts = field(articles[pmid], "CONTEXTS", where, list)
        paragraphs = {str(index): paragraph for index, paragraph in enumerate(contexts)}
        question = question_of(
            path,
            id=pmid,
            text=text_field(articles[pmid], "QUESTION", where),
            options=OPTIONS,
            answer=letters[decision],
            context="\n".join(text_field(paragraphs, index, f"{where}, CONTEXTS") for index in paragraphs),
        )
        questions.append(question)
    return questions
