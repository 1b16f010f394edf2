"""In CI nothing may be skipped: a skip is a failure there, unless its reason is the shared data
that only our own machines have.
"""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def excused(reason: str) -> bool:
    """Whether a skip may stand: outside CI all may; in CI those that need ../shared, where there is
    none.
    """
    return os.environ.get("CI", "").lower() != "true" or (
        "shared" in reason and not SHARED.exists()
    )


def strict(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turns the report of an inexcusable skip into that of a failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not excused(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    strict(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    strict(report)
    return report
