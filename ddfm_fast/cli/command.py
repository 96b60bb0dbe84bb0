"""How a function becomes a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand

from ..options import OUTPUT
from .errors import friendly


class Command(TyperCommand):
    """A command whose ``--help`` is in its last panel, not in a panel of its own before all."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option ``--help``, with the panel of the last option."""
        found = super().get_help_option(ctx)
        panels = [
            getattr(param, "rich_help_panel", None)
            for param in self.params
            if not isinstance(param, TyperArgument)
        ]
        if found is not None:
            found.rich_help_panel = panels[-1] if panels else OUTPUT
        return found


def register(
    app: typer.Typer, function: Callable[..., None], epilog: str, name: str | None = None
) -> None:
    """Add a command to ``app``, called after its function; errors become messages."""
    app.command(name, cls=Command, epilog=epilog)(friendly(function))
