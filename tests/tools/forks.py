"""The command as a program that starts in milliseconds: forked from a process that has loaded it.

A start of the program takes seconds, most of them for PyTorch. ``Program`` starts one process,
which loads everything and has one thread; each ``run`` is a child of it, which can be killed at a
given time, or given a limit on the size of files, which stands for a full disk.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
LONGEST = 60.0
"""seconds of a run, after which it hangs"""


class Done(NamedTuple):
    """What became of a run."""

    code: int
    """its exit code, or minus the signal that ended it"""
    seconds: float
    stdout: str
    stderr: str


class Program:
    """A process from which commands are forked.

    Args:
        folder: Where they run.
        warm: Command lines to run first in the process itself, so that children start warm.
    """

    def __init__(self, folder: Path, *warm: list):
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        codes = self._ask({"warm": [[str(word) for word in line] for line in warm]})["codes"]
        assert not any(codes), f"warming up failed with exit codes {codes}"

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait(60)

    def run(
        self,
        *line: str | Path,
        kill_after: float | None = None,
        by: int = signal.SIGKILL,
        limit: int | None = None,
    ) -> Done:
        """Run a command line.

        Args:
            line: The words after ``ddfm-fast``.
            kill_after: Seconds until the signal ``by`` is sent; None for never.
            by: The signal.
            limit: Bytes that a file may have; None for any number.
        """
        line = tuple(map(str, line))
        request = {"line": line, "kill_after": kill_after, "by": int(by), "limit": limit}
        return Done(**self._ask(request))

    def _ask(self, request: dict) -> dict:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, f"the process that forks has ended: {self.process.wait()}"
        return json.loads(answer)


def _serve() -> None:
    import cv2
    from tqdm import tqdm

    # tqdm's own lock is one for all forked children: a killed one would hold up the others.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    faulthandler.enable()
    cv2.setNumThreads(1)  # its threads would not be in the children
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for request in map(json.loads, sys.stdin):
        if "warm" in request:
            answer = {"codes": [_command(line) for line in request["warm"]]}
            gc.collect()  # frees decoders, which have threads of their own
            assert len(os.listdir("/proc/self/task")) == 1, (
                "threads are left, forks would miss them"
            )
            gc.freeze()  # children must not clear away what is left: its threads are not there
        else:
            answer = _attend(**request)
        print(json.dumps(answer), file=answers, flush=True)


def _attend(line: list[str], kill_after: float | None, by: int, limit: int | None) -> dict:
    """Fork, perhaps kill, and wait; what is printed goes through pipes, which have no limit."""
    began = time.monotonic()
    pipes = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        code = 70
        try:
            code = _child(line, limit, pipes)
        finally:
            os._exit(code)
    texts = [b"", b""]
    for ours, theirs in pipes:
        os.close(theirs)
        os.set_blocking(ours, False)
    killed = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - began
        for n, (ours, _) in enumerate(pipes):
            with contextlib.suppress(BlockingIOError):
                while part := os.read(ours, 1 << 16):
                    texts[n] += part
        if done:
            break
        if kill_after is not None and seconds >= kill_after and not killed:
            os.kill(child, by)
            killed = True
        if seconds > LONGEST:
            os.kill(child, signal.SIGABRT)
        time.sleep(0.001)
    for ours, _ in pipes:
        os.close(ours)
    out, error = (text.decode(errors="replace") for text in texts)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "seconds": seconds, "stdout": out, "stderr": error}


def _child(line: list[str], limit: int | None, pipes) -> int:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, (_, theirs) in enumerate(pipes, 1):
        os.dup2(theirs, number)
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return _command(line)
    except KeyboardInterrupt:  # before or after the program itself
        return 130


def _command(line: list[str]) -> int:
    """Run the command line here; return its exit code."""
    from ddfm_fast.__main__ import main

    sys.argv = ["ddfm-fast", *line]
    try:
        main()
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if isinstance(code, int):
            return code
        print(code, file=sys.stderr)
        return 1
    except Exception:
        import traceback

        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve()
