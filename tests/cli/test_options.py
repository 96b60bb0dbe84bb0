"""Every option of every command: none is lost, help shows it, and it comes from one list."""

from __future__ import annotations

import ast
import inspect
import re
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import typer
from recorded import RECORD
from typer.testing import CliRunner

from ddfm_fast.bench.sections import SECTIONS
from ddfm_fast.cli import app as home
from ddfm_fast.cli.app import app
from ddfm_fast.cli.settings import OUTPUT_OPTIONS
from ddfm_fast.options import OPTIONS, FuserOptions, ReadingOptions

SCREEN = 40
OWN_WORDS = {("video", "preset"), ("ablate", "preset"), ("demo", "steps")}
"""options that mean something narrower than those of the same name in `OPTIONS`"""

BODY = 40


def commands(group: Any = None, prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


COMMANDS = commands()


def described(parameter: Any, annotation: Any) -> str:
    """Describe a parameter as `RECORD` does."""
    kind = typing.get_args(annotation)[0]
    if isinstance(kind, types.UnionType):
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_args(kind):
        text = re.sub(r"pathlib\.(_local\.)?", "", str(kind))
    elif issubclass(kind, Enum):
        text = "|".join(str(choice.value) for choice in kind)
    else:
        text = kind.__name__
    limits = [(name, getattr(parameter, name, None)) for name in ("min", "max")]
    text += "".join(f" {name}={value}" for name, value in limits if value is not None)
    default = getattr(parameter.default, "value", parameter.default)
    default = str(default) if isinstance(default, Path) else default
    end = "required" if parameter.required else repr(default)
    return f"{' '.join(sorted(parameter.opts, key=len))}: {text}, {end}"


@pytest.mark.parametrize("name", RECORD)
def test_every_command_keeps_its_options(name):
    command = COMMANDS[name]
    types_of = inspect.signature(command.callback, eval_str=True).parameters
    found = sorted(described(p, types_of[p.name].annotation) for p in command.params)
    assert found == [line.strip() for line in RECORD[name].strip().splitlines()]


def test_every_command_is_recorded():
    assert list(COMMANDS) == list(RECORD)


def parameters() -> list[tuple[str, Any]]:
    return [(name, p) for name, command in COMMANDS.items() for p in command.params]


def test_what_the_library_shares_comes_from_its_list():
    found = set()
    for name, parameter in parameters():
        if (
            parameter.name not in FuserOptions.__annotations__
            or (name, parameter.name) in OWN_WORDS
        ):
            continue
        if name in ("prior convert", "prior info"):  # their options describe a file, not a fuser
            continue
        listed = OPTIONS[parameter.name]
        assert (parameter.help, parameter.rich_help_panel) == (listed.help, listed.group), name
        assert getattr(parameter.default, "value", parameter.default) == listed.default, name
        found.add(parameter.name)
    assert {"preset", "steps", "prior", "seed", "device", "dtype", "batch_size"} <= found
    assert not found & ReadingOptions.__annotations__.keys()


def test_every_option_has_a_panel_and_help():
    for name, parameter in parameters():
        assert parameter.rich_help_panel in PANELS, (name, parameter.name)
        assert parameter.help, (name, parameter.name)


PANELS = ("Input", "Input options", "Method", "Output", "Runtime")


def help_of(name: str) -> list[str]:
    result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    return result.stdout.splitlines()


@pytest.mark.parametrize("name", RECORD)
def test_panels_come_in_one_order(name):
    lines = help_of(name)
    panels = [found[1] for line in lines if (found := re.match(r"╭─ ([\w ]+) ─", line))]
    assert panels == [panel for panel in PANELS if panel in panels]
    assert len(lines) <= 3 * SCREEN


def test_help_of_fuse():
    """The first screen shows what most people use."""
    text = help_of("fuse")
    first = "\n".join(text[:SCREEN])
    assert all(name in first for name in ("IR", "VIS", "--preset", "--steps", "--out"))
    options = [found[1] for line in text if (found := re.match(r"│ \*? *(--[\w-]+)", line))]
    assert options[:6] == [
        "--ir-range", "--vis-range", "--nodata", "--raw-size", "--resize", "--align",
    ]  # fmt: skip
    assert [line for line in text if "─ Runtime ─" in line]
    assert options[-1] == "--help"


def test_help_of_bench_names_every_section():
    assert set(SECTIONS) <= set(re.findall(r"\w+", COMMANDS["bench"].params[0].help))


def functions() -> dict[str, tuple[ast.Module, ast.FunctionDef]]:
    """Return each function that is registered as a command, with its module, by name."""
    found = {}
    for name, command in COMMANDS.items():
        function = inspect.unwrap(command.callback)
        module = ast.parse(Path(inspect.getfile(function)).read_text(encoding="utf-8"))
        (definition,) = (
            node
            for node in module.body
            if isinstance(node, ast.FunctionDef) and node.name == function.__name__
        )
        found[name] = module, definition
    return found


def test_bodies_are_short():
    for name, (_, function) in functions().items():
        body = function.body[1:]  # without the docstring
        assert function.end_lineno - body[0].lineno + 1 <= BODY, name


def test_no_parameter_is_forgotten():
    """``read_settings`` takes some parameters by name, which no linter sees; this test does."""
    for command, (module, function) in functions().items():
        named = {n.id for s in function.body for n in ast.walk(s) if isinstance(n, ast.Name)}
        taken = {n.value for n in ast.walk(module) if isinstance(n, ast.Constant)}
        if "read_settings" in named:
            taken |= {*FuserOptions.__annotations__, "gray", "color_from", "prior_config"}
        if "output" in named:
            taken |= set(OUTPUT_OPTIONS)
        for argument in (*function.args.args, *function.args.kwonlyargs):
            assert argument.arg in named | taken, (command, argument.arg)


def test_one_list_of_options():
    """No command makes an option of its own, and none imports the application."""
    for path in Path(home.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name not in ("options.py", "app.py"):
            assert "typer.Option(" not in text and "typer.Argument(" not in text, path.name
            assert not re.search(r"from \.app import|from \. import app", text), path.name
