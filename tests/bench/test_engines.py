"""The comparison of engines: with stand-ins everywhere, and with each real one where it is."""

from __future__ import annotations

import math

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("skimage", reason="the baseline converts colors with scikit-image")

from conftest import ROOT

from ddfm_fast.bench import engines, exported, plots, results
from ddfm_fast.bench.engines import LIMITS, PICTURES, TIMESTEP, app
from ddfm_fast.bench.exported import ENGINES, OFFICIAL, OURS, EngineKind, Work
from ddfm_fast.bench.results import Candidate, Measurement
from ddfm_fast.priors.precision import cpu_has
from ddfm_fast.schedule import trained_alphas

SMALL = ["--sizes", "32x48", "--batches", "1", "--rounds", "1", "--threads", "1"]


@pytest.fixture
def work(tmp_path) -> Work:
    """Make the work of a small network at a tiny size; NNCF 3.4 fails on attention's `unbind`."""
    (_, x), *others = (engines.pictures(1, 32, 48, seed) for seed in range(4))
    return Work("ADM 32", TIMESTEP, x, [other for _, other in others], 1, tmp_path)


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Replace engines that need a package by ones that need none: right, wrong and broken."""

    def wrong(work: Work, precision: str):
        return lambda: ENGINES[OFFICIAL].make(work, "float32")() * 1.1

    def broken(work: Work, precision: str):
        raise RuntimeError("no such operator\nand more")

    def rounded(work: Work, precision: str):
        step = 2**-10 if precision == "float32" else 0.25
        return lambda: (ENGINES[OFFICIAL].make(work, "float32")() / step).round() * step

    ours = {name: ENGINES[name] for name in (OURS, OFFICIAL)}
    made = {
        "wrong": EngineKind(wrong, ("float32",)),
        "broken": EngineKind(broken, ("float32",)),
        "coarse": EngineKind(rounded, ("int8",)),
        "absent": EngineKind(broken, ("float32",), ("no_such_module",)),
    }
    monkeypatch.setattr(exported, "ENGINES", ours | made)
    monkeypatch.setattr(engines, "ENGINES", ours | made)
    monkeypatch.setattr(engines, "NAMES", ("tiny",))
    return tmp_path


def run(out, *more: str):
    done = CliRunner().invoke(app, [*SMALL, *more, "-o", str(out)])
    assert done.exit_code == 0, done.output
    (path,) = out.glob("engines-*.json")
    return results.load(path), path.with_suffix(".md").read_text(), done.output


@pytest.mark.slow
def test_what_is_wrong_broken_or_absent_has_no_time(stand_ins):
    report, page, said = run(stand_ins)
    (m,) = report.measurements
    assert m.green and m.size == "32x48" and m.facts["pixels"] == 32 * 48
    halves = {f"{OFFICIAL}, bfloat16"} if cpu_has(torch.bfloat16) else set()
    if (own := m.candidates.get(f"{OURS}, bfloat16")) and not own.about.startswith("RED"):
        halves.add(f"{OURS}, bfloat16")  # with random weights its error may exceed the limit
    timed = {n for n, c in m.candidates.items() if c.samples}
    assert timed == {OURS, OFFICIAL, "coarse, int8", *halves}
    assert m.candidates["wrong"].about.startswith("RED: off by ")
    assert m.candidates["broken"].about == "failed: RuntimeError: no such operator"
    assert m.candidates["coarse, int8"].quality["error of eps (rms)"] > 1e-3
    sentence = "absent: no_such_module is not installed; pip install 'ddfm_fast[engines]'"
    assert said.count(sentence) == 1 and page.count(sentence) == 1
    assert "absent" not in m.candidates and "| RED |" in page and "- coarse, int8, tiny:" in page


@pytest.mark.slow
def test_a_wrong_result_of_ours_is_red_and_nothing_is_timed(stand_ins, monkeypatch):
    def off(work: Work, precision: str):
        return lambda: ENGINES[OFFICIAL].make(work, "float32")() + 1e-3

    monkeypatch.setitem(engines.ENGINES, OURS, EngineKind(off, ("float32",)))
    report, page, _ = run(stand_ins)
    assert not report.measurements[0].green and not report.measurements[0].candidates
    assert "no timing" not in page and "differs by" in page


@pytest.mark.slow
def test_what_would_take_too_long_is_left_out_and_said(stand_ins):
    report, page, _ = run(stand_ins, "--sizes", "32x48,64x64", "--longest", "1e-6")
    assert [m.size for m in report.measurements] == ["32x48"]  # the first size is always tried
    (reason,) = report.settings["not_run"].values()
    assert reason.startswith(OURS) and f"tiny, 64x64: left out, {reason}" in page
    later, _, _ = run(stand_ins / "none", "--minutes", "0")
    assert not later.measurements
    assert later.settings["not_run"] == {"tiny, 32x48": "0 minutes were over"}


@pytest.mark.slow
def test_precisions_that_are_not_chosen_are_not_made(stand_ins):
    """float32 is always there, because the others are compared with it."""
    for chosen, coarse in (("float32", False), ("int8", True)):
        report, _, _ = run(stand_ins / chosen, "--precisions", chosen)
        (m,) = report.measurements
        assert {OURS, OFFICIAL} <= set(m.candidates)
        assert ("coarse, int8" in m.candidates) == coarse
        assert not any("bfloat16" in name for name in m.candidates)
        assert report.settings["command"].endswith(f"--precisions {chosen}")


def test_memory_leaves_a_measurement_out(monkeypatch):
    monkeypatch.setattr(engines, "machine", lambda: {"memory_bytes": 1000})
    reason = engines.impossible(engines.Run(None, [OURS], 1, math.inf), "tiny", 1, (32, 48))
    assert reason.startswith("its engines would hold about")


@pytest.mark.parametrize(
    "wrong, words",
    [
        (["--networks", "big"], "--networks has 'big'"),
        (["--engines", "mine"], "--engines has 'mine'"),
        (["--precisions", "int4"], "--precisions has 'int4'"),
        (["--sizes", "17x32"], "multiples of 16"),
        (["--sizes", "0x0"], "multiples of 16"),
        (["--sizes", "32"], "HEIGHTxWIDTH"),
        (["--batches", "0"], "--batches has 0"),
    ],
)
def test_wrong_options_are_said_first(wrong, words):
    done = CliRunner().invoke(app, wrong)
    assert done.exit_code == 2 and words in done.output


def test_a_lead_counts_the_fastest_on_both_sides_and_int8_apart():
    times = {OURS: 2.0, f"{OURS}, bfloat16": 1.0, "a": 3.0, "b, bfloat16": 1.5, "b, int8": 0.5}
    m = Measurement(candidates={name: Candidate([time]) for name, time in times.items()})
    assert engines.lead(m, int8=False) == 1.5 and engines.lead(m, int8=True) == 0.5
    del m.candidates["b, int8"]
    assert engines.lead(m, int8=True) == math.inf


def test_pictures_have_the_noise_of_their_timestep_and_differ_by_seed():
    alpha = float(trained_alphas()[TIMESTEP])
    # sigma of x_t over the picture's scale, in gray levels of 255 for a range of 2
    assert 127.5 * math.sqrt((1 - alpha) / alpha) == pytest.approx(25, rel=0.02)
    clean, x = engines.pictures(3, 528, 560, seed=0)
    assert clean.shape == x.shape == (3, 3, 528, 560) and clean.abs().max() <= 1
    noise = x - math.sqrt(alpha) * clean
    assert float(noise.std()) == pytest.approx(math.sqrt(1 - alpha), rel=0.01)
    assert all(not torch.equal(x, engines.pictures(3, 528, 560, s)[1]) for s in (1, PICTURES))
    exact = noise / math.sqrt(1 - alpha)
    assert engines.denoised_psnr(clean, x, exact) > 100
    assert engines.denoised_psnr(clean, x, 0 * exact) == pytest.approx(20.17, abs=0.1)  # sigma 25


@pytest.mark.parametrize("name", [n for n in ENGINES if n not in (OURS, OFFICIAL)])
@pytest.mark.extras
def test_an_installed_engine_computes_the_network(name, work):
    exact, tried = ENGINES[OFFICIAL].make(work, "float32")(), 0
    for precision in ENGINES[name].precisions:
        if exported.missing(name, precision):
            continue
        torch.compiler.reset()
        check = engines.checked(exact, ENGINES[name].make(work, precision)(), name, precision)
        assert check.limit == LIMITS[precision] and check.green, check
        tried += 1
    if not tried:
        pytest.skip(exported.missing(name, "float32"))


def test_the_plot_names_the_sizes_of_single_images_and_shows_the_spread(monkeypatch):
    """Several small images have as many pixels as a large one, but must not get its name."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    monkeypatch.setattr(plots, "_png", lambda draw, *_: draw(figure))
    report = results.load(ROOT / "bench" / "results" / "engines-epyc-2026-11-29.json")
    plots.engines_over_pixels(report)
    (axis,) = figure.axes
    assert [t.get_text() for t in axis.get_xticklabels()] == ["128x128", "256x320", "512x640"]
    shown = sum(len([c for c in m.candidates.values() if c.samples]) for m in report.measurements)
    assert len(axis.containers) == shown > 20
