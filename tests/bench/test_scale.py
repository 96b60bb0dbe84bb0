"""``python -m bench.scale``: the line, the estimate on paper, and a quick run of one way."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("skimage", reason="the benchmarks need scikit-image")

from typer.testing import CliRunner

from ddfm_fast.bench import results, scale


def test_a_line_is_found_and_needs_six_sizes():
    pairs = [10, 30, 100, 300, 1000, 3000]
    line = scale.fitted(pairs, [0.5 + 0.002 * n for n in pairs])
    assert line.start == pytest.approx(0.5) and line.each == pytest.approx(0.002)
    assert line.worst == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="5 sizes; expected at least 6"):
        scale.fitted(pairs[:5], [1.0] * 5)


def test_the_estimate_is_that_of_the_parts():
    """By hand: 1 MB in, .5 MB out, 20 ms of files, .1 s of fusion, and 1 ms of the driver."""
    found = {"decode": 0.015, "write": 0.005, "fuse": 0.1, "bytes_in": 1e6, "bytes_out": 5e5}
    head, *rows = scale.on_paper(found, 0.001)
    table = {(row[0], row[1]): dict(zip(head, row, strict=True)) for row in rows}
    official = table["1 × H100", "official"]
    assert official["limit"] == "fusion"
    # 1.43 s at 512×640, scaled from 512 rows to 480, a million times, in hours
    assert float(official["hours"]) == pytest.approx(1.43 * 480 / 512 * 1e6 / 3600, abs=0.01)
    many = table["64 × H100", "fast"]
    assert many["limit"] == "driver" and many["driver"] == "0.28"  # 1000 s
    assert many["network"] == f"{1.5e12 / (64 * 1.25e9) / 3600:.2f}"
    cpus = table["64 × CPU", "fast"]
    assert float(cpus["fusion"]) == pytest.approx(1e6 * 0.12 / (64 * 64) / 3600, abs=0.01)
    assert cpus["store"] == "0.08"  # 1.5 TB at 5 GB/s: 300 s
    assert cpus["limit"] == "driver"


def test_a_quick_run_of_one_way(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "timed", lambda work, seconds=0: (work(), 0.25)[1])
    options = ["--quick", "--ways", "1 process", "-o", str(tmp_path)]
    done = CliRunner().invoke(scale.app, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("*-quick.json")
    report = results.load(path)
    (found,) = report.measurements
    assert [row["pairs"] for row in found.facts["rows"]] == list(scale.QUICK)
    assert not report.full and found.facts["startup"] > 0 and found.facts["line"]["each"] > 0
    seconds = [row["seconds"] for row in found.facts["rows"]]
    assert seconds == sorted(seconds) and all(row["driver"] > 1e7 for row in found.facts["rows"])
    page = path.with_suffix(".md").read_text()
    assert "A quick look (`--quick`)" in page and "| 1 process |" in page
    assert "Nobody ran this" in page
    assert json.loads(path.read_text())["settings"]["parts"]["fuse"] == 0.25
