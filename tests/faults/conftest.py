"""One laboratory per process: everything that runs of train.py need, and the process that forks them."""

from collections.abc import Iterator

import pytest
from faults.runs import Lab

collect_ignore = ["zygote.py"]
"""A program: imported, it would change the process that runs the tests."""


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Base, data and configs of all variants, and their undisturbed runs once they are asked for."""
    made = Lab(tmp_path_factory.mktemp("lab"))
    yield made
    made.close()
