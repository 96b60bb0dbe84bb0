"""README and topics: their size, links, commands, code and tables."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from conftest import ROOT
from typer.testing import CliRunner

from ddfm_fast.cli import help as help_command
from ddfm_fast.cli.app import START, app
from ddfm_fast.cli.presets import MEASURED
from ddfm_fast.cli.reference import summaries
from ddfm_fast.config import PRESETS
from ddfm_fast.docs.topics import text, topics
from ddfm_fast.runtime import environment

README = ROOT / "README.md"
DOCS = ROOT / "ddfm_fast" / "docs"
WANTED = {
    *("method", "pictures", "inputs", "video", "priors", "precision"),
    *("gpu", "scale", "integrations", "hosts", "performance", "metrics", "medical", "command"),
}
PAGES = [README, *sorted(DOCS.glob("*.md"))]
named = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
PURPOSE = {
    "balanced": "general use; noisy sources are denoised",
    "fast": "the same, faster on noisy pairs",
    "robust": "noisy and difficult scenes",
    "instant": "clean pairs: never denoises",
    "official": "the mathematics of the authors' code, at any size, in color",
    "official-script": "the output of the authors' script, pixel for pixel",
    "paper": "Algorithm 1 as printed; drifts toward one source",
}


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language; "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    return [block for name, block in found if name == language]


def test_readme_is_short():
    content = README.read_bytes()
    assert content.count(b"\n") <= 160
    assert len(content) <= 12_000


def test_the_clone_does_not_hide_the_package():
    """Python that is started beside a folder of the package's name imports that folder instead."""
    (folder,) = re.findall(r"git clone <this repository> (\S+) && cd \1$", README.read_text(), re.M)
    assert not folder.isidentifier()


def test_every_topic_is_there_and_short():
    assert set(topics()) == WANTED
    for name, summary in topics().items():
        content = text(name)
        assert content.startswith(f"# {name}: {summary}\n") and summary, name
        assert len(content.splitlines()) <= 200, name
        heads = re.findall("^## (.*)$", content, re.M)
        assert heads[-2:] == ["Limits", "Sources"], name
        assert f"ddfm_fast/docs/{name}.md" in README.read_text(), name


@named
def test_links_lead_to_files(page):
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert found
    for link in found:
        if not link.startswith("https://"):
            assert (page.parent / link.partition("#")[0]).exists(), link


@named
def test_topics_that_are_named_exist(page):
    named_ones = re.findall(r"ddfm-fast help ([a-z]+)", page.read_text())
    assert set(named_ones) <= WANTED | set(summaries())


@named
def test_commands_parse(page, tmp_path, monkeypatch):
    """Every ``ddfm-fast`` line of a block has options and arguments that its command takes.

    If it names a file of options, that file is the page's own.
    """
    (tmp_path / "ddfm.toml").write_text("".join(blocks(page, "toml")), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    command = typer.main.get_command(app)
    for line in "".join(blocks(page, "")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["ddfm-fast"]:
            continue
        group, rest = command, words[1:]
        context = command.context_class(command, info_name="ddfm-fast")
        while hasattr(group, "commands"):
            assert rest and rest[0] in group.commands, line
            name, group, rest = rest[0], group.commands[rest[0]], rest[1:]
            if hasattr(group, "commands"):
                context = group.context_class(group, info_name=name, parent=context)
        group.make_context(name, rest, parent=context)  # raises a usage error


@named
def test_options_in_the_text_exist(page):
    """An option that a page names in backticks belongs to some command, or to a script."""
    scripts = "".join(
        path.read_text()
        for folder in ("bench", "ddfm_fast/priors/training")
        for path in (ROOT / folder).rglob("*.py")
    )
    known = set(_options(typer.main.get_command(app)))
    for option in set(re.findall(r"`(--[a-z][a-z-]+)", page.read_text())):
        parameter = option[2:].replace("-", "_")
        assert option in known or re.search(rf'"{option}"|^ +{parameter}: ', scripts, re.M), option


def _options(command) -> list[str]:
    parameters = command.get_params(command.context_class(command))
    found = [name for parameter in parameters for name in parameter.opts]
    for inner in getattr(command, "commands", {}).values():
        found += _options(inner)
    return [*found, "--help"]


@named
def test_make_targets_and_variables_exist(page):
    content, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make\s([a-z][a-z-]+)", content, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for variable in re.findall(r"DDFM_FAST_[A-Z_]+", content):
        assert variable in environment.VARIABLES, variable


@named
def test_names_in_python_blocks_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    (block,) = blocks(README, "python")
    assets = tmp_path / "ddfm_fast" / "assets"
    assets.mkdir(parents=True)
    for name in ("nir", "visible"):
        picture = f"sentinel2_{name}.png"
        (assets / picture).write_bytes((ROOT / "ddfm_fast" / "assets" / picture).read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)
    assert names["fused"].shape == names["vis"].shape and names["fused"].dtype == "uint8"
    assert [picture.shape[0] for picture in names["several"]] == [300, 200]
    assert (tmp_path / "fused.png").is_file()


def test_python_of_the_video_topic_runs(capsys):
    (block,) = blocks(DOCS / "video.md", "python")
    exec(block, {})
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_python_of_the_method_topic_runs():
    (block,) = blocks(DOCS / "method.md", "python")
    names: dict = {}
    exec(block, names)
    assert names["rgb"].shape == (3, 208, 176) and bool(names["rgb"].isfinite().all())


def presets_table() -> list[str]:
    """Return the README's table of presets, made from what the program has measured."""
    rows = ["| preset | prior evaluations | seconds | for |", "|---|---|---|---|"]
    for name, found in MEASURED.items():
        seconds = "{:g} / {:g}".format(*found.seconds) if found.seconds else "–"
        rows.append(f"| `{name}` | {found.evaluations} | {seconds} | {PURPOSE[name]} |")
    return rows


def test_presets_of_the_readme_are_the_measured_ones():
    """Run this file as a program to write the table."""
    content = README.read_text()
    between = content.partition(".py -->\n")[2].partition("<!-- end of presets -->")[0]
    assert between.splitlines() == presets_table()
    assert set(PURPOSE) == set(PRESETS) == set(MEASURED)


@named
def test_american_spelling(page):
    assert not re.findall(r"(?i)\b(?:colour|grey|optimis|licence|behaviour)\w*", page.read_text())


def test_help_lists_the_topics():
    result = CliRunner().invoke(app, ["help"])
    assert result.exit_code == 0
    for name, summary in (topics() | summaries()).items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", result.stdout, re.M)


def test_help_prints_a_topic_as_it_is_where_it_is_piped():
    result = CliRunner().invoke(app, ["help", "Video"])
    assert result.exit_code == 0
    assert result.stdout == (DOCS / "video.md").read_text()


def test_help_renders_a_topic_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("pydoc.pager", lambda content, *title: print(content))
    help_command.help_topic(None, ["gpu"])
    shown = capsys.readouterr().out
    assert "pip install" in shown and "```" not in shown and "# gpu" not in shown
    assert "runtime/capture.py" in shown and "../" not in shown


def test_an_unknown_topic_gets_the_nearest():
    result = CliRunner().invoke(app, ["help", "vidoe"])
    assert result.exit_code == 2
    assert "no help topic 'vidoe'; did you mean video?" in result.stderr
    result = CliRunner().invoke(app, ["help", "zzz"])
    assert result.exit_code == 2 and "choose from command, gpu, hosts" in result.stderr


def test_help_of_a_command_is_its_own():
    wanted = CliRunner().invoke(app, ["fuse", "--help"]).stdout
    result = CliRunner().invoke(app, ["help", "fuse"])
    assert result.exit_code == 0 and "--denoise" in wanted
    assert result.stdout.split() == wanted.split()


def test_without_arguments_there_are_five_examples():
    result = CliRunner().invoke(app, [])
    assert (result.exit_code, result.stdout, result.stderr) == (0, START, "")
    lines = [line for line in START.splitlines() if line.startswith("  ddfm-fast ")]
    assert len(lines) == 5
    for line in lines:
        name = line.split()[1]
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


if __name__ == "__main__":
    before, _, rest = README.read_text().partition(".py -->\n")
    after = rest.partition("<!-- end of presets -->")[2]
    table = "\n".join(presets_table())
    README.write_text(f"{before}.py -->\n{table}\n<!-- end of presets -->{after}")
