"""The sections of the official network and the counts on paper: tiny networks and no clock."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("skimage", reason="the baseline converts colors with scikit-image")

from ddfm_fast.bench import model, runner
from ddfm_fast.bench.place import Place
from ddfm_fast.bench.sections import official, prior

CPU = torch.device("cpu")
REHEARSAL = Place(CPU, rehearse=True)


@pytest.fixture
def place():
    found = Place(CPU, rehearse=True)
    found.measure_ceilings()
    return found


def test_a_cpu_has_nothing_to_measure():
    assert official.tasks(Place(CPU)) == []


def test_what_is_most_wanted_comes_first_and_what_compiles_for_minutes_last():
    names = [task.name for task in official.tasks(REHEARSAL)]
    assert names[0] == "official network, forward, bfloat16, batch 1"
    assert names[1] == "official network, layers, bfloat16" and "torch.compile" in names[-1]
    assert len(set(names)) == len(names)
    for part in ("convolution 3->32 3x3, 1 in", "norm and SiLU", "bias and", "whole loop", "tf32"):
        assert any(part in name for name in names)


def test_convolutions_of_a_forward_are_those_of_the_network():
    counts = official.convolutions(REHEARSAL, 16, 16)
    assert counts[32, 3, 3, 16, 16] == 1 and counts[3, 32, 3, 16, 16] == 1
    assert all(count > 0 for count in counts.values())


def test_every_layer_has_its_time_and_its_floor(place):
    found = official.layers(place, 16, 16)
    assert {"middle_block.0", "input_blocks.1.0"} <= found.candidates.keys()
    assert all(c.samples and c.floor > 0 for c in found.candidates.values())


def test_the_reference_loop_is_timed_for_all_of_its_steps(place, monkeypatch):
    calls = {}
    monkeypatch.setattr(place, "times", lambda works, **timing: calls.update(timing) or {})
    found = official.loop(place, 16, 16)
    share = found.facts["steps of the reference that were timed"] / found.facts["steps"]
    assert calls["calls"] == {"reference": share}


def test_wrong_results_are_not_timed(monkeypatch):
    real = prior.reference_forward

    def wrong(name, x):
        theirs, exact = real(name, x)
        return theirs, exact + 1

    monkeypatch.setattr(prior, "reference_forward", wrong)
    place = runner.make_place(runner.Options(device="cpu", quick=True))
    place.measure_ceilings()
    task = prior.tasks(place)[0]
    found = runner.measure(task, place)
    assert not found.green and found.candidates == {} and found.parity[0].difference > 0.1
    assert (found.section, found.name) == ("prior", task.name)


def test_paper(monkeypatch):
    monkeypatch.setattr(model, "FORWARD_SIZES", [(256, 256), (512, 640)])
    rows = model.forward_table()
    assert [rows[4][0], rows[4][2]] == ["512x640", "11.44"] and rows[4][1].startswith("ours")
    assert rows[-1][1] == "authors' module, float32" and rows[-1][2] == "11.44"
    kinds = [row[:2] for row in model.kind_table()]
    assert ["3x3 convolution", "84"] in kinds and ["3x3 layer", "2"] in kinds
