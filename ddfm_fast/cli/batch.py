"""``ddfm-fast batch``: a whole data set, safe to interrupt."""

# ruff: noqa: ARG001  (read_settings takes the options of Fuser from the context, by name)

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from . import options as opt
from . import shards
from .errors import INTERRUPTED, OK, SOME_FAILED
from .options import default
from .settings import (
    data_source,
    elsewhere,
    find_items,
    levels,
    output,
    picked,
    pixel_limit,
    read_settings,
    show_progress,
    stage_for,
)

if TYPE_CHECKING:
    from ..api import Fuser
    from ..datasets.items import PairItem
    from ..datasets.output import Output
    from ..datasets.pairs import Survey
    from ..datasets.results import BatchReport, PairResult
    from ..files.depth import Levels
    from ..storage.staging import Stage

PANEL = ".panel"
"""what a panel's name has before its suffix"""
EPILOG = (
    "Examples:  `ddfm-fast batch MSRS/test -o fused/ --steps 50`  ·  "
    "`ddfm-fast batch flight/ --list`"
)

_SOME = 2048
"""parts that are printed at once"""


def batch(
    context: typer.Context,
    root: opt.Root,
    vis: opt.Vis = None,
    *,
    layout: opt.Layout = None,
    manifest: opt.Manifest = None,
    pattern: opt.Pattern = None,
    ir_range: opt.IrRange = None,
    vis_range: opt.VisRange = None,
    nodata: opt.Nodata = None,
    raw_size: opt.RawSize = None,
    resize: opt.ResizeFiles = None,
    align: opt.Align = default.align,
    align_field: opt.AlignField = opt.Frame.visible,
    range_over: opt.RangeOver = opt.Over.picture,
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
    out: opt.OutFolder = None,
    layout_out: opt.LayoutOut = None,
    list_pairs: opt.ListPairs = False,
    panel: opt.Panel = False,
    format: opt.Format = "png",
    quality: opt.Quality = None,
    chroma: opt.ChromaOf = None,
    compression: opt.Compression = None,
    out_range: opt.OutRange = "full",
    keep_thermal: opt.KeepThermal = False,
    no_metadata: opt.NoMetadata = False,
    redo: opt.Redo = False,
    gray: opt.Gray = False,
    color_from: opt.ColorSource = opt.ColorFrom.auto,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    device: opt.Device = default.device,
    batch_size: opt.BatchSize = default.batch_size,
    workers: opt.Workers = 2,
    on: opt.On = opt.Place.here,
    address: opt.Address = None,
    actors: opt.Actors = None,
    num_gpus: opt.NumGpus = None,
    dtype: opt.DType = default.dtype,
    backend: opt.Backend = default.backend,
    graph: opt.Graph = default.graph,
    tile: opt.Tile = default.tile,
    max_pixels: opt.MaxPixels = None,
) -> None:
    """Fuse a data set. Safe to interrupt; rerun to resume.

    Finds the pairs in the layouts of MSRS, RoadScene, M3FD, TNO, LLVIP, Harvard, M3SVD, VTMOT and
    others, and by name in one folder (DJI_0001_T.JPG, DJI_0001_V.JPG). Finished pairs are skipped
    unless settings, prior or inputs changed. Exit code: 0 all fused, 1 some failed (with --list:
    lack a partner), 2 bad input, 130 interrupted.
    """
    if shards.are_meant(context.params):
        raise typer.Exit(shards.fuse(context))
    source: dict[str, Any] = {"layout": layout, "manifest": manifest, "pattern": pattern}
    stage = stage_for(context, root, vis, manifest, out)
    if list_pairs:
        raise typer.Exit(_echo_pairs(root, vis, source, stage, as_json=as_json))
    from ..datasets.judges import arranged

    settings, folder = read_settings(context), _folder(out)
    items = find_items(root, vis, stage=stage, strict=False, **source)
    check_panels(items, panel, local=stage is None and on is opt.Place.here)
    options = _options(context, levels(ir_range, vis_range, nodata, raw_size), output(context))
    if layout_out is not None:
        items, options["format"] = arranged(items, layout_out, given_format(context))
    with elsewhere(on, address, actors, num_gpus) as options["elsewhere"]:
        report = _run(items, folder, settings.fuser(), over=range_over, stage=stage, **options)
    raise typer.Exit(_echo_report(report, as_json=as_json, quiet=quiet))


def _options(context: typer.Context, levels: Levels, output: Output) -> dict[str, Any]:
    """Make the options of :func:`.datasets.batch.run_batch` from those of the command."""
    limit = pixel_limit(context.params["max_pixels"])
    bars = show_progress(context.params["quiet"])
    given = picked(context, ("format", "workers", "redo", "resize"))
    meant = {"levels": levels, "output": output}
    return {**given, **meant, "max_pixels": limit, "progress": bars}


def given_format(context: typer.Context) -> str | None:
    """``--format``; None if it is the default."""
    source = context.get_parameter_source("format")
    given = source is not None and source.name != "DEFAULT"
    return context.params["format"] if given else None


def _folder(out: Path | None) -> Path:
    """``--out``, made and found writable; a URL as it is."""
    from ..files.paths import ensure_writable_dir
    from ..storage.urls import as_url

    if out is None:
        raise ValueError("--out is missing; expected a folder to write to, or --list")
    if as_url(out):
        return out
    return ensure_writable_dir(out)


def _echo_pairs(
    root: Path, vis: Path | None, source: dict[str, Any], stage: Stage | None, *, as_json: bool
) -> int:
    """Print what pairs up and what does not; 1 where a file lacks its partner, else 0.

    The JSON object is a manifest, too: its paths are absolute.
    """
    from ..datasets.pairs import survey_pairs

    place = data_source(root, vis, source["manifest"])
    full: Callable[[Path], str] = _absolute if stage is None else stage.url_of
    shown: Callable[[Path], str] = str if stage is None else stage.url_of
    if stage is None:
        found = _without_bad(survey_pairs(place, strict=False, **source))
    else:
        from ..datasets.remote import survey_remote_pairs

        found = survey_remote_pairs(stage, place, **source)
    lacking = {one.file for one in found.claims}
    if as_json:
        alone = [
            {
                "file": full(one.file),
                "why": one.why,
                "candidates": [full(file) for file in one.candidates],
                "lacks_partner": one.file in lacking,
            }
            for one in found.alone
        ]
        head = json.dumps({"ok": not lacking, "alone": alone})[:-1]
        pairs = (
            json.dumps({"name": item.name, "ir": full(item.ir), "vis": full(item.vis)})
            for item in found.pairs
        )
        _echo_all(f'{head}, "pairs": [', pairs, ", ")
        typer.echo("]}")
    else:
        lines = (f"{item.name}: {shown(item.ir)} + {shown(item.vis)}\n" for item in found.pairs)
        _echo_all("", lines)
        for one in found.alone:
            typer.echo(f"no pair: {shown(one.file)}: {one.why}")
        typer.echo(f"{len(found.pairs)} pairs, {len(found.alone)} files without a partner")
    return SOME_FAILED if lacking else OK


def _echo_all(head: str, parts: Iterable[str], between: str = "") -> None:
    """Print what may be a million parts, some thousand at a time."""
    typer.echo(head, nl=False)
    parts, first = iter(parts), True
    while some := list(islice(parts, _SOME)):
        typer.echo(("" if first else between) + between.join(some), nl=False)
        first = False


def _without_bad(found: Survey) -> Survey:
    """Return a survey whose bad entries of a list are files that lack a partner."""
    from ..datasets.names import Alone
    from ..datasets.pairs import Survey

    bad = [
        Alone(one.ir, f"{one.name}: {one.error}", (one.vis,)) for one in found.pairs if one.error
    ]
    return Survey([one for one in found.pairs if not one.error], [*found.alone, *bad])


def check_panels(items: list[PairItem], panel: bool, *, local: bool) -> None:
    """Refuse panels where they cannot be written, or would be written over."""
    if not panel:
        return
    if not local:
        raise ValueError("--panel works only with local folders, in this process; leave it out")
    names = {item.name for item in items}
    if taken := [name for name in names if f"{name}{PANEL}" in names]:
        raise ValueError(
            f"--panel: {taken[0]} would have a panel named like the result of {taken[0]}{PANEL}; "
            "rename one of the inputs"
        )


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _run(
    items: list[PairItem],
    out: Path,
    fuser: Fuser,
    levels: Levels,
    over: opt.Over,
    *,
    stage: Stage | None,
    **options: Any,
) -> BatchReport:
    """:func:`.datasets.batch.run_batch`, with failures on stderr and Ctrl-C as a report."""
    from ..datasets.batch import BatchInterrupted, run_batch
    from ..datasets.remote import one_by_one
    from ..datasets.remote_batch import run_remote_batch
    from ..datasets.window import over_dataset

    options["on_error"] = echo_failure
    if over is opt.Over.dataset:
        seen = {name: options[name] for name in ("max_pixels", "progress")}
        ready = None if stage is None else partial(one_by_one, stage)  # fetched twice, then
        levels = over_dataset(items, levels, **seen, ready=ready)
    try:
        if stage is not None:
            return run_remote_batch(stage, items, out, fuser, levels=levels, **options)
        return run_batch(items, out, fuser, levels=levels, **options)
    except BatchInterrupted as interrupted:
        return interrupted.report


def echo_failure(result: PairResult) -> None:
    """Print on stderr why a pair failed."""
    typer.echo(f"error: {result.name}: {result.error}", err=True)


def _echo_report(report: BatchReport, *, as_json: bool, quiet: bool) -> int:
    """Print what was done, as one JSON object or in a line or two; return the exit code."""
    from ..datasets.batch import REPORT, STOPPED_BY_USER
    from ..storage.urls import as_url, join

    url = as_url(report.out)
    where = url or str(report.out)
    table = join(url, REPORT) if url else report.out / REPORT
    counts = {s: report.count(s) for s in ("done", "skipped", "failed", "pending")}
    if as_json:
        from .. import __version__

        parts = report.json(version=__version__, out=where)
        _echo_all("", (part.replace("\n", "") for part in parts))
        typer.echo()
    elif not quiet:
        text = "{done} fused, {skipped} already there, {failed} failed".format(**counts)
        typer.echo(f"{where}: {text}, in {report.seconds:.1f} s; {table}")
    if report.stopped is not None:
        by_user = report.stopped == STOPPED_BY_USER
        why = "interrupted" if by_user else f"error: stopped early: {report.stopped}"
        again = f"{'' if by_user else 'make room and '}run the same command again to resume"
        typer.echo(f"{why}: {counts['pending']} pairs not reached; {again}", err=True)
    return _exit_code(report)


def _exit_code(report: BatchReport) -> int:
    """0 if every pair has its picture, 130 after Ctrl-C (as shells have it), else 1."""
    from ..datasets.batch import STOPPED_BY_USER

    if report.stopped == STOPPED_BY_USER:
        return INTERRUPTED
    return OK if report.ok else SOME_FAILED
