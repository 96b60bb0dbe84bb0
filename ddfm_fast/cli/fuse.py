"""``ddfm-fast fuse``: files or folders in, files out."""

# ruff: noqa: ARG001  (read_settings takes the options of Fuser from the context, by name)

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING, Any

import typer

from ..config import default_preset
from . import options as opt
from .errors import BAD_INPUT, OK, SOME_FAILED, echo_error, message
from .options import default
from .settings import levels, output, pixel_limit, plain, read_settings, show_progress

if TYPE_CHECKING:
    from ..api import Fuser

EPILOG = "Example:  `ddfm-fast fuse ir/ visible/ -o fused/ --steps 50 --panel`"


def fuse(
    context: typer.Context,
    ir: opt.Infrared,
    vis: opt.Visible,
    *,
    ir_range: opt.IrRange = None,
    vis_range: opt.VisRange = None,
    nodata: opt.Nodata = None,
    raw_size: opt.RawSize = None,
    resize: opt.ResizeFiles = None,
    align: opt.Align = default.align,
    align_field: opt.AlignField = opt.Frame.visible,
    preset: opt.Preset = default.preset,
    denoise: opt.Denoise = default.denoise,
    images: opt.Images = default.images,
    steps: opt.Steps = default.steps,
    reuse: opt.Reuse = default.reuse,
    stretch: opt.StretchLuma = default.stretch,
    seed: opt.Seed = default.seed,
    prior: opt.Prior = default.prior,
    prior_config: opt.PriorConfig = None,
    variant: opt.Variant = default.variant,
    sampler: opt.Sampler = default.sampler,
    psi: opt.Psi = default.psi,
    eta: opt.Eta = default.eta,
    out: opt.OutFileOrFolder,
    panel: opt.Panel = False,
    format: opt.FormatInFolder = None,
    quality: opt.Quality = None,
    chroma: opt.ChromaOf = None,
    compression: opt.Compression = None,
    out_range: opt.OutRange = "full",
    keep_thermal: opt.KeepThermal = False,
    no_metadata: opt.NoMetadata = False,
    skip_existing: opt.SkipExisting = False,
    gray: opt.Gray = False,
    color_from: opt.ColorSource = opt.ColorFrom.auto,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    device: opt.Device = default.device,
    dtype: opt.DType = default.dtype,
    backend: opt.Backend = default.backend,
    graph: opt.Graph = default.graph,
    tile: opt.Tile = default.tile,
    max_pixels: opt.MaxPixels = None,
) -> None:
    """Fuse two image files, or two folders of files with the same stems, into --out.

    8-bit images give 8-bit images and 16-bit images give 16-bit images; metadata of the visible
    file is kept. In folders, a pair that fails is reported and the others continue. Exit code: 0
    all fused, 1 some failed, 2 bad input.
    """
    started = time.perf_counter()
    settings, how = read_settings(context), output(context)
    from ..datasets.jobs import plan_jobs, run_jobs
    from ..storage.staging import any_url

    shape: dict[str, Any] = {"format": format, "panel": panel}
    options: dict[str, Any] = {
        **_reading(context),
        "output": how,
        "progress": show_progress(quiet),
        "skip_existing": skip_existing,
        "on_error": _echo_error,
    }
    if any_url(ir, vis, out):
        from ..datasets.remote import fuse_remote

        reports, fuser = fuse_remote(ir, vis, out, settings.fuser, **shape, **options)
    else:
        jobs, fuser = plan_jobs(ir, vis, out, **shape), settings.fuser()
        if len(jobs) == 1:
            options["on_error"] = _echo_only_error
        reports = run_jobs(jobs, fuser, **options)
    seconds, name = time.perf_counter() - started, preset or default_preset(context.params)
    if as_json:
        typer.echo(json.dumps(_as_dict(reports, fuser, name, seconds), default=str))
    elif not quiet:
        _echo_results(reports, seconds)
    raise typer.Exit(_exit_code(reports))


def _reading(context: typer.Context) -> dict[str, Any]:
    """Return how files are read, as `run_jobs` takes it."""
    given = context.params
    return {
        "max_pixels": pixel_limit(given["max_pixels"]),
        "levels": levels(*map(given.get, ("ir_range", "vis_range", "nodata", "raw_size"))),
        "resize": plain(given["resize"]),
    }


def _exit_code(reports: list[dict[str, Any]]) -> int:
    """Return the exit code: bad input if the only pair failed, else whether some failed."""
    if all(report["ok"] for report in reports):
        return OK
    return BAD_INPUT if len(reports) == 1 else SOME_FAILED


def _echo_error(job: Any, error: Exception) -> None:
    typer.echo(f"error: {job.output.stem}: {message(error)}", err=True)


def _echo_only_error(job: Any, error: Exception) -> None:
    """Print the error without the pair's name, which would look like an argument's."""
    echo_error(error)


def _as_dict(
    reports: list[dict[str, Any]], fuser: Fuser, preset: str, seconds: float
) -> dict[str, Any]:
    from .. import __version__

    prior, denoiser = fuser.prior, None
    found = [report["report"] for report in reports if report.get("report")]
    if any(one[source]["evaluations"] for one in found for source in ("ir", "vis")):
        used = fuser.sources.denoiser
        denoiser = {"name": used.name, "fingerprint": used.fingerprint}
    return {
        "ok": all(report["ok"] for report in reports),
        "version": __version__,
        "preset": preset,
        "config": dataclasses.asdict(fuser.config),
        "prior": {"name": prior.name, "fingerprint": prior.fingerprint, "dtype": prior.precision},
        "denoiser": denoiser,
        "device": str(prior.device),
        "seconds": seconds,
        "results": reports,
    }


def _echo_results(reports: list[dict[str, Any]], seconds: float) -> None:
    for report in reports:
        if report["skipped"]:
            typer.echo(f"{report['output']}  (already there)")
        elif report["ok"]:
            size = f"{report['width']}x{report['height']}"
            typer.echo(f"{report['output']}  {size} {report['dtype']}, {report['seconds']:.1f} s")
            if report["panel"]:
                typer.echo(report["panel"])
    done = sum(report["ok"] for report in reports)
    if len(reports) > 1:
        typer.echo(f"{done} of {len(reports)} pairs in {seconds:.1f} s")
