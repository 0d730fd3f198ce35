"""Build the miniature: `python -m data.miniature.build [--out DIR]`.

Writes corpus, instruction sets, exams and tokenizer; twice the same bytes. The base model is not made here but by
`train.py` in its text objective, from the corpus and the tokenizer written here (`make miniature` does both).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from data.miniature.meadow import alpaca, meadow
from data.miniature.prose import corpus
from data.miniature.questions import exams
from data.miniature.vocabulary import train_tokenizer
from data.miniature.world import FILES, by_entity, facts

TOKENIZER = "base/tokenizer.model"  # beside the weights, as in published checkpoints


def build_files() -> dict[str, bytes]:
    """Relative path -> content of every file but the base's weights and config."""
    documents = corpus()
    files = {"corpus.txt": "\n\n".join(documents).encode() + b"\n", "alpaca.json": to_json(alpaca())}
    for source, rows in meadow().items():
        files[f"meadow/medical_meadow_{source}.json"] = to_json(rows)
    for step, questions in exams().items():
        solutions = {str(question["no"]): question.pop("answer") for question in questions}
        files[f"exams/step{step}.json"] = to_json(questions)
        files[f"exams/step{step}_solutions.json"] = to_json(solutions)
    files[TOKENIZER] = train_tokenizer(documents)
    return files


def to_json(content: Any) -> bytes:
    """Readable JSON, one row of a list per line."""
    if isinstance(content, list):
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in content)
        return f"[\n{rows}\n]\n".encode()
    return json.dumps(content, ensure_ascii=False, indent=0).encode() + b"\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.miniature.build", description="Build the bundled miniature.")
    parser.add_argument("--out", type=Path, default=FILES, help="folder to write to (default: the package's own)")
    out = parser.parse_args().out
    start = time.perf_counter()
    for name, content in build_files().items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(f"{path}  {len(content):,} bytes")
    seconds = time.perf_counter() - start
    print(f"{len(by_entity())} entities, {len(facts()):,} facts: written in {seconds:.1f} s")


if __name__ == "__main__":
    main()
