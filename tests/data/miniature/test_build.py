import json
import subprocess
import sys

from data.miniature import build, demo_questions, folder, meadow, world


def test_the_bundled_files_are_what_the_builder_writes(tmp_path):
    """Rebuilt in another process, with another hash seed and into another folder: the same bytes."""
    command = [sys.executable, "-m", "data.miniature.build", "--out", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    built = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    assert len(built) == 13 and "facts: written in" in printed
    for name, path in built.items():
        assert (folder() / name).read_bytes() == path.read_bytes(), f"{name} is stale: run make miniature"


def test_json_is_one_row_a_line():
    assert build.to_json([{"a": "é"}, {"a": "b"}]) == '[\n{"a": "é"},\n{"a": "b"}\n]\n'.encode()
    assert json.loads(build.to_json({"1": "B"})) == {"1": "B"}


def test_the_base_is_small_enough_to_bundle():
    files = [path for path in (folder() / "base").iterdir() if path.is_file()]
    assert {"config.json", "model.safetensors", "tokenizer.model"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) <= 6e6


def test_demo_questions_ask_about_two_taught_facts_and_one_held_back():
    known = [
        [fact in meadow.taught_facts() for fact in world.facts() if question in map(fact.say, fact.relation.ask)]
        for question in demo_questions()
    ]
    assert known == [[True], [True], [False]]
