"""Whatever was done to a checkpoint's files is found, named, and the newest whole checkpoint used instead."""

import errno
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.runs import VARIANTS, Lab, contents, thinned

FILES = ("trainable.safetensors", "optimizer.safetensors", "random.safetensors", "config.toml", "run.json")
FLIPS = 20
CUTS = 16

Damage = tuple[str, str, Callable[[Path, Path], None]]
"""Its kind, the file, and what does it to the file; the second path is the same file of an earlier checkpoint."""


def damages() -> Iterator[Damage]:
    """Every kind of damage to every file."""
    for name in FILES:
        chance = random.Random(name)
        for _ in range(FLIPS):
            yield "a flipped bit", name, flipped(chance.random(), chance.randrange(8))
        for sixteenth in range(CUTS):
            yield "a cut file", name, cut(sixteenth)
        yield "a missing file", name, lambda file, other: file.unlink()
        yield "a swapped file", name, lambda file, other: shutil.copyfile(other, file)
        yield "a tail of zeros", name, zeros(2)
        yield "a tail of zeros", name, zeros(16)


def flipped(place: float, bit: int) -> Callable[[Path, Path], None]:
    def damage(file: Path, other: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(place * len(content))] ^= 1 << bit
        file.write_bytes(content)

    return damage


def cut(sixteenth: int) -> Callable[[Path, Path], None]:
    def damage(file: Path, other: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) * sixteenth // CUTS])

    return damage


def zeros(share: int) -> Callable[[Path, Path], None]:
    def damage(file: Path, other: Path) -> None:
        content = file.read_bytes()
        kept = len(content) - len(content) // share
        file.write_bytes(content[:kept] + bytes(len(content) - kept))

    return damage


def damaged_and_resumed(lab: Lab, variant: str, damage: Damage) -> bool:
    """Damage one file of the newest checkpoint, resume. False where nothing was changed by it."""
    _, name, apply = damage
    with lab.scratch() as output:
        earlier, newest = lab.stopped(variant, output)[-2:]
        before = (newest / name).read_bytes()
        apply(newest / name, earlier / name)
        if (newest / name).exists() and (newest / name).read_bytes() == before:
            return False
        ended = lab.ends_as_undisturbed(variant, output)
        named = [line for line in ended.text.splitlines() if f"{newest.name} cannot be used" in line]
        if named:
            assert len(named) == 1 and str(newest / name) in named[0], ended.text
            assert f"going on from {earlier} instead" in ended.text
        else:  # run.json vouches for its values: another spelling of the same ones (a space, a brace) is no damage
            assert name == "run.json" and damage[0] == "a flipped bit", ended.text
        return True


@pytest.mark.parametrize("variant", VARIANTS)
def test_some_damages_are_named_and_the_previous_checkpoint_used(lab, variant, count_faults):
    for damage in thinned(list(damages()), 3, seed=len(variant)):
        count_faults(damage[0], damaged_and_resumed(lab, variant, damage))


@pytest.mark.faults
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("variant", ["full", "lora-8bit"])
def test_any_damage_is_named_and_the_previous_checkpoint_used(lab, variant, name, count_faults):
    every = [damage for damage in damages() if damage[1] == name]
    for damage in every if variant == "full" else every[::2]:
        count_faults(damage[0], damaged_and_resumed(lab, variant, damage))


@pytest.mark.parametrize("variant", ["full", "lora-8bit"])
def test_a_stray_file_and_swapped_directories_are_named(lab, variant, count_faults):
    with lab.scratch() as output:
        earlier, newest = lab.stopped(variant, output)[-2:]
        (newest / "more.safetensors").write_bytes(b"")
        assert f"{newest}/more.safetensors: it is no part" in lab.ends_as_undisturbed(variant, output).text
    with lab.scratch() as output:
        oldest, earlier, newest = lab.stopped(variant, output)
        for source, target in ((newest, "aside"), (earlier, newest.name), (newest.with_name("aside"), earlier.name)):
            source.rename(source.with_name(target))
        text = lab.ends_as_undisturbed(variant, output).text
        assert text.count("directories were swapped") == 2 and f"going on from {oldest} instead" in text
    count_faults("stray files, swapped directories", 2)


@pytest.mark.parametrize("variant", ["full-8bit", "lora"])
def test_two_damaged_checkpoints_lead_to_the_third_and_three_to_a_refusal(lab, variant, count_faults):
    with lab.scratch() as output:
        oldest, *newer = lab.stopped(variant, output)
        for checkpoint in newer:
            cut(5)(checkpoint / "optimizer.safetensors", checkpoint)
        assert f"going on from {oldest} instead" in lab.ends_as_undisturbed(variant, output).text
    with lab.scratch() as output:
        for checkpoint in lab.stopped(variant, output):
            flipped(0.5, 3)(checkpoint / "trainable.safetensors", checkpoint)
        before = contents(output)
        ended = lab.run(variant, output, "--resume", "auto")
        assert ended.code == 1 and "none of its 3 checkpoints can be used" in ended.last_line, ended.text
        assert contents(output) == before
        for each in ((), ("--resume", str(output / "checkpoints"))):
            assert lab.run(variant, output, *each).code == 1
            assert contents(output) == before
    count_faults("several damaged checkpoints", 2)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_named_and_the_previous_checkpoint_used(lab, name, count_faults):
    with lab.scratch() as output:
        earlier, newest = lab.stopped("lora-8bit", output)[-2:]
        faults = {"unreadable": {"files": [str(newest / name)], "code": errno.EIO}}
        ended = lab.run("lora-8bit", output, "--resume", "auto", faults=faults)
        assert ended.code == 0 and f"going on from {earlier} instead" in ended.text, ended.text
        assert f"{newest.name} cannot be used" in ended.text and str(newest / name) in ended.text, ended.text
        lab.is_as_undisturbed("lora-8bit", output)
        count_faults("EIO when a checkpoint is read")


def test_a_named_checkpoint_that_is_damaged_is_refused_and_no_other_used(lab, count_faults):
    with lab.scratch() as output:
        newest = lab.stopped("lora", output)[-1]
        cut(3)(newest / "trainable.safetensors", newest)
        before = contents(output)
        ended = lab.run("lora", output, "--resume", str(newest))
        assert ended.code == 1 and str(newest / "trainable.safetensors") in ended.last_line, ended.text
        assert contents(output) == before
        count_faults("a cut file")
