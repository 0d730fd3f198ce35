"""Save and resume: everything comes back bit for bit, and a checkpoint of another run is refused."""

import pytest
import torch

from data import Example, collate
from llama import Llama, LlamaConfig
from optim8bit import AdamW8bit
from training import Progress, checkpoints, load_state, optimizer_step, save_state

CONFIG = LlamaConfig(31, 64, 1, 2, 2, 96)
BATCH = collate([[Example([1, 5, 6, 7, 2], [False, True, True, True, True])]], pad_id=0)
SAME = {"optim.lr": "0.01"}


def make(seed: int) -> tuple[Llama, AdamW8bit]:
    model = Llama(CONFIG).init_weights(torch.Generator().manual_seed(seed), std=0.2)
    return model, AdamW8bit(model.parameters(), lr=0.01)


def train(model: Llama, optimizer: torch.optim.Optimizer, steps: int) -> list[str]:
    return [optimizer_step(model, optimizer, [BATCH], clip=1.0).loss.hex() for _ in range(steps)]


def test_resumed_run_is_bit_identical(tmp_path):
    model, optimizer = make(0)
    train(model, optimizer, 3)
    torch.manual_seed(7)
    save_state(tmp_path, model, optimizer, Progress(3, 15, SAME), keep=2)
    expected_random = torch.rand(4)
    expected = train(model, optimizer, 3)

    other, other_optimizer = make(1)
    torch.manual_seed(0)
    progress = load_state(checkpoints(tmp_path)[-1], other, other_optimizer, SAME)
    assert progress == Progress(3, 15, SAME)
    assert torch.equal(torch.rand(4), expected_random)
    assert train(other, other_optimizer, 3) == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_only_the_newest_are_kept(tmp_path):
    model, optimizer = make(0)
    for step in (1, 2, 10):
        save_state(tmp_path, model, optimizer, Progress(step, 0, SAME), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]
    assert not list(tmp_path.glob(".*"))


def test_other_settings_are_refused_by_name(tmp_path):
    model, optimizer = make(0)
    save_state(tmp_path, model, optimizer, Progress(1, 0, SAME), keep=1)
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.01 then, 0\.02 now"):
        load_state(checkpoints(tmp_path)[0], model, optimizer, {"optim.lr": "0.02"})


def test_other_parameters_are_refused(tmp_path):
    model, optimizer = make(0)
    save_state(tmp_path, model, optimizer, Progress(1, 0, SAME), keep=1)
    model.norm.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"norm\.weight"):
        load_state(checkpoints(tmp_path)[0], model, optimizer, SAME)


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    (tmp_path / "step-00000005").mkdir()
    assert checkpoints(tmp_path) == []
