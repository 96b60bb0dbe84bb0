"""The benchmarks and the script for a GPU, as far as a machine without one can tell."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


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
    """Every section of a GPU runs and is written down; the figures mean nothing."""
    pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
    sections = ["kernels", "step", "prior", "waterfall", "official"]
    command = [sys.executable, "-m", "bench", *sections, "--rehearse"]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, "--quiet", "--save", "--out", str(tmp_path)],
        cwd=ROOT, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = tmp_path.glob("rehearsal-*.json")
    report = json.loads(path.read_text())
    found = {m["section"]: m for m in report["measurements"]}
    assert set(sections) == found.keys()
    steps = found["step"]["candidates"]
    assert {"reference", "twin, eager", "torch, graph", "local, graph"} <= steps.keys()
    assert all(len(c["samples"]) == 1 and c["samples"][0] > 0 for c in steps.values())
    alone = found["kernels"]["candidates"]
    assert {"rhs kernel", "rhs, twin", "update kernel", "spectral scale"} <= alone.keys()
    checks = {p["what"] for p in found["kernels"]["parity"] + found["step"]["parity"]}
    assert {"rhs kernel against its twin", "update kernel against its twin"} <= checks
    assert any("local against its twin" in what for what in checks)
    assert {"fused kernels", "CUDA graph"} <= found["waterfall"]["candidates"].keys()
    official = {m["name"].removeprefix("official network, "): m for m in report["measurements"]}
    forward = official["forward, bfloat16, batch 1"]["candidates"]
    assert {"reference", "reference, bfloat16", "ddfm_fast", "ddfm_fast, eager"} <= forward.keys()
    ends = official["convolution 3->32 3x3, 1 in a forward"]["candidates"]
    assert {"cuDNN, heuristic", "cuDNN, benchmark", "ddfm_fast"} <= ends.keys()
    norms = official["norm and SiLU, 32 channels"]["candidates"]
    assert {"eager", "torch.compile", "ddfm_fast"} <= norms.keys()
    assert "gpu" not in report["machine"], "a rehearsal names no GPU"
    assert "its figures mean nothing" in run.stdout


def test_the_suite_asks_for_sections_and_options_that_there_are():
    """The script's own calls of the benchmark, but for their folder, are understood."""
    from ddfm_fast.bench.runner import SECTIONS, Options

    text, asked = (ROOT / "bench" / "gpu_suite.sh").read_text(), []
    for call in re.findall(r'"\$python" -m bench ((?:.|\\\n)*?)--out', text):
        words = call.replace("\\\n", " ").split()
        sections = [word for word in words if not word.startswith("--") and not word.isdigit()]
        asked += Options(tuple(sections)).sections
        options = {word for word in words if word.startswith("--")}
        assert options <= {"--seconds", "--repeats", "--quiet", "--save"}
    assert sorted(asked) == sorted(SECTIONS), "every section, once"
    limits = [int(n) for n in re.findall(r"^ *run (\d+) \"?\w", text, re.MULTILINE)]
    assert sum(limits) + 40 + 50 < 9 * 60  # memcheck and racecheck share a line, ncu has its own
