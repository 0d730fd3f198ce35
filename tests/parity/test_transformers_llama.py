"""Our logits against transformers' LLaMA with the same weights, whole and cached, and the schedule of its Trainer."""

import pytest
import torch
from transformers_peer import as_transformers

from llama import KVCache, Llama, LlamaConfig
from training import learning_rate_factor

transformers = pytest.importorskip("transformers", reason="install the extra: parity")

SHAPES = {
    "multi-head": LlamaConfig(97, 64, 2, 4, 4, 96, norm_eps=1e-6),
    "grouped": LlamaConfig(97, 96, 3, 6, 2, 128, norm_eps=1e-5, rope_theta=500_000.0),
    "one key head": LlamaConfig(97, 48, 2, 3, 1, 80),
    "wide heads": LlamaConfig(97, 128, 1, 1, 1, 64),
}


def pair(config: LlamaConfig):
    """Our model and transformers', with the same random weights, drawn so that logits are of order 1."""
    own = Llama(config).init_weights(torch.Generator().manual_seed(0), std=0.1).eval()
    return own, as_transformers(own)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_logits(check_bound, name):
    own, foreign = pair(SHAPES[name])
    ids = torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(1))
    error = (own(ids) - foreign(ids).logits).abs().max()
    check_bound("parity: logits vs transformers, float32", error, 1e-5)


@torch.no_grad()
def test_cached_logits(check_bound):
    own, foreign = pair(SHAPES["grouped"])
    ids = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(1))
    cache = KVCache(own.config, 2, 24, dtype=torch.float32, device="cpu")
    past = None
    for start, end in ((0, 17), (17, 18), (18, 24)):
        theirs = foreign(ids[:, start:end], past_key_values=past, use_cache=True)
        past = theirs.past_key_values
        error = (own(ids[:, start:end], cache=cache) - theirs.logits).abs().max()
        check_bound("parity: cached logits vs transformers, float32", error, 1e-5)


def test_gradients(check_bound):
    own, foreign = pair(SHAPES["grouped"])
    ids = torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(1))
    own(ids).square().mean().backward()
    foreign(ids).logits.square().mean().backward()
    theirs = foreign.model.layers[0].mlp.down_proj.weight.grad
    error = (own.layers[0].feed_forward.w2.weight.grad - theirs).abs().max() / theirs.abs().max()
    check_bound("parity: gradient vs transformers, of the largest", error, 1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(50, 0), (50, 7), (5, 5)])
def test_schedule(check_bound, schedule, total, warmup):
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = transformers.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for step in range(total):
        factor = learning_rate_factor(step, total_steps=total, warmup_steps=warmup, schedule=schedule)
        check_bound("parity: schedules vs transformers", abs(theirs.get_last_lr()[0] - factor), 1e-12)
        optimizer.step()
        theirs.step()
