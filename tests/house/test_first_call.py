"""What a first call loads beyond PyTorch: modules, counted, since times depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow
MOST = 200
"""modules of all kinds; 145 of them now, of which 85 are ours and 30 are OpenCV's"""
HEAVY = {
    "torch._dynamo": "torch.compile's tracer, with 900 modules as much time as PyTorch itself",
    "torch._inductor": "torch.compile's compiler",
    "torch.export": "", "torch.onnx": "", "sympy": "", "triton": "", "cupy": "", "diffusers": "",
    "scipy": "", "matplotlib": "", "skimage": "", "av": "", "PIL": "", "typer": "", "tqdm": "",
}  # fmt: skip
SPARED = {"numpy.ma": "NumPy's masked arrays, 20 ms, which np.median and np.quantile load"}
"""what a clean pair can do without, too"""
CALL = """
import json, sys
import numpy as np
import torch
before = set(sys.modules)
import ddfm_fast
rng = np.random.default_rng(0)
ramp = np.add.outer(np.arange(48.0), np.arange(64.0)) * 2
noise = rng.normal(0, {sigma}, ramp.shape)
ir = np.clip(ramp + noise, 0, 255).astype(np.uint8)
vis = np.stack([ir[::-1], ir[::-1], ir], -1)
ddfm_fast.fuse(ir, vis, preset="{preset}", **{options})
print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))
"""


def heavy(modules, roots=HEAVY) -> list[str]:
    return sorted(
        name for name in modules for root in roots if name == root or name.startswith(root + ".")
    )


@pytest.mark.parametrize(
    "preset, sigma, options",
    [("instant", 0, {}), ("balanced", 12, {}), ("official", 0, {"steps": 2})],
)
def test_a_first_call_loads_few_modules(preset, sigma, options):
    code = CALL.format(preset=preset, sigma=sigma, options=options)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, new = json.loads(done.stdout.splitlines()[-1])
    assert heavy(new, HEAVY if sigma else HEAVY | SPARED) == []
    assert len(new) < MOST, new
    assert "torch" in before and "ddfm_fast" in new


def test_the_command_loads_no_compiler(tmp_path):
    ramp = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
    for name, picture in (("ir.png", ramp), ("vis.png", ramp[::-1])):
        cv2.imwrite(str(tmp_path / name), picture)
    paths = [str(tmp_path / name) for name in ("ir.png", "vis.png", "fused.png")]
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "ddfm_fast",
            "fuse",
            *paths[:2],
            "--out",
            paths[2],
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"torch", "ddfm_fast.api"} <= loaded
    compilers = {"torch._dynamo", "torch._inductor", "sympy", "triton", "diffusers", "av"}
    assert not compilers & loaded
