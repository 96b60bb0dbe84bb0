"""``ddfm-fast prior list`` and ``prior download``: priors that others published."""

from __future__ import annotations

import json
from typing import Any

import typer
from tqdm import tqdm

from . import options as opt
from . import prior_options as own

EPILOG_LIST = "Example:  `ddfm-fast prior list`"
EPILOG_DOWNLOAD = "Example:  `ddfm-fast prior download adm-256`"


def list_priors(*, as_json: opt.JsonInstead = False) -> None:
    """List known public priors: subject, size, license, address and what they need."""
    from ..priors.catalog import CATALOG

    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in CATALOG.values()], indent=2))
        return
    for row in CATALOG.values():
        size = f", {row.megabytes:,} MB" if row.megabytes else ""
        typer.echo(
            f"{row.name}  {row.size}x{row.size}{size}, license: {row.license or 'not found'}"
        )
        typer.echo(f"    {row.what}")
        hub = "Hugging Face Hub: " if row.on_hub else ""
        typer.echo(f"    {hub}{row.where}" if row.where else f"    by hand: {row.by_hand}")
        if row.config:
            typer.echo(f"    --prior-config '{json.dumps(row.config)}'")


def download(
    name: own.KnownName,
    *,
    url: own.Url = None,
    sha256: own.Sha256 = None,
    out: own.Folder = None,
    as_json: opt.JsonInstead = False,
    quiet: opt.NoBars = False,
) -> None:
    """Download a known public prior, resuming where it broke off.

    The file is checked (length, the server's hash, --sha256) and its sha256 printed.
    """
    from ..priors.catalog import known
    from ..priors.download import download as bring

    row = known(name)
    with tqdm(unit="B", unit_scale=True, disable=quiet or as_json, delay=0.5) as bar:

        def progress(have: int, total: int | None) -> None:
            bar.total = total
            bar.update(have - bar.n)

        found = bring(row, out, url=url, sha256=sha256, progress=progress)
    if as_json:
        typer.echo(json.dumps({**found._asdict(), "path": str(found.path), "config": row.config}))
        return
    for line in _lines(found, row.config):
        typer.echo(line)


def _lines(found: Any, config: dict[str, Any]) -> list[str]:
    lines = [str(found.path) + ("" if found.fresh else "  (was here)")]
    lines += [f"sha256 {digest}  {name}" for name, digest in found.sha256.items()]
    lines.append(f"checked: {found.checked or 'there was nothing to compare with'}")
    extra = f" --prior-config '{json.dumps(config)}'" if config else ""
    return [*lines, f"use it: ddfm-fast fuse IR VIS -o OUT --prior '{found.path}'{extra}"]
