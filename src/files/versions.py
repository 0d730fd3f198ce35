"""Which programs made a file: what a reader needs to make the same numbers again."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("medalpaca-from-scratch", "torch", "numpy", "sentencepiece", "safetensors")


def versions() -> dict[str, str]:
    """Name and version of Python and of each package that numbers depend on; those not installed are left out.

    >>> "python" in versions()
    True
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
