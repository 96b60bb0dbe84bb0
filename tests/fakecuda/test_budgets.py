"""Launches, compiled kernels, nodes, host operations and memory against what is recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "budgets.json").read_text(encoding="utf-8"))
HINT = "if that is meant, run tests/fakecuda/measure.py and record it in budgets.json"


@pytest.fixture(scope="module")
def measured():
    done = subprocess.run(
        [sys.executable, str(HERE / "measure.py")], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_versions_are_those_of_the_record():
    version = torch.__version__.split("+")[0], triton.__version__
    assert version == tuple(RECORDED["versions"].values()), "other versions launch other kernels"


@pytest.mark.parametrize("part", [name for name in RECORDED if name != "versions"])
def test_counts_are_those_of_the_record(measured, part):
    assert measured[part] == RECORDED[part], HINT
