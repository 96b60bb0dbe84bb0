"""What it costs to load a prior, in a child of its own.

Children are forked from a process that has loaded everything and has one thread: one forked from
the tests' own process may wait for a lock that another of its threads held.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def of_loading(path: Path) -> tuple[int, float, str]:
    """Load in a child; return its peak of memory in KiB, processor seconds, and what was raised."""
    server = _server()
    print(path, file=server.stdin, flush=True)
    answer = server.stdout.readline()
    assert answer, f"the process that forks has ended: {server.wait()}"
    return tuple(json.loads(answer))


@functools.cache
def _server() -> subprocess.Popen:
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
    )  # it ends with this process, whose end closes its input


def _serve() -> None:
    with contextlib.suppress(ImportError):  # loaded here, so that its memory is no child's
        from diffusers import UNet2DModel  # noqa: F401

    from ddfm_fast.priors.load import load_prior

    for line in sys.stdin:
        if (child := os.fork()) == 0:
            try:
                print(json.dumps(_cost(load_prior, Path(line.rstrip("\n")))), flush=True)
            finally:
                os._exit(0)
        os.waitpid(child, 0)


def _cost(load, path: Path) -> tuple[int, float, str]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        load(path)
        error = "none"
    except ValueError as raised:
        error = str(raised)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_maxrss - before.ru_maxrss, after.ru_utime - before.ru_utime, error


if __name__ == "__main__":
    _serve()
