"""Several processes that train together, for tests: a script is started once for each rank, over gloo.

python SCRIPT RANK SIZE FOLDER ...        FOLDER holds what all ranks read and write, the meeting place included
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

TESTS = Path(__file__).parent


def run_ranks(script: Path, size: int, folder: Path, *arguments: object, timeout: float = 240) -> None:
    """Start the script `size` times and wait for all; what one of them complained of is the error."""
    path = os.pathsep.join(map(str, (TESTS.parent / "src", TESTS, TESTS.parent)))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    commands = [[sys.executable, str(script), *map(str, (rank, size, folder, *arguments))] for rank in range(size)]
    ranks = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        complaints = [rank.communicate(timeout=timeout)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    failed = [f"rank {i} of {size}:\n{text}" for i, text in enumerate(complaints) if ranks[i].returncode]
    assert not failed, "\n".join(failed)


@contextmanager
def joined(rank: int, size: int, folder: Path) -> Iterator[None]:
    """Within a script: the process group of all ranks, met in `folder`."""
    torch.set_num_threads(1)
    meeting = (folder / f"meeting-{size}").absolute().as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=200))
    try:
        yield
    finally:
        dist.destroy_process_group()
