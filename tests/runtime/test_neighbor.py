"""A good neighbor: a call leaves the process as it was."""

from __future__ import annotations

import locale
import logging
import os
import random
import signal
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

from ddfm_fast import Fuser, fuse

VIS = (np.random.default_rng(0).random((40, 48)) * 255).astype(np.uint8)
IR = VIS[::-1].copy()


def state() -> dict[str, object]:
    """Return what a library must not change behind the back of others."""
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), cv2.getNumThreads()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matrix products": torch.get_float32_matmul_precision(),
        "errors": np.geterr(),
        "filters": list(warnings.filters),
        "handlers": (list(logging.root.handlers), logging.root.level),
    }


CALLS = {
    "instant": {"preset": "instant"},
    "noisy": {"preset": "balanced", "denoise": 20},
    "official": {"preset": "official", "steps": 2},
    "paper": {"preset": "paper", "steps": 2},
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_everything_as_it_was(name, capfd):
    before = state()
    fuse(IR, VIS, device="cpu", **CALLS[name])
    after = state()
    assert {key for key in before if before[key] != after[key]} == set()
    assert capfd.readouterr() == ("", "")


def test_so_does_one_that_fails():
    def broken(_x, _t):
        raise RuntimeError("of the prior")

    broken.multiple = 1
    before = state()
    with pytest.raises(RuntimeError, match="of the prior"):
        fuse(IR, VIS, prior=broken, preset="official", steps=2, device="cpu")
    after = state()
    assert {key for key in before if before[key] != after[key]} == set()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_pytorchs_default_dtype_changes_nothing(name, dtype):
    """Noise drawn in another dtype is different; float32 written into halves ends the process."""
    expected = fuse(IR, VIS, device="cpu", **CALLS[name])
    torch.set_default_dtype(dtype)
    try:
        found = fuse(IR, VIS, device="cpu", **CALLS[name])
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(found, expected)


def test_nor_does_it_change_a_frame_of_video():
    expected, found = [], []
    for dtype, results in ((torch.float32, expected), (torch.float64, found)):
        torch.set_default_dtype(dtype)
        try:
            pairs = [(IR, VIS), (IR, np.roll(VIS, 3, 1))]
            results += Fuser(device="cpu").stream(pairs, preset="balanced")
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_stream_that_is_left_leaves_everything_as_it_was():
    before = state()
    stream = Fuser(preset="instant", device="cpu").stream([(IR, VIS)] * 4)
    next(stream)
    stream.close()
    after = state()
    assert {key for key in before if before[key] != after[key]} == set()


CHILD = """
import multiprocessing, sys
import numpy as np
from ddfm_fast import fuse
vis = (np.random.default_rng(0).random((64, 80)) * 255).astype(np.uint8)
def work(queue):
    queue.put(int(fuse(vis[::-1].copy(), vis, preset="official", steps=2, device="cpu").sum()))
if __name__ == "__main__":
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    work(queue)
    wanted = queue.get()
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.SimpleQueue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    process.join(90)
    if process.exitcode is None:
        process.kill()
        sys.exit("the child hangs")
    sys.exit(process.exitcode or queue.get() != wanted)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_a_process_that_has_fused_can_fuse(method, tmp_path):
    """OpenMP's threads are not forked along: a child that waits for them would hang."""
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, str(tmp_path / "child.py"), method]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
