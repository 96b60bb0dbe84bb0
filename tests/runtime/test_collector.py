"""The garbage collector while the package loads: still, and afterwards as the program had it."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT

from ddfm_fast.faces import face
from ddfm_fast.runtime.collector import paused

LOAD = """
import gc, json, sys
from threading import Thread
runs = []
gc.callbacks.append(lambda phase, info: runs.append(info["generation"]))
import ddfm_fast
runs.clear()
{load}
during = len(runs)
young = sum(len(gc.get_objects(generation)) for generation in (0, 1))
print(json.dumps([during, young, gc.isenabled(), gc.get_freeze_count(), "torch" in sys.modules]))
"""
THREADS = """
names = ["Fuser", "fuse", "load_prior", "FusionReport"]
threads = [Thread(target=getattr, args=(ddfm_fast, name)) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.fixture
def collector():
    """Leave the collector as it was."""
    was_on = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if was_on else gc.disable)()


@pytest.mark.slow
@pytest.mark.parametrize(
    "load", ["ddfm_fast.Fuser", "import torch; runs.clear(); ddfm_fast.Fuser", THREADS]
)
def test_loading_runs_no_collection_and_leaves_nothing_young_behind(load):
    """A full collection took 90 ms, half of what this package added to PyTorch's import."""
    code = LOAD.format(load=load)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    during, young, on, frozen, loaded = json.loads(done.stdout)
    assert loaded and on and frozen == 0
    if load is not THREADS:  # the first one to finish turns the collector on again
        assert during == 0
        assert young < 2000  # of 270,000


def test_a_name_that_fails_to_load_leaves_the_collector_on(collector):
    gc.enable()
    get, _ = face("ddfm_fast", {"nothing": "no_such_module"})
    with pytest.raises(ImportError, match="no_such_module"):
        get("nothing")
    assert gc.isenabled()


def test_garbage_made_while_it_is_paused_is_collected_later(collector):
    class Node:
        gone = False

        def __del__(self):
            Node.gone = True

    gc.enable()
    with paused():
        assert not gc.isenabled()
        node = Node()
        node.itself = node
        del node
    assert not Node.gone
    gc.collect()
    assert Node.gone


def test_a_program_that_collects_by_itself_goes_on_to(collector):
    gc.disable()
    with paused():
        pass
    assert not gc.isenabled()


def test_what_the_program_froze_stays_frozen(collector):
    gc.enable()
    gc.freeze()
    frozen = gc.get_freeze_count()
    with paused():
        pass
    assert gc.isenabled()
    assert frozen * 0.9 < gc.get_freeze_count() <= frozen  # what is freed leaves the count


def test_a_command_keeps_what_it_has_loaded(collector):
    gc.enable()
    with paused(for_good=True):
        kept = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(kept)


def test_a_pause_within_a_pause_ends_with_the_outer_one(collector):
    gc.enable()
    with paused():
        with paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


COMMAND = """
import gc, json, sys
full = []
gc.callbacks.append(lambda phase, info: full.append(phase) if info["generation"] == 2 else None)
sys.argv = json.loads(sys.argv[1])
from ddfm_fast.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps([full, gc.isenabled(), gc.get_freeze_count(), "torch" in sys.modules]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddfm-fast", "another program"])
def test_the_command_never_looks_through_what_it_loaded(name, tmp_path):
    """Other programs that run it inside keep what it loads for the collector."""
    for path in ("ir.png", "vis.png"):
        cv2.imwrite(str(tmp_path / path), np.add.outer(np.arange(48), np.arange(64)))
    words = [name, "fuse", "ir.png", "vis.png", "--out", "fused.png", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, json.dumps(words)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    full, on, frozen, loaded = json.loads(done.stdout)
    assert on and loaded
    if name == "ddfm-fast":
        assert full == []
        assert frozen > 100_000
    else:
        assert frozen < 100_000
