"""The command in a terminal: completion, color, width, version, manual pages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from man_pages import pages

PROGRAM = "import sys; sys.argv[0] = 'ddfm-fast'; from ddfm_fast.__main__ import main; main()"
"""the installed command, whose name determines the environment variable of completion"""


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        env={**kept, "PYTHONIOENCODING": "utf-8", **more},
    )


def completed(line: str, **more: str) -> list[str]:
    """Return what bash would offer for a line whose last word is being typed."""
    count = str(len(line.split(" ")) - 1)
    words = {"COMP_WORDS": line, "COMP_CWORD": count, "_DDFM_FAST_COMPLETE": "complete_bash"}
    return run(**words, **more).stdout.split()


def test_completion():
    assert completed("ddfm-fast fu") == ["fuse"]
    assert completed("ddfm-fast fuse --dry") == ["--dry-run"]
    assert completed("ddfm-fast fuse --preset off") == ["official", "official-script"]
    wrong_file = completed("ddfm-fast fuse --dtype fl", DDFM_FAST_CONFIG="no.toml")
    assert wrong_file == ["float32", "float16"]
    script = run("--show-completion", "bash").stdout
    assert "_DDFM_FAST_COMPLETE=complete_bash" in script


def test_color_and_none():
    """As https://no-color.org has it: without color, bold and underlined text may stay."""
    color = re.compile(r"\x1b\[[\d;]*(3[0-7]|9[0-7]|38;)[\d;]*m")
    assert color.search(run("fues", FORCE_COLOR="1").stderr)
    plain = run("fues", FORCE_COLOR="1", NO_COLOR="1")
    assert plain.returncode == 2 and not color.search(plain.stderr)
    assert "\x1b" not in run("fues").stderr


@pytest.mark.parametrize("width", [60, 130])
def test_width(width):
    lines = run("fuse", "--help", COLUMNS=str(width)).stdout.splitlines()
    assert max(map(len, lines)) == width


def test_doctor_for_programs():
    done = run("doctor", "--json")
    found = json.loads(done.stdout)
    assert found["machine"]["cores"] >= 1 and isinstance(found["ok"], bool)
    assert done.returncode == (0 if found["ok"] else 1)


def test_manual_pages():
    found = pages()
    assert {"ddfm-fast.1", "ddfm-fast-fuse.1", "ddfm-fast-prior-train.1"} <= set(found)
    fuse = found["ddfm-fast-fuse.1"]
    assert "\\fB\\-o\\fR, \\fB\\-\\-out\\fR \\fIOUT\\fR\n" in fuse
    assert "\\fB\\-\\-dry\\-run\\fR\n" in fuse and "\n.SH EXAMPLES\n" in fuse
    assert "DDFM_FAST_CONFIG" in found["ddfm-fast.1"]
    for text in found.values():
        assert text.startswith(".TH ") and "`" not in text


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_reads_the_manual_pages():
    text = "".join(pages().values())
    done = subprocess.run(
        ["groff", "-k", "-man", "-ww", "-Tutf8"], input=text.encode(), capture_output=True
    )
    assert done.returncode == 0 and done.stderr == b"", done.stderr.decode()
    shown = re.sub(r"\x1b\[[\d;]*m|.\x08", "", done.stdout.decode())
    assert "--skip-existing" in shown and "EXIT STATUS" in shown
