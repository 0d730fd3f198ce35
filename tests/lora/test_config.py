import math

import pytest

from lora import LoraConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 0}, "r = 0"),
        ({"r": 2.0}, "r = 2.0"),
        ({"r": True}, "r = True"),
        ({"alpha": 0}, "alpha = 0"),
        ({"alpha": math.nan}, "alpha = nan"),
        ({"alpha": math.inf}, "alpha = inf"),
        ({"alpha": 10**400}, "alpha = 1000"),
        ({"alpha": "16"}, "alpha = '16'"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"dropout": -0.1}, "dropout = -0.1"),
        ({"dropout": math.nan}, "dropout = nan"),
        ({"targets": ()}, "at least one"),
        ({"targets": ("wq", "")}, "at least one"),
        ({"targets": "wq"}, "the string 'wq'"),
    ],
)
def test_values_out_of_range_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        LoraConfig(**({"r": 8, "alpha": 16, "dropout": 0.05, "targets": ("wq",)} | change))


def test_targets_become_a_tuple_without_repeats() -> None:
    config = LoraConfig(r=8, alpha=16, dropout=0.0, targets=["wq", "wv", "wq"])
    assert config.targets == ("wq", "wv")
    assert hash(config) == hash(LoraConfig(8, 16, 0.0, ("wq", "wv")))


def test_scaling_by_hand() -> None:
    assert LoraConfig(8, 16, 0.0, ("wq",)).scaling == 2.0
    assert LoraConfig(16, 16, 0.0, ("wq",), rslora=True).scaling == 4.0  # 16/√16
