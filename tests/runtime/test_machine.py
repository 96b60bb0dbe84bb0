"""The cores and the memory that this process may use."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from ddfm_fast.runtime import machine
from ddfm_fast.runtime.machine import cpu_model, total_bytes, usable_cores


@pytest.mark.parametrize("text, cores", [("max 100000", 8), ("250000 100000", 2), ("1 100000", 1)])
def test_cores_of_a_container(tmp_path, monkeypatch, text, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert usable_cores(tmp_path / "cpu.max") == cores
    assert usable_cores(tmp_path / "none") == 8


def test_this_machine():
    assert cpu_model() and 1 <= usable_cores() <= (os.cpu_count() or 1)
    total = total_bytes()
    assert total is None or total > 2**20


NAMES = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"


def openmp_after_import(before: str = "", **chosen: str) -> dict[str, str]:
    """Return the variables that OpenMP reads, in a new process that imports the package."""
    code = f"import json, os{before}; import ddfm_fast; print(json.dumps(dict(os.environ)))"
    environment = {k: v for k, v in os.environ.items() if k not in NAMES}
    environment |= {"PYTHONPATH": str(ROOT), **chosen}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    return {name: found[name] for name in NAMES if name in found}


def test_threads_soon_sleep_unless_the_user_has_chosen():
    assert openmp_after_import()["GOMP_SPINCOUNT"] == "1000"
    assert "GOMP_SPINCOUNT" not in openmp_after_import(OMP_WAIT_POLICY="ACTIVE")
    assert openmp_after_import(GOMP_SPINCOUNT="7")["GOMP_SPINCOUNT"] == "7"


def test_after_torch_it_is_too_late_and_nothing_is_set():
    assert openmp_after_import(", torch") == {}


def test_no_more_threads_than_the_container_has_cores(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    machine.quiet_openmp()
    assert os.environ["OMP_NUM_THREADS"] == "1"
    os.environ["OMP_NUM_THREADS"] = "3"
    machine.quiet_openmp()
    assert os.environ["OMP_NUM_THREADS"] == "3"
