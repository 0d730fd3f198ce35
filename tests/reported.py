"""A run and an exam to write pages about: as small or as large as asked, always the same."""

import json
import math
import random
from pathlib import Path
from typing import Any

from data.exams import Question
from evaluation import Result
from files import versions
from recipe import RunConfig, write_config
from recipe.config import DataSection, ModelSection, TrainSection
from training.facts import Answer, AnswersLog, RunFacts, histogram_of, write_facts

CONFIG = RunConfig(
    model=ModelSection("miniature"),
    data=DataSection(folder="miniature", files=("meadow/medical_meadow_flashcards.json",), template="alpaca_short"),
    train=TrainSection("lora-8bit", "runs/demo", epochs=2, batch_size=8, precision="float32"),
)
MEMORY = {"int8_weights": 802_816, "frozen_weights": 1_315_328, "optimizer": 160_160, "activations": 35_061_760}


def lines_of(steps: int) -> list[dict[str, Any]]:
    """A log with a validation before, at each tenth, and at the end."""
    chance, lines, tokens = random.Random(0), [], 0
    for step in range(steps + 1):
        falling = math.exp(-4 * step / max(1, steps))
        if step:
            tokens += 900 + chance.randrange(100)
            lines.append(
                {
                    "step": step,
                    "loss": 1.1 + 2.6 * falling + chance.gauss(0, 0.12),
                    "lr": 2e-3 * min(1, step / 20) * (1 - step / steps),
                    "tokens_per_second": round(chance.gauss(2800, 120), 1),
                    "memory_gb": 0.612,
                    "gradient_norm": math.exp(chance.gauss(-0.3, 0.5)),
                    "tokens": tokens,
                }
            )
        if step % max(1, steps // 10) == 0:
            lines.append({"step": step, "validation_loss": 1.2 + 2.4 * falling})
    return lines


def a_run(folder: Path, steps: int = 100, *, log: list[dict[str, Any]] | None = None, said: str = "colchicine") -> Path:
    """A directory with all that a run leaves for its page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(CONFIG, folder / "config.toml")
    lines = lines_of(steps) if log is None else log
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = RunFacts(
        steps=steps,
        device="cpu",
        processes=1,
        means={"int8 products": "C"},
        parameters={"llama": {"trainable": 0, "frozen": 328_832, "int8": 0}, "lora": {"trainable": 78_848}},
        memory=MEMORY,
        data={"examples to train on": 400, "rows cut at the window's end": 12, "rows dropped, no output": 0},
        lengths=histogram_of([30 + i % 500 for i in range(4_000)], 512),
        versions=versions(),
    )
    write_facts(folder, facts)
    answers = AnswersLog(folder)
    for step in (0, steps // 2, steps):
        for question in ("What is the treatment of gout?", "When is levetiracetam dangerous?"):
            answers.write(Answer(step, question, said, "a reference"))
    return folder


def questions_of(n: int, text: str = "Which of these is the answer to question") -> list[Question]:
    """Questions with five options in two steps, every other one seen in training."""
    options = {letter: f"option {letter} {text[:40]}" for letter in "ABCDE"}
    return [
        Question(f"q{i}", f"{text} {i}?", options, "ABCDE"[i % 5], f"step{1 + i % 2}", f"context {text}", bool(i % 2))
        for i in range(n)
    ]


def scored(questions: list[Question], seed: int = 0, skill: float = 1.0) -> list[Result]:
    """What a model of this skill would make of them; zero guesses."""
    chance = random.Random(seed)
    return [
        Result.scored(q, {letter: chance.gauss(skill * (letter == q.answer), 1) for letter in q.options})
        for q in questions
    ]


def generated(questions: list[Question], text: str = "The answer is") -> list[Result]:
    """Answers in words: right, wrong, none at all, by accident."""
    said = [(q, [q.answer, "A", None, "B"][i % 4]) for i, q in enumerate(questions)]
    return [
        Result.said(q, letter, (f"{text} {letter}",) * (3 if letter is None else 1), accident=letter == "B")
        for q, letter in said
    ]
