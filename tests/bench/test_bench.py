"""The benchmark's own logic: parity before speed, the format, comparison, report; no timing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch
from conftest import ROOT
from typer.testing import CliRunner

pytest.importorskip("skimage", reason="the baseline converts colors with scikit-image")

from ddfm_fast.bench import compare, machine, model, plots, readme, results, runner, table
from ddfm_fast.bench.data import network, reference_unet
from ddfm_fast.bench.place import ParityError, Place, require
from ddfm_fast.bench.results import Candidate, Measurement, Parity, Report
from ddfm_fast.bench.sections import SECTIONS, scaling, step, waterfall
from ddfm_fast.cli.app import app

CARD = {"cpu": "a CPU", "threads": 2, "torch": "2", "commit": "abc", "load": 0.1}
LIMITS = {name: {"rate": 1e9, "samples": [1e9]} for name in ("copy", "float32", "launch")}


def report(median=1.0, reference=4.0, yardstick=1.0, **changes) -> Report:
    """Make a report of one measurement, whose seven samples scatter by 2 %."""
    spread = (0.98, 0.99, 1.0, 1.0, 1.0, 1.01, 1.02)

    def samples(value: float) -> list[float]:
        return [value * s for s in spread]

    measurement = Measurement(
        "step", "a step", "64x64", "python -m bench step", "reference", [Parity("x", 1e-6, 1e-4)],
        {"reference": Candidate(samples(reference)), "ddfm_fast": Candidate(samples(median))},
        samples(yardstick),
    )  # fmt: skip
    return Report(CARD, LIMITS, {}, [replace(measurement, **changes)], "2026-01-01T00:00:00")


def run(*arguments: str):
    return CliRunner().invoke(app, ["bench", "--quiet", *arguments])


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder of files and the output of a quick run of every section, by the command itself."""
    folder = tmp_path_factory.mktemp("quick")
    command = [sys.executable, "-m", "bench", "--quick", "--quiet", "--save", "--report"]
    done = subprocess.run(
        [*command, "--seconds", "0.1", "--repeats", "3", "--out", str(folder)],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_quick_measures_every_section(quick):
    folder, text = quick
    (path,) = folder.glob("cpu-quick-*.json")
    found = results.load(path)
    of_a_gpu = {"kernels", "official", "host"}
    assert {m.section for m in found.measurements} == set(SECTIONS) - of_a_gpu
    assert found.green and all(m.yardstick for m in found.measurements)
    assert found.settings["left_out"] == [] and not found.full
    for measurement in found.measurements:
        for candidate in measurement.candidates.values():
            assert candidate.samples and min(candidate.samples) > 0
        assert measurement.parity or measurement.section == "startup"
    assert {"cpu", "threads", "torch", "commit", "python"} <= found.machine.keys()
    assert {"copy", "float32", "launch"} <= found.ceilings.keys()
    assert "everything after the prior, one step" in text


def test_report_is_one_page_without_outside_resources(quick):
    folder, _ = quick
    (path,) = folder.glob("*.html")
    text = path.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", text) and "url(" not in text
    for name in ("waterfall", "scaling", "speed_quality"):
        assert f'<section id="{name}">' in text
        (png,) = folder.glob(f"*-{name}.png")
        assert png.read_bytes().startswith(b"\x89PNG")
    assert "python -m bench waterfall --quick" in text
    assert "H100 SXM, 3 $/h" in text and "authors' module, float32" in unescape(text)
    assert set(re.findall("@([a-z]+)@", text)) == set()


def test_names_of_older_results_are_those_of_today():
    recorded = results.load(ROOT / "bench" / "results" / "cpu-2026-11-28.json")
    names = [m.name for m in recorded.of("video")]
    assert any(name.startswith("seconds per frame of a video, ") for name in names), names
    assert "no PNG per step" in recorded.of("waterfall")[0].candidates


def test_waterfall_says_what_is_lossless(quick):
    folder, _ = quick
    (path,) = folder.glob("*.json")
    (found,) = results.load(path).of("waterfall")
    lossless = {name for name, c in found.candidates.items() if c.lossless}
    assert {"reference", "no PNG per step", found.facts["default"]} <= lossless
    assert not {"preset balanced", "preset fast", "prior in bfloat16"} & lossless
    for name, candidate in found.candidates.items():
        assert {"PSNR", "EN", "SD", "MI", "VIF", "Qabf", "SSIM"} <= candidate.quality.keys()
        assert (candidate.quality["PSNR"] > 80) == (name in lossless)


def test_no_speed_is_reported_where_parity_is_red(monkeypatch, tmp_path):
    """A constant of the authors' code is changed on our side: the results differ."""
    monkeypatch.setattr("ddfm_fast.rectify.OFFICIAL_EPS", 1e-2)
    done = run("step", "--quick", "--save", "--out", str(tmp_path))
    assert done.exit_code == 1
    assert "RED" in done.stdout and "no timing is reported" in done.stdout
    assert "times faster" in done.stdout and not re.search(r"\d ms", done.stdout)
    (path,) = tmp_path.glob("*.json")
    (raw,) = json.loads(path.read_text())["measurements"]
    assert raw["candidates"] == {} and raw["parity"][0]["difference"] > raw["parity"][0]["limit"]
    assert "times_faster" not in json.dumps(raw)


def test_a_section_that_fails_does_not_cost_the_others(monkeypatch, tmp_path):
    def broken(*arguments):
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setattr(step, "on_cpu", broken)
    done = run("step", "startup", "--quick", "--save", "--out", str(tmp_path))
    assert done.exit_code == 1 and "FAILED: RuntimeError: no kernel image" in done.stdout
    (path,) = tmp_path.glob("*.json")
    failed, startup = results.load(path).measurements
    assert failed.failed == "RuntimeError: no kernel image" and failed.candidates == {}
    assert startup.green and startup.candidates["import torch"].samples


def test_nan_is_red():
    with pytest.raises(ParityError, match="no speed-up"):
        require(Parity("x", float("nan"), 1.0))


def test_a_red_measurement_gives_no_ratio():
    red = report(parity=[Parity("x", 1.0, 1e-4)]).measurements[0]
    assert red.times_faster("ddfm_fast") is None
    assert report().measurements[0].times_faster("ddfm_fast") == pytest.approx(4)


def test_results_survive_the_file(tmp_path):
    path = results.save(report(), tmp_path / "a.json")
    assert results.load(path) == report()
    assert results.free_path(tmp_path, "a", "b") == tmp_path / "a-b.json"
    results.save(report(), tmp_path / "a-b.json")
    assert results.free_path(tmp_path, "a", "b") == tmp_path / "a-b-2.json"


def verdicts(old: Report, new: Report) -> dict[str, str]:
    return {change.path: change.verdict for change in compare.compare(old, new)}


@pytest.mark.parametrize(
    "new, ours",
    [
        (report(), "same"),
        (report(1.05), "same"),  # below the threshold
        (report(1.5), "slower"),
        (report(0.6), "faster"),
        (report(1.5, 6.0, 1.5), "same"),  # the machine is slower
        (report(1.5, 4.0, 1.5), "same"),  # the yardstick says so too
        (report(3.0, 4.0, 1.5), "slower"),  # more than the machine is
    ],
)
def test_compare(new, ours):
    assert verdicts(report(), new)["ddfm_fast"] == ours


def test_compare_does_not_judge_two_samples():
    few = report(2.0)
    few.measurements[0].candidates["ddfm_fast"].samples = [2.0, 2.0]
    assert verdicts(report(), few)["ddfm_fast"] == "same"


@pytest.mark.parametrize("unit, ours", [(1e-4, "same"), (1e-2, "slower")])
def test_compare_resolves_a_millisecond_of_what_happens_once(unit, ours):
    """Three times slower: by 0.2 ms, which does not count, or by 20 ms, which does."""
    old, new = (report(value * unit, 4 * unit, unit, section="startup") for value in (1.0, 3.0))
    assert verdicts(old, new)["ddfm_fast"] == ours


def test_compare_calls_red_a_regression():
    red = report(parity=[Parity("x", 1.0, 1e-4)], candidates={})
    assert set(verdicts(report(), red).values()) == {"red"}


def test_compare_command(tmp_path):
    for name, made in {"a": report(), "b": report(1.5), "c": report(1.02)}.items():
        results.save(made, tmp_path / f"{name}.json")
    a, b, c = (str(tmp_path / f"{n}.json") for n in "abc")
    slower, same = run("--compare", a, b), run("--compare", a, c)
    assert slower.exit_code == 1 and "REGRESSION step, a step, 64x64: ddfm_fast" in slower.stdout
    assert same.exit_code == 0 and "REGRESSION" not in same.stdout


@pytest.mark.parametrize(
    "content, message",
    [(None, "there is no file"), ("{", "is not JSON"), ('{"results": []}', "has schema None"),
     ('{"schema": "ddfm_fast bench 1"}', "is damaged")],
)  # fmt: skip
def test_compare_refuses_other_files(tmp_path, content, message):
    path, good = tmp_path / "x.json", results.save(report(), tmp_path / "good.json")
    if content is not None:
        path.write_text(content)
    done = run("--compare", str(good), str(path))
    assert done.exit_code == 2 and message in done.stderr and str(path) in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [(["speed"], "section is 'speed'"), (["--size", "big"], "--size is 'big'"),
     (["step", "--size", "8x8"], "at least 16x16"), (["--rehearse"], "TRITON_INTERPRET=1")],
)  # fmt: skip
def test_bad_arguments(arguments, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = run(*arguments)
    assert done.exit_code == 2 and message in done.stderr


def test_missing_extra_is_named(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("ddfm_fast.bench")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "skimage.color", None)
    done = run("--list")
    assert done.exit_code == 2 and 'pip install "ddfm_fast[bench]"' in done.stderr


def test_list_names_every_section():
    done = run("--list")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(SECTIONS)


def test_fit_finds_the_exponent():
    x = [1.0, 2, 4, 8, 16, 32]
    assert scaling.fit(x[:5], x[:5]) == {}
    fit = scaling.fit(x, [3 * n**1.5 for n in x])
    assert fit["exponent"] == pytest.approx(1.5) and fit["factor"] == pytest.approx(3)
    assert fit["r2"] == pytest.approx(1)


def test_figures_name_the_machine_and_mark_a_quick_look(monkeypatch):
    from matplotlib.figure import Figure

    lines = []
    monkeypatch.setattr(Figure, "supxlabel", lambda self, text, **_: lines.append(text))
    recorded = results.load(ROOT / "bench" / "results" / "cpu-2026-11-28.json")
    assert [figure.name for figure in plots.figures(recorded)] == [
        "waterfall", "scaling", "speed_quality",
    ]  # fmt: skip
    for line in lines:
        assert line.startswith("2 threads of Intel(R) Xeon(R)") and "2026-11-28" in line
        assert re.search(r"n = 3( to 10)? samples", line)
    plots.figures(replace(recorded, settings={"quick": True}))
    assert [line.startswith("QUICK LOOK") for line in lines] == [False] * 3 + [True] * 3


def test_no_exponent_of_fewer_than_six_sizes():
    """The record of 2026-11-28 has fits of four and five; they are not shown."""
    recorded = results.load(ROOT / "bench" / "results" / "cpu-2026-11-28.json")
    counts = {m.name: len(m.facts.get("x", ())) for m in recorded.of("scaling")}
    assert counts["whole fusion against steps"] == 5
    shown = {m.name: set(table.exponents(m)) for m in recorded.of("scaling")}
    assert shown.pop("step after the prior against pixels") == {"ddfm_fast", "reference"}
    assert not any(shown.values())
    assert len([line for line in table.fits(recorded) if line]) == 2
    for values in (scaling.PRIOR_SIZES, scaling.STEP_SIZES, scaling.BATCHES, scaling.STEPS):
        assert len(values) >= results.FEWEST_SIZES == 6


def test_planes_rotate_beyond_the_cache():
    place, height, width = Place(torch.device("cpu")), 512, 640
    moved = place.sets(height, width) * 13 * 4 * height * width
    assert moved >= 3 * machine.cache_bytes(place.device) or place.sets(height, width) == 32


@pytest.mark.parametrize("name", ["embedded", "small ADM"])
def test_reference_network_agrees(name):
    x = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([500])
    ours, theirs = network(name)(x, t), reference_unet(name, torch.device("cpu"))(x, t)
    assert float((ours - theirs).abs().max()) < 1e-4 * max(1.0, float(theirs.abs().max()))


def test_reference_writes_a_png_a_step(tmp_path):
    from ddfm_fast.bench.reference import ReferenceLoop
    from ddfm_fast.files.reading import read_image
    from ddfm_fast.schedule import make_schedule

    i, v, x, out = step.planes(24, 32, torch.device("cpu"))
    schedule = make_schedule(3)
    loop = ReferenceLoop(schedule.timesteps, schedule.betas)
    with_png = loop(lambda x, t: out, x, i, v, png=tmp_path)
    assert torch.equal(with_png, loop(lambda x, t: out, x, i, v))
    pictures = [read_image(path) for path in sorted(tmp_path.glob("*.png"))]
    assert len(pictures) == 3
    assert all(p.shape == (24, 32) and (p.min(), p.max()) == (0, 255) for p in pictures)


def test_model_follows_work_prices_and_limits(monkeypatch):
    gpu = model.GPUS[0]
    once = model.on_gpu(gpu, "embedded", 1, 64, 64)
    assert model.on_gpu(gpu, "embedded", 10, 64, 64) == pytest.approx(10 * once)
    launches = len(model.forward_cost("embedded", 64, 64, half=True, fused=True).launches)
    assert once >= launches * model.LAUNCH_S
    slow = replace(gpu, operations=gpu.operations / 2, bandwidth=gpu.bandwidth / 2)
    times = (model.on_gpu(g, "official", 3, 512, 640) for g in (slow, gpu))
    assert 1.9 < next(times) / next(times) <= 2
    monkeypatch.setattr(model, "GPUS", (gpu, replace(gpu, price=2 * gpu.price)))
    dollars = [cell.partition("$")[2].replace(",", "") for cell in model.gpu_table()[1][1:]]
    assert float(dollars[1]) == pytest.approx(2 * float(dollars[0]), abs=1)


def test_model_counts_what_the_convolutions_do():
    """115 kFLOP per pixel, as the topic priors states for the embedded prior."""
    cost = model.forward_cost("embedded", 64, 64)
    assert cost.flops / 64**2 == pytest.approx(115e3, rel=0.02)
    assert model.forward_cost("embedded", 128, 128).flops == pytest.approx(4 * cost.flops, rel=1e-6)


def test_readme_is_changed_between_the_markers_alone(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.START}\nold\n{readme.END}\nafter\n")
    readme.update({"CPU": (tmp_path / "cpu-2026-01-01.json", report())}, path)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| step: a step, 64x64 | 4 s | 1 s | 4.00 |" in text and readme.NOT_YET in text
    path.write_text("none")
    with pytest.raises(ValueError, match="has no lines"):
        readme.update({}, path)


@pytest.mark.parametrize("path, short", [(readme.README, True), (readme.TOPIC, False)])
def test_the_readme_and_the_topic_show_the_recorded_results(path, short):
    """The text between the markers is what the recorded files say."""
    recorded = results.latest(ROOT / "bench" / "results")
    if not recorded:
        pytest.skip("no result is recorded in bench/results")
    between = path.read_text().partition(readme.START)[2].partition(readme.END)[0].strip()
    assert between == readme.section(recorded, short).strip()


@pytest.mark.parametrize(
    "settings", [{"quick": True}, {"rehearse": True}, {"sections": ["official"]}, {"size": [9, 9]}]
)
def test_part_of_a_run_does_not_stand_for_its_device(tmp_path, settings):
    results.save(replace(report(), settings=settings), tmp_path / "q.json")
    (tmp_path / "other.json").write_text('{"machine": {}, "results": []}')
    assert results.latest(tmp_path) == {}
    whole = replace(report(), settings={"sections": [*results.SHOWN, "video"]})
    path = results.save(whole, tmp_path / "whole.json")
    assert results.latest(tmp_path)["CPU"][0] == path


def test_every_recorded_result_is_in_the_one_format_and_on_its_page():
    folder = ROOT / "bench" / "results"
    about = (folder / "README.md").read_text()
    for path in sorted(folder.glob("*.json")):
        found = results.load(path)
        raw = json.loads(path.read_text())
        assert raw["units"] == results.UNITS and found.machine["cpu"] and found.measurements, path
        assert path.name in about, f"{path.name} is not in bench/results/README.md"
        assert table.text(found)
    for path in (p for p in folder.iterdir() if p.suffix in (".md", ".png")):
        known = path.name in about or path.name.startswith("cpu-") or path.name == "README.md"
        assert known, f"{path.name} is not in bench/results/README.md"


def test_what_a_stopped_run_did_not_come_to_is_named(monkeypatch, tmp_path):
    kept = []

    def stop(report):
        kept.append(results.load(results.save(report, tmp_path / "kept.json")))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(runner.Options(("step", "startup"), quick=True), progress=False, keep=stop)
    (left,) = kept[0].settings["left_out"]
    assert left.startswith("startup: ")
    assert f"1 measurements are missing, from {left!r} on" in table.text(kept[0])


def test_a_study_of_quality_alone_has_no_times():
    study = Measurement("video", "a clip", "9x9", candidates={"a": Candidate(quality={"VIF": 0.5})})
    found = replace(report(), measurements=[study])
    assert "VIF 0.500" in table.text(found) and study.times_faster("a") is None
    assert compare.compare(found, found) == []


def test_waterfall_names_are_unique_and_the_default_is_one():
    names = [row.name for row in waterfall.ROWS]
    assert len(set(names)) == len(names)
    assert waterfall.default_row(Place(torch.device("cpu"))) in names


def test_text_of_times():
    assert [table.seconds(s) for s in (2.5, 2.5e-3, 2.5e-6)] == ["2.5 s", "2.5 ms", "2.5 µs"]


def test_names_of_files():
    assert machine.device_name({"gpu": "NVIDIA H100 80GB HBM3"}) == "nvidia-h100-80gb-hbm3"
    assert machine.device_name({}) == "cpu"


def test_options_are_checked():
    with pytest.raises(ValueError, match="section is 'x'; expected some of kernels"):
        runner.Options(("x",))
    with pytest.raises(ValueError, match="device is 'gpu0'"):
        runner.make_place(runner.Options(device="gpu0"))


def test_quality_of_equal_pictures():
    from ddfm_fast.bench.fidelity import psnr, to_bytes

    plane = torch.linspace(0, 1, 64 * 64).view(1, 1, 64, 64)
    assert psnr(plane, plane) == float("inf")
    assert psnr(plane, plane + 0.1) == pytest.approx(20, abs=1e-3)
    assert to_bytes(plane).dtype == np.uint8 and to_bytes(plane).shape == (64, 64)
