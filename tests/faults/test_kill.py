"""A run killed anywhere goes on as if nothing had happened: same losses, weights, moments, bit for bit."""

import random
from typing import Any

import pytest
from faults.runs import VARIANTS, Lab, thinned

KILLED = -9


def killed_and_resumed(lab: Lab, variant: str, *kills: dict[str, Any]) -> None:
    """A run, killed at one place, resumed, perhaps killed again; then left to go on to its end."""
    with lab.scratch() as output:
        for kill in kills:
            ended = lab.run(variant, output, "--resume", "auto", faults={"kill": kill})
            assert ended.code == KILLED, ended.text
        lab.ends_as_undisturbed(variant, output)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_killed_at_some_places_ends_as_undisturbed(lab, variant, count_faults):
    for place in thinned(lab.places(variant), 2, seed=1):
        killed_and_resumed(lab, variant, place)
        count_faults("SIGKILL in a step")


@pytest.mark.faults
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_killed_at_any_place_ends_as_undisturbed(lab, variant, count_faults):
    for place in lab.places(variant):
        killed_and_resumed(lab, variant, place)
        count_faults("SIGKILL in a step")


def test_a_run_killed_twice_ends_as_undisturbed(lab, count_faults):
    first = {"step": 3, "micro_batch": 0, "point": "before backward"}
    again = {"step": 2, "micro_batch": 0, "point": "before update"}
    killed_and_resumed(lab, "lora", first, again)
    count_faults("SIGKILL in a step, again in the resumed run")


@pytest.mark.faults
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_killed_twice_anywhere_ends_as_undisturbed(lab, variant, count_faults):
    everywhere = lab.places(variant)
    chance = random.Random(2)
    for _ in range(8):
        first, second = sorted(chance.sample(range(len(everywhere)), 2))
        done = everywhere[first]["step"] - 1  # each step before it was saved
        again = everywhere[second] | {"step": everywhere[second]["step"] - done}
        killed_and_resumed(lab, variant, everywhere[first], again)
        count_faults("SIGKILL in a step, again in the resumed run")


@pytest.mark.faults
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_saves_seldom_loses_steps_but_no_bit(lab, variant, count_faults):
    """With a checkpoint after every other step, those after it are taken again."""
    for place in thinned(lab.places(variant), 6, seed=3):
        with lab.scratch() as output:
            ended = lab.run(variant, output, "--train.save-every", "2", faults={"kill": place})
            assert ended.code == KILLED, ended.text
            lab.ends_as_undisturbed(variant, output)
        count_faults("SIGKILL in a step, checkpoints of every other")
