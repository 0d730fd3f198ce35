"""The suite about itself."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_file_of_tests_that_cannot_be_imported_is_an_error(tmp_path):
    """The search for examples in docstrings would pass over it, and its tests would be missing in silence."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_broken.py").write_text("import no_such_module\n\n\ndef test_nothing():\n    pass\n")
    options = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]["addopts"]
    command = [sys.executable, "-m", "pytest", *options, "-o", "markers=faults", "-p", "no:xdist", "."]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2 and "No module named 'no_such_module'" in ended.stdout, ended.stdout + ended.stderr
