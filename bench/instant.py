"""A plugin for pytest: failures are printed when they happen, and tests end before $LIMIT seconds.

``-p bench.instant``, for a run that may be killed: pytest itself says at the end what failed.
"""

from __future__ import annotations

import os
import time

import pytest

STARTED = time.monotonic()
LAST = 20
"""seconds before the limit in which no test starts, and pytest sums up"""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print the traceback of what failed."""
    if report.failed:
        print(f"\n--- {report.nodeid}, {report.when}\n{report.longreprtext}\n---", flush=True)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Stop where the time is nearly over."""
    limit = float(os.environ.get("LIMIT", "inf"))
    if time.monotonic() - STARTED > limit - LAST:
        item.session.shouldstop = f"out of time, {limit:g} s; tests after {item.nodeid} did not run"
