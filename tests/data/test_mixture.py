"""Mixtures and the validation split: counts, determinism, independence of the parts, and the refusals."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import MixturePart, load_mixture, load_records, split_validation


@pytest.fixture
def files(tmp_path):
    paths = {}
    for name, rows in (("cards", 50), ("wiki", 30)):
        paths[name] = tmp_path / f"{name}.json"
        paths[name].write_text(json.dumps([{"instruction": f"{name} {i}", "output": "x"} for i in range(rows)]))
    return paths


def test_whole_files_in_the_order_given(files):
    mixture = load_mixture([MixturePart(files["wiki"]), MixturePart(files["cards"])], seed=0)
    assert mixture == load_records(files["wiki"]) + load_records(files["cards"])


def test_samples_are_drawn_without_replacement_and_keep_source_and_order(files):
    mixture = load_mixture([MixturePart(files["cards"], 20), MixturePart(files["wiki"], 10)], seed=3)
    assert [record.source for record in mixture] == ["cards"] * 20 + ["wiki"] * 10
    rows = [record.row for record in mixture[:20]]
    assert rows == sorted(set(rows))
    assert set(mixture) <= set(load_records(files["cards"]) + load_records(files["wiki"]))


def test_the_seed_decides(files):
    def draw(seed):
        return load_mixture([MixturePart(files["cards"], 20)], seed=seed)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_adding_a_file_leaves_the_choice_from_the_others(files):
    alone = load_mixture([MixturePart(files["cards"], 20)], seed=1)
    both = load_mixture([MixturePart(files["wiki"], 5), MixturePart(files["cards"], 20)], seed=1)
    assert both[5:] == alone


def test_files_of_one_length_are_drawn_from_independently(files, tmp_path):
    copy = tmp_path / "copy.json"
    copy.write_bytes(files["cards"].read_bytes())
    mixture = load_mixture([MixturePart(files["cards"], 20), MixturePart(copy, 20)], seed=1)
    assert [record.row for record in mixture[:20]] != [record.row for record in mixture[20:]]


def test_too_many_samples_names_both_numbers(files):
    with pytest.raises(ValueError, match=r"wiki\.json: 31 samples asked of 30 rows"):
        load_mixture([MixturePart(files["wiki"], 31)], seed=0)


@pytest.mark.parametrize("samples", [0, -1])
def test_no_samples(files, samples):
    with pytest.raises(ValueError, match=f"samples={samples}"):
        MixturePart(files["wiki"], samples)


def test_empty_mixture_and_a_file_given_twice(files):
    with pytest.raises(ValueError, match="the mixture is empty"):
        load_mixture([], seed=0)
    with pytest.raises(ValueError, match=r"cards\.json is in the mixture twice"):
        load_mixture([MixturePart(files["cards"]), MixturePart(files["cards"], 3)], seed=0)


@given(n=st.integers(1, 60), seed=st.integers(), data=st.data())
def test_split_is_a_partition_in_order(n, seed, data):
    rows = data.draw(st.integers(0, n - 1))
    training, validation = split_validation(range(n), rows=rows, seed=seed)
    assert len(validation) == rows
    assert sorted(training + validation) == list(range(n))
    assert training == sorted(training) and validation == sorted(validation)
    assert (training, validation) == split_validation(range(n), rows=rows, seed=seed)


def test_split_by_fraction_as_medalpaca_does():
    training, validation = split_validation(range(5942), fraction=0.1, seed=42)
    assert (len(training), len(validation)) == (5348, 594)
    assert validation != split_validation(range(5942), fraction=0.1, seed=43)[1]


@pytest.mark.parametrize("both", [{}, {"rows": 1, "fraction": 0.1}])
def test_split_needs_one_size(both):
    with pytest.raises(ValueError, match="give rows or fraction"):
        split_validation(range(9), seed=0, **both)


@pytest.mark.parametrize("size", [{"rows": 9}, {"rows": -1}, {"fraction": 1.0}, {"fraction": -0.1}, {"fraction": 0.99}])
def test_split_must_leave_training_rows(size):
    with pytest.raises(ValueError, match=r"validation"):
        split_validation(range(9), seed=0, **size)


def test_real_mixture(real_data):
    folder = real_data / "medical_meadow"
    parts = [
        MixturePart(folder / "medical_meadow_small.json"),
        MixturePart(folder / "medical_meadow_health_advice.json", 1000),
        MixturePart(real_data / "alpaca" / "alpaca_data_1k.json", 500),
    ]
    mixture = load_mixture(parts, seed=42)
    counts = {source: sum(record.source == source for record in mixture) for source in {r.source for r in mixture}}
    assert counts == {"medical_meadow_small": 5942, "medical_meadow_health_advice": 1000, "alpaca_data_1k": 500}
