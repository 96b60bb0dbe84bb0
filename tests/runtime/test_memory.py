"""How many images go through the prior at once, with memory that runs out on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import ddfm_fast.runtime.memory
from ddfm_fast import Fuser
from ddfm_fast.priors.load import load_prior
from ddfm_fast.runtime.memory import (
    SAMPLER_PLANES,
    SHARE,
    free_bytes,
    free_host_bytes,
    image_bytes,
    images_that_fit,
    in_batches,
    pages_kept,
)

CPU = torch.device("cpu")


def holds(most: int, calls: list[int] | None = None):
    """Return x + y as a function, for which memory suffices up to so many images."""

    def function(x, y):
        if calls is not None:
            calls.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return x + y

    return function


PLANES = torch.arange(11.0)[:, None, None, None].expand(11, 1, 2, 3)


@pytest.mark.parametrize("size", [1, 4, 11, 20])
def test_batches_in_order(size):
    results = in_batches(holds(99), (PLANES, PLANES), size, fallback=False)
    assert [len(r) for r in results[:-1]] == [size] * (len(results) - 1)
    assert torch.equal(torch.cat(results), 2 * PLANES)


@pytest.mark.parametrize("most, sizes", [(3, [8, 4, 2, 2, 2, 2, 2, 1]), (1, [8, 4, 2] + [1] * 11)])
def test_halved_where_memory_runs_out(most, sizes):
    calls = []
    with pytest.warns(UserWarning, match="memory ran out with . images of 2x3 at once; continuing"):
        results = in_batches(holds(most, calls), (PLANES, PLANES), 8, fallback=True)
    assert torch.equal(torch.cat(results), 2 * PLANES) and calls == sizes


def test_nothing_is_hidden():
    with pytest.raises(torch.OutOfMemoryError):
        in_batches(holds(3), (PLANES, PLANES), 8, fallback=False)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning):
        in_batches(holds(0), (PLANES, PLANES), 8, fallback=True)

    def wrong(x, y):
        raise RuntimeError("a shape is wrong")

    with pytest.raises(RuntimeError, match="a shape is wrong"):
        in_batches(wrong, (PLANES, PLANES), 8, fallback=True)


def test_images_that_fit():
    prior = load_prior("embedded")
    need = image_bytes(prior, 250, 310)
    assert need == image_bytes(prior, 256, 320), "of the padded size"
    assert need == prior.activation_bytes(1, 256, 320) + SAMPLER_PLANES * 4 * 256 * 320
    for fits in (1, 3, 8):
        assert images_that_fit(prior, 250, 310, 8, int(fits * need / SHARE) + 16) == fits
    assert images_that_fit(prior, 250, 310, 8, need // 2) == 1, "at least one is tried"
    assert images_that_fit(prior, 250, 310, 8, 10**15) == 8
    assert images_that_fit(prior, 250, 310, 8) == 8, "unknown on a CPU"
    assert images_that_fit(load_prior(lambda x, t: x), 250, 310, 8, 100) == 8, "unknown prior"
    assert free_bytes(CPU) is None


def test_activations_grow_with_images_and_size():
    prior = load_prior("embedded")
    one = prior.activation_bytes(1, 128, 128)
    assert 0 < one < 2**30
    assert prior.activation_bytes(4, 128, 128) == pytest.approx(4 * one, rel=0.02)
    assert prior.activation_bytes(1, 256, 256) == pytest.approx(4 * one, rel=0.02)
    assert prior.to(None, "bfloat16").activation_bytes(1, 128, 128) < 0.6 * one


def test_fuser_goes_on_with_fewer_images():
    """A CPU does here what a GPU does by default: an automatic batch, and a prior that runs out."""
    seen = []

    def prior(x, t):
        seen.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tanh(x)

    planes = torch.rand(5, 32, 32).numpy()
    fuser = Fuser(prior=prior, steps=2, device="cpu")
    assert fuser.automatic_batch and fuser.batch_size == 1
    alone = fuser(list(planes), list(planes[::-1]))
    fuser.batch_size = 8
    seen.clear()
    with pytest.warns(UserWarning, match="continuing with 2"):
        together = fuser(list(planes), list(planes[::-1]))
    assert seen == [5, 2, 2, 2, 2, 1, 1]
    for a, b in zip(alone, together, strict=True):
        assert (a == b).all()
    fixed = Fuser(prior=prior, steps=2, device="cpu", batch_size=8)
    with pytest.raises(torch.OutOfMemoryError):
        fixed(list(planes), list(planes[::-1]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_free_memory_of_the_host():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < free_host_bytes() <= total


FAULTS = """
import resource, sys, torch
from ddfm_fast.runtime.memory import pages_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.empty(96, 1024, 1024, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
with pages_kept(torch.device("cpu")):
    for _ in range(3):  # alignment costs glibc a few blocks before they fit
        faults()
    with pages_kept(torch.device("cpu")):
        pass
    within = faults()
print(before, within, faults())
"""


@pytest.mark.skipif(not hasattr(os, "confstr"), reason="no glibc on this platform")
@pytest.mark.parametrize("tuned", [{}, {"MALLOC_ARENA_MAX": "4"}])
def test_pages_stay_within_and_go_after(tuned):
    """Blocks of 96 MiB are 24576 pages each; where the allocator is tuned nothing changes."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        libc = None
    if not libc:
        pytest.skip("no glibc on this platform")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=env | tuned, capture_output=True, text=True, check=True
    )
    before, within, after = map(int, done.stdout.split())
    block = 0.9 * (96 << 20) // os.sysconf("SC_PAGE_SIZE")
    if before < block:
        pytest.skip(f"{before} page faults: this system's pages are huge")
    assert before > 7 * block
    assert within > 7 * block if tuned else within < block / 10
    assert after > (7 * block if tuned else block)


def test_pages_kept_counts_its_users(monkeypatch):
    calls = []

    class Library:
        @staticmethod
        def mallopt(parameter, value):
            calls.append((parameter, value))

        @staticmethod
        def malloc_trim(kept):
            calls.append(("trim", kept))

    monkeypatch.setattr(ddfm_fast.runtime.memory, "_glibc", lambda: Library)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with pages_kept(CPU):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with pytest.raises(KeyError), pages_kept(CPU):
        entered = len(calls)
        thread.start()
        assert inside.wait(10)
        raise KeyError
    assert len(calls) == entered == 2  # the other thread is still inside
    leave.set()
    thread.join()
    restored = [(-1, 64 << 20), (-3, 32 << 20), (-4, 65536), ("trim", 64 << 20)]
    assert calls[entered:] == restored
    with pages_kept(torch.device("meta")):
        pass
    assert len(calls) == entered + len(restored)
