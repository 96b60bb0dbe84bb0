"""The commands ``evaluate`` and ``ablate``. Heavy imports happen inside them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddfm_fast.cli import options as opt

if TYPE_CHECKING:
    from ddfm_fast.datasets.pairs import PairItem
    from ddfm_fast.metrics.evaluation import Evaluation, Method


class Format(str, Enum):
    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"


Limit = Annotated[int | None, typer.Option(min=1, help="Take only the first N pairs.")]
Baselines = Annotated[
    bool, typer.Option("--baselines", help="Add rows for the mean and the max of the sources.")
]
Paper = Annotated[
    str | None,
    typer.Option(help="Add the paper's row: MSRS, RoadScene, M3FD, TNO or Harvard."),
]
Metrics = Annotated[str, typer.Option(help="Whose conventions: cddfuse, vifb, tang or sane.")]
Extra = Annotated[str | None, typer.Option(help="More columns: all, or of SF,AG,MS-SSIM,PSNR.")]
TableFormat = Annotated[
    Format | None, typer.Option(help="Of the table; by the suffix of --out, else a plain table.")
]
PerImage = Annotated[bool, typer.Option("--per-image", help="A row for each pair, too.")]
Report = Annotated[
    Path | None, typer.Option(help="Write one HTML page with the table and the pictures.")
]
ReportPairs = Annotated[int, typer.Option(min=1, help="Most pairs with pictures in the report.")]


def register(app: typer.Typer, wrap: Callable) -> None:
    """Add the commands to ``app``; ``wrap`` turns errors into messages and exit codes."""
    example = "`ddfm-fast evaluate MSRS/test --fused ours=fused --baselines --paper MSRS`"
    app.command(epilog=f"Example:  {example}")(wrap(evaluate))
    app.command(epilog="Example:  `ddfm-fast ablate MSRS/test -o ablation --steps 25`")(
        wrap(ablate)
    )


def evaluate(
    root: opt.Root,
    vis: opt.Vis = None,
    fused: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="Fused pictures of a method; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write the table to this file.")
    ] = None,
    format: TableFormat = None,
    baselines: Baselines = False,
    paper: Paper = None,
    per_image: PerImage = False,
    report: Report = None,
    report_pairs: ReportPairs = 60,
    metrics: Metrics = "cddfuse",
    extra: Extra = None,
    layout: opt.Layout = None,
    manifest: opt.Manifest = None,
    limit: Limit = None,
    device: opt.Device = None,
    max_pixels: opt.MaxPixels = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Score folders of fused pictures against their sources, several methods side by side.

    A fused file is called after its pair: the infrared file's stem, in the data set's subfolders
    where stems repeat. Scores are of the luma. Beside the six metrics of the paper stand SCD, CC
    and the worse source's VIF, MI and SSIM, and results that are nearly a copy of one source are
    named: such a copy has the best VIF and MI of all. Exit code: 0 all scored, 1 some pairs left
    out, 2 bad input.
    """
    from ddfm_fast.metrics.evaluation import BASELINES, Method, parse_method
    from ddfm_fast.metrics.evaluation import evaluate as score

    methods = [parse_method(text) for text in fused or ()]
    methods += [Method(name) for name in BASELINES] if baselines else []
    file_format = _file_format(out, format)
    items = _pairs(root, vis, layout, manifest, limit)
    _require_writable(out, report)
    evaluation = score(
        items,
        methods,
        convention=metrics,
        names=_names(extra),
        paper=_paper(paper),
        device=_device(device),
        max_pixels=_max_pixels(max_pixels),
        progress=not quiet and sys.stderr.isatty(),
    )
    title = f"Fusion results: {root.resolve().name}"
    _write_report(report, evaluation, items, methods, title, report_pairs, max_pixels)
    if out is not None:
        _write_table(out, evaluation, file_format, per_image)
    shown = format if out is None else None
    written = [path for path in (out, report) if path is not None]
    _show(evaluation, shown, per_image, written, as_json, quiet)


def ablate(
    root: opt.Root,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the rows' pictures and the tables.")
    ],
    vis: opt.Vis = None,
    preset: Annotated[
        str, typer.Option(help="What to take parts away from: a row of `ddfm-fast presets`.")
    ] = "official",
    steps: opt.Steps = None,
    psi: opt.Psi = None,
    eta: opt.Eta = None,
    rows: Annotated[
        str | None, typer.Option(help="Only these rows, such as no-prior,no-em,no-tv.")
    ] = None,
    prior: opt.Prior = "embedded",
    prior_config: opt.PriorConfig = None,
    seed: opt.Seed = 3407,
    format: TableFormat = None,
    baselines: Baselines = False,
    paper: Paper = None,
    per_image: PerImage = False,
    report: Report = None,
    report_pairs: ReportPairs = 60,
    metrics: Metrics = "cddfuse",
    extra: Extra = None,
    layout: opt.Layout = None,
    manifest: opt.Manifest = None,
    limit: Limit = None,
    device: opt.Device = None,
    max_pixels: opt.MaxPixels = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Fuse a data set again and again, each time without one part of the method, and compare.

    The rows: the preset as it is; EM alone; the prior alone; no TV term; fixed γ and ρ; the other
    variants; the other samplers. Each row is as much work as a batch of its own; started again,
    it goes on where it was. Pictures are grey. OUT gets a folder a row, and the table as
    ablation.txt, .csv, .json and .md.
    """
    from ddfm_fast.cli.app import _json_object, _steps
    from ddfm_fast.cli.batch import INTERRUPTED
    from ddfm_fast.config import FuseConfig
    from ddfm_fast.datasets.batch import BatchInterrupted
    from ddfm_fast.metrics.ablation import ablate as run
    from ddfm_fast.metrics.ablation import ablation_rows, choose_rows
    from ddfm_fast.metrics.evaluation import BASELINES
    from ddfm_fast.metrics.report import FORMATS
    from ddfm_fast.priors.load import load_prior

    config = FuseConfig.from_preset(preset).with_overrides(steps=_steps(steps), psi=psi, eta=eta)
    wanted = None if rows is None else [name.strip() for name in rows.split(",")]
    chosen = choose_rows(ablation_rows(config, preset), wanted)
    items = _pairs(root, vis, layout, manifest, limit)
    _require_writable(out / "ablation.txt", report)
    loud = not quiet and not as_json
    device = _device(device)
    try:
        evaluation, methods = run(
            items,
            out,
            chosen,
            settings={
                "prior": load_prior(
                    prior,
                    _json_object(prior_config, "--prior-config"),
                    device=device,
                    dtype="auto",
                ),
                "seed": seed,
                "device": device,
                "color": False,
            },
            baselines=tuple(BASELINES) if baselines else (),
            max_pixels=_max_pixels(max_pixels),
            progress=not quiet and sys.stderr.isatty(),
            on_row=lambda row: typer.echo(f"{row.name}: {row.meaning}", err=True) if loud else None,
            on_error=lambda failed: typer.echo(f"error: {failed.name}: {failed.error}", err=True),
            convention=metrics,
            names=_names(extra),
            paper=_paper(paper),
        )
    except BatchInterrupted:
        typer.echo("interrupted; start the same command again to go on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    title = f"Ablation of {preset}: {root.resolve().name}"
    _write_report(report, evaluation, items, methods, title, report_pairs, max_pixels)
    written = [out / f"ablation{suffix}" for suffix in FORMATS.values()]
    for path, kind in zip(written, FORMATS, strict=True):
        _write_table(path, evaluation, kind, per_image)
    if report is not None:
        written.append(report)
    _show(evaluation, format, per_image, written, as_json, quiet)


def _pairs(root: Path, vis: Path | None, layout, manifest, limit) -> list[PairItem]:
    from ddfm_fast.cli.batch import plan_items

    return plan_items(root, vis, layout=layout, manifest=manifest)[:limit]


def _names(extra: str | None) -> tuple[str, ...]:
    """The metrics of every table and those asked for besides."""
    from ddfm_fast.metrics import NAMES
    from ddfm_fast.metrics.evaluation import CORE

    wanted = [name.strip().lower() for name in (extra or "").split(",") if name.strip()]
    for name in wanted:
        if name not in ("all", *(known.lower() for known in NAMES)):
            raise ValueError(f"--extra has {name!r}; expected all, or of {', '.join(NAMES)}")
    if "all" in wanted:
        return NAMES
    return tuple(name for name in NAMES if name in CORE or name.lower() in wanted)


def _paper(name: str | None) -> str | None:
    """The name as the table has it, whatever case it was typed in."""
    from ddfm_fast.metrics.evaluation import PAPER

    return {known.lower(): known for known in PAPER}.get((name or "").lower(), name)


def _device(device: str | None):
    from ddfm_fast.runtime.dispatch import resolve_device

    return resolve_device(device)


def _max_pixels(max_pixels: int | None) -> int:
    from ddfm_fast.images.files import DEFAULT_MAX_PIXELS

    return max_pixels or DEFAULT_MAX_PIXELS


def _file_format(out: Path | None, format: Format | None) -> str:
    """The format to write to ``out``: as told, else by the suffix."""
    from ddfm_fast.metrics.report import FORMATS

    if format is not None or out is None:
        return (format or Format.table).value
    by_suffix = {suffix: name for name, suffix in FORMATS.items()}
    if out.suffix.lower() not in by_suffix:
        raise ValueError(
            f"--out is {out}; expected a suffix of {', '.join(by_suffix)}, or a --format"
        )
    return by_suffix[out.suffix.lower()]


def _require_writable(*paths: Path | None) -> None:
    """Find out before the work, not after it, that a file cannot be written."""
    from ddfm_fast.images.files import ensure_writable_dir

    for path in paths:
        if path is not None:
            ensure_writable_dir(path.parent)


def _write_table(path: Path, evaluation: Evaluation, format: str, per_image: bool) -> None:
    from ddfm_fast.images.files import atomic_write_bytes
    from ddfm_fast.metrics.report import render

    atomic_write_bytes(path, render(evaluation, format, per_image=per_image).encode("utf-8"))


def _write_report(path, evaluation, items, methods: list[Method], title, pairs, max_pixels) -> None:
    if path is None:
        return
    from ddfm_fast.metrics.report import write_report

    write_report(
        path,
        evaluation,
        items,
        methods,
        title=title,
        max_pairs=pairs,
        max_pixels=_max_pixels(max_pixels),
    )


def _show(evaluation: Evaluation, format, per_image, written, as_json, quiet) -> None:
    """Print the table, the files written and the warnings; exit 1 if pairs were left out."""
    from ddfm_fast.cli.app import SOME_FAILED
    from ddfm_fast.metrics.report import render

    if as_json:
        typer.echo(render(evaluation, "json", per_image=per_image), nl=False)
    elif not quiet:
        name = "table" if format is None else format.value
        typer.echo(render(evaluation, name, per_image=per_image), nl=False)
        for path in written if name == "table" else ():
            typer.echo(path)
    for line in evaluation.warnings:
        typer.echo(f"warning: {line}", err=True)
    if evaluation.failures or evaluation.remarks:
        raise typer.Exit(SOME_FAILED)
