"""The benchmarks and the script for a GPU, as far as a machine without one can tell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def test_the_suite_says_that_there_is_no_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    run = subprocess.run(
        ["bash", "bench/gpu_suite.sh", str(tmp_path / "out")], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    assert run.returncode == 0 and run.stdout == "no GPU: skipped\n", run.stdout + run.stderr
    assert not (tmp_path / "out").exists()


def test_the_gpu_benchmark_rehearses_on_the_cpu(tmp_path):
    """Every section runs and is written down; the figures mean nothing."""
    pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
    command = [sys.executable, "-m", "bench.gpu", "--rehearse", "--out", str(tmp_path)]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    found = {result["what"]: result for result in report["results"]}
    assert list(found) == [
        "step after the prior", "kernels", "whole loop, embedded prior", "launches of a step",
    ]  # fmt: skip
    steps = found["step after the prior"]["samples_us"]
    assert {"reference", "twin, eager", "torch, graph", "tile, graph"} <= set(steps)
    assert all(len(samples) == 1 and samples[0] > 0 for samples in steps.values())
    assert "gpu" not in report["machine"], "a rehearsal names no GPU"
    assert "| rhs kernel |" in (tmp_path / "gpu.md").read_text()
