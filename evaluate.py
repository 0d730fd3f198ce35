"""Score an exam: how many multiple-choice questions does a model answer, and is that more than luck?

    python evaluate.py                                                             the miniature on its own exams
    python evaluate.py --show 5 --limit 20                                         with five worked examples
    python evaluate.py --out before.json                                           keep the result, to compare with
    python evaluate.py --adapter runs/demo/adapter --int8 --compare before.json    before and after
    python evaluate.py --preset medalpaca-7b --base DIR --exam DIR                 a row of MedAlpaca's table
    python evaluate.py --rotations                                                 does it choose texts, or letters?

The table gives 95 % intervals, since 100 questions leave ten points to either side to luck; a comparison with an
earlier report adds McNemar's exact test on the questions whose verdict changed. With --out an interrupted run goes on
where it was.

Protocols:

    likelihood           each option is scored by its log-probability as the answer, and the highest wins; --method:
        text_per_token       mean log-probability of the option's tokens, the question alone in the prompt
        text_per_byte        the same per UTF-8 byte, comparable between tokenizers
        text                 their sum, which favours short options
        text_calibrated      the sum less what it is without the question
        letter               options listed in the prompt, their letters compared
        letter_calibrated    the same less what it is for a question without content
    medalpaca            options listed, the answer sampled, up to five tries, read by its pattern, as published
    generate             options listed, the answer decoded greedily, read by a sound parser
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

import data.miniature
import evaluation
from data.exams import Question, left_out, load_exam
from data.overlap import find_overlap, training_texts
from evaluation import Comparison, Outcome, Paper, Report, Sitting, find_preset
from files import printable, write_whole
from recipe import Inference, ModelOptions, plain_errors


@dataclass(frozen=True)
class Options:
    """Ask a LLaMA the questions of a multiple-choice exam."""

    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    sitting: Annotated[Sitting, tyro.conf.arg(name="")] = field(default_factory=Sitting)

    preset: str | None = None
    """A row of MedAlpaca's Table 2: sets --protocol, --template and --int8, unless given too; "list" prints all."""
    exam: Path | None = None
    """File or folder: USMLE steps, MedQA, Medbullets, PubMedQA, MedMCQA or MMLU; by default the miniature's exams."""
    limit: int | None = None
    """Only the first so many questions of each step."""
    shots_from: Path | None = None
    """The exam that shots are drawn from, the same for every question; by default other questions of this one."""
    batch_size: int = 16
    """Questions at once; the keys and values of their prompts are held, 0.5 MB per token of a 7B model."""

    rotations: bool = False
    """Ask in every cyclic order of the options, and print what it changes; n times as long for n options."""
    overlap: tuple[Path, ...] = ()
    """Training files: print how many questions have half of their 8-word runs in them, and the worst three."""
    show: int = 0
    """Print so many worked examples, taken evenly from the exam."""
    out: Path | None = None
    """Write a JSON report, and a web page beside it (.html); run again after an interruption, it goes on."""
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
        if self.out and self.out.suffix != ".json":
            raise ValueError(f"--out {self.out} must end in .json; the web page beside it ends in .html")
        if self.shots_from and not self.sitting.shots:
            raise ValueError(f"--shots-from {self.shots_from} has no effect without --shots")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, ask, report."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with plain_errors():
        preset = preset_named(arguments)
        if preset == "list":
            Console(highlight=False).print(evaluation.presets_table())
            return
        defaults = preset_options(preset) if preset else Options()
        options = tyro.cli(Options, args=arguments, default=defaults, description=__doc__)
    with plain_errors(out_of_memory="lower --batch-size, or add --int8"):
        run(options)


def run(options: Options) -> None:
    """Read the exam, load the model, ask, print, save."""
    console = Console(highlight=False)
    # Whatever can be wrong with files is found before the long load.
    exam = read_exam(options)
    inference = options.model.load()
    if exam.before:
        described = exam.before.settings.get("description", options.compare)
        console.print(f"before: {described}", style="dim", markup=False)
    console.print(f"{'after:  ' if exam.before else ''}{inference.description}", style="dim", markup=False)

    started = time.perf_counter()
    with evaluation.sit_in_orders(
        partial(prepare, options, inference),
        exam.questions,
        exam.shots,
        every_order=options.rotations,
        report=options.out,
        shaped_by=fingerprint(options, inference) if options.out else {},
        say=partial(console.print, style="dim", markup=False),
    ) as sat:
        seconds = time.perf_counter() - started
        title = f"{exam.title or options.exam}, by {options.sitting.title}"
        settings = chosen(options, inference, exam) | {"seconds": round(seconds, 3), "asked": sat.asked}
        comparison = evaluation.compare(exam.before.results, sat.results) if exam.before else None
        published, unlike = standing_beside(options, inference, exam, settings)
        notes = [*sat.notes, *exam.notes, *unlike]

        for question, result in evaluation.evenly(list(zip(exam.questions, sat.results, strict=True)), options.show):
            console.print(evaluation.worked_example(question, result))
        if comparison:
            console.print(evaluation.comparison_table(comparison, title))
        else:
            console.print(evaluation.accuracy_table(sat.results, title, published))
        if sat.bias:
            console.print(evaluation.rotation_table(sat.bias))
        for note in notes:
            console.print(f"note: {note}", markup=False)
        console.print(f"{sat.asked} of {sat.in_all} questions asked in {seconds:.1f} s", style="dim")

        if options.out:
            save(options.out, exam, sat, settings, notes, comparison, published, console)
        sat.finish()


# --- Parts ---


def save(
    out: Path,
    exam: "Exam",
    sat: Outcome,
    settings: dict[str, Any],
    notes: list[str],
    comparison: dict[str, Comparison] | None,
    published: Mapping[str, float] | None,
    console: Console,
) -> None:
    """The JSON report, and the page beside it."""
    evaluation.check_destination(out)  # much may have been written since the exam began
    more: dict[str, Any] = {"rotations": asdict(sat.bias)} if sat.bias else {}
    more |= {"comparison": {name: change.figures for name, change in comparison.items()}} if comparison else {}
    more |= {"published": dict(published)} if published else {}
    evaluation.write_report(out, sat.results, settings, notes, more)
    console.print(f"report: {out}", markup=False)
    page = out.with_suffix(".html")
    try:
        content = evaluation.exam_page(
            sat.results,
            settings=settings,
            questions=exam.questions,
            notes=notes,
            comparison=comparison,
            rotations=sat.bias,
            published=published,
            title=exam.title,
        ).content()
        write_whole(page, content)
        console.print(f"page:   {page}", markup=False)
    except Exception as error:  # a page is never worth an exam
        console.print(f"note: no {page.name}: {printable(f'{type(error).__name__}: {error}')}", markup=False)


def preset_named(arguments: list[str]) -> str | None:
    """What follows --preset, before the flags are parsed whose defaults it sets."""
    name = None  # of several the last counts, as for every flag
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if flag == "--preset":
            name = value
        elif flag.startswith("--preset="):
            name = flag.partition("=")[2]
    return name


def preset_options(name: str) -> Options:
    """The defaults with a preset."""
    preset = find_preset(name)
    return Options(
        model=ModelOptions(base="", template=preset.template, int8=preset.int8),
        sitting=Sitting(protocol="medalpaca"),
    )


@dataclass(frozen=True)
class Exam:
    """What is to be asked: questions, the shots before each, an earlier report on them, what was noticed, and a title
    where the path says less."""

    questions: list[Question]
    shots: list[list[Question]]
    before: Report | None
    notes: list[str]
    title: str


def read_exam(options: Options) -> Exam:
    """The questions and all that is known before a model is there."""
    if options.preset:
        find_preset(options.preset).check(options.model.base, options.model.adapter, options.exam)
    if options.out:
        evaluation.check_destination(options.out, options.compare)
    whole = load_exam(exam_path(options))
    questions = evaluation.first_of_each_step(whole, options.limit)
    before = evaluation.read_report(options.compare) if options.compare else None
    if before:
        evaluation.check_same_questions(before.results, questions)
        evaluation.check_same_texts(before.settings, questions)
    pool, shared = (load_exam(options.shots_from), True) if options.shots_from else (whole, False)
    shots = evaluation.draw_shots(questions, pool, options.sitting.shots, options.sitting.seed, shared=shared)
    overlap = find_overlap(questions, training_texts(options.overlap)).sentences() if options.overlap else []
    notes = [f"overlap: {line}" for line in overlap]
    if with_images := left_out(exam_path(options)):
        notes.append(f"{with_images} questions of the exam have images and are left out, {len(whole)} are not")
    if options.rotations and not options.sitting.wording.lists_options:
        notes.append(f"{options.sitting.method} does not show the options, so their order cannot matter: try letter")
    return Exam(questions, shots, before, notes, "" if options.exam else "the exams of the miniature")


def exam_path(options: Options) -> Path:
    """The exam asked for, or the miniature's."""
    return options.exam or data.miniature.folder() / "exams"


def prepare(
    options: Options, inference: Inference, questions: Sequence[Question], shots: Sequence[list[Question]]
) -> Paper:
    """The questions as the model will be asked them."""
    model, tokenizer, template = inference.model, inference.tokenizer, inference.template
    return options.sitting.prepare(model, tokenizer, questions, template, shots=shots, batch_size=options.batch_size)


def fingerprint(options: Options, inference: Inference) -> dict[str, str]:
    """All that shapes a result but the questions. Not the batch's size, which moves a score by its rounding: it may be
    lowered to go on after an exam ran out of memory."""
    shaped_by = inference.identity() | {name: str(value) for name, value in options.sitting.settings.items()}
    return shaped_by | {
        "template": json.dumps(inference.template.to_dict()),
        "program": version("medalpaca-from-scratch"),
    }


def chosen(options: Options, inference: Inference, exam: Exam) -> dict[str, Any]:
    """The report's settings: flags that had an effect, and what they led to."""
    flags = asdict(replace(options, exam=exam_path(options)))
    flags |= flags.pop("model") | options.sitting.settings | {"template": inference.template.name}
    del flags["sitting"]
    plain: dict[str, Any] = json.loads(json.dumps(flags, default=str))  # paths as text
    return plain | {"description": inference.description, "questions_digest": evaluation.text_digest(exam.questions)}


def standing_beside(
    options: Options, inference: Inference, exam: Exam, settings: Mapping[str, Any]
) -> tuple[Mapping[str, float] | None, list[str]]:
    """The published figures that belong beside ours; and where what stands beside them was got otherwise, in words."""
    published, notes = None, []
    if options.preset and options.sitting.protocol == "medalpaca":
        preset = find_preset(options.preset)
        published, unlike = evaluation.published_beside(preset, inference.model.config, exam.questions)
        notes += [unlike] if unlike else []
    if exam.before and (otherwise := evaluation.asked_otherwise(exam.before.settings, settings)):
        notes.append(f"before and after were not asked alike: {'; '.join(otherwise)}")
    return published, notes


if __name__ == "__main__":
    main()
