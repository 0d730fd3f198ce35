"""Documents against the project: snippets run, links and paths lead somewhere, commands parse, figures are true."""

import doctest
import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import tyro

import convert
import data.miniature
import evaluate
import generate
import self_instruct
import serve
import train
from data.exams import load_exam
from evaluation import score_questions
from llama import LlamaConfig
from recipe import RunConfig, count_parameters, load_for_inference, meta_model, predict_memory, read_config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
MEMORY = ROOT / "docs" / "memory.md"
MEMORY_RECIPES = ["medalpaca-7b-lora-8bit", "medalpaca-7b-lora", "medalpaca-7b"]  # the columns of its table

OUTSIDE = re.compile(r"[a-z]+:")  # a link with a scheme (https:, mailto:) leads out of the project
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# `src/llama/norm.py`, `configs/medalpaca-*.toml`, `tests/llama/test_norm.py::test_by_hand`
PATH = re.compile(r"((?:src|tests|configs|docs|benchmarks)/[\w./*-]*)(?:::(\w+))?")
PROMPT = ">>> "

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def fenced_blocks(text: str) -> Iterator[tuple[str, int, str]]:
    """(language, line number of the opening fence, content) of every fenced block."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield match[1], text.count("\n", 0, match.start()) + 1, match[2]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that a Markdown viewer makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# --- Snippets ------------------------------------------------------------------------------------------------------


@documents
def test_snippets_give_what_they_say(document: Path) -> None:
    """All snippets of a document run in one namespace, from top to bottom, like one session."""
    lines = document.read_text(encoding="utf-8").split("\n")
    # A fence would be read as expected output: blank the lines, and keep their numbers.
    source = "\n".join("" if line.startswith("```") else line for line in lines)
    test = doctest.DocTestParser().get_doctest(source, {}, document.name, str(document), 0)
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


@documents
def test_every_python_snippet_is_run(document: Path) -> None:
    for language, line, content in fenced_blocks(document.read_text(encoding="utf-8")):
        if language == "python":
            assert content.startswith(PROMPT), f"{document.name}:{line}: a snippet that is no doctest is never run"
        else:
            assert PROMPT not in content, f"{document.name}:{line}: mark the block as python"


def test_snippets_are_there() -> None:
    """Each chapter of a paper shows its formula at work."""
    for chapter in ("llama", "instruction-tuning", "lora", "int8", "optim8bit", "memory"):
        assert PROMPT in (ROOT / "docs" / f"{chapter}.md").read_text(encoding="utf-8"), chapter


# --- Links and paths -----------------------------------------------------------------------------------------------


@documents
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(prose(document.read_text(encoding="utf-8"))):
        if OUTSIDE.match(target):
            continue
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        assert file.exists(), f"{document.name}: [...]({target}): there is no {file}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{document.name}: no heading for {target}"


@documents
def test_paths_exist(document: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", prose(document.read_text(encoding="utf-8"))):
        if (match := PATH.fullmatch(code)) is None:
            continue
        path, name = match.groups()
        found = list(ROOT.glob(path)) if "*" in path else [ROOT / path]
        assert found and found[0].exists(), f"{document.name}: there is no {path}"
        if name:
            defined = re.compile(rf"^(?:def|class) {name}\b|^{name}\b.* = ", re.MULTILINE)
            assert defined.search(found[0].read_text(encoding="utf-8")), f"{document.name}: {path} has no {name}"


def test_the_map_names_every_chapter() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    chapters = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert chapters <= linked, f"docs/index.md does not link {', '.join(sorted(chapters - linked))}"


# --- Commands ------------------------------------------------------------------------------------------------------


def commands(document: Path) -> list[str]:
    """The command lines of the document: all in shell blocks (continued lines joined), and indented or inline ones.

    A comment ends a command, and an ellipsis makes it no command.
    """
    text = document.read_text(encoding="utf-8")
    lines = [
        line
        for language, _, content in fenced_blocks(text)
        if language == "sh"
        for line in content.replace("\\\n", " ").splitlines()
    ]
    lines += re.findall(r"^    ((?:python|make) .+)$", prose(text), re.MULTILINE)
    lines += re.findall(r"`((?:python|make) [^`\n]+)`", prose(text))
    return [command for line in lines if (command := line.partition("#")[0].strip()) and "..." not in command]


COMMANDS = [(document.name, command) for document in DOCUMENTS for command in commands(document)]


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_commands_are_real(document: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts' own parsers accept the flags; make has the targets. Nothing is run."""
    program, *arguments = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert all(argument in targets for argument in arguments if "=" not in argument), command
    elif program == "python":
        script, *arguments = arguments
        if script == "-m":
            assert importlib.util.find_spec(arguments[0]), command
        elif script == "train.py":
            monkeypatch.chdir(ROOT)  # --config is read
            train.parse_arguments(arguments)
        elif script == "evaluate.py":
            tyro.cli(evaluate.Options, args=arguments)
        elif script == "generate.py":
            tyro.cli(generate.Options, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
        elif script == "serve.py":
            tyro.cli(serve.Options, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
        elif script == "self_instruct.py":
            tyro.cli(self_instruct.Options, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
        else:
            assert script == "convert.py", command
            monkeypatch.chdir(tmp_path)
            # Flags that do not parse exit with status 2; with flags that do, the missing source is found out.
            with pytest.raises(SystemExit, match="is not a directory"):
                convert.main(arguments)
    elif program == "torchrun":
        monkeypatch.chdir(ROOT)
        train.parse_arguments(arguments[arguments.index("train.py") + 1 :])
    else:
        assert program in ("cat", "pip", "git", "cd"), f"{document}: {command}: no test knows this program"


# --- Figures -------------------------------------------------------------------------------------------------------


def recipe(name: str) -> RunConfig:
    return read_config(ROOT / "configs" / f"{name}.toml")


def table_rows(text: str) -> dict[str, list[str]]:
    """First cell -> the other cells of every row of every Markdown table."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {first.strip("*"): rest for first, *rest in rows}


def test_memory_figures_are_the_dry_runs() -> None:
    """Each figure of the table in docs/memory.md, as `train.py --dry-run` prints it."""
    expected: dict[str, list[str]] = {}
    for name in MEMORY_RECIPES:
        config = recipe(name)
        plan = predict_memory(meta_model(config, LlamaConfig.named("7B")), config)
        for purpose, n_bytes in {**asdict(plan), "total": plan.total}.items():
            expected.setdefault(purpose.replace("_", " "), []).append(f"{n_bytes / 1e9:.3f}")
    rows = table_rows(MEMORY.read_text(encoding="utf-8"))
    found = {
        purpose: [cell.strip("*") for cell in rows.get(purpose, rows.get(f"**{purpose}**", []))] for purpose in expected
    }
    assert found == expected, "docs/memory.md is out of date; the right rows are\n" + "\n".join(
        f"| {purpose} | {' | '.join(cells)} |" for purpose, cells in expected.items()
    )


def test_parameter_counts_are_the_dry_runs() -> None:
    text = MEMORY.read_text(encoding="utf-8")
    config = recipe("medalpaca-7b-lora-8bit")
    counts = count_parameters(meta_model(config, LlamaConfig.named("7B")))
    for number in (counts["llama"].frozen, counts["int8"].int8, counts["lora"].trainable):
        assert f"{number:,}" in text, f"docs/memory.md does not give {number:,}"


def test_the_bases_row_in_the_miniatures_table_is_what_it_scores():
    """The base is bundled, so its row is measured anew; the tuned rows take a training run each."""
    inference = load_for_inference(progress=False)
    questions = load_exam(data.miniature.folder() / "exams")
    results = score_questions(inference.model, inference.tokenizer, questions, inference.template)
    right = {True: 0, False: 0}
    for question, result in zip(questions, results, strict=True):
        right[question.seen] += result.correct
    # Half a point is three questions: another processor rounds otherwise, and near-ties may fall the other way.
    row = table_rows((ROOT / "docs/miniature.md").read_text(encoding="utf-8"))["base"]
    expected = [100 * sum(right.values()) / 600, 100 * right[True] / 300, 100 * right[False] / 300]
    assert [float(cell.split()[0]) for cell in row[:3]] == pytest.approx(
        expected, abs=0.5
    )  # other CPUs round otherwise
