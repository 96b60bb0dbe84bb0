"""``ddfm-fast config``: the options that hold, and where each comes from."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from . import options as opt
from .manners import CONFIG, changed, commands, origins, read_config, values_for

EPILOG = "Examples:  `ddfm-fast config fuse`  ·  `ddfm-fast config --config ddfm.toml`"
Named = Annotated[
    list[str] | None,
    opt.argument("COMMAND", "Command whose options to print; by default, those that are set."),
]


def config(
    context: typer.Context, command: Named = None, *, as_json: opt.JsonInstead = False
) -> None:
    """Print the options of a command as a file for --config, with the origin of each value."""
    known = commands(context.find_root().command)
    name = " ".join(command or ())
    if name and name not in known:
        raise ValueError(f"COMMAND is {name!r}; expected one of {', '.join(known)}")
    path = context.meta.get(CONFIG)
    chosen = {name: known[name]} if name else known
    found = {one: _resolved(one, known[one], context, path) for one in chosen}
    if not name:
        found = {one: set_ones for one, all_of in found.items() if (set_ones := changed(all_of))}
    if as_json:
        whole = {
            one: {key: {"value": value, "from": origin} for key, (value, origin) in table.items()}
            for one, table in found.items()
        }
        typer.echo(json.dumps({"file": path and str(path), "commands": whole}, indent=2))
        return
    typer.echo(f"# {path or 'no options file; name one with --config or DDFM_FAST_CONFIG'}")
    for one, table in found.items():
        typer.echo(f"\n[{one.replace(' ', '.')}]")
        for key, (value, origin) in table.items():
            typer.echo(
                f"# {key}: not set" if value is None else f"{key} = {_toml(value)}  # {origin}"
            )


def _resolved(
    name: str, command: Any, context: typer.Context, path: Any
) -> dict[str, tuple[Any, str]]:
    """Return the options of a command that is called with the file of this one and no arguments."""
    parent: Any = context.find_root()
    for group in name.split()[:-1]:
        parent = type(context)(parent.command.commands[group], info_name=group, parent=parent)
    inner = type(context)(
        command, info_name=name.split()[-1], parent=parent, resilient_parsing=True
    )
    inner.default_map = None
    if path is not None:
        inner.default_map = values_for(read_config(path), path, inner)
    command.parse_args(inner, [])
    return origins(inner, path)


def _toml(value: Any) -> str:
    """Return a value in TOML, whose strings, numbers and lists of strings are JSON's."""
    return json.dumps(value, ensure_ascii=False)
