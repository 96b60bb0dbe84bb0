"""The cores and the memory that this process may use."""

from __future__ import annotations

import os

import pytest

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
