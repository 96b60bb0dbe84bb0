"""What the training commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated

import typer

from ...runtime.streams import guarded

Threads = Annotated[int, typer.Option(help="CPU threads (0: PyTorch's choice).")]


def make_app(module: str, command: Callable[..., None], epilog: str) -> typer.Typer:
    r"""Make the command line of a module, ``python -m`` of it.

    Args:
        module: Its name.
        command: Its function; what it raises for bad input becomes one line and exit code 2.
        epilog: Shown below the options; a paragraph that begins with a line of ``\b`` keeps its
            lines.
    """

    @functools.wraps(command)
    def friendly(*args, **kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, ImportError, OSError, FloatingPointError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None

    app = typer.Typer(
        name=f"python -m {module}",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(epilog=epilog)(friendly)
    return app


def start(app: typer.Typer) -> None:
    """Run the command line as a program that a failed print does not end."""
    with guarded():
        app(prog_name=app.info.name)
