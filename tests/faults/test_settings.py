"""Two runs are identical; a continued one may say where and how it works, and nothing that shapes a weight."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from faults.runs import VARIANTS, Lab, contents

from data import PromptTemplate
from recipe import FREE_TO_CHANGE, RunConfig, read_config

ELSEWHERE: dict[str, Any] = {"data.files": ("some.json:8", "all.json"), "lora.targets": ("q_proj",)}
"""Other values that a rule by type would not find."""
REFUSED_BEFORE = {"data.objective"}
"""Settings whose other value does not even begin a run with the rest of these settings."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_runs_are_identical_to_the_bit(lab, variant, count_faults):
    with lab.scratch() as output:
        assert lab.run(variant, output).code == 0
        lab.is_as_undisturbed(variant, output)
        count_faults("second runs compared")


def other(name: str, value: Any, hint: Any) -> Any:
    """A valid value that differs."""
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    if get_origin(hint) is Literal:
        return next(each for each in get_args(hint) if each != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 if isinstance(value, float) and value else value + type(value)(1)
    if isinstance(value, tuple):
        return (value[0] / 2, *value[1:])
    return {"shape.name": "7B"}[name]


def flag(name: str, value: Any) -> list[str]:
    """A setting as train.py's command line spells it."""
    spelled = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [spelled] if value else [spelled.replace(".", ".no-", 1)]
    return [spelled, *(map(str, value) if isinstance(value, tuple) else [str(value)])]


def settings(config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Every setting by its full name: its value and the type it is declared with."""
    found = {}
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        hints = get_type_hints(type(values))
        found |= {
            f"{section.name}.{f.name}": (getattr(values, f.name), hints[f.name]) for f in dataclasses.fields(values)
        }
    return found


@pytest.mark.parametrize("variant", ["full", "lora-8bit"])
def test_all_that_may_change_may_change_at_once(lab, variant, count_faults):
    """Another directory for base, data and output, other intervals, activations recomputed: the same bits."""
    with lab.scratch() as output:
        lab.stopped(variant, output)
        elsewhere = shutil.copytree(lab.folder / "base", output.parent / "elsewhere")
        moved = shutil.copytree(output, output.parent / "moved")
        values = {
            "model.base": elsewhere, "model.tokenizer": elsewhere / "tokenizer.model", "data.folder": elsewhere,
            "train.output": moved, "train.device": "cpu", "train.log_every": 1, "train.eval_every": 0,
            "train.save_every": 2, "train.keep_checkpoints": 5, "train.sample_answers": 1, "train.tensorboard": False,
            "train.gradient_checkpointing": True, "train.ignore_memory": True,
        }  # fmt: skip
        assert values.keys() == FREE_TO_CHANGE
        flags = [word for name, value in values.items() if value is not False for word in flag(name, value)]
        ended = lab.run(variant, moved, *flags, "--resume", "auto")
        assert ended.code == 0 and "going on from" in ended.text, ended.text
        same_but_for_the_base_s_name(lab, variant, moved, elsewhere)
        count_faults("settings changed that may change", len(values))


def same_but_for_the_base_s_name(lab: Lab, variant: str, output: Any, elsewhere: Any) -> None:
    """An adapter's config names its base, which lies elsewhere now."""
    file = output / "adapter" / "adapter_config.json"
    if file.exists():
        file.write_text(file.read_text().replace(str(elsewhere), str(lab.folder / "base")))
    lab.is_as_undisturbed(variant, output)


def frozen(lab: Lab, variant: str) -> list[str]:
    """The settings that must stay."""
    config = read_config(lab.folder / f"{variant}.toml")
    return [name for name in config.fingerprint() if name not in FREE_TO_CHANGE]


def changed_and_refused(lab: Lab, variant: str, names: list[str]) -> None:
    """Change each of these; it is refused by name, with what may be changed, and nothing is touched."""
    config = settings(read_config(lab.folder / f"{variant}.toml"))
    problems = []
    with lab.scratch() as output:
        another_template(output.parent / "other.json")
        lab.stopped(variant, output)
        before = contents(output)
        for name in names:
            value, hint = config[name]
            changed = output.parent / "other.json" if name == "data.template" else other(name, value, hint)
            ended = lab.run(variant, output, *flag(name, changed), "--resume", "auto")
            named = name in ended.last_line or name in REFUSED_BEFORE
            if ended.code != 1 or not ended.last_line.startswith("error: ") or not named or contents(output) != before:
                problems.append(f"{name} = {changed}: {ended.code}, {ended.last_line}")
    assert not problems, "\n".join(problems)


def another_template(file: Path) -> None:
    """The template of these runs, in other words."""
    content = PromptTemplate.named("alpaca_short").to_dict()
    file.write_text(json.dumps(content).replace("Input", "Case"))


@pytest.mark.parametrize("variant", ["full", "lora-8bit"])
def test_some_settings_that_must_stay_are_refused_by_name(lab, variant, count_faults):
    names = ["optim.lr", "data.max_length", "train.seed", "train.batch_size"]
    changed_and_refused(lab, variant, names)
    count_faults("settings changed that must stay", len(names))


@pytest.mark.faults
@pytest.mark.parametrize("variant", ["full", "lora-8bit"])
def test_every_setting_that_must_stay_is_refused_by_name(lab, variant, count_faults):
    names = frozen(lab, variant)
    changed_and_refused(lab, variant, names)
    count_faults("settings changed that must stay", len(names))


def test_what_may_change_is_listed(lab):
    with lab.scratch() as output:
        lab.stopped("lora", output)
        ended = lab.run("lora", output, "--optim.lr", "0.5", "--resume", "auto")
        assert "optim.lr: 0.01 then, 0.5 now" in ended.last_line
        assert all(name in ended.last_line for name in FREE_TO_CHANGE)


@pytest.mark.parametrize("what", ["data", "tokenizer", "base"])
def test_other_files_under_the_same_name_are_refused(lab, what, count_faults):
    """Every setting is as it was, and what it names is not."""
    with lab.scratch() as output:
        lab.stopped("lora", output)
        elsewhere = shutil.copytree(lab.folder / "base", output.parent / "elsewhere")
        if what == "data":
            (elsewhere / "some.json").write_text((elsewhere / "some.json").read_text().replace("drug 1", "drug 9"))
        elif what == "tokenizer":
            from tiny_models import train_tokenizer

            train_tokenizer(elsewhere, vocab_size=320)
        else:
            from tiny_models import tiny_llama

            from llama import save_checkpoint

            save_checkpoint(tiny_llama(1, vocab_size=330, max_seq_len=256, std=0.1), elsewhere)
        before = contents(output)
        flags = ["--model.base", str(elsewhere), "--data.folder", str(elsewhere), "--resume", "auto"]
        ended = lab.run("lora", output, *flags)
        words = {"data": "the training tokens", "tokenizer": "the tokenizer", "base": "the base's weights"}[what]
        assert ended.code == 1 and words in ended.last_line, ended.text
        assert contents(output) == before
        count_faults("files changed that must stay")
