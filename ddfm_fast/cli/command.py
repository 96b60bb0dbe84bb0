"""How a function becomes a command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand

from ..options import INPUT, INPUT_OPTIONS, METHOD, OUTPUT, RUNTIME
from . import manners
from .common_options import common
from .errors import JSON, friendly

Plan = Callable[[typer.Context], dict[str, Any]]
"""what a command would do, by its parsed command line"""
_PANELS = (INPUT, INPUT_OPTIONS, METHOD, OUTPUT, RUNTIME)
_USAGE: Any = typer.BadParameter.__mro__[1]
"""click's UsageError, of whichever click typer brings"""


class Command(TyperCommand):
    """A command with the options of all: ``--config``, ``-v``, and for some ``--dry-run``.

    Its ``--help`` is in its last panel, not in a panel of its own before all.
    """

    plan: Plan | None = None
    items = False

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters of the function and those of all commands."""
        *own, last = super().get_params(ctx)
        if getattr(self, "added", None) is None:
            self.added = common(plans=self.plan is not None, items=self.items)
        for one in self.added:
            rank = _PANELS.index(one.rich_help_panel)
            before = [_PANELS.index(getattr(p, "rich_help_panel", None) or INPUT) for p in own]
            own.insert(sum(other <= rank for other in before), one)
        return [*own, last]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line; a shell's work on unquoted patterns gets a hint.

        A wrong one that asks for JSON gets it on stdout, beside the sentence on stderr.
        """
        ctx.meta[JSON] = "--json" in args and any("--json" in one.opts for one in self.params)
        try:
            rest = super().parse_args(ctx, [*args])
            if not ctx.resilient_parsing and (empty := self._empty(ctx, args)):
                raise _USAGE(f"{empty} is empty (''); is a variable of the shell not set?", ctx)
            return rest
        except _USAGE as error:
            if re.search(r"unexpected extra argument.*\.\w", getattr(error, "message", "")):
                error.message += "; a shell makes many arguments of ir/*.png: quote it, 'ir/*.png'"
            if ctx.meta[JSON]:
                typer.echo(json.dumps({"ok": False, "error": error.format_message()}))
            raise

    def _empty(self, ctx: Any, args: list[str]) -> str | None:
        """Name an argument or path that is empty: it would stand for the current folder."""
        if "" not in args and not any(arg.startswith("--") and arg[-1] == "=" for arg in args):
            return None
        meant = "." in args or "./" in args
        for one in self.params:
            values = ctx.params.get(one.name)
            for value in values if isinstance(values, list | tuple) else [values]:
                if isinstance(one, TyperArgument) and value in ("", Path()) and not meant:
                    return one.metavar or one.name.upper()
                if isinstance(value, Path) and value == Path() and not meant:
                    return next((name for name in one.opts if name in args), one.opts[-1])
        return None

    def invoke(self, ctx: Any) -> Any:
        """Run the command, or print what it would do."""
        friendly(self._begin, loading=True)(ctx)
        given = {one.name: ctx.params.pop(one.name, None) for one in self.added}
        verbose, lines = given["verbose"], bool(given.get("jsonl"))
        with manners.telling(ctx, verbose, lines, ctx.meta.get(manners.CONFIG)):
            if given.get("dry_run"):
                from .dry_run import show

                return friendly(show)(self.plan, ctx)
            return super().invoke(ctx)

    def _begin(self, ctx: Any) -> None:
        given = ctx.params
        if given["verbose"] and given.get("quiet"):
            raise ValueError("-v and -q exclude each other; leave out one of them")
        if given.get("jsonl"):
            if given.get("as_json"):
                raise ValueError("--json and --jsonl exclude each other; leave out one of them")
            given["quiet"] = True  # stdout is for the lines

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
    app: typer.Typer,
    function: Callable[..., None],
    epilog: str,
    name: str | None = None,
    *,
    plan: Plan | None = None,
    items: bool = False,
) -> None:
    """Add a command to ``app``, named after its function; errors become messages.

    Args:
        app: The program to add it to.
        function: Its body, whose parameters are the command's.
        epilog: The end of its help.
        name: Its name, if that is not the function's.
        plan: Returns what it would do, for ``--dry-run``.
        items: Whether it reports each of many items (:mod:`..runtime.items`), for ``--jsonl``.
    """
    about = {"plan": staticmethod(plan) if plan else None, "items": items}
    kind = type("Command", (Command,), about)
    app.command(name, cls=kind, epilog=epilog)(friendly(function))
