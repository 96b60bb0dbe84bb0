"""``ddfm-fast prior train``: a prior of people's own pictures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from . import options as opt
from . import prior_options as own
from .errors import SOME_FAILED

if TYPE_CHECKING:
    from ..priors.training.own import Outcome

EPILOG = "Example:  `ddfm-fast prior train thermal/ -o thermal.safetensors --gray --minutes 30`"


def train(
    folder: own.Pictures,
    *,
    gray: own.OneChannel = False,
    minutes: own.Minutes = 60.0,
    updates: own.Updates = None,
    start: own.Start = None,
    out: own.TrainedPrior,
    as_json: opt.JsonInstead = False,
    quiet: opt.NoBars = False,
    device: opt.Device = None,
) -> None:
    """Train a prior on your own pictures, and compare it with the package's.

    Safe to interrupt; rerun to resume. Its state, its log and a sheet of denoised pictures and
    samples are written next to the prior. Exit code 1 if it is no better on held-out pictures than
    the prior of the package; the file is kept.
    """
    from ..priors.training.own import train_own

    found = train_own(
        folder,
        out,
        gray=gray,
        minutes=minutes,
        updates=updates,
        start=start,
        device=device or "auto",
        progress=not (quiet or as_json),
    )
    if as_json:
        row = {**found._asdict(), "path": str(found.path), "sheet": str(found.sheet)}
        typer.echo(json.dumps({**row, "gain": round(found.gain, 3), "better": found.better}))
    else:
        _show(found, "embedded-gray" if gray else "embedded")
    if not found.better:
        raise typer.Exit(SOME_FAILED)


def _show(found: Outcome, base: str) -> None:
    typer.echo(f"{found.updates:,} updates in {found.minutes:g} minutes; sheet: {found.sheet}")
    for sigma, ours, theirs in zip(found.noise, found.psnr, found.embedded_psnr, strict=True):
        typer.echo(f"noise of {sigma:3d} gray levels: {ours:.2f} dB, {base} {theirs:.2f} dB")
    pictures = f"{len(found.held_out)} held-out picture" + "s" * (len(found.held_out) > 1)
    if found.better:
        typer.echo(f"done: {found.path} is {found.gain:.2f} dB better on {pictures}")
        return
    typer.echo(
        f"not better than {base}: {found.gain:.2f} dB on {pictures}; {found.path} is kept; train "
        "under another name with more --minutes or more pictures",
        err=True,
    )
