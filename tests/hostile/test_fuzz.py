"""Bytes of every kind of model file, mutated: the file is read or refused by a FileError, in bounded memory and time.

FUZZ_EXAMPLES=5000 tries as many of each kind instead of the few that continuous integration can afford.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.mutations import Step, mutate, steps
from hostile.sound_files import KINDS, Kind
from hypothesis import HealthCheck, given, settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
FUZZED = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES <= 200,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
IN_PROCESS = [name for name in KINDS if name != "tokenizer.model"]


@pytest.fixture(scope="module", params=IN_PROCESS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Path, bytes]:
    """A kind, a directory that holds a sound file of it, and the file's bytes."""
    kind = KINDS[request.param]
    folder = tmp_path_factory.mktemp("sound")
    kind.make(folder)
    kind.read(folder)  # it is sound, and torch has used each operator once
    return kind, folder, (folder / kind.file).read_bytes()


@FUZZED
@given(damage=steps)
def test_a_mutated_file_is_read_or_refused(
    sound: tuple[Kind, Path, bytes], damage: list[Step], survives: Callable, count_faults: Callable
) -> None:
    kind, folder, content = sound
    (folder / kind.file).write_bytes(mutate(content, damage, is_text=kind.is_text))
    shutil.rmtree(folder / "out", ignore_errors=True)
    survives(lambda: kind.read(folder), folder / kind.file)
    count_faults(f"fuzzed {kind.name}")


TOKENIZER_LOOP = """
import json, random, sys
from pathlib import Path
from files import FileError
from hostile.mutations import mutate
from hostile.sound_files import KINDS

folder, examples = Path(sys.argv[1]), int(sys.argv[2])
kind, draw, read = KINDS["tokenizer.model"], random.Random(0), 0
kind.make(folder)
content = (folder / kind.file).read_bytes()
names = ("flip", "overwrite", "insert", "delete", "cut", "splice", "extreme")
for example in range(examples):
    damage = [
        (draw.choice(names), draw.randrange(2**20), draw.randrange(2**20), draw.randbytes(draw.randrange(1, 9)))
        for _ in range(draw.randrange(1, 5))
    ]
    (folder / kind.file).write_bytes(mutate(content, damage, is_text=False))
    print(example, file=sys.stderr, flush=True)  # the last one is the culprit if the process dies
    try:
        kind.read(folder)
        read += 1
    except FileError as error:
        str(error).encode()
print(json.dumps({"read": read, "tried": examples}))
"""


def test_a_mutated_tokenizer_never_takes_the_process_down(tmp_path: Path, count_faults: Callable) -> None:
    """SentencePiece is C++, which can do worse than raise: so in a process of its own."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", TOKENIZER_LOOP, str(tmp_path), str(EXAMPLES)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=30 + EXAMPLES,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = json.loads(done.stdout)
    assert outcome["tried"] == EXAMPLES and 0 < outcome["read"] < EXAMPLES  # some damages are harmless, some are not
    count_faults("fuzzed tokenizer.model", outcome["tried"])


def test_the_measure_of_memory_would_notice(survives: Callable, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"small")
    with pytest.raises(AssertionError, match=r"\d+ MiB for a file of 5 bytes"):
        survives(lambda: bytearray(os.urandom(2**20)) * 100, tmp_path / "a")
    assert survives(lambda: bytearray(os.urandom(2**20)) * 10, tmp_path / "a")
