"""``ddfm-fast evaluate``: folders of fused pictures, scored."""

from __future__ import annotations

from typing import Any

import typer

from ..metrics.conventions import DEFAULT
from . import downstream, tables
from . import options as opt
from .options import default
from .remote import as_named, fused_folders, local_outputs, scored_items, title_of
from .settings import levels, pixel_limit, show_progress

EPILOG = "Example:  `ddfm-fast evaluate MSRS/test --fused ours=fused --baselines --paper MSRS`"


def evaluate(
    context: typer.Context,
    root: opt.Root,
    vis: opt.Vis = None,
    *,
    fused: opt.Fused = None,
    layout: opt.Layout = None,
    manifest: opt.Manifest = None,
    pattern: opt.Pattern = None,
    limit: opt.Limit = None,
    ir_range: opt.IrRange = None,
    vis_range: opt.VisRange = None,
    nodata: opt.Nodata = None,
    raw_size: opt.RawSize = None,
    baselines: opt.Baselines = False,
    paper: opt.Paper = None,
    metrics: opt.Metrics = DEFAULT,
    extra: opt.Extra = None,
    detect: downstream.Detect = None,
    boxes: downstream.Boxes = None,
    segment: downstream.Segment = None,
    masks: downstream.Masks = None,
    out: opt.OutTable = None,
    format: opt.OfTable = None,
    per_image: opt.PerImage = False,
    report: opt.Report = None,
    report_pairs: opt.ReportPairs = 60,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    device: opt.Device = default.device,
    max_pixels: opt.MaxPixels = None,
) -> None:
    """Score folders of fused pictures against their sources, several methods side by side.

    A fused file is named after its pair: the infrared file's stem, in the data set's subfolders
    if stems repeat. Luma is scored. The table has the six metrics of the paper, SCD, CC, and VIF,
    MI and SSIM with the worse source. A warning names near copies of one source, because their VIF
    and MI are misleadingly high. --detect and --segment add scores of a network. Exit code: 0 all
    scored, 1 some pairs or a network left out, 2 bad input.
    """
    from ..method import BASELINES
    from ..metrics.evaluation import MethodPictures
    from ..metrics.evaluation import evaluate as score
    from ..metrics.tables import write_table
    from ..runtime.dispatch import resolve_device

    local_outputs(out=out, report=report)
    how: dict[str, Any] = {
        "layout": layout,
        "manifest": manifest,
        "pattern": pattern,
        "limit": limit,
    }
    items, stage = scored_items(context, root, vis, fused=fused or (), **how)
    methods = fused_folders(stage, fused or ())
    methods += [MethodPictures(name) for name in BASELINES] if baselines else []
    written_as, most_pixels = tables.file_format(out, format), pixel_limit(max_pixels)
    tables.require_writable(out, report)
    how = {"max_pixels": most_pixels, "levels": levels(ir_range, vis_range, nodata, raw_size)}
    how |= {"progress": show_progress(quiet)}
    place = resolve_device(device)
    look = downstream.asked_tasks(
        items, place, detect=detect, boxes=boxes, segment=segment, masks=masks
    )
    with as_named(stage) as named:
        scoring = tables.scoring(metrics, extra, paper)
        evaluation = score(items, methods, **scoring, device=place, **how)
        look(evaluation, methods, **how)
    named(evaluation)
    page = {"title": f"Fusion results: {title_of(root)}", "max_pairs": report_pairs}
    tables.write_page(report, evaluation, items, methods, **page, max_pixels=most_pixels)
    if out is not None:
        write_table(out, evaluation, written_as, per_image=per_image)
    shown = format if out is None else None
    written = [path for path in (out, report) if path is not None]
    tables.show(evaluation, shown, written, per_image=per_image, as_json=as_json, quiet=quiet)
