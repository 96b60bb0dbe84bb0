"""The targets of the pictures: measured on the data at hand, with a margin."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import ROOT, shared

from ddfm_fast.bench import quality
from ddfm_fast.bench.quality import REFERENCE, SETS, TARGETS, relief, run, verdicts

MARGIN = 0.005
THIN = {("CT", "clean", "SSIM"), ("infrared-visible", "clean", "Qabf")}
"""targets that are reached by less than the margin"""


def test_verdicts_compare_with_the_older_preset():
    scores = {
        "preset balanced": {"VIF": 0.6, "SCD": 1.3, "relief": 2.0},
        REFERENCE: {"VIF": 0.5, "SCD": 1.0, "relief": 1.9},
    }
    found = {
        (t.set, t.metric): (reached, enough)
        for t, reached, enough in verdicts({("CT", "clean"): scores})
    }
    assert found["CT", "VIF"] == (pytest.approx(1.2), 0.6 / 0.5 >= 1.2)
    assert found["CT", "SCD"] == (pytest.approx(0.3), True)
    found = {t.metric: enough for t, _, enough in verdicts({("infrared-visible", "clean"): scores})}
    assert found["relief"] is False


def test_relief_is_of_flat_bright_sky():
    rng = np.random.default_rng(0)
    vis = np.full((64, 64), 0.9, np.float32)
    vis[32:] = 0.2
    flat = np.full((64, 64), 128.0, np.float32)
    textured = flat + 5 * rng.standard_normal((64, 64)).astype(np.float32)
    assert relief(flat, vis) == pytest.approx(0, abs=1e-3) and relief(textured, vis) > 2
    assert relief(flat, np.full_like(vis, 0.3)) is None


def recorded() -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Return what the latest record reports about every method, by set and corruption."""
    path = sorted((ROOT / "bench" / "results").glob("quality-2*.json"))[-1]
    measurements = json.loads(path.read_text())["measurements"]
    return {
        tuple(m["name"].split(", ")): {k: c["quality"] for k, c in m["candidates"].items()}
        for m in measurements
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, corruptions",
    [
        *((name, ("clean",)) for name in SETS),
        pytest.param(
            "infrared-visible", SETS["infrared-visible"].corruptions, marks=pytest.mark.thorough
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} corruptions",
)
def test_targets(name, corruptions, monkeypatch):
    """This checkout's pictures reach every target with a margin, as the record does."""
    root = shared("data")
    monkeypatch.setitem(SETS, name, SETS[name]._replace(corruptions=corruptions))
    only = quality.methods(SETS[name].images)["preset balanced"]
    monkeypatch.setattr(quality, "methods", lambda _images: {"preset balanced": only})
    values, _ = run(root, [name])
    for key, scores in values.items():
        scores[REFERENCE] = recorded()[key][REFERENCE]
    found = verdicts(values)
    wanted = [t for t in TARGETS if t.set == name and t.corruption in corruptions]
    assert len(found) == len(wanted) > 0
    missed = []
    for target, reached, enough in found:
        margin = 0 if (name, target.corruption, target.metric) in THIN else MARGIN
        spare = target.least - reached if target.metric == "relief" else reached - target.least
        if spare < margin or not enough:
            what = f"{target.corruption} {target.metric}"
            missed.append(f"{what}: {reached:.3f}, target {target.least}")
    assert missed == []
