"""A training run as a web page, report.html: curves, memory, data, answers, settings.

    python -m training.report runs/demo          the page of a run that has ended, stopped, or is still going on

The page is made of what lies in the run's directory, and of nothing else: metrics.jsonl, config.toml and, from
`facts.py`, facts.json and answers.jsonl. The first may be empty and the last two missing; what they would tell is then
left out.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from files import printable, write_whole
from pages import Facts, Page, Prose, Section, Table, Tiles, setting
from recipe import RunConfig, plain_errors, read_config
from training.facts import Answer, RunFacts, read_answers, read_facts
from training.metrics import read_metrics
from training.report_parts import Log, answers_aloud, charts, data_parts, memory_bars, parameter_table, tiles

REPORT = "report.html"


def write_run_page(folder: Path, *, date: str = "") -> Path:
    """Write `folder`/report.html; it appears whole or not at all.

    Args:
        date: printed at the end, if given.

    Raises:
        FileError: one of the run's files is damaged.
        OSError: one cannot be read, or the page cannot be written.
    """
    config, log = read_config(folder / "config.toml"), read_metrics(folder / "metrics.jsonl")
    page = run_page(config, log, read_facts(folder), read_answers(folder), name=folder.resolve().name, date=date)
    write_whole(folder / REPORT, page.content())
    return folder / REPORT


def try_run_page(folder: Path, *, date: str = "") -> Path | None:
    """`write_run_page`, for the end of a run: whatever goes wrong is said, and nothing more; None then."""
    try:
        return write_run_page(folder, date=date)
    except Exception as error:  # a page is never worth a run
        print(f"note: no {REPORT}: {printable(f'{type(error).__name__}: {error}')}", file=sys.stderr)
        return None


def run_page(
    config: RunConfig, log: Log, facts: RunFacts | None, answers: Sequence[Answer], *, name: str, date: str = ""
) -> Page:
    """The page, from the figures that matter most to those that make it possible to have them again."""
    log = sorted(log, key=lambda line: line["step"])
    base = config.model.base or "random weights"
    where = f", {facts.device}" if facts else ""
    many = f", {facts.processes} processes" if facts and facts.processes > 1 else ""
    curves = list(charts(config, log))
    sections = [Section("Learning", curves, layout="grid")] if curves else []
    if facts:
        sections.append(Section("Memory", [memory_bars(facts, log)]))
        sections.append(Section("Data", list(data_parts(facts, config)), layout="grid"))
    if answers:
        shown = list(answers_aloud(answers))
        sections.append(Section("Answers aloud", shown, layout="grid", intro="Questions held out, answered greedily."))
    sections += settings_sections(config, facts)
    nothing = Prose(["metrics.jsonl holds no steps yet: there is nothing to draw."], "warning")
    return Page(
        title=f"Training report: {name}",
        subtitle=f"{config.train.method} on {base}, {config.train.precision}{where}{many}",
        head=[Tiles(list(tiles(log, facts))), *([] if curves else [nothing])],
        sections=sections,
        footer=["Made of metrics.jsonl, config.toml, facts.json and answers.jsonl, beside this file."],
        date=date,
    )


def settings_sections(config: RunConfig, facts: RunFacts | None) -> Iterator[Section]:
    """What was set, what made the numbers; and, folded, every setting there is."""
    settings, defaults = asdict(config), asdict(RunConfig())
    changed = [
        (f"{section}.{key}", setting(value))
        for section, values in settings.items()
        for key, value in values.items()
        if value != defaults[section][key]
    ]
    parts: list[Facts | Table] = [Facts("Settings that differ from the defaults", changed)]
    if facts:
        parts += [parameter_table(facts), Facts("Versions and means", [*facts.versions.items(), *facts.means.items()])]
    yield Section("How it was done", parts, layout="flow")
    tables = [
        Facts(section, [(key, setting(value)) for key, value in values.items()]) for section, values in settings.items()
    ]
    yield Section("Every setting", tables, layout="flow", folded=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page of the run in a directory."""
    parser = argparse.ArgumentParser(prog="python -m training.report", description="Write a run's report.html.")
    parser.add_argument("folder", type=Path, help="the run's directory, with config.toml and metrics.jsonl")
    with plain_errors():
        print(write_run_page(parser.parse_args(arguments).folder))


if __name__ == "__main__":
    main()
