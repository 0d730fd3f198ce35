"""data.self_instruct.pipeline: the stream of tasks is the same however it is interrupted."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_tasks import PLACES, SEEDS, die_at, scripted

from data import Record, load_records
from data.self_instruct import (
    Completion,
    Journal,
    Kept,
    Round,
    SelfInstruct,
    Settings,
    barren_requests,
    check_unchanged,
    load_seeds,
    make_tasks,
    open_journal,
    parse_completion,
    read_journal,
    rouge_l_reference,
    rouge_tokens,
    write_tasks,
)
from data.self_instruct.filters import REASONS, reason_to_drop
from files import UnsuitableFileError

SETTINGS = Settings(seed=7, batch_size=3)
COUNT = 12


def make(
    folder: Path, complete: Callable = scripted, *, count: int = COUNT, give_up: int = 30, **changes
) -> list[Kept]:
    """What self_instruct.py does, without a model."""
    work = SelfInstruct(SEEDS, replace(SETTINGS, **changes), preamble="short")
    with open_journal(folder / "tasks.journal.jsonl", work.identity()) as journal:
        tasks = make_tasks(work, journal, complete, count=count, give_up=give_up)
    write_tasks(folder / "tasks.json", tasks)
    return tasks


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    make(folder)
    return folder


def test_against_the_plain_way_of_doing_it(undisturbed):
    """All requests one by one, every F by the table."""
    work = SelfInstruct(SEEDS, SETTINGS, preamble="short")
    texts = [seed.instruction for seed in SEEDS]
    expected: list[tuple[str, float]] = []
    dropped = dict.fromkeys(REASONS, 0)
    rounds = read_journal(undisturbed / "tasks.journal.jsonl")
    for number in range(1, len(rounds) + 1):
        for n, prompt in enumerate(work.prompts(number)[0]):
            (completion,) = scripted([prompt], 3 * (number - 1) + n)
            tasks, none = parse_completion(completion, shots=3, tasks=20)
            for name, times in none.items():
                dropped[name] += times
            for task in tasks:
                if (reason := reason_to_drop(task)) is not None:
                    dropped[reason] += 1
                    continue
                scores = [rouge_l_reference(rouge_tokens(task.instruction), rouge_tokens(text)) for text in texts]
                if max(scores) > 0.7:
                    dropped["similar"] += 1
                else:
                    texts.append(task.instruction)
                    expected.append((task.instruction, max(scores)))
    kept = [task for done in rounds for task in done.kept]
    assert [(task.instruction, task.similarity) for task in kept] == expected
    counted = {name: sum(done.dropped[name] for done in rounds) for name in REASONS}
    assert counted == dropped
    assert all(
        counted[name] for name in ("cut", "malformed", "short", "not text", "similar")
    )  # the script has them all


def test_the_output_is_a_data_set(undisturbed):
    records = load_records(undisturbed / "tasks.json")
    assert len(records) == COUNT
    assert {record.input for record in records} == {"", 'some "input",\nin two lines ☃'}
    assert all(record.output.startswith("So ") for record in records)


def test_a_run_again_is_the_same(undisturbed, tmp_path):
    make(tmp_path)
    assert files(tmp_path) == files(undisturbed)


def test_every_request_of_every_round_has_a_prompt_of_its_own():
    work, larger = SelfInstruct(SEEDS, SETTINGS), SelfInstruct(SEEDS, replace(SETTINGS, batch_size=9))
    prompts = [prompt for number in (1, 2, 3) for prompt in work.prompts(number)[0]]
    assert prompts == larger.prompts(1)[0]
    assert len(set(prompts)) == 9


def test_another_seed_shows_other_tasks(tmp_path):
    seen = []
    for seed in (7, 8):
        make(tmp_path, lambda prompts, first: seen.append(prompts) or scripted(prompts, first), count=1, seed=seed)
        (tmp_path / "tasks.journal.jsonl").unlink()
    assert seen[0] != seen[-1]


def test_a_larger_count_goes_on_where_a_smaller_one_ended(undisturbed, tmp_path):
    for count in (1, 5, COUNT - 1, COUNT):
        assert make(tmp_path, count=count) == make(tmp_path, count=count)
    assert files(tmp_path) == files(undisturbed)


def test_enough_tasks_ask_for_no_completion(undisturbed, tmp_path):
    make(tmp_path)
    make(tmp_path, complete=lambda prompts, first: pytest.fail("a completion was asked for"))
    assert files(tmp_path) == files(undisturbed)


def test_only_what_was_written_of_the_tasks_counts_as_unchanged(undisturbed, tmp_path):
    rounds = read_journal(undisturbed / "tasks.journal.jsonl")
    tasks = [task for done in rounds for task in done.kept]
    path = tmp_path / "tasks.json"
    check_unchanged(path, tasks)  # nothing there
    for n in (0, 1, len(tasks) - 1, len(tasks)):
        write_tasks(path, tasks[:n])
        check_unchanged(path, tasks)
    whole = path.read_bytes()
    edits = (whole[:-1], whole + b"\n", whole.replace(b"\n", b"\r\n"), whole.replace(b"So ", b"Thus ", 1))
    for content in (b"", b"mine", *edits):
        path.write_bytes(content)
        with pytest.raises(UnsuitableFileError, match="it differs from what its journal gives"):
            check_unchanged(path, tasks)
    write_tasks(path, tasks[1:])  # of these tasks, but not the first of them
    with pytest.raises(UnsuitableFileError, match="it differs from what its journal gives"):
        check_unchanged(path, tasks)


def rounds_of(folder: Path) -> int:
    return len(read_journal(folder / "tasks.journal.jsonl"))


def in_a_process_that_dies(folder: Path, place: str, n: int) -> None:
    """Run in a child that kills itself."""
    if (child := os.fork()) == 0:
        try:
            complete, Journal.append = die_at(place, n)  # type: ignore[method-assign]
            make(folder, complete)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("place", PLACES)
def test_killed_in_any_round_it_goes_on_as_undisturbed(undisturbed, tmp_path, count_faults, place):
    for n in range(1, rounds_of(undisturbed) + 1):
        folder = tmp_path / str(n)
        folder.mkdir()
        in_a_process_that_dies(folder, place, n)
        whole = n if place in ("before fsync", "after fsync") else n - 1
        assert rounds_of(folder) == whole
        make(folder)
        assert files(folder) == files(undisturbed)
        count_faults("SIGKILL while tasks are made")


def test_killed_again_and_again_it_goes_on_as_undisturbed(undisturbed, tmp_path, count_faults):
    for place in (*PLACES, *PLACES):
        if rounds_of(undisturbed) - (rounds_of(tmp_path) if any(tmp_path.iterdir()) else 0) >= 1:
            in_a_process_that_dies(tmp_path, place, 1)
            count_faults("SIGKILL while tasks are made")
    make(tmp_path)
    assert files(tmp_path) == files(undisturbed)


def nothing(prompts, first):
    return [Completion(" nonsense", cut=False)] * len(prompts)


def test_it_gives_up_when_nothing_comes(tmp_path):
    assert make(tmp_path, nothing, give_up=7) == []
    rounds = read_journal(tmp_path / "tasks.journal.jsonl")
    assert barren_requests(rounds) == 9  # whole rounds of 3
    assert make(tmp_path, lambda prompts, first: pytest.fail("it had given up"), give_up=9) == []
    assert make(tmp_path, nothing, give_up=10) == []
    assert barren_requests(read_journal(tmp_path / "tasks.journal.jsonl")) == 12


def test_barren_requests_are_counted_since_the_last_task():
    kept = [Kept("a", "", "b", {}, 0.0)]
    rounds = [Round(n, 3, 0, Counter(), kept if n == 2 else []) for n in range(1, 6)]
    assert [barren_requests(rounds[:n]) for n in range(6)] == [0, 3, 0, 3, 6, 9]


def test_completions_must_be_as_many_as_prompts():
    with pytest.raises(ValueError, match="1 completions for 3 prompts"):
        SelfInstruct(SEEDS, SETTINGS).round(1, lambda prompts, first: [Completion("", False)])


def test_the_completion_function_learns_the_number_of_its_first_request(tmp_path):
    numbers = []

    def complete(prompts, first):
        numbers.append((first, len(prompts)))
        return scripted(prompts, first)

    make(tmp_path, complete)
    assert numbers == [(3 * n, 3) for n in range(len(numbers))]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shots": 0}, "shots = 0 must be at least 1"),
        ({"tasks": 3}, "tasks = 3 must be more than shots = 3"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"threshold": 1.5}, "threshold = 1.5 must be between 0 and 1"),
        ({"threshold": float("nan")}, "threshold = nan must be between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Settings(**changes)


def test_too_few_seeds_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="2 seed tasks for prompts that show 3"):
        SelfInstruct(SEEDS[:2])


def test_the_identity_depends_on_whatever_the_prompts_do():
    work = SelfInstruct(SEEDS, SETTINGS)
    others = [
        SelfInstruct(SEEDS[1:], SETTINGS),
        SelfInstruct([*SEEDS[1:], SEEDS[0]], SETTINGS),
        SelfInstruct([Record("x", "", "y"), *SEEDS[1:]], SETTINGS),
        SelfInstruct(SEEDS, SETTINGS, preamble="other"),
        SelfInstruct(SEEDS, Settings(seed=8, batch_size=3)),
    ]
    assert work.identity() == SelfInstruct(list(SEEDS), SETTINGS).identity()
    assert all(other.identity() != work.identity() for other in others)


def test_the_real_seeds_with_a_scripted_model(real_data, tmp_path):
    """Seed tasks said again, whole, are all found to be there already; a new one among them is kept."""
    seeds = load_seeds(real_data / "alpaca" / "seed_tasks.jsonl")
    work = SelfInstruct(seeds, Settings(batch_size=4))

    def complete(prompts, first):
        texts = []
        for n in range(first, first + len(prompts)):
            seed = seeds[n % 175]
            seed_again = f" {' '.join(seed.instruction.split())}\n4. Input:\n{seed.input}\n4. Output:\n{seed.output}"
            new = f"5. Instruction: Invent number {n} zq{n} xv{n} kj{n} wp{n}\n5. Input:\n\n5. Output:\nx"
            texts.append(f"{seed_again}\n###\n{new}" if n % 25 == 0 else seed_again)
        return [Completion(text, cut=False) for text in texts]

    with open_journal(tmp_path / "x.journal.jsonl", work.identity()) as journal:
        tasks = make_tasks(work, journal, complete, count=7, give_up=1000)
        dropped = sum((done.dropped for done in journal.rounds), start=Counter())
    assert [task.instruction.split()[2] for task in tasks] == [str(25 * n) for n in range(7)]
    assert all(len(task.most_similar_instructions) == 10 for task in tasks)
    assert dropped.keys() == {"similar", "short", "program"}  # two seeds are short, one begins with "Write a program"
    assert dropped.total() == len(journal.rounds) * 4
    assert len(work.pool) == 175 + 7
