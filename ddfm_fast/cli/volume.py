"""``ddfm-fast volume``: two medical volumes to one."""

# ruff: noqa: ARG001  (read_settings takes the options of Fuser from the context, by name)

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as opt
from .options import default
from .remote import local_volumes
from .settings import levels, plain, read_settings, show_progress

if TYPE_CHECKING:
    from ..medical.fuse import FusedVolume

OfWindow = Annotated[
    str | None,
    opt.option(
        opt.INPUT_OPTIONS, "DICOM window, if several: N, its explanation or lut; or ir=…,vis=…."
    ),
]
EPILOG = (
    "Examples:  `ddfm-fast volume t1.nii.gz ct.nii.gz -o fused.nii.gz`  ·  "
    "`ddfm-fast volume mr/ pet/ --colormap hot -o fused/`"
)


def volume(
    context: typer.Context,
    ir: opt.FirstVolume,
    vis: opt.OtherVolume,
    *,
    series: opt.OfSeries = None,
    frame: opt.OfFrame = None,
    window: OfWindow = None,
    ir_range: opt.IrVolumeRange = None,
    vis_range: opt.VisVolumeRange = None,
    nodata: opt.Nodata = None,
    colormap: opt.ColorMap = None,
    grid: opt.OnGrid = opt.Grid.ir,
    plane: opt.InPlane = None,
    slices: opt.Slices = None,
    preset: opt.Preset = default.preset,
    denoise: opt.Denoise = default.denoise,
    images: opt.Images = default.images,
    steps: opt.Steps = default.steps,
    reuse: opt.Reuse = default.reuse,
    stretch: opt.StretchLuma = default.stretch,
    seed: opt.Seed = default.seed,
    prior: opt.Prior = default.prior,
    prior_config: opt.PriorConfig = None,
    out: opt.OutVolume,
    gray: opt.Gray = False,
    color_from: opt.ColorSource = opt.ColorFrom.auto,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    device: opt.Device = default.device,
    tile: opt.Tile = default.tile,
) -> None:
    """Fuse two medical volumes of one patient, registered to each other; not for diagnosis.

    The second volume is interpolated onto the grid of the first by their positions. All slices
    share one range, one noise level and one scale. NIfTI keeps the affine; DICOM becomes a derived
    series with new UIDs. Exit code: 0 fused, 2 bad input. Needs `pip install 'ddfm_fast[medical]'`.
    """
    started = time.perf_counter()
    settings = read_settings(context)
    from ..medical.files import check_apart, fuse_files
    from ..medical.volume import parse_slices

    local_volumes(IR=ir, VIS=vis, **{"--out": out})
    check_apart(out, (ir, vis))
    meant = levels(ir_range, vis_range, nodata)
    fused = fuse_files(
        ir,
        vis,
        out,
        settings.fuser(),
        series=by_source(series, "--series"),
        frame=_numbers(frame),
        window=by_source(window, "--window"),
        value_range=meant.value_range,
        nodata=meant.nodata,
        colormap=by_source(colormap, "--colormap"),
        grid=plain(grid),
        plane=plain(plane),
        slices=parse_slices(slices),
        progress=show_progress(quiet),
    )
    _echo(fused, out, time.perf_counter() - started, as_json=as_json, quiet=quiet)


def by_source(text: str | None, option: str) -> str | dict[str, str] | None:
    """``VALUE`` for both, or ``ir=VALUE,vis=VALUE`` as a dict; ValueError if one is twice."""
    if text is None or not re.match(r"(ir|vis)=", text):
        return text
    parts = [part.split("=", 1) for part in re.split(r",(?=(?:ir|vis)=)", text)]
    found = dict(parts)
    if len(found) < len(parts) or not all(found.values()):
        raise ValueError(f"{option} is {text!r}; expected each source once: ir=…,vis=…")
    return found


def _numbers(text: str | None) -> Any:
    given = by_source(text, "--frame")
    try:
        if isinstance(given, dict):
            return {name: int(value) for name, value in given.items()}
        return None if given is None else int(given)
    except ValueError:
        raise ValueError(f"--frame is {text!r}; expected a number, or ir=N,vis=N") from None


def _echo(fused: FusedVolume, out: Path, seconds: float, *, as_json: bool, quiet: bool) -> None:
    """Print what was written, as one JSON object or in a line."""
    if as_json:
        from .. import __version__

        about = {"ok": True, "version": __version__, "output": str(out), "seconds": seconds}
        typer.echo(json.dumps({**about, **fused.to_dict()}))
    elif not quiet:
        z, height, width = fused.volume.shape
        typer.echo(f"{out}  {z} slices of {width}x{height}, {seconds:.1f} s; not for diagnosis")
