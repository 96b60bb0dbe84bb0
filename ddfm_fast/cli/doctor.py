"""``ddfm-fast doctor``: this machine, examined."""

from __future__ import annotations

import json

import typer

from . import options as opt
from .errors import SOME_FAILED

EPILOG = "Example:  `ddfm-fast doctor`"


def doctor(*, as_json: opt.JsonInstead = False, clear_cache: opt.ClearCache = False) -> None:
    """Report what this machine can do, test it, and name what to install for more."""
    if clear_cache:
        from ..kernels.cpu import cache

        gone = [str(path) for path in cache.clear()]
        text = f"{cache.describe()['folder']}: {len(gone)} files removed"
        typer.echo(json.dumps({"ok": True, "removed": gone}) if as_json else text)
        return
    from ..runtime.doctor import examine, render

    report = examine()
    typer.echo(json.dumps(report, indent=2) if as_json else render(report))
    if not report["ok"]:
        raise typer.Exit(SOME_FAILED)
