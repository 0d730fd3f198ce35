"""Peak memory of loading: the finished model and about one tensor, never the model twice, never 16 bits before 8.

Measured by the kernel in a fresh process: VmHWM (the most pages ever resident, those of mapped files included) after
`clear_refs` has reset it, less what was resident before.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from files.reading import REMAP_BYTES
from llama.checkpoint import save_checkpoint
from llama.checkpoint.names import parameter_shapes
from llama.config import LlamaConfig
from llama.model import Llama

# 197 MB in bf16; the largest tensor, the embedding, 8 MB.
CONFIG = LlamaConfig(vocab_size=4096, dim=1024, n_layers=7, n_heads=16, n_kv_heads=16, hidden_dim=2816)
BYTES = 2 * CONFIG.n_parameters
LARGEST = 2 * CONFIG.vocab_size * CONFIG.dim
# Python objects of the headers, code touched for the first time, a converter's buffers.
SLACK = 8 * 2**20

MEASURE = """
import gc, json, sys
from functools import partial
from int8 import Int8Linear
from llama.checkpoint import convert_checkpoint, load_checkpoint

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key + ":"))

def measured(load, folder):
    load(folder + "-small")  # what only a first use loads
    gc.collect()
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    model = load(folder)
    held = sum(tensor.nbytes for tensor in model.state_dict().values()) if model else 0
    return {"held": held, "peak": status("VmHWM") - before}

load = partial(load_checkpoint, progress=False)
to_int8 = partial(load, convert_linear=partial(Int8Linear.from_linear, threshold=6.0))
def convert(folder):
    convert_checkpoint(folder, folder + "-converted", progress=False)

folder = sys.argv[1]
print(json.dumps({
    "load hf": measured(load, folder + "/hf"), "load meta": measured(load, folder + "/meta"),
    "int8 hf": measured(to_int8, folder + "/hf"), "int8 meta": measured(to_int8, folder + "/meta"),
    "convert hf": measured(convert, folder + "/hf"),
}))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    folder = tmp_path_factory.mktemp("large")
    small = LlamaConfig(vocab_size=64, dim=64, n_layers=1, n_heads=4, n_kv_heads=4, hidden_dim=64)
    for suffix, config in (("", CONFIG), ("-small", small)):
        with torch.device("meta"):
            model = Llama(config).bfloat16()
        model = model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.fill_(0.5)
        for layout in ("hf", "meta"):
            save_checkpoint(model, folder / (layout + suffix), layout, max_shard_bytes=64 * 10**6)
    # glibc keeps what was freed below a threshold that grows to 32 MB. A 7B's matrices are beyond that; these are not.
    environment = os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    finished = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], stdout=subprocess.PIPE, text=True, env=environment, check=True
    )
    return json.loads(finished.stdout)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux keeps the peak in /proc")
@pytest.mark.parametrize(
    ("what", "mapped"),
    [
        ("load hf", LARGEST),
        ("load meta", REMAP_BYTES + LARGEST),
        ("int8 hf", LARGEST),
        ("int8 meta", REMAP_BYTES + LARGEST),
        ("convert hf", LARGEST),
    ],
)
def test_peak_is_the_finished_model_and_a_tensor(
    what: str, mapped: int, measured: dict[str, dict[str, int]], check_bound: Callable[[str, float, float], None]
) -> None:
    held, peak = measured[what]["held"], measured[what]["peak"]
    if what.startswith("int8"):
        assert held < 0.6 * BYTES
    else:
        assert held == (0 if what == "convert hf" else BYTES)
    bound = held + mapped + SLACK
    assert bound < 1.5 * BYTES  # or the model could have been there twice
    check_bound(f"checkpoint: peak bytes, {what}", peak, bound)


def test_the_measured_model_is_as_large_as_it_is_said_to_be() -> None:
    assert sum(2 * torch.Size(shape).numel() for shape in parameter_shapes(CONFIG).values()) == BYTES
    assert BYTES > 190e6
