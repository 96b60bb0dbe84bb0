"""The options of all commands, or of all commands that work on files."""

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
        "TOML file of options; see `ddfm-fast help command`.",
        metavar="FILE",
        is_eager=True,  # before the options that it sets
        callback=take_config,
    ),
]
Verbose = Annotated[
    int,
    option(
        OUTPUT,
        "Report the options in effect, each item and the time; -vv for more.",
        *("-v", "--verbose"),
        count=True,
        show_default=False,
        metavar="",
    ),
]
DryRun = Annotated[
    bool, option(OUTPUT, "Print what would be read and written; do nothing.", "--dry-run")
]
AsLines = Annotated[bool, option(OUTPUT, "Print a JSON line on stdout for each item.", "--jsonl")]


def _of_all(config: Config = None, verbose: Verbose = 0) -> None: ...


def _of_work(dry_run: DryRun = False) -> None: ...


def _of_items(jsonl: AsLines = False) -> None: ...


def common(*, plans: bool, items: bool) -> list[Any]:
    """Make the parameters that a command has besides its own, as typer makes them.

    Args:
        plans: Whether the command has ``--dry-run``.
        items: Whether it works on many items, one after the other.
    """
    wanted: list[Callable[..., None]] = [_of_all, *[_of_work] * plans, *[_of_items] * items]
    return [one for function in wanted for one in _parameters(function)]


def _parameters(function: Callable[..., None]) -> list[Any]:
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return typer.main.get_command(app).params
