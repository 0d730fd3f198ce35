"""Score an exam: how many multiple-choice questions does a model answer, and is that more than luck?

    python evaluate.py                                                                the miniature on its own exams
    python evaluate.py --show 5 --limit 20                                            with five worked examples
    python evaluate.py --out before.json                                              keep the result, to compare with
    python evaluate.py --adapter runs/demo/adapter --int8 --compare before.json       before and after
    python evaluate.py --base DIR --template medalpaca --exam usmle --method letter   as MedAlpaca asks

Nothing is generated: each option is scored by its log-probability as the answer, and the highest wins. The table gives
95 % intervals, since 100 questions leave ten points to either side to luck; a comparison with an earlier report adds
McNemar's exact test on the questions whose verdict changed.

Methods:

    text_per_token    mean log-probability of the option's tokens, the question alone in the prompt
    text_per_byte     the same per UTF-8 byte, comparable between tokenizers
    text              their sum, which favours short options
    letter            options listed in the prompt, their letters compared, as MedAlpaca asks
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

import data.miniature
import evaluation
from data.exams import Question, load_exam
from evaluation import Method, Result
from recipe import ModelOptions, plain_errors


@dataclass(frozen=True)
class Options:
    """Score a LLaMA on a multiple-choice exam by the likelihood of each option."""

    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)

    exam: Path | None = None
    """Folder of USMLE step files, or a file of MedQA, Medbullets or PubMedQA; by default the miniature's exams."""
    method: Method = "text_per_token"
    """What is compared, see above."""
    instruction: str | None = None
    """Replaces the method's own; "" puts the question itself in its place, as the template context_question wants."""
    limit: int | None = None
    """Only the first so many questions of each step."""
    batch_size: int = 16
    """Questions at once; the keys and values of their prompts are held, 0.5 MB per token of a 7B model."""

    show: int = 0
    """Print so many worked examples with the options' probabilities, taken evenly from the exam."""
    out: Path | None = None
    """Write a JSON report: settings, versions, accuracies, every question's scores."""
    compare: Path | None = None
    """An earlier report on the same questions: print before, after, and whether the difference is more than luck."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit {self.limit} must be at least 1")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size} must be at least 1")
        if self.show < 0:
            raise ValueError(f"--show {self.show} must not be negative")
        if self.out and self.out.is_dir():
            raise ValueError(f"--out {self.out} is a folder; name a file, such as {self.out / 'report.json'}")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, score, report."""
    options = tyro.cli(Options, args=arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    with plain_errors(out_of_memory="lower --batch-size, or add --int8"):
        run(options)


def run(options: Options) -> None:
    """Read the exam, load the model, score, print, save."""
    console = Console(highlight=False)
    # Whatever can be wrong with files is found before the long load.
    exam = options.exam or data.miniature.folder() / "exams"
    questions = first_of_each_step(load_exam(exam), options.limit)
    before = evaluation.read_report(options.compare) if options.compare else None
    if before:
        evaluation.check_same_questions(before.results, questions)

    inference = options.model.load()
    if before:
        console.print(f"before: {before.settings.get('description', options.compare)}", style="dim", markup=False)
    console.print(f"{'after:  ' if before else ''}{inference.description}", style="dim", markup=False)
    started = time.perf_counter()
    results = evaluation.score_questions(
        inference.model,
        inference.tokenizer,
        questions,
        inference.template,
        method=options.method,
        instruction=options.instruction,
        batch_size=options.batch_size,
        progress=True,
    )
    seconds = time.perf_counter() - started

    for question, result in evenly(list(zip(questions, results, strict=True)), options.show):
        console.print(evaluation.worked_example(question, result))
    title = f"{options.exam or 'the exams of the miniature'}, by {options.method}"
    if before:
        console.print(evaluation.comparison_table(evaluation.compare(before.results, results), title))
    else:
        console.print(evaluation.accuracy_table(results, title))
    for note in evaluation.notes(results):
        console.print(f"note: {note}", markup=False)
    console.print(f"{len(questions)} questions in {seconds:.1f} s", style="dim")

    if options.out:
        flags = asdict(options)
        flags |= flags.pop("model")
        chosen = {key: str(value) if isinstance(value, Path) else value for key, value in flags.items()}
        found = {"description": inference.description, "exam": str(exam), "template": inference.template.name}
        settings = chosen | found | {"seconds": round(seconds, 3)}
        evaluation.write_report(options.out, results, settings)
        console.print(f"report: {options.out}", markup=False)


def first_of_each_step(questions: list[Question], limit: int | None) -> list[Question]:
    """The first `limit` questions of each step, in the exam's order."""
    if limit is None:
        return questions
    steps: dict[str, list[Question]] = {}
    for question in questions:
        steps.setdefault(question.step, []).append(question)
    return [question for members in steps.values() for question in members[:limit]]


def evenly(pairs: list[tuple[Question, Result]], count: int) -> list[tuple[Question, Result]]:
    """`count` of the pairs, spread over all of them."""
    count = min(count, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]


if __name__ == "__main__":
    main()
