"""What ``evaluate`` and ``ablate`` share: what to score, and where the table goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .errors import SOME_FAILED
from .options import TableFormat

if TYPE_CHECKING:
    from ..datasets.items import PairItem
    from ..metrics.evaluation import Evaluation, MethodPictures


def scoring(metrics: str, extra: str | None, paper: str | None) -> dict[str, Any]:
    """Keywords of :func:`ddfm_fast.metrics.evaluation.evaluate` that say what to score.

    Raises:
        ValueError: A metric of ``--extra`` that does not exist.
    """
    from ..metrics.evaluation import PAPER

    # the data set as the paper's table has it, whatever case it was typed in
    name = {known.lower(): known for known in PAPER}.get((paper or "").lower(), paper)
    return {"convention": metrics, "names": _metric_names(extra), "paper": name}


def _metric_names(extra: str | None) -> tuple[str, ...]:
    """Return the metrics of every table and those of ``--extra``; those with weights by name."""
    from ..metrics.conventions import NAMES, WEIGHTED
    from ..metrics.evaluation import CORE

    wanted = [name.strip().lower() for name in (extra or "").split(",") if name.strip()]
    for name in wanted:
        if name not in ("all", *(known.lower() for known in NAMES)):
            raise ValueError(f"--extra has {name!r}; expected all, or of {', '.join(NAMES)}")
    every = [name for name in NAMES if name not in WEIGHTED] if "all" in wanted else CORE
    return tuple(name for name in NAMES if name in every or name.lower() in wanted)


def file_format(out: Path | None, format: TableFormat | None) -> str:
    """Return the format to write to ``out``: that of ``--format``, else by the suffix."""
    from ..metrics.tables import FORMATS

    if format is not None or out is None:
        return (format or TableFormat.table).value
    by_suffix = {suffix: name for name, suffix in FORMATS.items()}
    if out.suffix.lower() not in by_suffix:
        raise ValueError(
            f"--out is {out}; expected a suffix of {', '.join(by_suffix)}, or a --format"
        )
    return by_suffix[out.suffix.lower()]


def require_writable(*paths: Path | None) -> None:
    """Find out before the work, not after it, that a file cannot be written."""
    from ..files.paths import ensure_writable_dir

    for path in paths:
        if path is not None:
            ensure_writable_dir(path.parent)


def write_page(
    path: Path | None,
    evaluation: Evaluation,
    items: Sequence[PairItem],
    methods: Sequence[MethodPictures],
    **layout: Any,
) -> None:
    """Write the page of ``--report``, if there is one; ``layout``: of ``write_report``."""
    from ..metrics.report import write_report

    if path is not None:
        write_report(path, evaluation, items, methods, **layout)


def show(
    evaluation: Evaluation,
    format: TableFormat | None,
    written: Sequence[Path],
    *,
    per_image: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print the table, the files written and the warnings; exit 1 if pairs were left out."""
    from ..metrics.tables import render

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
