"""Multiple-choice exams: one `Question` type, and readers for the layouts in which exams are published.

| layout | recognised by | answer |
|---|---|---|
| USMLE self-assessment (MedAlpaca, arXiv 2304.08247) | a folder with `step1.json`, ... | `step1_solutions.json` |
| MedQA | JSONL, or a JSON list, of rows with `answer_idx` | `answer_idx` |
| Medbullets | JSON object of columns `question`, `opa`, `opb`, ... | `answer_idx` |
| PubMedQA | JSON object of articles with `QUESTION`, `CONTEXTS` | `final_decision`: yes, no or maybe |
| MedMCQA | JSONL, or a JSON list, of rows with `cop` | `cop`, counted from 0 or 1: see medmcqa.py |
| MMLU | CSV, or a folder of CSV files | the last column |

question.py    `Question`, checked             medqa.py, medbullets.py, pubmedqa.py, medmcqa.py    one layout each
usmle.py       the folder of step files        mmlu.py                                  a file or folder of subjects
"""

from itertools import chain
from pathlib import Path

from data.exams.medbullets import read_medbullets
from data.exams.medmcqa import KEYS as MEDMCQA_KEYS
from data.exams.medmcqa import read_medmcqa
from data.exams.medqa import read_medqa
from data.exams.mmlu import SUFFIX as MMLU_SUFFIX
from data.exams.mmlu import read_subject, read_subjects
from data.exams.pubmedqa import read_pubmedqa
from data.exams.question import Question
from data.exams.usmle import numbers_with_images, read_step, read_steps, step_files
from files.fields import Place, listed
from files.rows import holds_rows, read_json, read_rows, read_text

__all__ = ["Question", "left_out", "load_exam"]


def load_exam(path: Path | str) -> list[Question]:
    """Read an exam in any of the layouts above; which one is told from the content.

    Args:
        path: a folder or a file.

    Returns:
        At least one question, in the exam's order.

    Raises:
        FileError: an unknown layout or a bad question; the message names file, question and remedy.
        OSError: a file cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise Place(path).unsuitable("no such file or folder", "check the path of the exam")
    questions = _read_folder(path) if path.is_dir() else _read_file(path)
    if not questions and left_out(path):
        raise Place(path).unsuitable("all its questions need images", "name another exam")
    if not questions:
        raise Place(path).unsuitable("holds no questions", "an exam needs at least one")
    known: set[str] = set()
    for question in questions:
        if question.id in known:
            raise Place(path).damaged(f"question {listed([question.id])} occurs twice", "number the questions uniquely")
        known.add(question.id)
    return questions


def left_out(path: Path | str) -> int:
    """How many questions of an exam `load_exam` leaves out because they refer to an image; errors are as there."""
    path = Path(path)
    return sum(len(numbers_with_images(file)) for file in (step_files(path) if path.is_dir() else [path]))


def _read_folder(path: Path) -> list[Question]:
    has_steps = any(path.glob("step*.json"))
    return read_subjects(path) if not has_steps and any(path.glob(f"*{MMLU_SUFFIX}")) else read_steps(path)


def _read_file(path: Path) -> list[Question]:
    if path.suffix == MMLU_SUFFIX:
        return read_subject(path)
    if holds_rows(path):
        rows = read_rows(path)
        for first in rows:
            known = first[2] if isinstance(first[2], dict) else {}
            if "answer_idx" in known:
                return read_medqa(path.stem, chain([first], rows))
            if known.keys() >= MEDMCQA_KEYS:
                return read_medmcqa(path.stem, chain([first], rows))
            if "no" in known:
                return read_step(path)
            break
        else:
            return []
    elif not read_text(path).strip():
        return []
    else:
        content = read_json(path, remedy="a file of one object per line needs the suffix .jsonl")
        if content == {}:
            return []
        if isinstance(content, dict) and all(isinstance(value, dict) for value in content.values()):
            if {"question", "opa", "answer_idx"} <= content.keys():
                return read_medbullets(path, content)
            if "QUESTION" in next(iter(content.values())):
                return read_pubmedqa(path, content)
    raise Place(path).unsuitable(
        "no exam layout is recognised",
        "expected a folder of step1.json files, MedQA rows (with answer_idx), Medbullets columns (question, opa, "
        "answer_idx), PubMedQA articles (QUESTION, CONTEXTS), MedMCQA rows (with cop) or MMLU's CSV files",
    )
