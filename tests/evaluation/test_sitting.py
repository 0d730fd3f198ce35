from dataclasses import fields, replace

import pytest

from evaluation import Sitting
from evaluation.prompts import LETTER, LINE, OWN_WORDS, TEXT

OTHER = {
    "method": "letter",
    "instruction": "Choose.",
    "answer_prefix": "It is",
    "bos": False,
    "shots": 2,
    "seed": 7,
    "accept": "sound",
    "tries": 3,
    "temperature": 0.7,
    "top_k": None,
    "top_p": None,
    "max_new_tokens": 64,
    "stop": False,
}
USED = {
    "likelihood": {"method", "instruction", "answer_prefix", "bos", "shots"},
    "generate": {"instruction", "answer_prefix", "bos", "shots", "max_new_tokens", "stop"},
    "medalpaca": set(OTHER) - {"method"},
}


def test_the_published_numbers_are_the_defaults() -> None:
    sitting = Sitting("medalpaca")
    assert (sitting.tries, sitting.temperature, sitting.top_k, sitting.top_p) == (5, 0.4, 50, 0.9)
    assert (sitting.max_new_tokens, sitting.accept, sitting.bos) == (128, "published", True)
    assert sitting.wording == LINE
    assert sitting.wording.instruction == "Answer this multiple choice question."
    assert sitting.wording.answer_prefix == "The Answer to the question is:"


@pytest.mark.parametrize("protocol", USED)
@pytest.mark.parametrize("name", OTHER)
def test_a_setting_without_effect_is_refused(protocol: str, name: str) -> None:
    sitting = Sitting(protocol)  # type: ignore[arg-type]
    assert set(sitting.settings) == USED[protocol] | {"protocol"}
    if name in USED[protocol]:
        assert replace(sitting, **{name: OTHER[name]}).settings[name] == OTHER[name]  # type: ignore[arg-type]
        return
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(ValueError, match=f"{flag} has no effect with --protocol {protocol}"):
        replace(sitting, **{name: OTHER[name]})  # type: ignore[arg-type]


def test_every_setting_was_tried() -> None:
    assert {field.name for field in fields(Sitting)} == {*OTHER, "protocol"}


def test_shots_are_drawn_by_a_seed_in_every_protocol() -> None:
    assert Sitting("likelihood", shots=2, seed=7).settings["seed"] == 7
    assert Sitting("generate", shots=2, seed=7).settings["seed"] == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tries": 0}, "--tries 0 must be at least 1"),
        ({"shots": -1}, "--shots -1 must be at least 0"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0 must be at least 1"),
        ({"temperature": -1.0}, "temperature = -1.0 must be 0"),
        ({"top_k": 0}, "top_k = 0 must be at least 1"),
        ({"top_p": 1.5}, r"top_p = 1.5 must be in \(0, 1\]"),
    ],
)
def test_a_number_out_of_range_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sitting("medalpaca", **settings)  # type: ignore[arg-type]


def test_words_follow_the_protocol_and_the_method() -> None:
    assert Sitting().wording == TEXT
    assert Sitting(method="letter_calibrated").wording == LETTER
    assert Sitting("generate").wording == OWN_WORDS
    changed = Sitting("generate", instruction="", answer_prefix="It is").wording
    assert (changed.instruction, changed.answer_prefix, changed.form) == ("", "It is", "line")


def test_the_title_names_what_was_done() -> None:
    assert Sitting().title == "text_per_token"
    assert Sitting("medalpaca", shots=2).title == "medalpaca, 2 shots"
