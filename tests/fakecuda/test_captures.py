"""Failed captures leave the process as it was; successful ones replay, and make room for others."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading

import fakeplugin
import numpy as np
import pytest
import torch

from ddfm_fast import Fuser
from ddfm_fast.config import FuseConfig
from ddfm_fast.graphs.cache import GraphCache
from ddfm_fast.images.doubts import DDFMWarning
from ddfm_fast.priors.load import load_prior
from ddfm_fast.runtime.capture import CudaCapture
from ddfm_fast.runtime.dispatch import Backend
from ddfm_fast.sampler import sample

DEVICE = torch.device("cuda:0")
GIB = 2**30
KERNELS = Backend("triton", "torch", "")
CONFIG = FuseConfig(steps=3)


def reads_on_the_host(x):
    float((x * 2).sum())


def hides_that_it_reads(x):
    with contextlib.suppress(RuntimeError):
        float((x * 2).sum())


def hides_it_and_goes_on(x):
    hides_that_it_reads(x)
    x * 3


def takes_too_much_memory(x):
    torch.empty(2**40, device=x.device)


def is_interrupted(x):
    x * 2
    raise KeyboardInterrupt


def is_broken(x):
    x * 2
    raise KeyError("lost")


def leaves_another_stream(x):
    torch.cuda.set_stream(torch.cuda.Stream())
    raise KeyError("lost")


def draws_numbers(x):
    torch.randn(4, device=x.device)


FAULTS = [
    reads_on_the_host, hides_that_it_reads, hides_it_and_goes_on, takes_too_much_memory,
    is_interrupted, is_broken, leaves_another_stream, draws_numbers,
]  # fmt: skip


def state():
    torch.cuda.empty_cache()
    generator = torch.cuda.default_generators[0]
    return torch.cuda.current_stream(), torch.cuda.memory_reserved(), generator.get_offset()


def use_all_of_the_device():
    """Allocate more than fits beside the allocator's cache, which it then has to give back."""
    for size in (60, 70):
        torch.empty(size * GIB, dtype=torch.uint8, device=DEVICE)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_capture_leaves_the_process_as_it_was(fault, allowed_violations):
    allowed_violations.append("cudaStreamSynchronize of a capturing stream")
    x, capture = torch.zeros(4, device=DEVICE), CudaCapture(DEVICE)
    capture.warm_up(lambda: x * 2)
    before = state()
    with pytest.raises(BaseException):  # noqa: B017, PT011 - an interrupt too
        capture.capture(lambda: fault(x))
    gc.collect()
    assert state() == before
    torch.randn(3, device=DEVICE)
    use_all_of_the_device()
    again = capture.capture(lambda: x * 2)
    again()
    assert again.nodes == 1


def draw(cache, prior, size=(1, 32, 48), config=CONFIG):
    n, height, width = size
    sources = torch.zeros(2, n, 1, height, width, device=prior.device)
    return sample(prior, *sources, config, loops=cache.loop)


def on_device(function):
    return load_prior(function, device=DEVICE)


def test_a_prior_that_reads_a_value_runs_eagerly_and_is_told_once(allowed_violations, small_prior):
    allowed_violations.append("cudaStreamSynchronize of a capturing stream")
    cache, prior = GraphCache("loop", KERNELS), on_device(small_prior(reads_on_the_host))
    with pytest.warns(DDFMWarning, match="cannot be captured") as told:
        for size in [(1, 32, 48)] * 3 + [(1, 48, 32)] * 3:
            draw(cache, prior, size)
    assert len(cache) == 0 and len(told) == 1
    torch.randn(3, device=DEVICE)
    other = on_device(small_prior())
    for _ in range(2):
        draw(cache, other)
    assert [s["mode"] for s in cache.summary()] == ["loop"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_capture_is_made_by_the_next_call(error, small_prior):
    pressed = []

    def press(x):
        if torch.cuda.is_current_stream_capturing() and not pressed:
            pressed.append(True)
            raise error

    cache, prior = GraphCache("loop", KERNELS), on_device(small_prior(press))
    draw(cache, prior)
    before = torch.cuda.current_stream()
    with pytest.raises(error):
        draw(cache, prior)
    assert torch.cuda.current_stream() == before and len(cache) == 0
    torch.randn(3, device=DEVICE)
    draw(cache, prior)
    assert len(cache) == 1


@pytest.mark.filterwarnings("error")
def test_a_capture_spoilt_by_another_thread_is_made_later(allowed_violations, small_prior):
    allowed_violations.append("cudaDeviceSynchronize while ANOTHER thread captures")
    spoilt = []

    def waits():
        with pytest.raises(RuntimeError):
            torch.cuda.synchronize()

    def spoil(x):
        if torch.cuda.is_current_stream_capturing() and not spoilt:
            spoilt.append(threading.Thread(target=waits))
            spoilt[0].start()
            spoilt[0].join()

    cache, prior = GraphCache("loop", KERNELS), on_device(small_prior(spoil))
    for expected in (0, 0, 1):
        draw(cache, prior)
        assert len(cache) == expected


def test_other_threads_may_draw_allocate_and_read_during_a_capture(small_prior):
    errors = []

    def other():
        try:
            torch.randn(3, device=DEVICE)
            torch.cuda.manual_seed(3)
            torch.zeros(2**24, device=DEVICE).cpu()
            torch.cuda.empty_cache()
            torch.zeros(8, 8, device=DEVICE) @ torch.zeros(8, 8, device=DEVICE)
        except Exception as error:
            errors.append(error)

    def run_other(x):
        if torch.cuda.is_current_stream_capturing():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    cache = GraphCache("loop", KERNELS)
    cache.warm_up(on_device(small_prior(run_other)), CONFIG, (1, 32, 48))
    assert not errors and len(cache) == 1


def test_two_threads_capture_in_turn(small_prior):
    caches = [GraphCache("loop", KERNELS) for _ in range(2)]
    priors = [on_device(small_prior()) for _ in caches]
    errors = []

    def work(n):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for height in (32, 48, 64, 80):
                    for _ in range(3):
                        draw(caches[n], priors[n], (1, height, 48))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [len(cache) for cache in caches] == [4, 4]


def test_a_capture_of_the_programs_own_survives_ours():
    """The program captures in another thread: nothing of ours waits for the whole device."""
    go, done = threading.Event(), threading.Event()
    x, graph, errors = torch.zeros(4, device=DEVICE), torch.cuda.CUDAGraph(), []

    def theirs():
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                graph.capture_begin(capture_error_mode="thread_local")
                x * 2
                go.set()
                done.wait(60)
                x * 2
                graph.capture_end()
        except Exception as error:
            errors.append(error)

    prior = load_prior("embedded", device=DEVICE, dtype="float16")
    cache = GraphCache("loop", KERNELS, limit=1)
    thread = threading.Thread(target=theirs)
    thread.start()
    assert go.wait(60)
    for size in [(1, 32, 64), (1, 64, 32)]:  # the second drops the first
        for _ in range(3):
            draw(cache, prior, size)
    cache.clear()
    done.set()
    thread.join()
    assert not errors


def test_a_dropped_graph_gives_its_memory_back_and_is_captured_again():
    prior = load_prior("embedded", device=DEVICE, dtype="float16")
    sizes = [(1, 64, 96), (1, 128, 160), (1, 64, 96)]
    GraphCache("step", KERNELS).warm_up(prior, CONFIG, sizes[0])  # for the libraries' workspaces
    cache = GraphCache("loop", KERNELS, limit=1)
    held = []
    for size in sizes:
        cache.warm_up(prior, CONFIG, size)
        (summary,) = cache.summary()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
        assert summary["shape"] == size and summary["bytes"] > 0 and summary["nodes"] > 100
    assert held[0] == held[2] < held[1]


def test_graphs_are_kept_by_bytes_too():
    prior = load_prior("embedded", device=DEVICE, dtype="float16")
    cache = GraphCache("loop", KERNELS)
    sizes = [(1, 64, 96), (1, 96, 64), (1, 128, 160)]
    for size in sizes[:2]:
        cache.warm_up(prior, CONFIG, size)
    assert len(cache) == 2
    cache.most_bytes = 1
    cache.warm_up(prior, CONFIG, sizes[2])
    assert [s["shape"] for s in cache.summary()] == [sizes[2]], "the newest stays in any case"
    cache.most_bytes = None
    for size in sizes[:2]:
        draw(cache, prior, size)
        draw(cache, prior, size)
    assert len(cache) == 3, "a quarter of the device holds them all"


def test_a_long_loop_becomes_a_graph_of_a_step(caplog):
    prior = load_prior("embedded", device=DEVICE, dtype="float16")
    long, size = FuseConfig(steps=50), (1, 64, 96)
    cache, asked_for = GraphCache("auto", KERNELS), GraphCache("loop", KERNELS)
    with caplog.at_level(logging.INFO, "ddfm_fast"):
        cache.warm_up(prior, long, size)
        cache.warm_up(prior, CONFIG, size)
    asked_for.warm_up(prior, long, size)
    modes = [(s["mode"], s["nodes"] > 2000) for s in cache.summary() + asked_for.summary()]
    assert modes == [("step", False), ("loop", False), ("loop", True)]
    assert "graph='step', since the whole loop has about" in caplog.text


def test_warm_up_captures_what_calls_replay():
    fuser = Fuser(preset="fast", denoise=20, device="cuda")
    y, x = np.mgrid[:64, :96] / 8
    ir, vis = (127 + 90 * np.sin(x)).astype(np.uint8), (127 + 90 * np.cos(y)).astype(np.uint8)
    fuser.warmup([(64, 96)])
    captured = [s["mode"] for s in fuser.summary()]
    launched = fakeplugin.fake.fake_graph_launches()
    fuser(ir, vis)
    assert fakeplugin.fake.fake_graph_launches() > launched
    assert "eps" in captured and captured == [s["mode"] for s in fuser.summary()]
