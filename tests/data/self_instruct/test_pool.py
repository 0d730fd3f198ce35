"""data.self_instruct.pool: the threshold, the ten most similar, the average."""

import math
import random

import numpy as np
import pytest

from data import Record
from data.self_instruct import Kept, Pool, rouge_l_reference, rouge_tokens
from files import FileError
from files.fields import Place


def task(instruction: str) -> Record:
    return Record(instruction, "in", "out")


def test_what_is_kept_says_what_it_resembles():
    kept = Pool([task("name a fruit"), task("add two numbers")]).take(task("name a tree"))
    assert kept == Kept("name a tree", "in", "out", {"name a fruit": 2 / 3, "add two numbers": 0.0}, 1 / 3)
    assert kept.similarity == 2 / 3


def test_f_at_the_threshold_is_kept_and_above_it_dropped():
    # L = 7 of 10 and 10 tokens: F = 0.7 up to rounding, as rouge_score rounds it
    shared = [f"w{n}" for n in range(7)]
    a, b = " ".join([*shared, "a", "b", "c"]), " ".join([*shared, "d", "e", "f"])
    f = rouge_l_reference(rouge_tokens(a), rouge_tokens(b))
    assert Pool([task(a)], f).take(task(b)) is not None
    assert Pool([task(a)], math.nextafter(f, 0)).take(task(b)) is None


def test_the_same_instruction_comes_in_once():
    pool = Pool([])
    assert pool.take(task("name a fruit now")) is not None
    assert pool.take(task("Name a fruit, now!")) is None
    assert len(pool) == 1


def test_the_first_of_an_empty_pool_resembles_nothing():
    kept = Pool([]).take(task("name a fruit"))
    assert (kept.most_similar_instructions, kept.avg_similarity_score, kept.similarity) == ({}, 0.0, 0.0)


def test_against_the_plain_way_of_doing_it():
    chance = random.Random(3)
    words = [f"w{n}" for n in range(12)]
    tasks = [task(" ".join(chance.choices(words, k=chance.randint(3, 9)))) for _ in range(120)]
    seeds, rest = tasks[:20], tasks[20:]
    pool = Pool(seeds)
    texts = [seed.instruction for seed in seeds]
    n_kept = 0
    for one in rest:
        scores = [rouge_l_reference(rouge_tokens(one.instruction), rouge_tokens(text)) for text in texts]
        kept = pool.take(one)
        assert (kept is None) == (max(scores) > 0.7)
        if kept is not None:
            nearest = sorted(range(len(texts)), key=lambda i: (-scores[i], i))[:10]
            expected: dict[str, float] = {}
            for i in nearest:
                expected.setdefault(texts[i], scores[i])
            assert list(kept.most_similar_instructions.items()) == list(expected.items())
            assert kept.avg_similarity_score == np.mean(scores)
            texts.append(one.instruction)
            n_kept += 1
    assert 10 < n_kept < 100 and len(pool) == 20 + n_kept


def test_a_pool_that_recalls_goes_on_like_one_that_never_stopped():
    chance = random.Random(4)
    words = [f"w{n}" for n in range(15)]
    tasks = [task(" ".join(chance.choices(words, k=6))) for _ in range(60)]
    pool, again = Pool(tasks[:5]), Pool(tasks[:5])
    for one in tasks[5:30]:
        if (kept := pool.take(one)) is not None:
            again.recall(kept)
    assert [pool.take(one) for one in tasks[30:]] == [again.take(one) for one in tasks[30:]]


def test_a_row_comes_back():
    kept = Kept("a b c", "", "x", {"a b": 0.8, "c": 0.0}, 0.4)
    assert Kept.from_row(kept.to_row(), Place(None)) == kept


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, 10**400, True, None, "0.5"])
def test_a_similarity_outside_0_to_1_is_refused(tmp_path, value):
    row = Kept("a b c", "", "x", {"a b": 0.5}, 0.4).to_row()
    for bad in (row | {"avg_similarity_score": value}, row | {"most_similar_instructions": {"a": value}}):
        with pytest.raises(FileError, match="row 3"):
            Kept.from_row(bad, Place(tmp_path / "x.jsonl", "row 3"))
