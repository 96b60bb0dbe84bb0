"""``ddfm-fast presets``: its figures are the recorded ones."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.cli.presets import MEASURED
from ddfm_fast.config import PRESETS


def recorded(kind: str) -> dict[str, dict]:
    """Return the candidates in the latest record of a kind, by measurement."""
    path = sorted((ROOT / "bench" / "results").glob(f"{kind}-2*.json"))[-1]
    return {m["name"]: m["candidates"] for m in json.loads(path.read_text())["measurements"]}


@pytest.mark.parametrize("name", [n for n, found in MEASURED.items() if found.clean])
def test_quality_is_the_recorded(name):
    quality, found = recorded("quality"), MEASURED[name]
    for corruption, pair in (("clean", found.clean), ("ir-sigma25", found.noisy)):
        scores = quality[f"infrared-visible, {corruption}"][f"preset {name}"]["quality"]
        assert pair == pytest.approx((scores["VIF"], scores["Qabf"]), abs=5e-4)


@pytest.mark.parametrize("name", [n for n, found in MEASURED.items() if found.seconds])
def test_seconds_are_the_recorded(name):
    peers = recorded("peers")
    medians = [peers[c][f"preset {name}"]["summary"]["median"] for c in ("clean", "ir-sigma25")]
    assert MEASURED[name].seconds == pytest.approx(tuple(medians), abs=6e-4)


def test_every_preset_is_listed_with_its_cost():
    text = CliRunner().invoke(app, ["presets"]).stdout
    assert set(MEASURED) == set(PRESETS)
    assert "The default is balanced, or official with one of --variant, --sampler, --steps" in text
    assert text.count("prior evaluations:") == len(PRESETS)
