"""Fixtures every test may use, and the table that closes a run: check, error measured, bound, ratio."""

import math
import os
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch
from _pytest.doctest import DoctestModule
from hypothesis import settings

# Tests measure no time, so neither does hypothesis: a busy machine must not fail one.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

# Triton decides at its import whether kernels are compiled or interpreted; without a GPU there is only the latter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

BOUND = "error and bound"
FAULTS = "faults tried"

# Workers of pytest-xdist share the machine; within one process more threads would only fight each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Examples in docstrings are src's. Here the search for them would only skip, in silence, a file of tests that
    cannot be imported."""
    collectors = yield
    return [collector for collector in collectors if not isinstance(collector, DoctestModule)]


@pytest.fixture
def real_data() -> Path:
    """The directory of real artefacts (models, tokenizers, data sets) that are not part of this project."""
    if not (folder := os.environ.get("REAL_DATA")):
        pytest.skip("REAL_DATA is unset: it names the directory of real models and data sets")
    return Path(folder)


@pytest.fixture
def check_bound(request: pytest.FixtureRequest) -> Callable[[str, float, float], None]:
    """check_bound(name, error, bound): asserts error <= bound and enters both in the closing table.

    One name may be checked many times (parametrized tests, hypothesis); the table keeps its worst ratio.
    """

    def check(name: str, error: float, bound: float) -> None:
        error, bound = float(error), float(bound)
        worst: dict[str, tuple[float, float]] = dict(request.node.user_properties).get(BOUND, {})
        if not worst:
            request.node.user_properties.append((BOUND, worst))
        if name not in worst or _ratio(error, bound) >= _ratio(*worst[name]):
            worst[name] = (error, bound)
        assert error <= bound, f"{name}: error {error:.3g} exceeds its bound {bound:.3g}"  # NaN fails too

    return check


@pytest.fixture
def count_faults(request: pytest.FixtureRequest) -> Callable[..., None]:
    """count_faults(kind, n=1): enters n faults survived in the closing table; call it after the check has passed."""

    def count(kind: str, n: int = 1) -> None:
        tried: dict[str, int] = dict(request.node.user_properties).get(FAULTS, {})
        if not tried:
            request.node.user_properties.append((FAULTS, tried))
        tried[kind] = tried.get(kind, 0) + n

    return count


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In continuous integration a test that skips for want of artefacts or peers fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("CI") or reporter is None or exitstatus:
        return
    reasons = [str(report.longrepr) for report in reporter.stats.get("skipped", [])]
    wanting = ("REAL_DATA", "install the extra", "install Debian's", "install a C compiler", "unable to import module")
    if any(words in reason for reason in reasons for words in wanting):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the faults that were tried, and the worst error of every named check beside its bound."""
    _faults_table(terminalreporter)
    _bounds_table(terminalreporter)


def _faults_table(terminalreporter: pytest.TerminalReporter) -> None:
    tried: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                tried.update(dict(report.user_properties).get(FAULTS, {}))
    if not tried:
        return
    terminalreporter.section("faults injected, each survived as promised")
    width = max(map(len, tried))
    for kind, n in sorted(tried.items()):
        terminalreporter.write_line(f"{kind:<{width}}  {n:>9,}")


def _bounds_table(terminalreporter: pytest.TerminalReporter) -> None:
    worst: dict[str, tuple[float, float]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "call":
                continue
            for name, (error, bound) in dict(report.user_properties).get(BOUND, {}).items():
                if name not in worst or _ratio(error, bound) >= _ratio(*worst[name]):
                    worst[name] = (error, bound)
    if not worst:
        return
    width = max(map(len, worst))
    terminalreporter.section("numerical checks: worst error against its bound")
    terminalreporter.write_line(f"{'check':<{width}}  {'error':>10}  {'bound':>10}  {'ratio':>6}")
    for name, (error, bound) in sorted(worst.items()):
        terminalreporter.write_line(f"{name:<{width}}  {error:>10.3g}  {bound:>10.3g}  {_ratio(error, bound):>6.3f}")


def _ratio(error: float, bound: float) -> float:
    if bound == 0:
        return 0.0 if error == 0 else math.inf
    return error / bound if not math.isnan(error) else math.inf
