"""Does it fit: predicted needs, what a refusal says, and free memory read from a stand-in for /proc and /sys."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_llama

from int8 import convert_to_int8
from llama import LlamaConfig
from llama.config import NAMED
from recipe import RunConfig, meta_model, predict_memory
from recipe.config import TrainSection
from recipe.fit import check_load_fits, check_training_fits, free_memory, load_need

CPU = torch.device("cpu")
SEVEN = LlamaConfig.named("7B")
GB = 10**9


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("int8", [True, False])
def test_loading_peaks_near_the_final_model(name, int8, check_bound):
    need = load_need(LlamaConfig.named(name), torch.bfloat16, int8=int8)
    check_bound(f"loading: peak / final, {'int8' if int8 else 'bf16'}", need.peak / need.final, 1.15)


def test_the_final_bytes_are_those_of_a_real_model():
    for int8 in (False, True):
        model = tiny_llama(0).bfloat16()
        held = convert_to_int8(model).state_dict() if int8 else model.state_dict()
        assert load_need(model.config, torch.bfloat16, int8=int8).final == sum(t.nbytes for t in held.values())


def test_what_is_on_its_way_is_the_largest_tensor():
    embedding = 32_000 * 4096
    assert load_need(SEVEN, torch.bfloat16).in_flight == load_need(SEVEN, torch.bfloat16, int8=True).in_flight
    assert load_need(SEVEN, torch.bfloat16).in_flight == 2 * embedding
    assert load_need(SEVEN, torch.float32).in_flight == 4 * embedding


def test_a_model_that_fits_or_whose_memory_nobody_knows_is_let_through():
    peak = load_need(SEVEN, torch.bfloat16).peak
    check_load_fits(SEVEN, torch.bfloat16, int8=False, free=peak)
    check_load_fits(SEVEN, torch.bfloat16, int8=False, free=None)
    with pytest.raises(ValueError, match=r"13\.7 GB"):
        check_load_fits(SEVEN, torch.bfloat16, int8=False, free=peak - 1)
    check_training_fits(RunConfig(), SEVEN, None)


@pytest.mark.parametrize(
    ("dtype", "int8", "free", "expected"),
    [
        (torch.bfloat16, False, 9.8, "a LLaMA of 6.74B parameters in bfloat16 needs 13.7 GB, 9.8 GB are free: "
         "try --int8, which needs 7.3 GB ("),
        (torch.float32, False, 14, "try --int8, which needs 8.1 GB, or --dtype bfloat16, which needs 13.7 GB ("),
        (torch.float32, False, 7.5, "try --int8 --dtype bfloat16, which needs 7.3 GB ("),
        (torch.float32, True, 7.5, "in int8 and float32 needs 8.1 GB, 7.5 GB are free: "
         "try --dtype bfloat16, which needs 7.3 GB ("),
        (torch.float16, False, 3, "even with --int8 it needs 7.3 GB, and 4.3 GB are missing; "
         "the largest that fits is TinyLlama-1.1B with --int8, which needs 1.4 GB ("),
        (torch.bfloat16, True, 3, "3.0 GB are free: 4.3 GB are missing; the largest that fits is TinyLlama-1.1B"),
        (torch.bfloat16, False, 0.1, "7.2 GB are missing; no published LLaMA fits (--ignore-memory"),
    ],
)  # fmt: skip
def test_a_refusal_names_what_would_fit_and_nothing_else(dtype, int8, free, expected):
    with pytest.raises(ValueError) as refusal:
        check_load_fits(SEVEN, dtype, int8=int8, free=int(free * GB))
    assert expected in str(refusal.value)
    assert "(--ignore-memory" in str(refusal.value)


def test_a_run_that_does_not_fit_is_told_the_settings_that_do():
    run = RunConfig(train=TrainSection(method="lora", micro_batch_size=4))
    checkpointed = replace(run, train=replace(run.train, gradient_checkpointing=True))
    need, less = (predict_memory(meta_model(some, SEVEN), some).total for some in (run, checkpointed))
    check_training_fits(run, SEVEN, need)
    with pytest.raises(ValueError) as refusal:
        check_training_fits(run, SEVEN, less)
    message = str(refusal.value)
    beginning = "this run (method lora, 4 x 512 tokens at once)"
    assert message.startswith(f"{beginning} needs {need / GB:.1f} GB, {less / GB:.1f} GB are free: try ")
    assert f"--train.gradient-checkpointing, which needs {less / GB:.1f} GB" in message
    assert "(--train.ignore-memory" in message


def test_the_settings_proposed_to_a_full_run_make_a_valid_one():
    run = RunConfig(train=TrainSection(method="full", precision="bf16-mixed"))  # which no LoRA method takes
    with pytest.raises(ValueError, match=r"try --train\.method lora-8bit --train\.precision bf16, which"):
        check_training_fits(run, SEVEN, 20 * GB)


def test_a_run_that_nothing_makes_fit_is_told_what_is_missing_with_all_that_it_does_not_do_yet():
    run = RunConfig(train=TrainSection(method="lora", gradient_checkpointing=True, micro_batch_size=1))
    with pytest.raises(ValueError) as refusal:
        check_training_fits(run, SEVEN, 2 * GB)
    assert "free: even with --train.method lora-8bit --train.precision bf16 it needs 7." in str(refusal.value)
    assert " GB are missing; take a smaller base or data.max_length (" in str(refusal.value)


# --- Free memory ---


def system(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree:  1 kB\nMemAvailable:  4000 kB\nHugePages_Total:  0\n"}
VERSION_2 = MEMINFO | {
    "proc/self/cgroup": "0::/user/notebook\n",
    "sys/fs/cgroup/user/notebook/memory.max": "max\n",
    "sys/fs/cgroup/user/notebook/memory.current": "500000\n",
    "sys/fs/cgroup/user/memory.max": "2000000\n",
    "sys/fs/cgroup/user/memory.current": "900000\n",
    "sys/fs/cgroup/user/memory.stat": "anon 300000\nactive_file 200000\ninactive_file 100000\n",
}
VERSION_1 = MEMINFO | {
    "proc/self/cgroup": "5:devices:/\n4:cpu,memory:/docker/abc\n",  # the host's path; inside, only the top is there
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "2000000\n",
    "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 250000\ntotal_active_file 50000\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (MEMINFO, 4000 * 1024),
        (VERSION_2, 2_000_000 - 900_000 + 300_000),  # a group's parent limits it too
        (VERSION_1, 3_000_000 - 2_000_000 + 300_000),
        (VERSION_1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 4000 * 1024),
        (VERSION_1 | {"sys/fs/cgroup/memory/memory.usage_in_bytes": "4000000\n"}, 0),
        ({}, None),
    ],
    ids=["no group", "version 2", "version 1", "no limit", "over its limit", "no Linux"],
)
def test_free_memory(tmp_path, files, expected):
    assert free_memory(CPU, system(tmp_path, files)) == expected


def test_free_memory_here_is_some_or_unknown():
    free = free_memory(CPU)
    assert free is None or free > 0
    assert free_memory(torch.device("meta")) is None
