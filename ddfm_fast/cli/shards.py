"""``ddfm-fast batch`` of Parquet files and tars."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from .errors import INTERRUPTED, OK, SOME_FAILED
from .settings import levels, output, picked, pixel_limit, plain, read_settings, show_progress

if TYPE_CHECKING:
    from ..datasets.results import PairResult
    from ..datasets.shards import ShardsReport

_NOT_TAKEN = {
    "vis": "VIS", "layout": "--layout", "manifest": "--manifest", "pattern": "--pattern",
    "list_pairs": "--list", "panel": "--panel",
}  # fmt: skip


def are_meant(given: dict[str, Any]) -> bool:
    """Return whether ROOT of a batch is a Parquet file, a tar, or more of them."""
    from ..datasets.shards import are_shards

    return given["manifest"] is None and are_shards(given["root"])


def fuse(context: typer.Context) -> int:
    """Fuse shards as the options of `batch` say; return the exit code."""
    given = context.params
    _refuse(given)
    from ..datasets.shards import fuse_shards

    values = (given[name] for name in ("ir_range", "vis_range", "nodata", "raw_size"))
    options = {
        **picked(context, ("format", "workers", "redo", "resize")),
        "levels": levels(*values),
        "output": output(context),
        "max_pixels": pixel_limit(given["max_pixels"]),
        "progress": show_progress(given["quiet"]),
    }
    fuser = read_settings(context).fuser()
    report = fuse_shards(given["root"], given["out"], fuser, on_error=_echo_failure, **options)
    return _echo(report, as_json=given["as_json"], quiet=given["quiet"])


def _refuse(given: dict[str, Any]) -> None:
    """Refuse options that shards do not have, and a missing --out."""
    root = given["root"]
    for name, shown in _NOT_TAKEN.items():
        if given[name]:
            raise ValueError(f"ROOT is {root}, a shard, which takes no {shown}; leave that out")
    if plain(given["range_over"]) != "picture":
        raise ValueError(
            "--range-over dataset would read every shard twice; give --ir-range and --vis-range"
        )
    if plain(given["on"]) != "here":
        raise ValueError(
            "--on ray takes no shards; use ray.data.read_parquet or read_webdataset with "
            "ddfm_fast.integrations.ray.FuseBatch (ddfm-fast help scale)"
        )
    if given["out"] is None:
        raise ValueError("--out is missing; expected a shard such as out.parquet, or a folder")


def _echo_failure(result: PairResult) -> None:
    typer.echo(f"error: {result.name}: {result.error}", err=True)


def _echo(report: ShardsReport, *, as_json: bool, quiet: bool) -> int:
    from ..datasets.batch import STOPPED_BY_USER

    if as_json:
        from .. import __version__

        typer.echo(json.dumps({"version": __version__, **report.to_dict()}))
    elif not quiet:
        rows = sum(one.done for one in report.shards if one.status == "done")
        failed = sum(one.failed for one in report.shards)
        typer.echo(
            f"{report.out}: {report.count('done')} shards written, with {rows} pictures and "
            f"{failed} errors, {report.count('skipped')} already there, "
            f"{report.count('failed')} failed, in {report.seconds:.1f} s"
        )
    if report.stopped is not None:
        by_user = report.stopped == STOPPED_BY_USER
        why = "interrupted" if by_user else f"error: stopped early: {report.stopped}"
        typer.echo(f"{why}; run the same command again to resume", err=True)
        return INTERRUPTED if by_user else SOME_FAILED
    return OK if report.ok else SOME_FAILED
