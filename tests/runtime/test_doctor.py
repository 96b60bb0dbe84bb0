"""What the doctor finds, and that its report and its text agree."""

from __future__ import annotations

import json

import pytest
import torch

from ddfm_fast.priors import cost
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.ops.choice import ops_for
from ddfm_fast.priors.ops.native import NativeOps
from ddfm_fast.runtime import doctor, environment

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def report() -> dict:
    return doctor.examine()


def test_what_runs_a_step(report):
    backend = report["backend"]
    about = {"name", "solver", "graph", "device", "reason", "cpu_kernels", "cpu_build", "cpu_amx"}
    assert set(backend) == {"ok", *about}
    assert (backend["cpu_build"] is None) == (backend["cpu_kernels"] is not None)
    text = doctor.render(report)
    for title, key in (("backend", "name"), ("solver", "solver"), ("because", "reason")):
        assert f"  {title:<12} {backend[key]}" in text
    amx = backend["cpu_amx"]
    assert f"  AMX          {amx}" in text if amx else "  AMX " not in text
    assert amx is None or amx.startswith(("used in bfloat16", "not used: "))
    assert json.loads(json.dumps(report)) == report


def test_a_backend_that_cannot_be(monkeypatch):
    monkeypatch.setenv("DDFM_FAST_BACKEND", "fast")
    report = doctor.examine()
    assert not report["ok"] and not report["backend"]["ok"]
    assert "FAIL  ValueError: environment variable DDFM_FAST_BACKEND" in doctor.render(report)


def test_environment(monkeypatch):
    for name in (*environment.VARIABLES, *environment.unknown()):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DDFM_FAST_GRAPHS", "3")
    monkeypatch.setenv("DDFM_FAST_GRAPS", "3")
    report = doctor.examine()
    found = report["environment"]
    assert list(found["variables"]) == list(environment.VARIABLES)
    graphs = found["variables"]["DDFM_FAST_GRAPHS"]
    assert (graphs["value"], graphs["set"], graphs["default"]) == ("3", True, "8")
    assert found["unknown"] == ["DDFM_FAST_GRAPS"]
    text = doctor.render(report)
    lines = [line.split() for line in text.splitlines()]
    for name, variable in environment.VARIABLES.items():
        value = ["3"] if name == "DDFM_FAST_GRAPHS" else [variable.default, "(default)"]
        assert [name, *value, *variable.meaning.split()] in lines
    assert [
        "DDFM_FAST_GRAPS",
        "is",
        "set,",
        "but",
        "nothing",
        "in",
        "the",
        "package",
        "reads",
        "it",
    ] in lines


def test_memory_of_priors(report, monkeypatch):
    embedded, official = report["memory"]["rows"]
    assert embedded["weight_bytes"] == 4 * cost.parameter_count(load_prior("embedded").unet.config)
    assert official["weight_bytes"] == 4 * 552_814_086
    assert 0 < official["activation_bytes"]["512x640"] < official["activation_bytes"]["2160x3840"]
    assert "256x256 ADM  float32: weights 2.06 GiB" in doctor.render(report)
    laid_out = 16 * 552_814_086 if isinstance(ops_for(CPU, 552_814_086), NativeOps) else 0
    assert official["layout_bytes"] == laid_out
    laid_out = "as the CPU kernels read them" in doctor.render(report)
    assert laid_out == bool(embedded["layout_bytes"])
    monkeypatch.setattr(doctor, "_prior_memory", lambda: 1 / 0)
    assert "unknown: ZeroDivisionError" in doctor.render(doctor.examine())
