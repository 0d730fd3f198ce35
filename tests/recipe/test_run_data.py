"""What `[data]` means."""

from dataclasses import replace

import pytest

import data.miniature
from recipe import MINIATURE, RunConfig, data_files, digest, load_run_data, plan_steps
from recipe.config import DataSection, TrainSection


class Letters:
    """A tokenizer of one id per character."""

    bos_id, eos_id = 1, 2

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        return [1] * bos + [ord(c) for c in text] + [2] * eos


def config(epochs: int = 2, **options) -> RunConfig:
    return RunConfig(data=DataSection(**options), train=TrainSection(batch_size=4, micro_batch_size=2, epochs=epochs))


def test_data_files(tmp_path):
    assert data_files(str(tmp_path), ("a.json:10", "b.json", "c:d.json")) == [
        (tmp_path / "a.json", 10),
        (tmp_path / "b.json", None),
        (tmp_path / "c:d.json", None),
    ]
    assert data_files(MINIATURE, ("a.json",)) == [(data.miniature.folder() / "a.json", None)]


def test_every_example_once_per_epoch_in_steps_of_the_batch_size():
    plan = plan_steps(config(), [5] * 10)
    assert [sum(len(rows) for rows in step) for step in plan.steps] == [4, 4, 2] * 2
    for epoch in (plan.steps[:3], plan.steps[3:]):
        assert sorted(i for step in epoch for rows in step for row in rows for i in row) == list(range(10))
    assert plan.evaluations == {3, 6}


def test_max_steps_and_eval_every():
    settings = config()
    cut = plan_steps(replace(settings, train=replace(settings.train, max_steps=4)), [5] * 10)
    assert len(cut.steps) == 4 and 4 in cut.evaluations
    often = plan_steps(replace(settings, train=replace(settings.train, eval_every=2)), [5] * 10)
    assert often.evaluations == {2, 4, 6}


def test_text_objective_splits_and_refuses_row_counts(tmp_path):
    (tmp_path / "texts.txt").write_text("one\n\ntwo\n\nthree")
    text = {"objective": "text", "folder": str(tmp_path), "max_length": 16}
    loaded = load_run_data(config(files=("texts.txt",), validation_rows=1, **text), Letters(), progress=False)
    assert (len(loaded.train), len(loaded.validation), loaded.report) == (2, 1, None)
    with pytest.raises(ValueError, match="drop the number of rows"):
        load_run_data(config(files=("texts.txt:2",), **text), Letters(), progress=False)


def test_digest_knows_the_training_tokens(tmp_path):
    def of(text: str) -> str:
        (tmp_path / "texts.txt").write_text(text)
        settings = config(objective="text", folder=str(tmp_path), files=("texts.txt",), max_length=16)
        return digest(load_run_data(settings, Letters(), progress=False))

    assert of("one\n\ntwo") == of("one\n\ntwo") != of("two\n\none")
