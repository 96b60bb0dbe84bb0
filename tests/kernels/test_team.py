"""Threads of the C++: calls wait for those that have joined, and ask for none that do not pay."""

import ctypes
import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import emulated
import numpy as np
import pytest
import torch

import ddfm_fast
from ddfm_fast.kernels.cpu import build, prebuilt
from ddfm_fast.priors import load_prior
from ddfm_fast.runtime import threads
from ddfm_fast.target import choose as closed_form

HERE = os.path.dirname(os.path.abspath(__file__))
needs_kernels = pytest.mark.skipif(build.status() is not None, reason=f"{build.status()}")
FILES = f"{HERE}/team.cpp", str(prebuilt.HERE / "team.cpp"), f"-I{prebuilt.HERE}"
FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def alone(**more: str) -> dict[str, str]:
    """The environment without the sanitizer that tools/native.py has loaded before all else."""
    return {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"} | more


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Compile team.cpp with the program beside this file, plainly or under a sanitizer."""

    def compiled(*flags: str) -> str:
        path = tmp_path_factory.mktemp("team") / "program"
        command = [build.prebuilt.compiler(), "-std=c++17", "-O1", "-g", "-pthread", *flags]
        done = subprocess.run([*command, *FILES, "-o", str(path)], capture_output=True, text=True)
        if done.returncode and flags:
            pytest.skip(f"the compiler has no {flags}: {done.stderr[-200:]}")
        assert done.returncode == 0, done.stderr
        return str(path)

    return compiled


@needs_kernels
@pytest.mark.parametrize("flags", [(), ("-fsanitize=address,undefined", "-static-libasan")])
def test_calls_of_several_threads_and_after_a_fork(program, flags):
    path = program(*flags, *(["-fno-sanitize-recover=all"] if flags else []))
    options = {"ASAN_OPTIONS": "detect_leaks=0"}  # a team stays as long as its process
    done = subprocess.run([path], env=alone(**options), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("target", emulated.PARAMS)
def test_calls_of_several_threads_and_after_a_fork_elsewhere(target, tmp_path):
    for tool in (emulated.COMPILER, emulated.EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is absent: threads are not tried on another processor")
    path = tmp_path / "program"
    command = [emulated.COMPILER, "-std=c++17", "-O2", "-pthread", "-static"]
    build.run([*command, *emulated.TARGETS[target], *FILES, "-o", str(path)])
    done = subprocess.run(
        [emulated.EMULATOR, str(path)], env=alone(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@needs_kernels
def test_no_race_that_the_thread_sanitizer_sees(program):
    path = program("-fsanitize=thread")
    command = ["setarch", "-R", path, "no fork"]  # its shadow memory needs known addresses
    env = alone(TSAN_OPTIONS="exitcode=9")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr or "setarch" in done.stderr:
        pytest.skip("the thread sanitizer cannot run here")
    assert done.returncode == 0, done.stderr[-2000:]


@needs_kernels
def test_a_call_waits_for_no_thread_that_has_not_come(tmp_path):
    """One call keeps the team's other threads busy; another ends without them."""
    source, path = prebuilt.HERE / "team.cpp", tmp_path / "team.so"
    build.run([prebuilt.compiler(), *prebuilt.FLAGS, str(source), "-o", str(path)])
    library = ctypes.CDLL(str(path))  # its first calls ask for threads, whatever others found out
    library.ddfm_team_starts(ctypes.cast(ctypes.CDLL(None).pthread_create, ctypes.c_void_p))
    team = library.ddfm_team
    team.argtypes = [FUNCTION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    started, release, inside = threading.Semaphore(0), threading.Event(), []

    def stay(_):
        inside.append(threading.get_ident())
        started.release()
        release.wait(60)

    long_one = FUNCTION(stay)
    caller = threading.Thread(target=team, args=(long_one, None, 2, 0))
    caller.start()
    assert started.acquire(timeout=60)
    assert started.acquire(timeout=60)
    runs = []
    short_one = FUNCTION(lambda _: runs.append(threading.get_ident()))
    before = time.monotonic()
    team(short_one, None, 2, 0)
    assert runs
    assert set(runs).isdisjoint(inside)
    assert time.monotonic() - before < 30, "it waited for the other call"
    release.set()
    caller.join(60)
    assert not caller.is_alive()
    assert len(set(inside)) == 2


@needs_kernels
def test_pytorch_is_left_on_one_thread_inside_and_only_there():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads.for_ours():
            assert torch.get_num_threads() == 1
            assert threads.count() == 3
            with threads.for_ours():
                assert threads.count() == 3
            assert threads.count() == 3
            elsewhere = []
            other = threading.Thread(target=lambda: elsewhere.append(threads.count()))
            other.start()
            other.join()
        assert elsewhere[0] > 1
        assert torch.get_num_threads() == threads.count() == 3
        with pytest.raises(KeyError), threads.for_ours():
            raise KeyError
        assert torch.get_num_threads() == threads.count() == 3
    finally:
        torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize("preset", ["instant", "balanced", "official"])
def test_a_busy_machine_changes_no_byte(preset, monkeypatch):
    rng = np.random.default_rng(3)
    ir = rng.integers(0, 255, (72, 90), dtype=np.uint8)
    vis = rng.integers(0, 255, (72, 90, 3), dtype=np.uint8)
    fuser = ddfm_fast.Fuser(preset=preset, **({"steps": 2} if preset == "official" else {}))
    results = []
    for busy in (False, True):
        monkeypatch.setattr(threads, "machine_is_busy", lambda busy=busy: busy)
        results.append(fuser(ir, vis))
    assert np.array_equal(*results)


@needs_kernels
def test_more_threads_than_cores_and_several_callers_change_no_byte():
    """Each of three callers on more threads than there are cores, all at once."""
    prior = load_prior("embedded", dtype="float32")
    step = prior.conditioning(torch.tensor([100]))[0]
    x = torch.randn(1, 3, 96, 144, generator=torch.Generator().manual_seed(4))
    lumas = torch.rand(2, 1, 1, 272, 260, generator=torch.Generator().manual_seed(5))
    before, cores = torch.get_num_threads(), os.cpu_count() or 1

    def results(count: int) -> list[torch.Tensor]:
        torch.set_num_threads(count)
        return [prior.eps(x, step), closed_form.choose(*lumas)]

    try:
        wanted = results(1)
        for count in (2, 3, 2 * cores + 1):
            with ThreadPoolExecutor(3) as callers:
                found = list(callers.map(results, [count] * 6))
            assert all(
                torch.equal(*pair) for one in found for pair in zip(one, wanted, strict=True)
            )
    finally:
        torch.set_num_threads(before)


def test_what_the_system_says_of_itself_is_read(monkeypatch):
    texts = {
        "4.4 9.0 9.0 4/345 99\n": False,
        "0.1 0.1 0.1 5/345 99\n": True,
        "4.6 0.1 0.1 1/345 99\n": True,
        "": False,
        "a b c d e": False,
    }
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for text, busy in texts.items():
        monkeypatch.setattr(threads.Path, "read_text", lambda _, text=text: text)
        assert threads.machine_is_busy() is busy, text
