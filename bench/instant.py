"""A plugin for pytest: failures are printed when they happen, and tests end before $LIMIT seconds.

Use ``-p bench.instant`` if the run may be killed: pytest itself lists failures only at the end.
"""

from __future__ import annotations

import os
import time

import pytest

STARTED = time.monotonic()
LAST = 20
"""seconds before the limit in which no test starts, so that pytest can sum up"""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print the traceback of what failed."""
    if report.failed:
        print(f"\n--- {report.nodeid}, {report.when}\n{report.longreprtext}\n---", flush=True)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Stop when the time is nearly over."""
    limit = float(os.environ.get("LIMIT", "inf"))
    if time.monotonic() - STARTED > limit - LAST:
        item.session.shouldstop = f"out of time, {limit:g} s; tests after {item.nodeid} did not run"
