"""The options that all commands have, or all that do work on files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..options import INPUT_OPTIONS, OUTPUT
from .manners import take_config
from .options import option

Config = Annotated[
    Path | None,
    option(
        INPUT_OPTIONS,
        "TOML file of options: ddfm-fast help command.",
        metavar="FILE",
        is_eager=True,  # before the options that it sets
        callback=take_config,
    ),
]
Verbose = Annotated[
    int,
    option(
        OUTPUT,
        "Tell what is in use, each item, the time; -vv: more.",
        *("-v", "--verbose"),
        count=True,
        show_default=False,
        metavar="",
    ),
]
DryRun = Annotated[
    bool, option(OUTPUT, "Print what would be read and written; do nothing.", "--dry-run")
]
AsLines = Annotated[bool, option(OUTPUT, "A JSON line on stdout for each item.", "--jsonl")]


def _of_all(config: Config = None, verbose: Verbose = 0) -> None: ...


def _of_work(dry_run: DryRun = False) -> None: ...


def _of_items(jsonl: AsLines = False) -> None: ...


def common(*, plans: bool, items: bool) -> list[Any]:
    """Make the parameters of a command beside its own, as typer makes those of a function.

    Args:
        plans: The command can say what it would do.
        items: It works on many things, one after the other.
    """
    wanted: list[Callable[..., None]] = [_of_all, *[_of_work] * plans, *[_of_items] * items]
    return [one for function in wanted for one in _parameters(function)]


def _parameters(function: Callable[..., None]) -> list[Any]:
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return typer.main.get_command(app).params
