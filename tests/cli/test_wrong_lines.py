"""Wrong command lines and files of options: a sentence, and JSON if requested."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.datasets.wildcards import files_of
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.writing import write_image


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with the pair ir.png and vis.png."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDFM_FAST_CONFIG", raising=False)
    rng = np.random.default_rng(0)
    for name in ("ir", "vis"):
        write_image(tmp_path / f"{name}.png", rng.integers(0, 255, (32, 32), np.uint8))
    return tmp_path


def call(*arguments: object):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def dry(*more: object):
    return call("fuse", "ir.png", "vis.png", "-o", "new/o.png", "--dry-run", "--json", *more)


def refused(result, *words: str) -> None:
    """Check for exit code 2, words on stderr, and the same sentence as JSON on stdout."""
    assert result.exit_code == 2, result.output
    found = json.loads(result.stdout)
    assert found["ok"] is False
    shown = re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]", "", result.stderr))
    for word in words:
        assert word in found["error"] and word in shown, (found, result.stderr)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[prior]\ntrain = 3", ("prior.train is 3", "[prior.train]")),
        ("fuse = 3", ("fuse is 3", "[fuse]")),
        ("[[fuse]]\nseed = 3", ("fuse is [{'seed': 3}]", "[fuse]")),
        ("ir-range = [1, 2]", ("below [fuse]",)),
        ("[fuse]\nir-range = [1, 2]\nir_range = [3, 4]", ("are the same option",)),
        ("[fuse]\nout = ''", ("out is ''", "leave it out")),
        ("[fuse]\nir-range = []", ("ir-range is ''", "leave it out")),
        ("x = " + "[" * 5000 + "]" * 5000, ("too many nested brackets",)),
    ],
)
def test_files_of_options(here, text, words):
    (here / "c.toml").write_text(text + "\n")
    refused(dry("--config", "c.toml"), "c.toml", *words)


def test_a_file_of_options_as_powershell_writes_it(here):
    """PowerShell's ``>`` writes UTF-16, or UTF-8 with a byte order mark."""
    for encoding in ("utf-16", "utf-8-sig"):
        (here / "c.toml").write_text('seed = 7\r\npreset = "fast"\r\n', encoding=encoding)
        settings = json.loads(dry("--config", "c.toml").stdout)["settings"]
        assert (settings["seed"], settings["preset"]) == (7, "fast")


def test_a_prior_config_as_a_table(here):
    (here / "c.toml").write_text("[fuse]\nprior-config = {num_head_channels = 64}\n")
    given = json.loads(dry("--config", "c.toml").stdout)["given"]
    assert json.loads(given["prior-config"]["value"]) == {"num_head_channels": 64}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            ("fuse", "ir.png", "vis.png", "-o", "", "--json"),
            ("-o is empty", "variable of the shell"),
        ),
        (("fuse", "ir.png", "vis.png", "--out=", "--json"), ("--out is empty",)),
        (
            ("fuse", "ir.png", "vis.png", "-o", "o.png", "--nodata", "", "--json"),
            ("--nodata is ''",),
        ),
        (("fuse", "", "vis.png", "-o", "o.png", "--json"), ("empty",)),
        (("fuse", "ir.png", "--json"), ("Missing argument 'VIS'",)),
        (("fuse", "ir.png", "vis.png", "-o", "o.png", "--jsson", "--json"), ("--jsson",)),
        (("fuse", "ir.png", "vis.png", "-o", "o.png", "--json", "-q", "-v"), ("-v and -q",)),
        (("fuse", "ir.png", "vis.png", "-o", "o.png", "--json", "--jsonl"), ("exclude",)),
        (("fuse", "ir.png", "no.png", "-o", "o.png", "--json", "--dry-run"), ("VIS is no.png",)),
        (("config", "fuze", "--json"), ("COMMAND is 'fuze'",)),
        (("config", "--config", "no.toml", "--json"), ("no.toml",)),
    ],
)
def test_json_at_errors(here, line, words):
    refused(call(*line), *words)
    assert sorted(one.name for one in here.iterdir()) == ["ir.png", "vis.png"]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--align", "chekc", "align is 'chekc'"),
        ("--tile", "5", "tile is 5"),
        ("--backend", "x", "backend is 'x'"),
        ("--graph", "x", "graph is 'x'"),
        ("--seed", "-1", "seed is -1"),
        ("--ir-range", "9,5", "--ir-range is '9,5'"),
        ("--nodata", "x", "--nodata is 'x'"),
        ("--raw-size", "x", "--raw-size is 'x'"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(here, option, value, words):
    refused(dry(option, value), words)
    refused(call("fuse", "ir.png", "vis.png", "-o", "o.png", "--json", option, value), words)


def test_a_dry_run_tells_of_files_that_are_not_there(here):
    (here / "a.txt").write_text(f"ir.png\n{'n' * 300}.png\nno.png\n")
    (here / "b.txt").write_text("vis.png\nvis.png\nvis.png\n")
    line = ("fuse", "@a.txt", "@b.txt", "-o", "new", "--dry-run")
    found = call(*line, "--json")
    rows = json.loads(found.stdout)
    assert found.exit_code == 1 and rows["ok"] is False
    missing = [one["missing"] for one in rows["items"]]
    assert missing == [[], ["n" * 300 + ".png"], ["no.png"]]
    shown = call(*line)
    assert shown.exit_code == 1 and "  not there: no.png" in shown.stdout
    assert not (here / "new").exists()


@pytest.mark.parametrize("more", [("--panel",), ("--layout-out", "ivif-zoo:M3FD")])
def test_a_dry_run_of_a_batch_names_what_is_written(here, more):
    (here / "pairs.csv").write_text("ir,vis,name\nir.png,vis.png,one\n")
    line = ("batch", "pairs.csv", "-o", "new", "--preset", "instant", *more)
    rows = json.loads(call(*line, "--dry-run", "--json").stdout)["items"]
    assert not (here / "new").exists() and call(*line).exit_code == 0
    named = {row[key] for row in rows for key in ("output", "panel") if row.get(key)}
    made = (path for path in here.rglob("new/**/*.png"))
    assert named == {str(path.relative_to(here)) for path in made}


def test_a_list_has_a_name_on_each_line_and_nothing_else(here):
    """The line separators of Unicode are legal in names."""
    (here / "a.txt").write_text("a\u2028b.png\r\nc\x0cd.png\n\n# e\n", encoding="utf-8")
    assert [str(one) for one in files_of("@a.txt")] == ["a\u2028b.png", "c\x0cd.png"]
    for data in ("ir.png\n".encode("utf-16-le"), b"ir\0.png"):
        (here / "a.txt").write_bytes(data)
        with pytest.raises(ImageFileError, match=r"@a\.txt.*zero bytes; save it as UTF-8"):
            files_of("@a.txt")


def test_other_files_that_powershell_writes(here):
    (here / "pairs.csv").write_text("ir,vis\r\nir.png,vis.png\r\n", encoding="utf-16")
    (pair,) = find_pairs(here / "pairs.csv")
    assert (pair.ir.name, pair.vis.name) == ("ir.png", "vis.png")
    (here / "wrong.json").write_text("[]", encoding="utf-16")
    refused(call("fuse", "ir.png", "vis.png", "-o", "o.png", "--json", "--prior-config",
                 "wrong.json"), "JSON list; expected an object")  # fmt: skip
    (here / "wrong.json").write_bytes(b"\x80")
    refused(call("fuse", "ir.png", "vis.png", "-o", "o.png", "--json", "--prior-config",
                 "wrong.json"), "--prior-config is 'wrong.json'", "not text")  # fmt: skip


def test_passwords_of_addresses_are_not_printed(here):
    line = ("video", "rtsp://me:secret@127.0.0.1:1/a", "v.mp4", "-o", "rtsp://me:secret@h/c")
    (here / "v.mp4").write_bytes(b"")
    for more in ((), ("-v",), ("--json",), ("--dry-run",), ("--dry-run", "--json")):
        found = call(*line, *more)
        assert "secret" not in found.stdout + found.stderr
        assert "rtsp://me:***@127.0.0.1:1/a" in found.stdout + found.stderr


def test_verbose_names_urls_as_they_were_given(here):
    found = call("batch", "none", "-o", "s3://bucket/out", "-v")
    assert "--out s3://bucket/out  (command line)" in found.stderr


def test_help_of_a_command_of_a_group():
    assert "--minutes" in call("help", "prior", "train").stdout
    assert call("help", "prior", "train").stdout == call("help", "prior train").stdout
    wrong = call("help", "prior", "trian")
    assert wrong.exit_code == 2 and "no help topic 'prior trian'" in wrong.stderr
