"""From settings to examples: read the files, hold out validation rows, supervise, plan the order of the whole run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from data import (
    Example,
    MixturePart,
    PromptTemplate,
    Record,
    SupervisionReport,
    build_examples,
    epoch_plan,
    load_mixture,
    load_texts,
    split_validation,
    text_examples,
)
from llama import Tokenizer
from recipe.assemble import data_files
from recipe.config import RunConfig

MicroBatch = list[list[int]]  # rows of indices into the training examples


@dataclass(frozen=True)
class RunData:
    """What a run learns from and is validated on.

    Attributes:
        train, validation: examples; `validation` may be empty.
        report: what became of the training rows; None under the text objective, which loses none.
        questions: the validation records, to answer aloud while training; empty under the text objective.
    """

    train: list[Example]
    validation: list[Example]
    template: PromptTemplate
    report: SupervisionReport | None
    questions: list[Record]


def load_run_data(config: RunConfig, tokenizer: Tokenizer, *, progress: bool = True) -> RunData:
    """Read and supervise everything `[data]` names.

    Raises:
        ValueError: no files, unreadable rows, or nothing left to train on.
    """
    settings, seed = config.data, config.train.seed
    template = PromptTemplate.find(settings.template)
    if not settings.files:
        raise ValueError("data.files is empty: name the files to train on")
    parts = data_files(settings.folder, settings.files)
    if settings.objective == "text":
        texts = load_texts([path for path, _ in parts])
        train, held_out = _split(texts, config)
        windows = partial(text_examples, tokenizer=tokenizer, max_length=settings.max_length, progress=progress)
        return RunData(windows(train), windows(held_out) if held_out else [], template, None, [])

    records = load_mixture([MixturePart(path, samples) for path, samples in parts], seed=seed)
    train, held_out = _split(records, config)
    supervised = partial(
        build_examples,
        template=template,
        tokenizer=tokenizer,
        max_length=settings.max_length,
        train_on_prompt=settings.train_on_prompt,
        add_bos=settings.add_bos,
        add_eos=settings.add_eos,
        progress=progress,
    )
    examples, report = supervised(train)
    validation = supervised(held_out)[0] if held_out else []
    return RunData(examples, validation, template, report, held_out)


def plan_steps(config: RunConfig, lengths: Sequence[int]) -> list[list[MicroBatch]]:
    """Every optimizer step of the run: the micro-batches whose gradients it sums.

    A pure function of settings and lengths, so that a resumed run goes on by index. Steps do not cross epochs; the last
    of an epoch may be smaller.
    """
    settings = config.data
    steps = []
    for epoch in range(config.train.epochs):
        plan = epoch_plan(
            lengths,
            micro_batch_size=config.train.micro_batch_size,
            seed=config.train.seed,
            epoch=epoch,
            order="group_by_length" if settings.group_by_length else "shuffle",
            pack_to=settings.max_length if settings.packing else None,
        )
        steps += [plan[start : start + config.accumulation] for start in range(0, len(plan), config.accumulation)]
    return steps[: config.train.max_steps or None]


def steps_per_epoch(config: RunConfig, steps: Sequence[list[MicroBatch]]) -> int:
    """Optimizer steps of one epoch, for pacing; packed epochs differ a little in length."""
    return max(1, round(len(steps) / config.train.epochs)) if not config.train.max_steps else len(steps)


def _split(items: list, config: RunConfig) -> tuple[list, list]:
    settings, seed = config.data, config.train.seed
    if settings.validation_rows:
        return split_validation(items, rows=settings.validation_rows, seed=seed)
    if settings.validation_fraction:
        return split_validation(items, fraction=settings.validation_fraction, seed=seed)
    return items, []
