"""data.self_instruct.prompts: the form, the draws, the preambles."""

import pytest

from data import Record
from data.self_instruct import PREAMBLES, load_preamble, load_seeds, render_prompt
from data.self_instruct.prompts import MOST_REDRAWS, draw_prompt
from files import FileError

SEEDS = [Record(f"Task {n}", "", f"Answer {n}") for n in range(9)]
FLAGS = {"preamble": "", "shots": 3, "tasks": 20, "seed": 5}


def test_the_form_is_stanfords():
    tasks = [Record("Sort\n these  words:", "b\na", "a\nb\n"), Record("Name a fruit.", "", "Apple")]
    assert render_prompt("List of {tasks} tasks:\n", tasks, 20) == (
        "List of 20 tasks:\n"
        "\n"
        "###\n"
        "1. Instruction: Sort these words\n"
        "1. Input:\nb\na\n"
        "1. Output:\na\nb\n\n"
        "###\n"
        "2. Instruction: Name a fruit.\n"
        "2. Input:\n<noinput>\n"
        "2. Output:\nApple\n"
        "###\n"
        "3. Instruction:"
    )


def test_braces_of_a_seed_are_left_alone():
    assert "print(f'{x}')" in render_prompt("{tasks}", [Record("Explain.", "print(f'{x}')", "{tasks}")], 20)
    assert render_prompt("{tasks}", [Record("Explain.", "", "{tasks}")], 20).count("{tasks}") == 1


def test_a_request_draws_the_same_tasks_again_and_another_one_others():
    prompts = [draw_prompt(SEEDS, request, **FLAGS)[0] for request in range(50)]
    assert prompts == [draw_prompt(SEEDS, request, **FLAGS)[0] for request in range(50)]
    assert len(set(prompts)) > 45  # of 9 · 8 · 7 = 504 that are possible
    assert prompts != [draw_prompt(SEEDS, request, **(FLAGS | {"seed": 6}))[0] for request in range(50)]


def test_every_seed_task_is_shown_as_often_as_the_others():
    shown = [draw_prompt(SEEDS, request, **FLAGS)[0] for request in range(3000)]
    for seed in SEEDS:  # binomial, 3000 draws of p = 1/3: σ = 26, and 5 σ = 130
        assert abs(sum(f"{seed.output}\n" in prompt for prompt in shown) - 1000) < 130


def test_no_task_is_shown_twice_in_a_prompt():
    for request in range(100):
        prompt, _ = draw_prompt(SEEDS[:3], request, **FLAGS)
        assert all(prompt.count(seed.output) == 1 for seed in SEEDS[:3])


def test_tasks_are_drawn_until_the_prompt_fits():
    prompt, redraws = draw_prompt(SEEDS, 0, **FLAGS, fits=lambda prompt: "Answer 7" not in prompt)
    assert "Answer 7" not in prompt
    counts = [draw_prompt(SEEDS, n, **FLAGS, fits=lambda prompt: "Answer 7" not in prompt)[1] for n in range(300)]
    assert redraws == counts[0]
    assert 90 < sum(counts) < 220  # geometric, p = 2/3: 150 ± 15 expected


def test_prompts_that_never_fit_are_an_error():
    with pytest.raises(ValueError, match=rf"request 3: none of {MOST_REDRAWS:,} draws of 3 demonstrations fits"):
        draw_prompt(SEEDS, 2, **FLAGS, fits=lambda prompt: False)


def test_a_preamble_has_a_name_or_is_a_file(tmp_path):
    assert load_preamble("short") == PREAMBLES["short"]
    file = tmp_path / "mine.txt"
    file.write_text("Mine: {tasks}", encoding="utf-8")
    assert load_preamble(str(file)) == "Mine: {tasks}"
    with pytest.raises(FileNotFoundError, match="neither a file nor one of full, short"):
        load_preamble(str(tmp_path / "none.txt"))
    file.write_bytes(b"a\0b")
    with pytest.raises(FileError, match="mine"):
        load_preamble(str(file))


def test_every_preamble_says_how_many_tasks():
    assert all("{tasks}" in text for text in PREAMBLES.values())


def test_the_real_seeds_go_in_whole(real_data):
    seeds = load_seeds(real_data / "alpaca" / "seed_tasks.jsonl")
    for n, seed in enumerate(seeds):
        prompt = render_prompt(PREAMBLES["full"], [seed, seeds[n - 1]], 20)
        assert f"1. Input:\n{seed.input or '<noinput>'}\n1. Output:\n{seed.output}\n###\n2. Instruction: " in prompt
