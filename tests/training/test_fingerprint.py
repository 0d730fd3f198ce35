"""Another run is told from the same one: every difference is named with both values."""

from pathlib import Path

import pytest

from files import UnsuitableFileError
from recipe.config import FREE_TO_CHANGE
from training.fingerprint import check_fingerprint


def test_every_difference_is_named_with_both_values_in_plain_words():
    then = {
        "base": "a" * 64,
        "data": "b" * 16,
        "plan": "c" * 16,
        "tokenizer": "d" * 64,
        "optim.lr": "0.1",
        "lora.r": "8",
    }
    now = {"base": "e" * 64, "data": "f" * 16, "plan": "0" * 16, "tokenizer": "1" * 64, "optim.lr": "0.2", "new": "1"}
    with pytest.raises(UnsuitableFileError) as caught:
        check_fingerprint(Path("runs/step-1"), then, now, FREE_TO_CHANGE)
    assert str(caught.value).startswith(
        "runs/step-1: it belongs to a run with other settings; "
        "the base's weights: aaaaaaaaaaaa then, eeeeeeeeeeee now; the training tokens: bbbbbbbbbbbb then, ffffffffffff "
        "now; lora.r: 8 then, (unset) now; "
        "new: (unset) then, 1 now; optim.lr: 0.1 then, 0.2 now; the order of the rows: cccccccccccc then, 000000000000 "
        "now; the tokenizer: dddddddddddd then, 111111111111 now; set them as they were, or begin a new run in another "
        "--output; what may differ: data.folder, model.base, "
    )
    check_fingerprint(Path("runs/step-1"), then, dict(then))
