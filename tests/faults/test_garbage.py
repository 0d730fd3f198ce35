"""No number that is none reaches a weight, and no memory that is missing costs more than the step."""

import math

import pytest
from faults.runs import VARIANTS, Lab, thinned, whole_checkpoints

KINDS = ("loss", "gradient", "embedding", "weight")


def poisoned(lab: Lab, variant: str, what: str, value: float, step: int, micro_batch: int) -> None:
    """Poison one number. The run stops before the update, in one line; what was saved before leads on."""
    with lab.scratch() as output:
        verdict = output.parent / "verdict"
        place = {"step": step, "micro_batch": micro_batch, "what": what, "value": value, "verdict": str(verdict)}
        ended = lab.run(variant, output, faults={"poison": place})
        assert ended.code == 1 and ended.last_line.startswith(f"error: step {step}: "), ended.text
        assert "Traceback" not in ended.text and "no update was made" in ended.last_line
        if what == "gradient":
            assert "the gradient of " in ended.last_line and ("lora_" in ended.last_line or "weight" in ended.last_line)
        elif what == "loss":
            assert f"micro-batch {micro_batch} " in ended.last_line
        else:  # a token, and all the more a weight, may be in an earlier micro-batch as well
            assert "micro-batch " in ended.last_line or "the gradient of " in ended.last_line
        assert verdict.read_text() == "unchanged"
        assert max(whole_checkpoints(output), default=0) == step - 1
        lab.ends_as_undisturbed(variant, output)


@pytest.mark.parametrize(
    ("variant", "what", "value"),
    [
        ("full", "gradient", math.inf),
        ("full-8bit", "loss", -math.inf),
        ("lora", "weight", math.nan),
        ("lora-8bit", "embedding", math.nan),
    ],
)
def test_what_is_no_number_stops_the_run_before_the_update(lab, variant, what, value, count_faults):
    last = [place for place in lab.places(variant) if place["micro_batch"] == 1][-1]
    poisoned(lab, variant, what, value, last["step"], 1 if what == "loss" else 0)
    count_faults("poisoned loss, gradient, embedding or weight")


@pytest.mark.faults
@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_no_number_stops_the_run_before_any_update(lab, variant, what, count_faults):
    forwards = [place for place in lab.places(variant) if place["point"] == "before forward"]
    for number, place in enumerate(thinned(forwards, 5, seed=KINDS.index(what))):
        value = (math.nan, math.inf, -math.inf)[number % 3]
        poisoned(lab, variant, what, value, place["step"], place["micro_batch"])
        count_faults("poisoned loss, gradient, embedding or weight")


def test_weights_that_an_update_spoilt_are_not_saved(lab, count_faults):
    """Every gradient was finite, and the update overflowed. Without the check a good checkpoint would make room."""
    for variant in ("full", "lora-8bit"):
        with lab.scratch() as output:
            ended = lab.run(variant, output, faults={"overflow": {"step": 3}})
            assert ended.code == 1 and ended.last_line.startswith("error: step 3: "), ended.text
            assert "is no longer finite: no checkpoint was made of it" in ended.last_line
            assert max(whole_checkpoints(output)) == 2
            lab.ends_as_undisturbed(variant, output)
            count_faults("weights spoilt by an update")


@pytest.mark.parametrize("how", ["gpu", "python", "cpu"])
def test_missing_memory_is_one_line_that_says_what_would_fit(lab, how, count_faults):
    variant = "full" if how == "gpu" else "lora-8bit"
    with lab.scratch() as output:
        ended = lab.run(variant, output, faults={"refuse_memory": {"step": 3, "micro_batch": 0, "how": how}})
        assert ended.code == 1 and ended.last_line.startswith("error: out of memory"), ended.text
        assert "Traceback" not in ended.text
        for words in ("predicted to need", "--train.gradient-checkpointing", "--data.max-length", "GB"):
            assert words in ended.last_line
        assert max(whole_checkpoints(output)) == 2
        lab.ends_as_undisturbed(variant, output)
        count_faults("out of memory in a step")
