"""``ddfm-fast prior``: look into prior files (checkpoints), check and convert them."""

from __future__ import annotations

import json
from typing import Any

import typer

from . import options as opt
from . import prior_options as own
from .settings import json_object, plain

HELP = "Inspect, check and convert prior files (checkpoints)."
EPILOG_INFO = "Example:  `ddfm-fast prior info embedded`"
EPILOG_CHECK = "Example:  `ddfm-fast prior check model.pt`"
EPILOG_CONVERT = (
    "Example:  `ddfm-fast prior convert 256x256_diffusion_uncond.pt prior.safetensors "
    "--dtype float16`"
)


def info(
    file: own.InfoFile, *, prior_config: opt.PriorConfig = None, as_json: opt.JsonInstead = False
) -> None:
    """Print what a prior is, what it lacks, and what a forward costs here.

    Family, parameters, channels, prediction, schedule, size trained at, license, hashes. The
    seconds are an estimate: one small forward is timed and scaled by FLOP.
    """
    from ..priors.info import inspect

    found = inspect(file, json_object(prior_config, "--prior-config") or None)
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    costs = found["cost"] or {}
    found["cost"] = {f"forward at {size}": _cost_text(cost) for size, cost in costs.items()}
    found["missing"] = {row["what"]: row["option"] for row in found["missing"]}
    for line in _table({k: "not said" if v is None else v for k, v in found.items()}):
        typer.echo(line)


def _cost_text(cost: dict[str, Any]) -> str:
    seconds = cost["seconds"]
    text = f"{cost['flops'] / 1e9:,.1f} GFLOP, {cost['peak_bytes'] / 1e6:,.0f} MB"
    if seconds is not None:
        text += f", about {seconds:.3g} s on this CPU (an estimate)"
    if cost["reused"] is not None:
        text += f"; {cost['reused']:.0%} of the FLOP where deep layers are reused (--reuse)"
    return text


def check(
    file: opt.PriorFile, *, prior_config: opt.PriorConfig = None, as_json: opt.JsonInstead = False
) -> None:
    """Let a prior denoise a picture; if it fails, name the likely mistake.

    Exit code 1 if it does not denoise.
    """
    from ..priors.check import check as check_prior
    from ..priors.load import load_prior

    found = check_prior(load_prior(file, json_object(prior_config, "--prior-config") or None))
    if as_json:
        rows = [row._asdict() for row in found.rows]
        typer.echo(json.dumps({**found._asdict(), "rows": rows, "good": found.good}, indent=2))
    else:
        for row in found.rows:
            typer.echo(
                f"noise of {row.sigma:5.1f} gray levels: PSNR {row.before:5.1f} dB, denoised "
                f"{row.after:5.1f} dB (a mean over 5x5 pixels {row.blurred:5.1f} dB)"
            )
        if found.error:
            typer.echo(f"it raised {found.error}")
        typer.echo(f"pure noise: {found.likeness:.3f} of it predicted (1 is right)")
        typer.echo("it denoises" if found.good else "it does not denoise")
        for hint in found.hints:
            typer.echo(f"it would if it were read as {hint}")
    if not found.good:
        raise typer.Exit(1)


def _table(values: dict[str, Any], indent: str = "") -> list[str]:
    """``key  value`` lines; a dictionary inside becomes an indented table of its own."""
    width = max(map(len, values), default=0)
    lines = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}", *_table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{width}}  {_text(value)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def convert(
    src: own.Source,
    dst: own.Destination,
    *,
    config: own.ShapeConfig = None,
    dtype: own.Weights = None,
    as_json: opt.JsonInstead = False,
) -> None:
    """Turn a checkpoint into safetensors with its configuration inside, a folder into another.

    The result loads faster, cannot carry code, and needs no --prior-config. The cost of --dtype is
    measured on a picture of the package and printed.
    """
    from ..priors import conversion

    given = json_object(config, "--config")
    conversion.convert(src, dst, dtype=plain(dtype), config=given)
    size = sum(path.stat().st_size for path in (dst, *dst.rglob("*")) if path.is_file())
    if not as_json:
        typer.echo(f"{dst}  {size / 1e6:.1f} MB")
    weights = None if dtype is None else conversion.weights_of(src, dst)
    if weights is not None and not as_json:
        typer.echo(
            f"weights up to {weights.largest:.4g}, of {weights.limit:.4g} that they can hold; "
            f"{weights.vanished:.2g} of them became 0"
        )
    rows = [] if dtype is None else conversion.loss_of(src, dst, given)
    if as_json:
        numbers = weights and weights._asdict()
        found = {"path": str(dst), "bytes": size, "weights": numbers,
                 "loss": [row._asdict() for row in rows]}  # fmt: skip
        typer.echo(json.dumps(found, indent=2))
        return
    for row in rows:
        typer.echo(
            f"noise of {row.sigma:5.1f} gray levels: prediction off by {row.error:.2g} of its "
            f"size; denoised {row.before:.3f} dB before, {row.after:.3f} dB now"
        )
