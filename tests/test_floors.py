"""Who may import whom: the basement nobody here, floor 0 the basement, floor 1 floor 0 (and recipe); never upwards or
sideways.

The packages: files, native, pages (basement); llama, lora, int8, optim8bit, data (floor 0); recipe, training,
evaluation, serving (floor 1).
"""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
BASEMENT = {"files", "native", "pages"}
FLOOR_0 = {"llama", "lora", "int8", "optim8bit", "data"}
MAY_IMPORT = (
    dict.fromkeys(BASEMENT, frozenset())
    | dict.fromkeys(FLOOR_0, BASEMENT)
    | {
        "recipe": BASEMENT | FLOOR_0,
        "training": BASEMENT | FLOOR_0 | {"recipe"},
        "evaluation": BASEMENT | FLOOR_0 | {"recipe"},
        "serving": BASEMENT | FLOOR_0 | {"recipe"},
    }
)


def imported_packages(path: Path) -> set[str]:
    """Top-level names a module imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def modules() -> list[Path]:
    return sorted(SOURCE.glob("*/**/*.py"))


def test_every_package_has_its_floor():
    assert {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()} == MAY_IMPORT.keys()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_import_goes_up_or_sideways(path):
    package = path.relative_to(SOURCE).parts[0]
    foreign = imported_packages(path) & MAY_IMPORT.keys() - {package}
    assert foreign <= MAY_IMPORT[package], f"{package} must not import {sorted(foreign - MAY_IMPORT[package])}"


def test_peers_are_imported_by_parity_tests_and_benchmarks_only():
    peers = {"transformers", "peft", "bitsandbytes", "torchao", "rouge_score"}
    assert {path for path in [*modules(), *ROOT.glob("*.py")] if imported_packages(path) & peers} == set()


def test_no_unsafe_pickle():
    """`torch.load` runs code from a checkpoint unless told not to: every call here says weights_only=True."""
    for path in [*modules(), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in {"pickle.load", "pickle.loads"}:
                raise AssertionError(f"{path}:{node.lineno} unpickles")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only") == "True"
                assert safe, f"{path}:{node.lineno} torch.load without weights_only=True"


def test_dependencies_are_those_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    core = {name.split(">")[0] for name in declared}
    assert core == {"torch", "numpy", "sentencepiece", "safetensors", "tyro", "rich", "jinja2"}
