"""Valid files of every kind that users bring, damaged at random: they are read, or refused by an error that names them.

`FUZZ_EXAMPLES=5000 pytest tests/hostile_data/test_fuzz.py` for a long run.
"""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from byte_mutations import EXAMPLES, damaged, retyped
from exam_results import ROW
from hypothesis import given, settings

import generate
from data import PromptTemplate, load_records, load_texts
from data.exams import load_exam
from evaluation import read_report
from files import FileError
from recipe import read_config
from training import read_metrics

ROWS = [
    {"instruction": "Define", "input": "fever", "output": "High temperature."},
    {"instruction": "Sagen Sie »hallo« 😊", "output": "Hallo\\n!", "id": 7, "more": [1.5, None, {"a": True}]},
    {"instruction": "Define", "input": "", "output": ""},
]
STEP = [
    {"no": 1, "question": "Which organ makes insulin?", "options": {"A": "Liver", "B": "Pancreas"}, "seen": True},
    {"no": "2", "question": "And bile?", "options": {"A": "Liver", "B": "Spleen", "C": "Colon"}},
]
MEDQA = {"question": "Q?", "answer": "x", "options": {"A": "x", "B": "y"}, "meta_info": "step1", "answer_idx": "A"}
ARTICLE = {"QUESTION": "Does it?", "CONTEXTS": ["One.", "Two."], "final_decision": "maybe"}
BULLETS = {
    "question": {"0": "Q?", "1": "R?"},
    "answer_idx": {"0": "A", "1": "B"},
    "opa": {"0": "x", "1": "x"},
    "opb": {"0": "y", "1": "y"},
}
CONFIG = """\
# a run
[model]
base = "miniature"
[lora]
r = 8
targets = ["q_proj", "v_proj"]
[data]
files = ["a.json", 'b.json:7']
train_on_prompt = true
[optim]
lr = 2e-5
betas = [0.9, 0.999]
[train]
method = "lora-8bit"
epochs = 0x10
"""
KEY = '{"1": "B", "2": " a "}'
METRICS = '{"step": 1, "loss": 2.5, "lr": 0.1}\n{"step": 1, "validation_loss": NaN}\n{"step": 2, "lo'
TEMPLATE = PromptTemplate.named("alpaca").to_dict()


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def questions(file: Path) -> Any:
    return generate.read_questions(SimpleNamespace(prompts=file, instruction="", input=""))  # type: ignore[arg-type]


def folder_of(file: Path) -> Any:
    return load_exam(file.parent)


class Kind(NamedTuple):
    """A valid file under the name it needs, what reads it, and what must lie beside it."""

    name: str
    content: str
    read: Callable[[Path], Any]
    beside: tuple[tuple[str, str], ...] = ()


RESULT = ROW | {"step": "s", "scores": {"A": -1e-3, "B": -2.5}}
REPORT = {"format": 2, "settings": {"description": "é"}, "questions": [RESULT, RESULT | {"id": "2", "seen": True}]}
STEP_FILE, KEY_FILE = ("step1.json", json.dumps(STEP)), ("step1_solutions.json", KEY)
ARTICLES = ("pqal.json", json.dumps({"11": ARTICLE, "22": ARTICLE}))
PROSE = "Fieber: 39,5 °C.\r\nUnd Husten.\n\n \nZweiter Absatz 😊.\n"

KINDS = {
    "records": Kind("rows.json", json.dumps(ROWS, ensure_ascii=False, indent=1), load_records),
    "record lines": Kind("rows.jsonl", lines(ROWS), load_records),
    "texts": Kind("texts.txt", PROSE, lambda file: load_texts([file])),
    "text lines": Kind("texts.jsonl", lines([{"text": "Fever.\n\nCough."}, {"text": "é"}]), lambda f: load_texts([f])),
    "prompt templates": Kind("mine.json", json.dumps(TEMPLATE), PromptTemplate.from_file),
    "run configs": Kind("run.toml", CONFIG, read_config),
    "step files": Kind(*STEP_FILE, folder_of, (KEY_FILE,)),
    "answer keys": Kind(*KEY_FILE, folder_of, (STEP_FILE,)),
    "image lists": Kind("question_with_images.json", '{"step1": [2, "2"]}', folder_of, (STEP_FILE, KEY_FILE)),
    "MedQA": Kind("medqa.jsonl", lines([MEDQA, MEDQA]), load_exam),
    "MedQA lists": Kind("medqa.json", json.dumps([MEDQA, MEDQA]), load_exam),
    "Medbullets": Kind("bullets.json", json.dumps(BULLETS), load_exam),
    "PubMedQA": Kind(*ARTICLES, load_exam),
    "test articles": Kind(
        "test_ground_truth.json",
        '{"11": "maybe", "22": "yes"}',
        lambda f: load_exam(f.with_name(ARTICLES[0])),
        (ARTICLES,),
    ),
    "question lines": Kind("asked.jsonl", lines(ROWS), questions),
    "question texts": Kind("asked.txt", "What is fever?\n\nWas ist Fieber? 😊\n", questions),
    "reports": Kind("report.json", json.dumps(REPORT), read_report),
    "metrics": Kind("metrics.jsonl", METRICS, read_metrics),
}


def lay_out(kind: Kind, folder: Path) -> Path:
    for name, content in kind.beside:
        (folder / name).write_text(content, encoding="utf-8")
    return folder / kind.name


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_undamaged_they_are_read(kind: Kind, tmp_path: Path) -> None:
    file = lay_out(kind, tmp_path)
    file.write_text(kind.content, encoding="utf-8")
    assert kind.read(file)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_they_are_read_or_refused_by_name(
    name: str, tmp_path: Path, count_faults: Callable[[str, int], None]
) -> None:
    kind = KINDS[name]
    file = lay_out(kind, tmp_path)
    tried = 0

    @settings(max_examples=EXAMPLES, deadline=timedelta(seconds=5), derandomize=True, database=None)
    @given(damaged(kind.content.encode()) | retyped(kind.content.encode()))
    def survives(content: bytes) -> None:
        nonlocal tried
        tried += 1
        file.write_bytes(content)
        try:
            kind.read(file)
        except FileError as error:
            said = str(error)
            assert str(tmp_path) in said and error.problem, "it names the file, and what is wrong"
            assert said.isprintable() and len(said) < 2000, "it is one line that a terminal can print"

    survives()
    count_faults("fuzzed data bytes", tried)
