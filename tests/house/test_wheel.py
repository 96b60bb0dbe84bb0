"""A wheel with the C++ compiled, installed where there is no compiler: it draws the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ddfm_fast.kernels.cpu import build, prebuilt

pytestmark = [pytest.mark.slow, pytest.mark.thorough]
LIMIT = 11e6
"""bytes of a wheel; the two networks are 7.1e6 of it"""
FUSE = """
import hashlib, json
import numpy as np
import ddfm_fast
from ddfm_fast.kernels.cpu import build
rng = np.random.default_rng(5)
y, x = np.mgrid[:96, :128]
ir = np.clip(60 + 90 * ((x - 60) ** 2 + (y - 40) ** 2 < 400) + rng.normal(0, 8, x.shape), 0, 255)
vis = np.clip(128 + 60 * np.sin(x / 9)[..., None] * np.cos(y / 7)[..., None]
              + rng.normal(0, 4, (*x.shape, 3)), 0, 255)
pair = ir.astype(np.uint8), vis.astype(np.uint8)
print("RESULT" + json.dumps({
    "package": ddfm_fast.__file__,
    "status": build.status(),
    "made": getattr(build.load()[0], "made", None),
    "group": getattr(build.load()[0], "group", None),
    "bytes": {p: hashlib.sha256(ddfm_fast.fuse(*pair, preset=p).tobytes()).hexdigest()
              for p in ("instant", "balanced")}
           | {"steps": hashlib.sha256(
                  ddfm_fast.fuse(*pair, preset="official", steps=3).tobytes()).hexdigest()},
}))
"""
GROUPS = {"x86-64-v4+avx512bf16": 32, "x86-64-v4": 32, "x86-64-v3": 16}
"""twice the floats of a vector; 8 at other levels"""
LEVELS = [level for level in prebuilt.LEVELS if level.machine == build.platform.machine()]


def fused(python: str, **variables: str) -> dict:
    """Run FUSE far from the checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DDFM_FAST_", "PYTHON"))}
    done = subprocess.run(
        [python, "-c", FUSE], env=kept | variables, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    if build.status() is not None or not LEVELS:
        pytest.skip(f"no CPU kernels here: {build.status()}")
    try:
        prebuilt.target()
    except RuntimeError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("prebuilt")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "--wheel-dir", str(folder), str(folder / "checkout")],
        env=os.environ | {"DDFM_FAST_PREBUILT": "1"},
        check=True,
    )
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel, and with what it needs from the tests' own."""
    home = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True)
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "others.pth").write_text("\n".join(others))
    return home


def test_name_and_size(wheel):
    assert wheel.name.endswith(f"-py3-none-manylinux_2_28_{build.platform.machine()}.whl")
    assert wheel.stat().st_size < LIMIT


def test_without_a_compiler_it_draws_what_compiled_kernels_draw(environment, tmp_path):
    """At each level that this processor has, and then without any library, by PyTorch."""
    (folder,) = environment.rglob(prebuilt.FOLDER)
    bare = {"PATH": "/nonexistent", "CXX": "/nonexistent", "DDFM_FAST_CACHE": str(tmp_path / "no")}
    python = str(environment / "bin" / "python")
    able = prebuilt.features(Path("/proc/cpuinfo").read_text())
    for level in LEVELS:
        if level.needs <= able:
            found = fused(python, **bare)
            assert found["status"] is None and found["made"] == f"from the wheel, for {level.name}"
            assert found["group"] == GROUPS.get(level.name, 8)
            assert Path(found["package"]).is_relative_to(environment)
            asked = " ".join(prebuilt.architecture(level))
            flags = {"DDFM_FAST_CPU_FLAGS": asked, "PYTHONPATH": str(ROOT)}
            compiled = fused(sys.executable, DDFM_FAST_CACHE=str(tmp_path / "own"), **flags)
            assert compiled["made"] == build.COMPILED
            assert found["bytes"] == compiled["bytes"], level.name
        (folder / prebuilt.file_name(level)).unlink()
    assert not list((tmp_path / "no").glob("*")), "something was compiled"
    plain = fused(python, **bare)
    assert plain["made"] is None and "no C++ compiler" in plain["status"]
    assert "the wheel brought nothing" in plain["status"]
