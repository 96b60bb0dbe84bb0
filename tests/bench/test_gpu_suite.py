"""The benchmarks and the script for a GPU, as far as a machine without one can tell."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ddfm_fast.bench import kit, machine, numbers, runner, smoke
from ddfm_fast.bench.place import Place, Task
from ddfm_fast.bench.results import Measurement, Report
from ddfm_fast.bench.sections import SECTIONS, host
from ddfm_fast.bench.smoke_cases import SCENES, Case, Way, cases

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SCRIPT = (ROOT / "bench" / "gpu_suite.sh").read_text()
STAND_IN = """#!/usr/bin/env bash
# a Python with a GPU: the smoke test finds a fault, all else is well
case "$*" in
  *bench.smoke*) echo "a fault"; exit 1 ;;
  *bench.numbers*) sleep "${SLEEP:-0}"; echo "$@" ;;
  -) cat >/dev/null; echo "a GPU" ;;
esac
"""


def suite(*words, root=ROOT, python=sys.executable, **env):
    command = ["bash", "bench/gpu_suite.sh", *words]
    env = {**os.environ, "PYTHON": str(python), **{k: str(v) for k, v in env.items()}}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=env)


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "python"
    path.write_text(STAND_IN)
    path.chmod(0o755)
    return path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_suite_says_that_there_is_no_gpu(tmp_path):
    done = suite("smoke", OUT=tmp_path / "out")
    assert done.returncode == 0 and done.stdout == "no GPU: skipped\n", done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


def test_the_suite_names_a_wrong_word():
    done = suite("smok")
    assert done.returncode == 2 and "smok is no part" in done.stderr


def test_the_suite_says_that_there_is_no_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('none here')")
    done = suite("smoke", PYTHONPATH=tmp_path)
    assert done.returncode == 2 and "has no PyTorch (none here)" in done.stderr


def test_the_suite_runs_every_part_and_fails_if_one_does(tmp_path, stand_in):
    done = suite(python=stand_in, OUT=tmp_path / "out")
    assert done.returncode == 1, done.stdout + done.stderr
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert re.findall(r"^(\w+): exit (\d+)", summary, re.MULTILINE) == [
        ("smoke", "1"), ("numbers", "0"), ("tests", "0")
    ]  # fmt: skip
    assert "a fault" in (tmp_path / "out" / "smoke.log").read_text()
    assert (
        f"--within 220 --out {tmp_path / 'out'}" in (tmp_path / "out" / "numbers.log").read_text()
    )


def test_the_suite_cuts_a_part_off_and_leaves_out_what_has_no_time(tmp_path, stand_in):
    done = suite("numbers", "tests", python=stand_in, OUT=tmp_path, SECONDS_LEFT=6, SLEEP=20)
    assert done.returncode == 0, "it may compile at its end"
    assert "numbers: exit 124" in done.stdout and "tests: left out, no time" in done.stdout
    assert "cut off at" in (tmp_path / "numbers.log").read_text()


def test_a_failure_is_printed_when_it_happens_and_tests_end_in_time(tmp_path):
    (tmp_path / "test_two.py").write_text("def test_a():\n    assert 0\n\ndef test_b(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "bench.instant", "--tb=line"]
    for limit, ran in (("60", "1 failed, 1 passed"), ("1", "1 failed in")):
        env = {**os.environ, "LIMIT": limit, "PYTHONPATH": str(ROOT)}
        where = ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
        done = subprocess.run([*command, *where], env=env, capture_output=True, text=True, cwd=ROOT)
        first, _, rest = done.stdout.partition("---\n")
        assert "test_two.py::test_a, call" in first and "assert 0" in first, (
            done.stdout + done.stderr
        )
        assert ran in rest and ("out of time" in rest) == (limit == "1")


def test_the_parts_fit_a_quarter_of_an_hour():
    limits = [int(n) for n in re.findall(r"\{(?:SMOKE|NUMBERS|TESTS)_S:-(\d+)\}", SCRIPT)]
    (in_all,) = map(int, re.findall(r"\{SECONDS_LEFT:-(\d+)\}", SCRIPT))
    assert len(limits) == 3 and sum(limits) < in_all < 900


@pytest.mark.thorough
def test_the_gpu_benchmark_rehearses_on_the_cpu(tmp_path):
    """Every section for a GPU runs and is recorded; the figures mean nothing."""
    pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
    sections = ["kernels", "step", "prior", "waterfall", "official", "host"]
    command = [sys.executable, "-m", "bench", *sections, "--rehearse"]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, "--quiet", "--save", "--out", str(tmp_path)],
        cwd=ROOT, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = tmp_path.glob("rehearsal-*.json")
    report = json.loads(path.read_text())
    found = {m["section"]: m for m in report["measurements"]}
    assert set(sections) == found.keys()
    steps = found["step"]["candidates"]
    assert {"reference", "twin, eager", "torch, graph", "local, graph"} <= steps.keys()
    assert all(len(c["samples"]) == 1 and c["samples"][0] > 0 for c in steps.values())
    alone = found["kernels"]["candidates"]
    assert {"rhs kernel", "rhs, twin", "update kernel", "spectral scale"} <= alone.keys()
    checks = {p["what"] for p in found["kernels"]["parity"] + found["step"]["parity"]}
    assert {"rhs kernel against its twin", "update kernel against its twin"} <= checks
    assert any("local against its twin" in what for what in checks)
    assert {"fused kernels", "CUDA graph"} <= found["waterfall"]["candidates"].keys()
    official = {m["name"].removeprefix("official network, "): m for m in report["measurements"]}
    forward = official["forward, bfloat16, batch 1"]["candidates"]
    assert {"reference", "reference, bfloat16", "ddfm_fast", "ddfm_fast, eager"} <= forward.keys()
    ends = official["convolution 3->32 3x3, 1 in a forward"]["candidates"]
    assert {"cuDNN, heuristic", "cuDNN, benchmark", "ddfm_fast"} <= ends.keys()
    norms = official["norm and SiLU, 32 channels"]["candidates"]
    assert {"eager", "torch.compile", "ddfm_fast"} <= norms.keys()
    assert "gpu" not in report["machine"], "a rehearsal names no GPU"
    assert "its figures mean nothing" in run.stdout


def test_smoke_tries_every_way_and_preset():
    names = [str(case) for case in cases(CUDA)]
    assert len(set(names)) == len(names)
    ways = {case.way for case in cases(CUDA)}
    assert {way.precision for way in ways} == {"float32", "float16", "bfloat16"}
    graphs = {(w.backend, w.solver, w.graph) for w in ways}
    assert {("triton", s, g) for s in ("torch", "local") for g in ("off", "loop", "step")} < graphs
    assert {("torch", "torch", "off"), ("torch", "torch", "loop")} < graphs
    tried = {case.scene.options["preset"] for case in cases(CUDA)}
    assert {"official", "paper", "balanced", "fast", "instant"} == tried
    assert {case.scene.name for case in cases(CUDA)} == set(SCENES)
    assert 0 < len(cases(CUDA, small=True)) < len(names) / 2


def test_the_recorded_pictures_are_those_of_this_code(capsys):
    """Only those of few steps. If pictures were meant to change: python -m bench.smoke --record."""
    chosen = [case for case in cases(CPU) if case.scene.name not in ("official", "paper")]
    tally = smoke.run(chosen, CPU, seconds=1e9, judge=True, go_on=True)
    assert not tally.wrong and not tally.left_out, capsys.readouterr().out
    assert len(tally.right) == 12


def test_recording_gives_the_recorded_picture():
    (ours, recorded), key = (smoke.record(["waves"]), smoke.load()), "waves/B"
    apart = ours[key].astype(int) - recorded[key].astype(int)
    assert ours.keys() == {"waves/A", key} and np.abs(apart).max() <= 1


def test_limits_tell_float32_from_a_lower_precision():
    recorded = smoke.load()
    assert smoke.RECORDED.stat().st_size < 300_000
    for scene in SCENES.values():
        if scene.prior == "waves" or scene.name == "instant":
            continue
        exact, half = (smoke.limits(Case(scene, Way(p)), recorded) for p in ("float32", "float16"))
        lost = recorded[f"{scene.name}/lost"]
        assert 0 < 2 * exact[0] < lost[0, 0] < half[0], scene.name
        assert half[0] == pytest.approx(max(3 * lost[0, 0], smoke.EXACT[0]))


def altered(change):
    """Return the recorded pictures with one pixel changed, in picture B of the scene "waves"."""
    recorded = smoke.load()
    picture = recorded["waves/B"].astype(np.float32)
    picture[0, 3, 5] = change(picture[0, 3, 5])
    return {**recorded, "waves/B": picture.clip(0, 65535).astype(np.uint16)}


PLAIN = Case(SCENES["waves"], Way(backend="torch", graph="off"))


def tally_of(monkeypatch, recorded=None, chosen=(PLAIN, PLAIN), **run):
    if recorded:
        monkeypatch.setattr(smoke, "load", lambda: recorded)
    run = {"seconds": 100, "judge": True, "go_on": False, **run}
    return smoke.run(list(chosen), CPU, **run)


def test_one_wrong_pixel_is_a_fault_to_paste(monkeypatch, capsys):
    tally = tally_of(monkeypatch, altered(lambda p: p - 257 if p > 300 else p + 257))
    assert (len(tally.wrong), len(tally.left_out)) == (1, 1), "it stops there"
    text = capsys.readouterr().out
    for words in (
        "call:     the second, picture B", "[0, 3, 5]", "1.000 anywhere", "0 NaN", "torch ",
        "repeat:   python -m bench.smoke --only 'waves | float32 torch/torch graph=off'",
    ):  # fmt: skip
        assert words in text, text
    assert len(tally_of(monkeypatch, go_on=True).wrong) == 2
    assert not tally_of(monkeypatch, judge=False).wrong, "a rehearsal looks at no pixel"


def test_what_is_raised_is_a_fault_to_paste(monkeypatch, capsys):
    case = PLAIN._replace(scene=PLAIN.scene._replace(options={"preset": "slow"}))
    assert tally_of(monkeypatch, chosen=[case]).wrong == [str(case)]
    text = capsys.readouterr().out
    assert "raised:   ValueError" in text and "Traceback" in text and "'slow'" in text


def test_nan_and_other_shapes_are_wrong(monkeypatch):
    right = smoke.fused
    for spoil in (lambda a: a * np.nan, lambda a: a[:, 1:]):
        monkeypatch.setattr(smoke, "fused", lambda *a, spoil=spoil: spoil(right(*a)))
        assert tally_of(monkeypatch).wrong


def test_a_graph_that_was_not_captured_is_wrong(monkeypatch, capsys):
    make = smoke.fuser_of  # on a CPU nothing is captured
    eager = Way(backend="torch", graph="off")
    monkeypatch.setattr(smoke, "fuser_of", lambda scene, way, device: make(scene, eager, device))
    assert tally_of(monkeypatch, chosen=[PLAIN._replace(way=Way(backend="torch"))]).wrong
    assert "expected: a captured graph 'loop'" in capsys.readouterr().out


def test_a_fallback_to_plain_pytorch_is_wrong(monkeypatch, capsys):
    auto = Way("float16", "auto", "auto", "auto")
    assert auto in {case.way for case in cases(CUDA)}, "what a user gets"
    assert tally_of(monkeypatch, chosen=[PLAIN._replace(way=auto)]).wrong
    assert "expected: the backend 'triton'" in capsys.readouterr().out


def test_smoke_ends_in_time_and_on_a_lost_device(monkeypatch):
    assert len(tally_of(monkeypatch, seconds=-1).left_out) == 2
    monkeypatch.setattr(smoke, "_alive", lambda device: False)
    tally = tally_of(monkeypatch, altered(lambda p: 0), go_on=True)
    assert (len(tally.wrong), len(tally.left_out)) == (1, 1)


def test_numbers_puts_tasks_in_order_and_all_rows_have_one():
    place = Place(CPU, rehearse=True)
    tasks = [t for name in numbers.SECTIONS for t in SECTIONS[name].tasks(place)]
    chosen = numbers.most_telling(tasks, sizes=False)
    assert (chosen[0].section, chosen[0].name) == ("host", "a call, preset fast")
    assert "forward by torch.compile" in chosen[-1].name, "which may be cut off"
    assert len({t[:3] for t in chosen}) == len(chosen)
    for row in numbers.FIRST:
        rows = [task for task in tasks if task.section == row[0] and row[1] in task.name]
        assert rows, row


def test_a_run_starts_nothing_after_its_time():
    options = runner.Options(("startup",), quick=True, device="cpu")
    report = runner.run(options, progress=False, within=0)
    assert not report.measurements and len(report.settings["left_out"]) == 1


def test_a_run_cut_short_does_not_stand_for_its_device():
    done = [Measurement(section) for section in ("step", "prior", "loop")]
    settings = {"sections": numbers.SECTIONS, "left_out": ["waterfall: all, 192x192"]}
    assert not Report({}, {}, settings, done).full
    done.append(Measurement("waterfall"))
    assert Report({}, {}, settings | {"left_out": ["step: a step, 2160x3840"]}, done).full


def test_what_numbers_says_is_written_as_it_goes(tmp_path, capsys):
    tell, seen = numbers.Told(tmp_path), []
    tasks = [Task("startup", name, "1x1", partial(seen.append, name)) for name in "ab"]
    report = Report({"cpu": "c"}, {}, {"sections": (), "device": "cpu"})
    for n, task in enumerate(tasks):
        found = Measurement(task.section, task.name, task.size, failed=f"no {task.name}")
        report.measurements.append(found)
        tell(report)
        assert len(json.loads(tell.path.read_text())["measurements"]) == n + 1
    assert "FAILED: no b" in capsys.readouterr().out and len(list(tmp_path.iterdir())) == 1


def test_busy_time_counts_what_lies_side_by_side_once():
    assert host.union([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert host.union([]) == 0


def test_the_kit_has_what_the_suite_needs(tmp_path):
    pytest.importorskip("packaging")
    kit.pack(tmp_path / "kit", wanted := kit.requirements("cuda13", False))
    names = {requirement.split(">")[0] for requirement in wanted}
    assert {"cupy-cuda13x", "pytest", "hypothesis", "scikit-image", "typer"} <= names
    assert not names & {"torch", "triton", "cupy-cuda12x", "mypy"}
    assert {"torch", "triton"} <= {w.split(">")[0] for w in kit.requirements("none", True)}
    recorded = [p.name for p in (tmp_path / "kit" / "bench" / "results").iterdir()]
    assert sorted(recorded) == ["README.md", "smoke.npz"]
    assert (tmp_path / "kit" / "COMMIT").read_text().strip() == machine.commit()
    if not torch.cuda.is_available():
        done = suite("smoke", root=tmp_path / "kit", OUT=tmp_path / "out")
        assert done.stdout == "no GPU: skipped\n", done.stderr
