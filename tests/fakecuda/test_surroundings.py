"""Calls on other streams, devices and threads, within the program's own graph, and after fork."""

from __future__ import annotations

import os
import threading

import fakeplugin
import numpy as np
import pytest
import torch

from ddfm_fast import Fuser, fuse
from ddfm_fast.priors.load import load_prior

SETTINGS = dict(prior="embedded", preset="official", steps=2)


def images(height=32, width=48):
    ramp = np.linspace(0, 255, height * width).reshape(height, width).astype(np.uint8)
    return ramp, ramp[::-1].copy()


@pytest.fixture(scope="module")
def fuser():
    fuser = Fuser(device="cuda", **SETTINGS)
    fuser.warmup([(32, 48)])
    for _ in range(2):  # what warm-up leaves to calls is captured too
        fuser(*images())
    return fuser


@pytest.fixture
def streams():
    """Numbers of the streams on which a function runs kernels; a download has one of its own."""
    fake = fakeplugin.fake

    def used(function):
        fake.fake_record(1)
        try:
            function()
            found = [name for name in fakeplugin.launches() if not name.startswith("memcpy")]
            return {name.rsplit("@", 1)[1] for name in found}
        finally:
            fake.fake_record(0)

    return used


def test_a_call_stays_on_the_programs_stream(fuser, streams):
    """A replay stays on it; our captures have a stream of their own, for which the call waits."""
    assert streams(lambda: fuser(*images())) == {"0"}
    with torch.cuda.stream(torch.cuda.Stream()):
        (used,) = streams(lambda: fuser(*images()))
        assert used != "0"


def test_a_captured_call_waits_for_the_call_before_on_any_stream(fuser):
    results = []
    for _ in range(3):
        with torch.cuda.stream(torch.cuda.Stream()):
            results.append(fuser(*images()))
    assert len(results) == 3 and fuser.summary()[0]["mode"] == "loop"


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes_of_gradients(mode):
    with mode():
        fuser = Fuser(device="cuda", **SETTINGS)
        for _ in range(3):
            fuser(*images())
    fuser(*images())
    assert [s["mode"] for s in fuser.summary()] == ["loop"]


def test_autocast_is_off_inside(fuser):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        fakeplugin.CONVS.clear()
        Fuser(device="cuda", dtype="float32", **SETTINGS)(*images())
    assert {dtype for _, _, dtype, *_ in fakeplugin.CONVS} == {torch.float32}


def test_within_the_programs_own_capture_a_call_is_refused_and_the_capture_goes_on(fuser):
    x, graph = torch.zeros(4, device="cuda"), torch.cuda.CUDAGraph()
    prior = load_prior("embedded", device="cuda")
    with torch.cuda.graph(graph):
        x * 2
        for call in (
            lambda: fuser(*images()),
            lambda: fuser.warmup([(64, 64)]),
            lambda: Fuser(device="cuda", **SETTINGS),
            lambda: fuse(*images(), device="cuda"),
            lambda: next(fuser.stream([images()])),
            lambda: fuser.with_options(steps=3),
        ):
            with pytest.raises(RuntimeError, match="captures a graph.*outside of torch.cuda.graph"):
                call()
    graph.replay()
    fuser(*images())
    assert prior.device.type == "cuda"


def test_everything_stays_on_the_second_of_two_devices():
    assert torch.cuda.device_count() == 2
    before = torch.cuda.memory_allocated(0), torch.cuda.memory_reserved(0)
    fuser = Fuser(device="cuda:1", **SETTINGS)
    for solver in ("torch", "local"):
        other = fuser.with_options(solver=solver)
        for _ in range(3):
            other(*images(37, 53))
        other.warmup([(32, 64)])
        assert [s["mode"] for s in other.summary()] == ["loop", "loop"]
    assert torch.cuda.current_device() == 0
    assert (torch.cuda.memory_allocated(0), torch.cuda.memory_reserved(0)) == before
    fuser.loops.clear()


def test_two_devices_in_two_threads():
    fusers = [Fuser(device=f"cuda:{n}", **SETTINGS) for n in range(2)]
    errors = []

    def work(n):
        try:
            for height in (32, 64):
                for _ in range(3):
                    fusers[n](*images(height, 48))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [len(fuser.summary()) for fuser in fusers] == [2, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_told(fuser):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"nothing"
        try:
            fuser(*images())
        except RuntimeError as error:
            said = str(error).encode()
        finally:
            os.write(writing, said)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert b"forked from one that uses CUDA" in pipe.read()
    os.waitpid(child, 0)


def test_each_threads_convolutions_have_their_own_precision():
    """Two fusers that want TF32 and float32, at once; and PyTorch's settings are left alone."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    fakeplugin.CONVS.clear()
    priors = [load_prior("embedded", device="cuda", dtype=name) for name in ("float32", "tf32")]
    steps = [prior.conditioning(torch.tensor([300]))[0] for prior in priors]

    def work(n):
        for _ in range(5):
            priors[n].eps(torch.zeros(1, 3, 32, 64 + 64 * n, device="cuda"), steps[n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ratios = {(shape[3] == 2 * shape[2], tf32) for shape, _, _, tf32, _ in fakeplugin.CONVS}
    assert ratios == {(True, False), (False, True)}
    assert (conv.fp32_precision, matmul.fp32_precision) == before
