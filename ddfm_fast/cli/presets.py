"""``ddfm-fast presets``: what there is to choose from."""

from __future__ import annotations

import dataclasses
import json

import typer

from . import options as opt

EPILOG = "Example:  `ddfm-fast presets`"


def presets(*, as_json: opt.JsonInstead = False) -> None:
    """List the presets: their settings and what each is for."""
    from ..config import PRESETS

    if as_json:
        table = {name: dataclasses.asdict(config) for name, config in PRESETS.items()}
        typer.echo(json.dumps(table, indent=2, default=str))
        return
    for name, config in PRESETS.items():
        settings = dataclasses.asdict(config)
        typer.echo(f"{name}: {settings.pop('summary')}")
        typer.echo("    " + "  ".join(f"{key}={value}" for key, value in settings.items()))
