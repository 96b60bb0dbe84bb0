"""The command as a program: how soon it answers, threads, usage errors, tracebacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from ddfm_fast.cli.errors import termination_is_an_interrupt
from ddfm_fast.files.writing import write_image


def program(
    *arguments: str, module: str = "ddfm_fast", **environment: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def test_help_is_quick():
    """Measured in processor time, since other programs may be busy on this machine."""
    seconds = []
    for _ in range(3):
        before = sum(os.times()[2:4])  # processor time of children
        done = program("--help")
        seconds.append(sum(os.times()[2:4]) - before)
        assert done.returncode == 0 and "fuse" in done.stdout
    assert 0 < min(seconds) < 1.0


def test_version_and_usage():
    from ddfm_fast import __version__

    assert program("--version").stdout == f"ddfm-fast {__version__}\n"
    assert program("fuse").returncode == 2
    assert program("melt").returncode == 2


def test_debug_shows_the_traceback(tmp_path):
    for name in ("ir", "vis"):
        write_image(tmp_path / f"{name}.png", np.zeros((32, 32), np.uint8))
    pair = (str(tmp_path / f"{name}.png") for name in ("ir", "vis"))
    arguments = ["fuse", *pair, "-o", str(tmp_path / "o.png"), "--preset", "none"]
    plain, debug = program(*arguments), program(*arguments, DDFM_FAST_DEBUG="1")
    assert plain.returncode == 2 and "Traceback" not in plain.stderr
    assert debug.returncode != 0 and "Traceback" in debug.stderr


def test_bench_is_the_same_command():
    """From a checkout, the benchmarks find the command by its name, and do not import it."""
    done = program("--list", module="bench")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == program("bench", "--list").stdout
    assert "Usage: python -m bench [OPTIONS]" in program("--help", module="bench").stdout
    refused = program("--compare", "none.json", "none.json", module="bench")
    assert refused.returncode == 2 and refused.stderr.startswith("error: ")
    assert "Traceback" not in refused.stderr


def test_help_loads_nothing_heavy():
    heavy = {"torch", "numpy", "cv2", "PIL", "ddfm_fast.api", "ddfm_fast.bench"}
    code = f"import sys, ddfm_fast.cli.app; print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr


def test_termination_is_an_interrupt():
    """Inside the context, and only there, ``kill`` ends a video as properly as Ctrl-C does."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), termination_is_an_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before
