"""The presets against the recipes, the published table, and themselves."""

import json
import re
import shlex
from pathlib import Path

import pytest
import tyro

import evaluate
import train
from data import TEMPLATES, PromptTemplate
from data.exams import Question
from evaluation.presets import CHATDOCTOR_CHAT, PRESETS, QUESTIONS, STEPS, Preset, find_preset, published_beside
from evaluation.statistics import wilson_interval
from llama import LlamaConfig
from recipe import read_config

ROOT = Path(__file__).resolve().parent.parent.parent
REPRODUCE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
TABLE = """
llama-7b                 .198 .202 .203
alpaca-7b                .275 .266 .293
alpaca-lora-7b           .220 .138 .252
medalpaca-7b             .297 .312 .398
medalpaca-7b-lora        .231 .202 .179
medalpaca-7b-lora-8bit   .231 .241 .211
chatdoctor-7b            .187 .185 .148
llama-13b                .222 .248 .276
alpaca-13b               .319 .312 .301
medalpaca-13b            .473 .477 .602
medalpaca-13b-lora       .250 .255 .255
medalpaca-13b-lora-8bit  .189 .303 .289
"""
presets = pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))


def test_the_twelve_rows_are_the_published_ones() -> None:
    rows = [line.split() for line in TABLE.strip().splitlines()]
    assert [[p.name, *(f"{p.published[step]:.3f}"[1:] for step in STEPS)] for p in PRESETS.values()] == rows
    assert all(name == preset.name and tuple(preset.published) == STEPS for name, preset in PRESETS.items())


@presets
def test_a_preset_fits_the_recipe_that_makes_it(preset: Preset) -> None:
    if not preset.config:
        assert preset.name.startswith(("llama", "chatdoctor")) and not preset.needs_adapter
        return
    config = read_config(ROOT / preset.config)
    assert config.data.template == preset.template
    assert config.model.base == f"models/{preset.base}"
    assert config.shape.name == preset.base.removeprefix("llama-").upper()
    assert preset.needs_adapter == (config.train.method != "full")
    assert preset.int8 == (config.train.method == "lora-8bit")


@presets
def test_a_preset_says_what_it_is(preset: Preset) -> None:
    assert preset.template in TEMPLATES and preset.weights and preset.title
    assert find_preset(preset.name) is preset


def test_an_unknown_preset_is_refused_with_the_nearest_or_all() -> None:
    with pytest.raises(ValueError, match="'medalpaca-7': did you mean 'medalpaca-7b'"):
        find_preset("medalpaca-7")
    with pytest.raises(ValueError, match=r"'xyz'; known: llama-7b, .*medalpaca-13b-lora-8bit; --preset list"):
        find_preset("xyz")


def test_published_figures_are_beside_such_a_model_on_such_an_exam_only() -> None:
    preset, shape = PRESETS["llama-7b"], LlamaConfig.named("7B")
    options = {"A": "x", "B": "y"}
    steps = [Question(step, "Which?", options, "A", step=step) for step in STEPS]
    assert published_beside(preset, shape, steps) == (preset.published, "")
    assert published_beside(preset, shape, steps[1:2]) == ({"all": 0.202}, "")  # the table has one line then
    figures, why = published_beside(preset, LlamaConfig.named("13B"), steps)
    assert figures is None and "LLaMA 7b is a llama-7b, this model is none" in why
    figures, why = published_beside(preset, shape, [*steps, Question("x", "Which?", options, "A", step="step2&3")])
    assert figures is None and "these questions of step2&3: another exam" in why


@presets
def test_a_preset_says_what_it_is_about(preset: Preset) -> None:
    here, adapter = Path("."), Path("adapter") if preset.needs_adapter else None
    preset.check("base", adapter, here)
    for base, given, exam, words in (
        ("", adapter, here, rf"{preset.base}: name its directory with --base"),
        ("base", None if adapter else here, here, "--adapter"),
        ("base", adapter, None, "name it with --exam"),
    ):
        with pytest.raises(ValueError, match=f"--preset {preset.name} is .*{words}"):
            preset.check(base, given, exam)


def sizes_behind(accuracy: float, near: int) -> list[int]:
    """Numbers of questions, up to six off, of which some whole number right gives the accuracy in three decimals."""
    sizes = range(near - 6, near + 7)
    return [n for n in sizes if any(round(right / n, 3) == accuracy for right in range(n + 1))]


def test_the_published_shares_are_not_of_the_published_numbers_of_questions() -> None:
    """What docs/reproduce.md says of them: nine rows of twelve fit 91, 109, 123, and one row each 92, 110, 122."""
    for step, said, counted in zip(STEPS, QUESTIONS.values(), (91, 109, 123), strict=True):
        behind = {name: sizes_behind(preset.published[step], said) for name, preset in PRESETS.items()}
        assert sum(counted in sizes for sizes in behind.values()) == 9
        assert sum(said in sizes for sizes in behind.values()) == 1
    assert sizes_behind(PRESETS["medalpaca-13b-lora"].published["step3"], QUESTIONS["step3"]) == []


def test_any_two_published_7b_rows_overlap_in_step_1() -> None:
    intervals = [
        wilson_interval(round(preset.published["step1"] * 91), 91)
        for preset in PRESETS.values()
        if preset.base == "llama-7b"
    ]
    assert len(intervals) == 7
    assert max(low for low, _ in intervals) < min(high for _, high in intervals)


def test_chatdoctors_own_prompt_is_its_programs() -> None:
    asked = "If you are a doctor, please answer the medical questions based on the patient's description."
    greeting = "ChatDoctor: I am ChatDoctor, what medical questions do you have?"
    assert CHATDOCTOR_CHAT.render(asked, "Why?") == f"{asked}\n\n{greeting}\n\nPatient: Why?\n\nChatDoctor: "
    assert PromptTemplate.from_dict(CHATDOCTOR_CHAT.to_dict()) == CHATDOCTOR_CHAT


# --- docs/reproduce.md ---


def table_rows(text: str) -> list[list[str]]:
    """The cells of every line of a Markdown table, without the code marks; a bar in a cell is written \\|."""
    lines = (line for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_chapters_table_is_the_published_one() -> None:
    rows = [cells for cells in table_rows(REPRODUCE) if cells[0] in PRESETS]
    expected = [[name, *(f"{100 * row.published[step]:.1f}" for step in STEPS)] for name, row in PRESETS.items()]
    assert [cells[:4] for cells in rows] == expected


@presets
def test_the_chapter_trains_and_evaluates_every_row(preset: Preset) -> None:
    commands = [shlex.split(line) for line in REPRODUCE.replace("\\\n", " ").splitlines() if "evaluate.py" in line]
    [command] = [words for words in commands if words[:4] == ["python", "evaluate.py", "--preset", preset.name]]
    assert ("--adapter" in command) == preset.needs_adapter
    if preset.config:
        output = read_config(ROOT / preset.config).train.output
        assert f"train.py --config {preset.config}" in REPRODUCE
        assert (f"{output}/adapter" if preset.needs_adapter else f"{output}/model") in command


def test_the_other_way_of_every_oddity_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    preset = evaluate.preset_options("medalpaca-7b-lora")
    recipe = ["--config", "configs/medalpaca-7b-lora.toml"]
    published = train.parse_arguments(recipe)
    tried = 0
    for cells in table_rows(REPRODUCE):
        if cells[1] == "train":
            assert train.parse_arguments([*recipe, *shlex.split(cells[2])]) != published, cells
        elif cells[1] == "exam":
            assert tyro.cli(evaluate.Options, args=shlex.split(cells[2]), default=preset) != preset, cells
        else:
            continue
        tried += 1
    assert tried == REPRODUCE.count("| train |") + REPRODUCE.count("| exam |") > 20
    ours = ["--config", "configs/medalpaca-7b-lora-8bit.toml"]
    for flags in ("--optim.name adamw", "--int8.backward exact"):
        assert f"`{flags}`" in REPRODUCE
        assert train.parse_arguments([*ours, *flags.split()]) != train.parse_arguments(ours)


def test_the_chapters_template_file_is_chatdoctors() -> None:
    [block] = re.findall(r"^```json\n(.*?)^```$", REPRODUCE, re.MULTILINE | re.DOTALL)
    template = PromptTemplate.from_dict(json.loads(block))
    assert (template.prompt_input, template.prompt_no_input, template.response_split) == (
        CHATDOCTOR_CHAT.prompt_input,
        CHATDOCTOR_CHAT.prompt_no_input,
        CHATDOCTOR_CHAT.response_split,
    )
