"""Several processes take the steps that one would take, whatever is uneven, and go on as if nothing had happened."""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import forked_team
import pytest
import team_runs
import torch
from forked_team import Ended, Teams
from team_runs import LORA_8BIT, STEPS, arguments, same, trained, values
from tiny_models import tiny_llama, train_tokenizer

from data import IGNORE, Example, PromptTemplate, collate
from llama import Tokenizer
from recipe import RunConfig, RunData, plan_steps
from recipe.config import DataSection, OptimSection, TrainSection
from training import ALONE, Team, blank, causal_lm_loss, own_share
from training.parallel import agree_on_run

teams = forked_team.teams
base = team_runs.base


def largest_difference(a: Path, b: Path, *names: str) -> float:
    """The largest relative one over all steps."""
    differences = []
    for name in names:
        found, wanted = values(a, name), values(b, name)
        assert found.keys() == wanted.keys()
        differences += [abs(found[step] - wanted[step]) / wanted[step] for step in wanted]
    return max(differences)


def check_same_run(check_bound, what: str, a: Path, b: Path) -> None:
    """Two runs whose sums were added up in another order.

    Of float32 sums the last bits differ, a few 6e-8 a step, carried through 10 steps. Where codes of 8 bits are
    rounded, such a bit may move one to the next code, a 127th of its row's or block's largest: the gradient's norm
    may then be so much different, and the loss, to which all codes add, much less.
    """
    rounded = "8bit" in what
    losses = largest_difference(a, b, "loss", "validation_loss")
    check_bound(f"{what}: losses", losses, 1e-3 if rounded else 2e-6)
    check_bound(f"{what}: gradient norms", largest_difference(a, b, "gradient_norm"), 1 / 127 if rounded else 2e-6)


# --- As one process ---


@pytest.mark.parametrize(
    ("what", "sizes", "flags"),
    [
        ("lora", (2, 4), ("--train.method", "lora")),
        ("lora, packed", (2,), ("--train.method", "lora", "--data.packing")),
        ("lora-8bit", (2, 4), LORA_8BIT),
        ("lora-8bit, exact", (2,), (*LORA_8BIT, "--int8.backward", "exact")),
    ],
)
def test_losses_are_one_processs(teams, base, tmp_path, check_bound, what, sizes, flags):
    """Dropout 0.1, an uneven last step, 7 validation rows in 1 batch for up to 4 ranks."""
    one = trained(teams, 1, base, tmp_path / "1", *flags)
    assert max(values(one, "loss")) >= (2 if "packed" in what else STEPS)
    for size in sizes:
        several = trained(teams, size, base, tmp_path / str(size), *flags)
        check_same_run(check_bound, f"{what}, {size} processes against 1", several, one)


def test_two_micro_batches_on_two_processes_are_one_processs_bit_for_bit(teams, base, tmp_path):
    """The sum of two numbers has only one order; so whatever else differed would show."""
    flags = (*LORA_8BIT, "--train.batch-size", "4", "--data.validation-rows", "1", "--train.max-steps", "6")
    one, two = (trained(teams, size, base, tmp_path / str(size), *flags) for size in (1, 2))
    assert same(one, two)


@pytest.mark.parametrize("method", [("--train.method", "lora"), LORA_8BIT], ids=["lora", "lora-8bit"])
def test_a_killed_team_goes_on_bit_for_bit(teams, base, tmp_path, check_bound, count_faults, method):
    """With as many processes; with more or fewer it goes on from the same numbers, and sums them in another order."""
    saving = (*method, "--train.save-every", "2")
    whole = trained(teams, 2, base, tmp_path / "whole", *saving)
    for size in (2, 1) if method is LORA_8BIT else (2, 4):
        output = tmp_path / f"killed-{size}"
        ended = teams.run(2, arguments(base, output, *saving), before="at_step(6, die)")
        assert ended.codes == [-9, -9]
        trained(teams, size, base, output, *saving, "--resume", "auto")
        if size == 2:
            assert same(output, whole)
        else:
            check_same_run(check_bound, f"{method[1]}, 2 processes resumed by {size}", output, whole)
    count_faults("whole teams killed", 2)


def test_four_resumed_processes_sum_in_the_same_order(teams, base, tmp_path):
    """Of two numbers there is only one sum; from three on the order counts."""
    flags = ("--train.method", "lora", "--train.save-every", "5")
    whole = trained(teams, 4, base, tmp_path / "whole", *flags)
    output = tmp_path / "killed"
    assert set(teams.run(4, arguments(base, output, *flags), before="at_step(7, die)").codes) == {-9}
    assert same(trained(teams, 4, base, output, *flags, "--resume", "auto"), whole)


# --- One of them ends ---


def disturbed(teams: Teams, base: Path, output: Path, before: str, *more: str) -> Ended:
    hurry = "roll_call.PATIENCE = 2.0"
    flags = ("--train.method", "lora", "--train.save-every", "1", *more)
    return teams.run(2, arguments(base, output, *flags), before=f"{hurry}\n{before}")


@pytest.fixture(scope="module")
def undisturbed(teams, base, tmp_path_factory) -> Path:
    return trained(
        teams,
        2,
        base,
        tmp_path_factory.mktemp("undisturbed") / "run",
        "--train.method",
        "lora",
        "--train.save-every",
        "1",
    )


def goes_on(teams: Teams, base: Path, output: Path, undisturbed: Path) -> None:
    flags = ("--train.method", "lora", "--train.save-every", "1", "--resume", "auto")
    assert same(trained(teams, 2, base, output, *flags), undisturbed)


FULL_DISK = "import training.state\ndef publish(*_): raise OSError(28, 'No space left on device', 'the disk')\n"


RARER = {"marks": pytest.mark.faults}
"""Kept for the long sweeps: much like one of the others."""


@pytest.mark.parametrize(
    ("victim", "fault", "code", "message"),
    [
        (1, "at_step(4, die)", -9, "rank 1 of 2 is gone"),
        (0, "at_step(7, die)", -9, "rank 0 of 2 is gone"),
        pytest.param(1, "at_step(1, die)", -9, "rank 1 of 2 is gone", **RARER),
        pytest.param(1, "at_step(1, die, 'find_checkpoint')", -9, "rank 1 of 2 is gone", **RARER),
        (1, "at_step(1, die, 'build_engine')", -9, "rank 1 of 2 is gone"),
        pytest.param(1, "at_step(2, die, 'validation_loss')", -9, "rank 1 of 2 is gone", **RARER),
        (1, "at_step(3, die, 'save_state')", -9, "rank 1 of 2 is gone"),
        pytest.param(0, "at_step(3, die, 'save_state')", -9, "rank 0 of 2 is gone", **RARER),
        (1, "at_step(5, lambda: fail(ValueError('bad row')))", 1, "rank 1 of 2 failed (ValueError: bad row)"),
        pytest.param(
            1, "at_step(5, lambda: fail(torch.OutOfMemoryError('2 GB')))", 1, "1 of 2 failed (MemoryError", **RARER
        ),
        (0, "at_step(3, lambda: setattr(training.state, 'publish', publish))", 1, "No space left on device"),
    ],
)
def test_when_one_ends_all_end_and_the_run_goes_on(
    teams, base, tmp_path, undisturbed, count_faults, victim, fault, code, message
):
    output = tmp_path / "run"
    ended = disturbed(teams, base, output, f"{FULL_DISK}if rank == {victim}: {fault}")
    assert ended.codes[victim] == code
    assert ended.codes[1 - victim] == 1
    assert message in ended.texts[1 - victim].strip().splitlines()[-1], ended.texts[1 - victim]
    assert max(ended.seconds) < 15  # 2 s of patience, and the rest for a machine that is busy with other tests
    assert not list((output / "checkpoints").glob(".*"))
    goes_on(teams, base, output, undisturbed)
    count_faults("one of a team's processes ended")


@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)])
def test_sigterm_to_any_of_them_stops_all_after_the_same_step(teams, base, tmp_path, undisturbed, victims):
    output = tmp_path / "run"
    before = f"if rank in {victims}: at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))"
    ended = disturbed(teams, base, output, before)
    assert ended.codes == [143, 143], ended.texts
    assert "stopped after step 4 of 10, saved" in ended.texts[0]
    goes_on(teams, base, output, undisturbed)


def test_when_torchrun_is_gone_the_run_stops_well(teams, base, tmp_path, undisturbed):
    before = "import time\nat_step(3, lambda: os.kill(int(os.environ['KEEPER']), signal.SIGKILL)) if rank else None\n"
    ended = disturbed(
        teams, base, tmp_path / "run", before + "for n in range(4, 10): at_step(n, lambda: time.sleep(0.3))"
    )
    assert ended.codes == [143, 143], ended.texts
    assert "stopped after step" in ended.texts[0]
    goes_on(teams, base, tmp_path / "run", undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(12))
def test_whoever_is_killed_at_whatever_moment(teams, base, tmp_path, undisturbed, count_faults, seed):
    draw = torch.Generator().manual_seed(seed)
    victim = int(torch.randint(2, (), generator=draw))
    moment = 2.5 * float(torch.rand((), generator=draw))
    output = tmp_path / "run"
    flags = ("--train.method", "lora", "--train.save-every", "1")
    ended = teams.run(2, arguments(base, output, *flags), signals=[(moment, victim, 9)], watched=True)
    if ended.codes[victim] == -9:  # else it had ended before
        # By its own error; by torchrun's signal, where there is nothing yet to end well; or well, at the very end.
        assert ended.codes[1 - victim] in (1, -15, 143) or (victim, ended.codes[1]) == (0, 0), ended.texts
        assert max(ended.seconds) < 30
    if not (output / "adapter/adapter_model.safetensors").exists():
        goes_on(teams, base, output, undisturbed)
        count_faults("one of a team's processes ended")


# --- What cannot work is refused ---


def test_too_few_micro_batches_are_refused_before_anything_is_loaded(teams, base, tmp_path):
    ended = teams.run(2, arguments(base, tmp_path / "run", "--train.micro-batch-size", "8"))
    assert ended.codes == [1, 1]
    for text in ended.texts:
        assert "is 1 micro-batches of 8, too few for 2 processes: lower train.micro_batch_size" in text
        assert "loaded" not in text


def test_a_checkpoint_that_only_rank_0_sees_is_refused_by_all(teams, base, tmp_path):
    """Two machines without a common disk: each has an output directory of its own."""
    flags = ("--train.method", "lora", "--train.save-every", "5", "--train.max-steps", "5")
    trained(teams, 2, base, tmp_path / "0/run", *flags)
    (tmp_path / "1").mkdir()
    apart = f"os.chdir({str(tmp_path)!r} + f'/{{rank}}')"
    ended = teams.run(2, arguments(base, Path("run"), *flags, "--resume", "auto"), before=apart)
    assert ended.codes == [1, 1], ended.texts
    for text in ended.texts:
        assert "step-00000005" in text


def test_other_data_on_another_machine_are_refused_by_all(teams, base, tmp_path):
    (tmp_path / "1").mkdir()
    rows = json.loads((base / "rows.json").read_text())
    (tmp_path / "1/rows.json").write_text(json.dumps([*rows[:-1], rows[-1] | {"output": "another drug"}]))
    ended = teams.run(
        2, arguments(base, tmp_path / "run"), before=f"if rank == 1: arguments += ['--data.folder', '{tmp_path}/1']"
    )
    assert ended.codes == [1, 1], ended.texts
    for text in ended.texts:
        assert " on rank 0 and " in text and "data is " in text
        assert "all processes need the same command line and the same files" in text
        assert "loaded" not in text  # before the base is


def a_run(**data: object) -> tuple[RunConfig, RunData]:
    config = RunConfig(
        data=DataSection(files=("rows.json",), max_length=16),
        optim=OptimSection(lr=0.1),
        train=TrainSection(batch_size=4, micro_batch_size=2, epochs=1),
    )
    examples = [Example([1, 5 + n, 2], [False, True, True]) for n in range(8)]
    return config, replace(RunData(examples, examples[:2], PromptTemplate.named("alpaca"), None, []), **data)


class Pair(Team):
    """Rank 0 of two, where the other has said beforehand what it holds."""

    def __init__(self, said: dict[str, str] | None = None) -> None:
        super().__init__(0, 2)
        object.__setattr__(self, "said", said)

    def everyones(self, value):
        if self.said is None:
            object.__setattr__(self, "said", value)
        return [value, self.said]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"optim": OptimSection(lr=0.2)}}, r"optim\.lr is 0\.1 on rank 0 and 0\.2 on rank 1: all processes"),
        ({"config": {"train": TrainSection(batch_size=4, micro_batch_size=2, epochs=1, save_every=3)}}, "train.save_e"),
        ({"data": {"validation": []}}, "the validation data is .* on rank 0 and .* on rank 1"),
        ({"data": {"train": [Example([1, 9, 2], [False, True, True])] * 8}}, "the training data is"),
        ({"data": {"train": [Example([1, 9, 2], [False, True, True])] * 5}}, "the order of the rows is"),
    ],
)
def test_a_run_that_is_another_on_another_rank_is_refused(tmp_path, change, message):
    """Before anything waits: another save_every alone would make one rank save while the others step on."""
    tokenizer = Tokenizer(train_tokenizer(tmp_path))
    config, data = a_run()
    other_config, other_data = replace(config, **change.get("config", {})), replace(data, **change.get("data", {}))
    other = Pair()
    agree_on_run(other, other_config, tokenizer, other_data, plan_steps(other_config, list(map(len, other_data.train))))
    with pytest.raises(ValueError, match=message):
        agree_on_run(Pair(other.said), config, tokenizer, data, plan_steps(config, list(map(len, data.train))))


def test_where_files_lie_may_differ_from_machine_to_machine(tmp_path):
    tokenizer = Tokenizer(train_tokenizer(tmp_path))
    config, data = a_run()
    plan = plan_steps(config, list(map(len, data.train)))
    other = Pair()
    elsewhere = replace(config, data=replace(config.data, folder="/local/data"))
    agree_on_run(other, elsewhere, tokenizer, data, plan)
    agree_on_run(Pair(other.said), config, tokenizer, data, plan)
    agree_on_run(ALONE, config, tokenizer, data, plan)


# --- Parts ---


@pytest.mark.parametrize(("n", "size"), [*product(range(1, 10), (1, 2, 3, 4, 7))])
def test_every_micro_batch_is_somebodys_and_all_run_equally_many(n, size):
    shares = [own_share([[[i]] for i in range(n)], Team(rank, size)) for rank in range(size)]
    assert {len(share) for share in shares} == {math.ceil(n / size)}
    real = [(number, rows) for share in shares for number, rows in share if number >= 0]
    assert sorted(real) == [(i, [[i]]) for i in range(n)]


def test_a_blank_micro_batch_adds_nothing_to_any_gradient():
    model = tiny_llama(0).train()
    batch = collate([[Example([1, 5, 6, 2], [False, True, True, True])]], pad_id=0)
    loss = causal_lm_loss(model, blank(batch), scale=0.25)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert blank(batch).n_tokens == blank(batch).n_supervised == 0
    assert (blank(batch).targets == IGNORE).all() and not (batch.targets == IGNORE).all()


APART = """
import torch.distributed as dist
from lora import LoraConfig, add_lora
from tiny_models import tiny_llama
from training.parallel import Replicated
with joined_team(torch.device("cpu")) as found:
    torch.manual_seed(rank)
    model = add_lora(tiny_llama(0), LoraConfig(r=4, alpha=8, dropout=0.0, targets=("q_proj", "v_proj")))
    base = model.tok_embeddings.weight.clone()
    engine = Replicated(model, found)
    trained = [p for p in model.parameters() if p.requires_grad]
    print(sum(p.abs().sum().item() for p in trained), torch.equal(base, model.tok_embeddings.weight))
    for number in (1, 2):
        with engine.gradient_sync(last=number == 2):
            for place, p in enumerate(trained[1:]):
                p.grad = torch.full_like(p, (rank + 1) * 10.0**place) + (0 if p.grad is None else p.grad)
    print([p.grad.unique().tolist() for p in trained[:4]], model.tok_embeddings.weight.grad)
"""


def test_all_begin_with_rank_0s_adapters_and_sum_once(teams):
    """Twice 1, 2, 3 for the powers of ten; of the first parameter nobody has a gradient."""
    ended = teams.run(3, program=APART)
    assert ended.codes == [0, 0, 0], ended.texts
    assert ended.texts[0] == ended.texts[1] == ended.texts[2]
    start, sums = ended.texts[0].splitlines()
    assert float(start.split()[0]) > 0 and start.endswith("True")
    assert sums == "[[0.0], [12.0], [120.0], [1200.0]] None"
