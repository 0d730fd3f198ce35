"""Multiple-choice exams: one `Question` type, and readers for the layouts in which exams are published.

| layout | recognised by | answer |
|---|---|---|
| USMLE self-assessment (MedAlpaca, arXiv 2304.08247) | a folder with `step1.json`, ... | `step1_solutions.json` |
| MedQA | JSONL, or a JSON list, of rows with `answer_idx` | `answer_idx` |
| Medbullets | JSON object of columns `question`, `opa`, `opb`, ... | `answer_idx` |
| PubMedQA | JSON object of articles with `QUESTION`, `CONTEXTS` | `final_decision`: yes, no or maybe |

A USMLE folder holds, per step, a list of `{"no", "question", "options": {"A": ...}}` and an object from numbers to
letters. Questions that refer to an image cannot be put to a language model. They are left out when their numbers are
listed in `question_with_images.json` (`{"step1": [3, 8], ...}`), the file published with the exam; MedAlpaca's counts
119/120/135 become 92/110/122 that way. A question may also carry `"seen": true` or `false`: whether its fact occurs in
the training set, so that accuracy can be split.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.records import check_text, read_text, text_field

IMAGES = "question_with_images.json"
PUBMEDQA_OPTIONS = {"A": "yes", "B": "no", "C": "maybe"}


@dataclass(frozen=True)
class Question:
    """One multiple-choice question.

    Attributes:
        id: unique within its exam, stable between runs: "step1/12".
        text: the question, options not included.
        options: letter -> text, in the order printed.
        answer: letter of the right option.
        step: part of the exam it belongs to; accuracies are reported per step.
        context: text to be read before the question, or "".
        seen: whether its fact occurs in the training set; None where unknown.

    Raises:
        ValueError: an empty text, fewer than two options, or an answer that is none of them.

    >>> Question("1", "Which organ makes insulin?", {"A": "Liver", "B": "Pancreas"}, "C")
    Traceback (most recent call last):
    ValueError: question 1: the answer 'C' is not among the options A, B; correct the answer key
    """

    id: str
    text: str
    options: dict[str, str]
    answer: str
    step: str = ""
    context: str = ""
    seen: bool | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError(f"question {self.id}: the text is empty; write it, or remove the question")
        if len(self.options) < 2:
            raise ValueError(
                f"question {self.id}: {len(self.options)} option(s), at least 2 are needed to choose from; complete "
                f"them, or remove the question (one that needs an image belongs into {IMAGES})"
            )
        for letter, option in self.options.items():
            if not option.strip():
                raise ValueError(f"question {self.id}: option {letter} is empty; write it, or remove the option")
        if self.answer not in self.options:
            raise ValueError(
                f"question {self.id}: the answer {self.answer!r} is not among the options {', '.join(self.options)}; "
                "correct the answer key"
            )


def load_exam(path: Path | str) -> list[Question]:
    """Read an exam in any of the layouts above; which one is told from the content.

    Args:
        path: a folder or a file.

    Returns:
        At least one question, in the exam's order.

    Raises:
        ValueError: an unknown layout or a bad question; the message names file, question and remedy.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; check the path of the exam")
    questions = _read_steps(path) if path.is_dir() else _read_file(path)
    if not questions:
        raise ValueError(f"{path}: no question left to ask; the file is empty, or all its questions need images")
    known: set[str] = set()
    for question in questions:
        if question.id in known:
            raise ValueError(f"{path}: question {question.id} occurs twice; number the questions uniquely")
        known.add(question.id)
    return questions


def _read_file(path: Path) -> list[Question]:
    content = _load_json_lines(path) if path.suffix == ".jsonl" else _load_json(path)
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        if "answer_idx" in content[0]:
            return _read_medqa(path, content)
        if "no" in content[0]:
            return _read_step(path, _numbers_with_images(path.parent))
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        if {"question", "opa", "answer_idx"} <= content.keys():
            return _read_medbullets(path, content)
        if "QUESTION" in next(iter(content.values())):
            return _read_pubmedqa(path, content)
    raise ValueError(
        f"{path}: no exam layout is recognised; expected a folder of step1.json files, MedQA rows (with answer_idx), "
        "Medbullets columns (question, opa, answer_idx) or PubMedQA articles (QUESTION, CONTEXTS)"
    )


# --- USMLE self-assessment ---


def _read_steps(folder: Path) -> list[Question]:
    """All `step<number>.json` of a folder, in the order of the numbers."""
    steps = {int(match[1]): file for file in folder.iterdir() if (match := re.fullmatch(r"step(\d+)\.json", file.name))}
    if not steps:
        raise ValueError(f"{folder}: holds no step1.json; name a folder of step files, or an exam file")
    images = _numbers_with_images(folder)
    return [question for number in sorted(steps) for question in _read_step(steps[number], images)]


def _numbers_with_images(folder: Path) -> dict[str, set[str]]:
    """Step -> numbers of the questions that refer to an image."""
    listing = folder / IMAGES
    if not listing.exists():
        return {}
    return {step: {str(number) for number in numbers} for step, numbers in _object(listing, list).items()}


def _read_step(path: Path, images: dict[str, set[str]]) -> list[Question]:
    """One step file and the `_solutions.json` beside it, without the questions numbered in `images[step]`."""
    key_path = path.with_name(f"{path.stem}_solutions.json")
    if not key_path.exists():
        raise ValueError(f'{path}: its answer key {key_path.name} is missing; put it beside, as {{"1": "B", ...}}')
    key = _object(key_path, str)
    rows = _load_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: the root is {_kind(rows)}, expected a list of questions")
    questions = []
    for index, row in enumerate(rows, start=1):
        number = str(_field(row, "no", f"{path}, row {index}", int, str))
        if number in images.get(path.stem, ()):
            continue
        where = f"{path}, question {number}"
        if number not in key:
            raise ValueError(f"{where}: has no solution; add it to {key_path.name}, or list it in {IMAGES}")
        question = _question(
            path,
            id=f"{path.stem}/{number}",
            text=text_field(row, "question", where),
            options=_options(row, where),
            answer=key[number].strip().upper(),  # published keys mix cases
            step=path.stem,
            seen=_field(row, "seen", where, bool) if "seen" in row else None,
        )
        questions.append(question)
    return questions


# --- Other publishers ---


def _read_medqa(path: Path, rows: list[dict[str, Any]]) -> list[Question]:
    """Rows with question, options, answer_idx and meta_info (the step)."""
    questions = []
    for index, row in enumerate(rows, start=1):
        where = f"{path}, question {index}"
        question = _question(
            path,
            id=f"{path.stem}/{index}",
            text=text_field(row, "question", where),
            options=_options(row, where),
            answer=text_field(row, "answer_idx", where),
            step=text_field(row, "meta_info", where, default=""),
        )
        questions.append(question)
    return questions


def _read_medbullets(path: Path, columns: dict[str, dict[str, Any]]) -> list[Question]:
    """Columns question, opa, opb, ... and answer_idx, each an object from row number to value."""
    letters = {name[2].upper(): name for name in sorted(columns) if re.fullmatch("op[a-z]", name)}
    questions = []
    for row in columns["question"]:
        question = _question(
            path,
            id=f"{path.stem}/{row}",
            text=text_field(columns["question"], row, f"{path}, question"),
            options={letter: text_field(columns[name], row, f"{path}, {name}") for letter, name in letters.items()},
            answer=text_field(columns["answer_idx"], row, f"{path}, answer_idx"),
        )
        questions.append(question)
    return questions


def _read_pubmedqa(path: Path, articles: dict[str, dict[str, Any]]) -> list[Question]:
    """Articles by PubMed id, read with their abstracts.

    If the published list of test articles (`test_ground_truth.json`, or any name that ends so) lies beside the file,
    only those are read: the other 500 are for training.
    """
    listings = sorted(path.parent.glob("*test_ground_truth.json"))
    if listings:
        truth = _object(listings[0], str)
        if missing := truth.keys() - articles.keys():
            raise ValueError(
                f"{path}: {len(missing)} articles of {listings[0].name} are missing, such as {min(missing)}; "
                "the two files belong to different releases"
            )
    else:
        truth = {pmid: text_field(row, "final_decision", f"{path}, article {pmid}") for pmid, row in articles.items()}
    letters = {option: letter for letter, option in PUBMEDQA_OPTIONS.items()}
    questions = []
    for pmid, decision in truth.items():
        where = f"{path}, article {pmid}"
        if decision not in letters:
            raise ValueError(f"{where}: the answer is {decision!r}; it must be one of {', '.join(letters)}")
        contexts = _field(articles[pmid], "CONTEXTS", where, list)
        paragraphs = {str(index): paragraph for index, paragraph in enumerate(contexts)}
        question = _question(
            path,
            id=pmid,
            text=text_field(articles[pmid], "QUESTION", where),
            options=PUBMEDQA_OPTIONS,
            answer=letters[decision],
            context="\n".join(text_field(paragraphs, index, f"{where}, CONTEXTS") for index in paragraphs),
        )
        questions.append(question)
    return questions


# --- Reading untrusted JSON ---


def _load_json(path: Path) -> Any:
    return _parse(read_text(path), str(path), "a file of one object per line needs the suffix .jsonl")


def _load_json_lines(path: Path) -> list[Any]:
    # Not splitlines(): a JSON string may hold U+2028, which is a line's end to Python but not to JSON.
    lines = enumerate(read_text(path).split("\n"), start=1)
    remedy = "write one object per line"
    return [_parse(line, f"{path}, line {number}", remedy) for number, line in lines if line.strip()]


def _parse(text: str, where: str, remedy: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        merged = dict(pairs)
        if len(merged) < len(pairs):
            [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"{where}: the key {key!r} occurs twice in one object; keep one of them")
        return merged

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:  # RecursionError: ten thousand opening brackets
        raise ValueError(f"{where}: not valid JSON ({error}); {remedy}") from error


def _object(path: Path, *types: type) -> dict[str, Any]:
    """The JSON object in a file, all its values of the given types."""
    content = _load_json(path)
    if not isinstance(content, dict):
        raise ValueError(f'{path}: the root is {_kind(content)}, expected an object such as {{"1": ...}}')
    for key in content:
        _field(content, key, str(path), *types)
    return content


def _question(path: Path, **fields: Any) -> Question:
    try:
        return Question(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _options(row: dict[str, Any], where: str) -> dict[str, str]:
    options = _field(row, "options", where, dict)
    for letter in options:
        check_text(letter, f"{where}: a letter of the options")
    return {letter: text_field(options, letter, f"{where}, options") for letter in options}


def _field(row: Any, key: str, where: str, *types: type) -> Any:
    """row[key], which must be there and of one of the types; bool does not pass for an int."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: the row is {_kind(row)}, expected an object with the key {key!r}")
    if key not in row:
        raise ValueError(f"{where}: the key {key!r} is missing; the row has {sorted(row)}")
    if type(row[key]) not in types:
        expected = " or ".join(kind.__name__ for kind in types)
        raise ValueError(f"{where}: {key!r} is {_kind(row[key])}, expected {expected}")
    return row[key]


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
