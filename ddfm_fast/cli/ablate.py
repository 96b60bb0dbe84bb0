"""``ddfm-fast ablate``: what each part of the method is worth on a data set."""

# ruff: noqa: ARG001  (read_settings takes the options of Fuser from the context, by name)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..metrics.conventions import DEFAULT
from . import options as opt
from . import tables
from .batch import echo_failure
from .errors import INTERRUPTED
from .options import default
from .remote import local_outputs, scored_items, title_of
from .settings import Settings, levels, pixel_limit, read_settings, show_progress

if TYPE_CHECKING:
    from ..datasets.items import PairItem
    from ..metrics.ablation import Row
    from ..metrics.evaluation import Evaluation, MethodPictures

EPILOG = "Example:  `ddfm-fast ablate MSRS/test -o ablation --steps 25`"


def ablate(
    context: typer.Context,
    root: opt.Root,
    vis: opt.Vis = None,
    *,
    layout: opt.Layout = None,
    manifest: opt.Manifest = None,
    pattern: opt.Pattern = None,
    limit: opt.Limit = None,
    ir_range: opt.IrRange = None,
    vis_range: opt.VisRange = None,
    nodata: opt.Nodata = None,
    raw_size: opt.RawSize = None,
    preset: opt.AblatedPreset = default.preset,
    steps: opt.Steps = default.steps,
    reuse: opt.Reuse = default.reuse,
    denoise: opt.Denoise = default.denoise,
    images: opt.Images = default.images,
    rows: opt.Rows = None,
    psi: opt.Psi = default.psi,
    eta: opt.Eta = default.eta,
    seed: opt.Seed = default.seed,
    prior: opt.Prior = default.prior,
    prior_config: opt.PriorConfig = None,
    baselines: opt.Baselines = False,
    paper: opt.Paper = None,
    metrics: opt.Metrics = DEFAULT,
    extra: opt.Extra = None,
    out: opt.OutRows,
    format: opt.OfTable = None,
    per_image: opt.PerImage = False,
    report: opt.Report = None,
    report_pairs: opt.ReportPairs = 60,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    device: opt.Device = default.device,
    max_pixels: opt.MaxPixels = None,
) -> None:
    """Fuse a data set again and again, each time without one part of the method, and compare.

    The rows are the preset as it is, EM alone, the prior alone, no TV term, fixed γ and ρ, and
    other variants and samplers; each is a batch. Safe to interrupt; rerun to resume. Pictures are
    gray. OUT gets a folder per row, and ablation.txt, .csv, .json and .md.
    """
    settings = read_settings(context)
    chosen = _rows(settings, rows)
    local_outputs(out=out, report=report)
    how: dict[str, Any] = {
        "layout": layout,
        "manifest": manifest,
        "pattern": pattern,
        "limit": limit,
    }
    items, _ = scored_items(context, root, vis, **how)
    tables.require_writable(out / "ablation.txt", report)
    evaluation, methods = _run(
        *(items, out, chosen, settings),
        baselines=baselines,
        max_pixels=pixel_limit(max_pixels),
        levels=levels(ir_range, vis_range, nodata, raw_size),
        progress=show_progress(quiet),
        on_row=_ignore if quiet or as_json else _echo_row,
        **tables.scoring(metrics, extra, paper),
    )
    title, limits = f"Ablation of {settings.preset}: {title_of(root)}", pixel_limit(max_pixels)
    page: dict[str, Any] = {"title": title, "max_pairs": report_pairs, "max_pixels": limits}
    tables.write_page(report, evaluation, items, methods, **page)
    written = _write_tables(out, evaluation, per_image) + ([] if report is None else [report])
    tables.show(evaluation, format, written, per_image=per_image, as_json=as_json, quiet=quiet)


def _rows(settings: Settings, names: str | None) -> list[Row]:
    from ..metrics.ablation import ablation_rows, choose_rows

    wanted = None if names is None else [name.strip() for name in names.split(",")]
    return choose_rows(ablation_rows(settings.config(), str(settings.preset)), wanted)


def _run(
    items: list[PairItem],
    out: Path,
    rows: list[Row],
    settings: Settings,
    *,
    baselines: bool,
    **options: Any,
) -> tuple[Evaluation, list[MethodPictures]]:
    """Fuse and score, with failures on stderr; Ctrl-C ends the command."""
    from ..datasets.batch import BatchInterrupted
    from ..method import BASELINES
    from ..metrics.ablation import ablate as run

    prior = settings.load_prior("auto")
    shared = {"seed": settings.options["seed"], "device": settings.device, "color": False}
    try:
        return run(
            items,
            out,
            rows,
            settings={"prior": prior, **shared},
            baselines=tuple(BASELINES) if baselines else (),
            on_error=echo_failure,
            **options,
        )
    except BatchInterrupted:
        typer.echo("interrupted; run the same command again to resume", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _echo_row(row: Row) -> None:
    typer.echo(f"{row.name}: {row.meaning}", err=True)


def _ignore(_row: Row) -> None:
    pass


def _write_tables(out: Path, evaluation: Evaluation, per_image: bool) -> list[Path]:
    from ..metrics.tables import FORMATS, write_table

    return [
        write_table(out / f"ablation{suffix}", evaluation, name, per_image=per_image)
        for name, suffix in FORMATS.items()
    ]
