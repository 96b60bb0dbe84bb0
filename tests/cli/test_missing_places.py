"""Libraries that are not installed: one sentence with the fix, exit code 2, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from packs import PAIRS


def said_without(library: str, *arguments: str) -> str:
    """Return what the command prints on stderr if a library cannot be imported."""
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        f"sys.argv = ['ddfm-fast', *{list(arguments)!r}]\n"
        "from ddfm_fast.cli.app import main; main()"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env
    )
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_ray_is_missing(tmp_path):
    for name, data in zip(("ir", "vis"), PAIRS[0], strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(data)
    out = tmp_path / "out"
    said = said_without("ray", "batch", str(tmp_path), "-o", str(out), "--on", "ray")
    assert said == "error: Ray is missing; install it: pip install 'ddfm_fast[ray]'\n"
    assert not out.exists()


@pytest.mark.parametrize(
    "command",
    [
        ("fuse", "s3://box/a.png", "s3://box/b.png", "-o", "OUT/a.png"),
        ("batch", "s3://box/data", "-o", "OUT"),
        ("batch", "s3://box/a.tar", "-o", "OUT"),
        ("video", "s3://box/a.mp4", "s3://box/b.mp4", "-o", "OUT/a.mp4"),
        ("evaluate", "s3://box/data", "--baselines"),
    ],
    ids=["fuse", "batch", "shards", "video", "evaluate"],
)
def test_fsspec_is_missing(command, tmp_path):
    out = tmp_path / "out"
    said = said_without("fsspec", *(word.replace("OUT", str(out)) for word in command))
    assert "needs fsspec, which cannot be imported; pip install 'ddfm_fast[storage]'" in said
    assert not out.exists()
