"""8-bit Adam on parameters cut over processes: the step of one process, bit for bit, on each one's rows."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import torch
from ranks import run_ranks
from torch import nn

from optim8bit import AdamW8bit
from optim8bit.blockwise import n_blocks
from optim8bit.sharding import blocks_are_whole, cuts_between_blocks, is_sharded, local_part, own_rows, scales_shape


def test_two_and_four_processes_together_take_the_step_of_one(tmp_path):
    """Even, uneven and empty shards, matrices and vectors, 8 and 32 bits; again after a reload."""
    run_ranks(Path(__file__).with_name("sharded_adam_ranks.py"), 4, tmp_path)
    assert len(list(tmp_path.glob("passed-*"))) == 4


def test_no_block_is_shared_where_the_rule_says_so():
    """Every small matrix on 2 to 8 ranks, blocks of 4: values and scales, cut as torch.chunk cuts, fit together."""
    allowed = 0
    for ranks, rows, columns in product(range(2, 9), range(1, 30), range(1, 14)):
        n = rows * columns
        borders = [min(rank * -(-rows // ranks) * columns, n) for rank in range(ranks + 1)]
        scales = [min(rank * -(-n_blocks(n, 4) // ranks), n_blocks(n, 4)) for rank in range(ranks + 1)]
        fit = all(value in (4 * scale, n) for value, scale in zip(borders, scales, strict=True))
        fit &= all(4 * scale >= n for value, scale in zip(borders, scales, strict=True) if value == n)
        assert not cuts_between_blocks(rows, columns, ranks, 4) or fit, (ranks, rows, columns)
        allowed += cuts_between_blocks(rows, columns, ranks, 4)
    assert allowed > 300


def test_an_ordinary_tensor_is_its_own_part():
    p = torch.zeros(8, 512)
    assert not is_sharded(p) and local_part(p) is p and own_rows(p, p) is p
    assert blocks_are_whole(p, 256) and scales_shape(p, 256) == (16,)


def test_one_process_does_not_import_what_it_does_not_need():
    """torch's DTensor takes a second to import, as long as all the rest."""
    code = "import sys, optim8bit; assert 'torch.distributed.tensor' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prepared_state_is_that_before_the_first_step():
    stepped, prepared = (AdamW8bit([nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(3))]) for _ in range(2))
    prepared.prepare_state()
    assert prepared.state_bytes() == (8320, 24)
    for optimizer in (stepped, prepared):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    for p, q in zip(stepped.param_groups[0]["params"], prepared.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)
        for name, value in stepped.state[p].items():
            other = prepared.state[q][name]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
