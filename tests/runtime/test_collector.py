"""The garbage collector while the package loads: still, and afterwards as the program had it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

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
        assert young < 2000  # of some 170,000


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


def test_a_pause_within_a_pause_ends_with_the_outer_one(collector):
    gc.enable()
    with paused():
        with paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
