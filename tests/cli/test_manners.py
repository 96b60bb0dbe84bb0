"""What all commands have in common: files of options, verbosity, dry runs, lines of JSON."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from ddfm_fast import Fuser
from ddfm_fast.cli.app import app
from ddfm_fast.cli.manners import commands, keys
from ddfm_fast.datasets.batch import run_batch
from ddfm_fast.datasets.jobs import fuse_files
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.datasets.wildcards import in_turn
from ddfm_fast.files.writing import write_image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

QUICK = ("--preset", "instant")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The current folder, with two pairs in ``in/``: a and b."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDFM_FAST_CONFIG", raising=False)
    rng = np.random.default_rng(0)
    for name in ("a_ir", "a_vis", "b_ir", "b_vis"):
        write_image(tmp_path / "in" / f"{name}.png", rng.integers(0, 255, (32, 32), np.uint8))
    return tmp_path


def call(*arguments: object):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def pair(name: str = "a") -> tuple[str, str]:
    return f"in/{name}_ir.png", f"in/{name}_vis.png"


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refused(result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


# Files of options


def dry(*more: object, **environment: str) -> dict:
    arguments = ["fuse", *pair(), "-o", "o.png", "--dry-run", "--json", *map(str, more)]
    result = CliRunner().invoke(app, arguments, env=environment)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_file_sets_what_the_command_line_leaves_out(pictures):
    (pictures / "ddfm.toml").write_text(
        'preset = "fast"\nseed = 7\n[fuse]\npanel = true\nir-range = [10, 200]\n'
        'denoise = {ir = 12, vis = "off"}\nnodata = 3\n[batch]\nredo = true\n'
    )
    found = dry("--config", "ddfm.toml", "--seed", 9)
    assert found["settings"]["preset"] == "fast" and found["settings"]["seed"] == 9
    assert found["settings"]["denoise"] == [["ir", 12.0], ["vis", "off"]]
    assert found["items"][0]["panel"] == "o.panel.png"
    origins = {name: (one["value"], one["from"]) for name, one in found["given"].items()}
    assert origins["ir-range"] == ("10,200", "ddfm.toml")
    assert origins["seed"] == (9, "command line") and "redo" not in origins
    named = dry(DDFM_FAST_CONFIG="ddfm.toml")
    assert named["given"]["seed"] == {"value": 7, "from": "ddfm.toml"}
    assert dry()["given"].keys() == {"out", "json"}


def test_the_file_decides_the_picture(pictures):
    (pictures / "ddfm.toml").write_text('[fuse]\npreset = "instant"\nout = "by_file.png"\n')
    assert call("fuse", *pair(), "--config", "ddfm.toml").exit_code == 0
    assert call("fuse", *pair(), "-o", "by_line.png", *QUICK).exit_code == 0
    assert call("fuse", *pair(), "-o", "default.png", "--steps", 2).exit_code == 0
    by_file, by_line, other = (
        (pictures / f"{name}.png").read_bytes() for name in ("by_file", "by_line", "default")
    )
    assert by_file == by_line != other


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('presett = "fast"', ("bad.toml: 'presett' is not an option", "did you mean preset?")),
        ("[fuse]\nstep = 3", ("[fuse]: 'step' is not an option", "did you mean steps?")),
        ("[batch]\nzzz = 3", ("[batch]: 'zzz'", "ddfm-fast config lists")),
        ("[fuze]\nsteps = 3", ("'fuze'", "did you mean fuse?")),
        ("[prior.trian]\nminutes = 3", ("[prior]: 'trian'", "did you mean train?")),
        ("panel = true", ("panel is not an option of every command", "[fuse]")),
        ("[fuse]\npanel = 1", ("panel is 1", "true or false")),
        ("[fuse]\nsteps = true", ("steps is True", "it takes a value, not a bool")),
        ("[fuse]\nquality = 900", ("quality is 900", "100")),
        ('[fuse]\ndtype = "flot16"', ("dtype is 'flot16'", "float16")),
        ("x = ", ("is not TOML", "line 1")),
    ],
)
def test_a_wrong_file_is_a_sentence(pictures, text, words):
    (pictures / "bad.toml").write_text(text + "\n")
    refused(call("fuse", *pair(), "-o", "o.png", "--config", "bad.toml"), *words)
    assert not (pictures / "o.png").exists()


def test_a_file_that_is_not_there(pictures):
    refused(call("fuse", *pair(), "-o", "o.png", "--config", "no.toml"), "no.toml", "--config")


def test_an_option_of_another_meaning_is_not_set_for_all(pictures):
    """``preset`` of ``video`` is a video preset."""
    (pictures / "ddfm.toml").write_text('preset = "fast"\n')
    printed = tomllib.loads(call("config", "--config", "ddfm.toml").stdout)
    assert printed["fuse"] == {"preset": "fast"} and "video" not in printed


def test_config_prints_a_file_that_says_the_same(pictures):
    (pictures / "ddfm.toml").write_text('seed = 7\n["prior"]\ntrain = {quiet = true}\n')
    first = call("config", "fuse", "--config", "ddfm.toml")
    assert "seed = 7  # ddfm.toml" in first.stdout and "# steps: not set" in first.stdout
    assert 'align = "check"  # default' in first.stdout
    (pictures / "again.toml").write_text(first.stdout)
    again = call("config", "fuse", "--config", "again.toml")
    assert tomllib.loads(again.stdout) == tomllib.loads(first.stdout)
    inner = json.loads(call("config", "prior", "train", "--config", "ddfm.toml", "--json").stdout)
    assert inner["commands"]["prior train"]["quiet"] == {"value": True, "from": "ddfm.toml"}
    refused(call("config", "fues"), "COMMAND is 'fues'", "fuse")


def test_config_knows_variables(pictures, monkeypatch):
    monkeypatch.setenv("DDFM_FAST_BACKEND", "torch")
    assert 'backend = "torch"  # DDFM_FAST_BACKEND' in call("config", "fuse").stdout
    assert "COMMAND" not in call("config").stdout


def test_every_command_has_the_options_of_all():
    for name, command in commands(typer.main.get_command(app)).items():
        assert {"-v", "--verbose", "--config"} <= {
            flag
            for parameter in command.get_params(command.context_class(command))
            for flag in parameter.opts
        }, name
        assert "help" not in keys(command)


# Dry runs


def test_a_dry_run_writes_nothing(pictures):
    before = files(pictures)
    result = call("fuse", *pair(), "-o", "new/", "--dry-run", "--panel")
    assert result.exit_code == 0, result.stderr
    assert "in/a_ir.png + in/a_vis.png -> new/a_ir.png" in result.stdout
    assert "panel: new/a_ir.panel.png" in result.stdout and "preset: balanced" in result.stdout
    batch = call("batch", "in", "-o", "new", "--dry-run", "--seed", 4)
    assert "in/b_ir.png + in/b_vis.png -> new/b.png" in batch.stdout
    assert "--seed 4  (command line)" in batch.stdout and "2 to do" in batch.stdout
    assert files(pictures) == before and not (pictures / "new").exists()


def test_a_dry_run_says_what_is_there(pictures):
    (pictures / "o.png").write_bytes(b"")
    assert "o.png  (already there)" in call("fuse", *pair(), "-o", "o.png", "--dry-run").stdout
    left = call("fuse", *pair(), "-o", "o.png", "--dry-run", "--skip-existing")
    assert "left alone" in left.stdout
    assert (pictures / "o.png").read_bytes() == b""


def test_a_dry_run_refuses_what_the_run_would(pictures):
    wrong = {
        ("--preset", "balancd"): ("did you mean balanced?",),
        ("--prior", "none.pt"): ("--prior is none.pt", "embedded"),
        ("--out-range", "5"): ("out-range",),
        ("--steps", "x"): ("steps",),
    }
    for more, words in wrong.items():
        refused(call("fuse", *pair(), "-o", "o.png", "--dry-run", *more), *words)
    refused(call("fuse", "in/a_ir.png", "none.png", "-o", "o.png", "--dry-run"), "none.png")
    refused(call("fuse", *pair(), "-o", "in/a_ir.png", "--dry-run"), "replace an input")


def test_dry_runs_of_video_and_volume(pictures):
    (pictures / "t.mp4").write_bytes(b"")
    (pictures / "v.mp4").write_bytes(b"")
    before = files(pictures)
    found = call("video", "t.mp4", "v.mp4", "-o", "out/f.mp4", "--dry-run")
    assert found.exit_code == 0 and "t.mp4 + v.mp4 -> out/f.mp4" in found.stdout, found.stderr
    assert "preset: balanced" in found.stdout
    refused(call("video", "t.mp4", "no.mp4", "-o", "f.mp4", "--dry-run"), "VIS is no.mp4")
    (pictures / "a.nii").write_bytes(b"")
    (pictures / "b.nii").write_bytes(b"")
    found = call("volume", "a.nii", "b.nii", "-o", "c.nii.gz", "--dry-run")
    assert found.exit_code == 0 and "a.nii + b.nii -> c.nii.gz" in found.stdout, found.stderr
    refused(call("volume", "a.nii", "no.nii", "-o", "c.nii", "--dry-run"), "VIS is no.nii")
    refused(call("volume", "a.nii", "b.nii", "-o", "a.nii", "--dry-run"), "is the input")
    assert files(pictures) == before | {"a.nii", "b.nii"}


# Output


def test_a_line_of_json_for_each_item(pictures):
    result = call("fuse", "in/*_ir.png", "in/*_vis.png", "-o", "f", *QUICK, "--jsonl")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["output"] for one in found] == ["f/a_ir.png", "f/b_ir.png"]
    assert all(one["ok"] for one in found)
    (pictures / "in" / "b_vis.png").write_bytes(b"broken")
    result = call("batch", "in", "-o", "g", *QUICK, "--jsonl")
    found = {one["name"]: one for one in map(json.loads, result.stdout.splitlines())}
    assert result.exit_code == 1 and found["a"]["status"] == "done"
    assert found["b"]["status"] == "failed" and "b_vis.png" in found["b"]["error"]
    refused(call("fuse", *pair(), "-o", "o.png", "--json", "--jsonl"), "--jsonl exclude")


def test_verbose_tells_settings_items_and_time(pictures):
    result = call("batch", "in", "-o", "f", *QUICK, "-v")
    lines = result.stderr.splitlines()
    assert "--preset instant  (command line)" in lines
    assert {"a: done", "b: done"} <= set(lines) and lines[-1].endswith(" s in all")
    assert "done" not in call("batch", "in", "-o", "g", *QUICK).stderr
    quiet = call("batch", "in", "-o", "h", *QUICK, "-q")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    refused(call("batch", "in", "-o", "h", "-q", "-v"), "-v and -q")


# Names


def test_patterns_and_lists_mean_many_files(pictures):
    assert call("fuse", "in/*_ir.png", "in/*_vis.png", "-o", "f", *QUICK).exit_code == 0
    assert files(pictures / "f") == {"a_ir.png", "b_ir.png"}
    (pictures / "ir.txt").write_text("# infrared\n\nin/a_ir.png\nin/b_ir.png\n")
    (pictures / "vis.txt").write_text("in/a_vis.png\r\nin/b_vis.png\r\n", encoding="utf-16")
    assert call("fuse", "@ir.txt", "@vis.txt", "-o", "g", *QUICK).exit_code == 0
    for name in ("a_ir.png", "b_ir.png"):
        assert (pictures / "f" / name).read_bytes() == (pictures / "g" / name).read_bytes()


def test_lists_are_paired_by_line(pictures):
    (pictures / "ir.txt").write_text("in/a_ir.png\nin/b_ir.png\n")
    (pictures / "vis.txt").write_text("in/b_vis.png\nin/a_vis.png\n")
    result = call("fuse", "@ir.txt", "@vis.txt", "-o", "f", "--dry-run")
    assert "in/a_ir.png + in/b_vis.png" in result.stdout


@pytest.mark.parametrize(
    ("ir", "vis", "words"),
    [
        ("in/*_no.png", "in/*_vis.png", ("in/*_no.png", "no picture has such a name")),
        ("in/*_ir.png", "in/a_vis.png", ("means many files and in/a_vis.png does not",)),
        ("in/*_ir.png", "in/a_v*.png", ("b_ir.png",)),
        ("@no.txt", "@no.txt", ("@no.txt", "cannot be read")),
        ("@one.txt", "@two.txt", ("@one.txt has 1 names and @two.txt 2",)),
        ("@none.txt", "@none.txt", ("empty",)),
    ],
)
def test_wrong_patterns_and_lists(pictures, ir, vis, words):
    (pictures / "one.txt").write_text("in/a_ir.png\n")
    (pictures / "two.txt").write_text("in/a_vis.png\nin/b_vis.png\n")
    (pictures / "none.txt").write_text("# nothing\n")
    refused(call("fuse", ir, vis, "-o", "f", *QUICK), *words)


def test_pictures_in_turn(pictures):
    """Infrared and visible in turn, as ``align`` takes them."""
    (pictures / "list.txt").write_text("in/a_ir.png\nin/a_vis.png\n")
    a, b = [Path(one) for one in pair()], [Path(one) for one in pair("b")]
    assert in_turn([Path("in/*_ir.png"), Path("in/*_vis.png")]) == [*a, *b]
    assert in_turn([Path("@list.txt")]) == a and in_turn(a) == a
    assert in_turn([Path("@list.txt"), *b]) == [*a, *b]
    found = call("align", "in/*_ir.png", "in/*_vis.png", "-o", "map.json")
    # the pictures are noise, so no map is found; the message names pairs
    assert "in/a_ir.png, in/b_ir.png: no certain map (homography)" in found.stderr


def test_a_file_of_such_a_name_is_itself(pictures):
    """Brackets and @ are legal in names."""
    for name in ("@a.png", "b[1].png"):
        (pictures / "in" / "a_ir.png").rename(pictures / name)
        assert call("fuse", name, "in/a_vis.png", "-o", "f.png", *QUICK).exit_code == 0
        (pictures / name).rename(pictures / "in" / "a_ir.png")


def test_a_shell_that_expanded_a_pattern_gets_a_hint(pictures):
    names = ("in/a_ir.png", "in/b_ir.png", "in/a_vis.png", "in/b_vis.png")
    result = call("fuse", *names, "-o", "f")
    assert result.exit_code == 2 and "quote it" in result.stderr


def test_misspelled_words_get_the_nearest(pictures):
    refused(call("fuse", *pair(), "-o", "o.png", "--preset", "balancd"), "did you mean balanced?")
    assert "--panel" in call("fuse", *pair(), "--panle", "-o", "o.png").stderr
    assert "fuse" in call("fues").stderr


def test_a_bar_has_rate_time_left_and_name(pictures, capsys):
    fuse_files("in/*_ir.png", "in/*_vis.png", "f", Fuser(preset="instant"), progress=True)
    items = find_pairs("in", check_sizes=False)
    run_batch(items, "g", Fuser(preset="instant"), progress=True)
    bars = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if "pairs:" in line]
    for name in ("a_ir.png", "b_ir.png", "b"):  # tqdm does not draw names that pass sooner
        assert any(re.search(rf"\d\d:\d\d<.*/?pair.*, {name}\]", bar) for bar in bars), (name, bars)
