"""Machines on which Triton imports but cannot compile: plain PyTorch, and one warning."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FUSE = """
import sys, warnings
import numpy as np
from ddfm_fast import Fuser
from ddfm_fast.runtime import doctor
ramp = np.linspace(0, 255, 64 * 96).reshape(64, 96).astype(np.uint8)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    fuser = Fuser(preset="official", steps=2, device="cuda")
    again = Fuser(preset="fast", device="cuda")
    if "fuse" in sys.argv:
        for _ in range(2):
            fuser(ramp, ramp[::-1].copy())
            again(ramp, ramp[::-1].copy())
found = [str(w.message) for w in told if "fused kernels" in str(w.message)]
names = fuser.backend.name, again.backend.name, type(fuser.prior.engine.ops).__name__
print(*names, len(found), found)
if "fuse" in sys.argv:
    print("advice", [a["install"] for a in doctor.examine()["advice"]])
"""


def fused(tmp_path: Path, *words: str, **environment: str) -> str:
    """Return what the script above prints; with "fuse" in ``words``, after fusing with advice."""
    home = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    os.environ.pop("CC", None)
    done = subprocess.run(
        [sys.executable, "-c", "import fakeplugin\n" + FUSE, *words],
        env={**os.environ, **home, **environment}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def path_without_compilers(tmp_path: Path) -> str:
    """Make a folder of links to all programs but compilers."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            name = program.name
            if not any(word in name for word in ("gcc", "clang", "cc", "c++", "g++")):
                (folder / name).unlink(missing_ok=True)
                (folder / name).symlink_to(program)
    assert shutil.which("gcc", path=str(folder)) is None
    return str(folder)


def test_a_machine_with_everything(tmp_path):
    out = fused(tmp_path)
    assert out.startswith("triton triton") and "PlainOps" not in out and " 0 []" in out


def test_no_compiler(tmp_path):
    out = fused(tmp_path, "fuse", PATH=path_without_compilers(tmp_path))
    assert out.startswith("torch torch PlainOps 1") and out.count("apt install gcc") == 2


def test_a_compiler_that_fails(tmp_path):
    out = fused(tmp_path, "fuse", CC="/bin/false")
    assert out.startswith("torch torch PlainOps 1") and out.count("apt install python3-dev") == 2


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    out = fused(tmp_path, "fuse", TRITON_CACHE_DIR=str(tmp_path / "file"))
    assert out.startswith("torch torch PlainOps 1") and out.count("set TRITON_CACHE_DIR") == 2


@pytest.mark.parametrize("capability, kind", [("60", "torch"), ("75", "triton"), ("120", "triton")])
def test_capabilities(tmp_path, capability, kind):
    assert fused(tmp_path, FAKE_CAPABILITY=capability).startswith(f"{kind} {kind}")
