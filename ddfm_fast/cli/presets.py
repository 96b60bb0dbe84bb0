"""``ddfm-fast presets``: what there is to choose from."""

from __future__ import annotations

import dataclasses
import json
from typing import NamedTuple

import typer

from . import options as opt

EPILOG = "Example:  `ddfm-fast presets`"


class Measured(NamedTuple):
    """What a preset costs and is worth; recorded in ``bench/results``, which a test compares."""

    evaluations: str
    """of the prior, per pair"""
    seconds: tuple[float, float] | None
    """a clean pair and one with a noisy infrared: 320x240, one thread of a 2.5 GHz Xeon"""
    clean: tuple[float, float] | None
    """VIF and Qabf, ten infrared-visible pairs"""
    noisy: tuple[float, float] | None
    """the same with noise of σ 25 on the infrared"""


MEASURED = {
    "balanced": Measured(
        "2 per noisy source, else 0", (0.017, 0.277), (0.776, 0.576), (0.644, 0.486)
    ),
    "fast": Measured("1 per noisy source, else 0", (0.017, 0.163), (0.776, 0.576), (0.641, 0.484)),
    "robust": Measured("4 per noisy source, else 0", None, (0.776, 0.576), (0.645, 0.487)),
    "instant": Measured("0", (0.008, 0.008), (0.776, 0.576), (0.215, 0.248)),
    "official": Measured("100", None, None, None),
    "official-script": Measured("100", None, None, None),
    "paper": Measured("100", None, None, None),
}


def presets(*, as_json: opt.JsonInstead = False) -> None:
    """List the presets: what each is for, its cost, scores and settings."""
    from ..config import DEFAULT_PRESET, LOOP_OPTIONS, LOOP_PRESET, PRESETS

    if as_json:
        table = {name: dataclasses.asdict(config) for name, config in PRESETS.items()}
        typer.echo(json.dumps(table, indent=2, default=str))
        return
    options = ", ".join(f"--{name}" for name in LOOP_OPTIONS)
    typer.echo(f"The default is {DEFAULT_PRESET}, or {LOOP_PRESET} with one of {options}.\n")
    for name in sorted(PRESETS, key=[*MEASURED, *PRESETS].index):  # the default first
        settings = dataclasses.asdict(PRESETS[name])
        mark = " (default)" if name == DEFAULT_PRESET else ""
        typer.echo(f"{name}{mark}: {settings.pop('summary')}")
        if name in MEASURED:
            typer.echo(f"    {_measured(MEASURED[name])}")
        typer.echo("    " + "  ".join(f"{key}={value}" for key, value in settings.items()))
    typer.echo(
        "\nSeconds: 320x240, one thread of a 2.5 GHz Xeon, a clean / noisy infrared."
        "\nVIF, Qabf: means over ten infrared-visible pairs, clean / with noise of sigma 25."
    )


def _measured(found: Measured) -> str:
    parts = [f"prior evaluations: {found.evaluations}"]
    if found.seconds:
        parts.append(f"seconds: {found.seconds[0]:g} / {found.seconds[1]:g}")
    if found.clean and found.noisy:
        (vif, qabf), (noisy_vif, noisy_qabf) = found.clean, found.noisy
        parts += [f"VIF: {vif:.3f} / {noisy_vif:.3f}", f"Qabf: {qabf:.3f} / {noisy_qabf:.3f}"]
    return "; ".join(parts)
