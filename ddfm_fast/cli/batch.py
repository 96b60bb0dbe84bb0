"""The work behind ``ddfm-fast batch``: from folders to pairs, from a report to words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ddfm_fast.api import Fuser
    from ddfm_fast.datasets.batch import BatchReport
    from ddfm_fast.datasets.pairs import PairItem

INTERRUPTED = 130


def plan_items(
    root: Path, vis: Path | None, *, layout: str | None = None, manifest: Path | None = None
) -> list[PairItem]:
    """The pairs that ``ROOT [VIS]`` means. ValueError where that is unclear or incomplete.

    Sizes are not compared here: the batch reports a pair of unequal sizes and goes on.
    """
    from ddfm_fast.datasets.pairs import find_pairs

    if vis is not None and manifest is not None:
        raise ValueError(f"VIS is {vis} and --manifest {manifest}; leave out one of them")
    source = root if vis is None else (root, vis)
    return find_pairs(source, layout=layout, manifest=manifest, check_sizes=False)


def run(items: list[PairItem], out: Path, fuser: Fuser, **options) -> BatchReport:
    """:func:`.datasets.batch.run_batch`, with failures on stderr and Ctrl-C as a report."""
    from ddfm_fast.datasets.batch import BatchInterrupted, run_batch

    def on_error(result) -> None:
        typer.echo(f"error: {result.name}: {result.error}", err=True)

    try:
        return run_batch(items, out, fuser, on_error=on_error, **options)
    except BatchInterrupted as interrupted:
        return interrupted.report


def echo_report(report: BatchReport, *, as_json: bool, quiet: bool) -> None:
    """Print what was done, as one JSON object or in a line or two."""
    from ddfm_fast.datasets.batch import REPORT, STOPPED_BY_USER

    counts = {s: report.count(s) for s in ("done", "skipped", "failed", "pending")}
    if as_json:
        from ddfm_fast import __version__

        typer.echo(json.dumps({"version": __version__, **report.to_dict()}))
    elif not quiet:
        text = "{done} fused, {skipped} there already, {failed} failed".format(**counts)
        typer.echo(f"{report.out}: {text}, in {report.seconds:.1f} s; {report.out / REPORT}")
    if report.stopped is not None:
        by_user = report.stopped == STOPPED_BY_USER
        why = "interrupted" if by_user else f"error: stopped early: {report.stopped}"
        again = f"{'' if by_user else 'make room and '}start the same command again to go on"
        typer.echo(f"{why}: {counts['pending']} pairs not reached; {again}", err=True)


def exit_code(report: BatchReport) -> int:
    """0 if every pair has its picture, 130 after Ctrl-C (as shells have it), else 1."""
    from ddfm_fast.datasets.batch import STOPPED_BY_USER

    if report.stopped == STOPPED_BY_USER:
        return INTERRUPTED
    return 0 if report.ok else 1
