"""The references of ``ddfm-fast help``, read as tables, and the topics that errors name."""

from __future__ import annotations

import ast
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import typer
from conftest import ROOT
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.cli.errors import TOPICS, topic_of
from ddfm_fast.cli.reference import PAGES, WARNED_BY, summaries, text
from ddfm_fast.config import PRESETS
from ddfm_fast.docs import topics
from ddfm_fast.metrics.conventions import CONVENTIONS
from ddfm_fast.options import OPTIONS
from ddfm_fast.runtime import environment

PROGRAM = typer.main.get_command(app)
each = pytest.mark.parametrize("name", PAGES)


def page(name: str) -> str:
    return text(name, PROGRAM)


def rows(name: str, head: str = "") -> list[list[str]]:
    """Return the cells of a page's tables; with a heading, only of those below it."""
    content = page(name).partition(f"## {head}\n")[2].partition("\n## ")[0] if head else page(name)
    lines = [line for line in content.splitlines() if line.startswith("| ")]
    return [
        [cell.strip(" `").replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
    ]


@each
def test_help_shows_every_reference(name):
    result = CliRunner().invoke(app, ["help", name.upper()])
    assert result.exit_code == 0
    assert result.stdout == page(name)
    assert result.stdout.startswith(f"# {name}: {summaries()[name]}\n")


@each
def test_references_are_short_and_their_tables_whole(name):
    content = page(name)
    assert len(content.splitlines()) <= 200
    assert not re.findall(r"(?i)\b(?:colour|grey|optimis|licence|behaviour)\w*", content)
    width = 0
    for line in content.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("| ") else 0
        assert not (width and cells) or cells == width, line
        width = cells


def test_no_reference_hides_a_topic():
    assert not set(PAGES) & set(topics.topics())


def test_every_option_of_every_command_is_in_a_reference():
    """The options are those of the program's own help, which Click makes."""
    listed = {row[1] for row in rows("options") if len(row) > 2} | {
        row[0] for row in rows("commands") if len(row) > 2
    }
    commands = [row[0] for row in rows("commands")[2:] if len(row) == 2]
    assert len(commands) >= 19
    for name in commands:
        result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"})
        assert result.exit_code == 0
        found = set(re.findall(r"^│ \*? *(--[a-z][\w-]*)", result.stdout, re.M)) - {"--help"}
        assert found <= listed, (name, found - listed)
    assert {row[0].strip("` †") for row in rows("options")} >= set(OPTIONS)


def test_presets_are_those_of_the_code():
    head, _, *settings = rows("presets", "Settings")
    assert head[1:] == list(PRESETS)
    for key, *values in settings:
        assert values == [str(asdict(config)[key]) for config in PRESETS.values()], key
    assert {row[0] for row in settings} == set(asdict(PRESETS["official"])) - {"summary"}


def test_conventions_are_those_of_the_code():
    for name, convention in CONVENTIONS.items():
        assert dict(rows("conventions", name)[2:]) == convention.definitions


def test_variables_are_those_of_the_code():
    found = {name: (meaning, default) for name, default, meaning in rows("environment")[2:]}
    assert found == environment.VARIABLES


def test_every_room_that_warns_has_a_topic():
    package, found = ROOT / "ddfm_fast", set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "warn":
                found.add(path.relative_to(package).with_suffix("").parts[0])
    assert set(WARNED_BY) == found
    assert set(WARNED_BY.values()) <= set(topics.topics())


@pytest.mark.parametrize("topic", TOPICS)
def test_topics_of_errors_speak_of_their_arguments(topic):
    content = page(topic) if topic in PAGES else topics.text(topic)
    for argument in TOPICS[topic]:
        words = {argument, argument.replace("_", "-"), argument.replace("_", " ")}
        assert any(re.search(rf"(?i)\b{word}", content) for word in words), argument


@pytest.mark.parametrize(
    "sentence, topic",
    [
        ("--raw-size is '640'; expected a width and a height, such as 640x512", "inputs"),
        ("prior: there is no file or folder 'x.pt'; expected …", "priors"),
        ("$DDFM_FAST_GRAPHS is 'x'; expected how many graphs to keep, at least 1", "environment"),
        ("psi and eta are both 0; expected at least one of them above 0", "method"),
        ("there is no help topic 'vidoe'; did you mean video?", None),
        ("/data/ir.png: the file is empty; copy or export it again", None),
        ("", None),
    ],
)
def test_topic_of_an_error(sentence, topic):
    assert topic_of(sentence) == topic


def test_an_error_names_its_topic(tmp_path: Path):
    pair = [str(ROOT / "ddfm_fast" / "assets" / f"sentinel2_{n}.png") for n in ("nir", "visible")]
    out = ["-o", str(tmp_path / "x.png")]
    result = CliRunner().invoke(app, ["fuse", *pair, *out, "--preset", "balancd"])
    assert result.exit_code == 2
    first, last = result.stderr.splitlines()
    assert first.startswith("error: preset is 'balancd'")
    assert last == "More: ddfm-fast help presets"
    result = CliRunner().invoke(app, ["fuse", "gone.png", pair[1], *out])
    assert result.exit_code == 2 and "More:" not in result.stderr
