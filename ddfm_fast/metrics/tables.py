"""An evaluation as text: for a terminal, CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..files.paths import atomic_write_bytes
from .conventions import lower
from .evaluation import PAPER_NOTE, Evaluation, MethodScores
from .latex import latex
from .ranking import (
    BOOTSTRAPS,
    critical_difference,
    groups,
    interval,
    letters,
    marked,
    ranks,
    verdict,
)
from .task_tables import as_dicts, csv_cells, csv_columns, shown, sources, text_rows
from .tasks import TaskScores

_COARSE = ("SD", "SF", "AG", "PSNR", "Qcv")


def render(evaluation: Evaluation, format: str = "table", *, per_image: bool = False) -> str:
    """Write the table as text that ends in a newline.

    CSV and JSON hold everything that was computed, per source too; the others hold ``columns``.

    Args:
        evaluation: From :func:`.evaluation.evaluate`.
        format: A key of ``FORMATS``; "table" is for a terminal.
        per_image: Add a row for each pair and method.

    Raises:
        ValueError: The format is unknown.
    """
    if format not in _RENDERERS:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(_RENDERERS)}")
    return _RENDERERS[format].render(evaluation, per_image)


def write_table(
    path: Path, evaluation: Evaluation, format: str = "table", *, per_image: bool = False
) -> Path:
    """Write what :func:`render` gives to a file, atomically; return its path."""
    text = render(evaluation, format, per_image=per_image)
    return atomic_write_bytes(path, text.encode("utf-8"))


def format_value(value: float | None, column: str) -> str:
    """Format with two digits if the unit is gray levels or dB, else three; a dash for None."""
    if value is None or not math.isfinite(value):
        return "–" if value is None or math.isnan(value) else "∞"
    return f"{value:.2f}" if column in _COARSE else f"{value:.3f}"


def headings(evaluation: Evaluation) -> list[str]:
    """Name the columns; an arrow says that less is better."""
    return [f"{c}↓" if lower(c) else c for c in evaluation.columns]


def table_rows(evaluation: Evaluation) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (kind, label, cells): a "mean" and a "std" row per method, then "paper" rows."""
    columns = evaluation.columns
    for method in evaluation.methods:
        yield "mean", method.name, [format_value(method.mean(c), c) for c in columns]
        yield "std", "", ["±" + format_value(method.std(c), c) for c in columns]
    for label, row in evaluation.paper_rows():
        yield "paper", label, [format_value(row.get(c), c) for c in columns]


def image_rows(evaluation: Evaluation) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (pair, method, cells), pair by pair."""
    for n, pair in enumerate(evaluation.pairs):
        for method in evaluation.methods:
            cells = [format_value(method.values[c][n], c) for c in evaluation.columns]
            yield pair, method.name, cells


def caption(evaluation: Evaluation) -> str:
    """Describe the numbers: pairs, convention, version."""
    count = len(evaluation.pairs)
    return (
        f"{count} pair{'s' * (count != 1)}, metric convention {evaluation.convention}: mean ± "
        f"standard deviation; _min is the worse source's score (ddfm-fast {__version__})"
    )


def _text(evaluation: Evaluation, per_image: bool) -> str:
    head = ["", *headings(evaluation)]
    rows = [head] + [[label, *cells] for _, label, cells in table_rows(evaluation)]
    lines = [caption(evaluation), "", *_aligned(rows)]
    abouts = [[m.name, m.about] for m in evaluation.methods if m.about]
    if abouts:
        lines += ["", *_aligned(abouts, 2)]
    if notes := verdict(evaluation):
        lines += ["", *_aligned([["rank", *headings(evaluation)], *rank_rows(evaluation)]), *notes]
    for task in evaluation.tasks:
        lines += ["", task.caption, *_aligned(text_rows(task))]
    if evaluation.paper:
        lines += ["", f"note: {PAPER_NOTE}"]
    if per_image:
        head = ["pair", "method", *headings(evaluation)]
        rows = [head] + [[p, m, *cells] for p, m, cells in image_rows(evaluation)]
        lines += ["", *_aligned(rows, 2)]
    return "\n".join(lines) + "\n"


def _aligned(rows: list[list[str]], labels: int = 1) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if n < labels else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _markdown(evaluation: Evaluation, per_image: bool) -> str:
    def table(head: list[str], labels: int, rows) -> list[str]:
        rule = ["---"] * labels + ["---:"] * (len(head) - labels)
        cells = [[*map(_plain, row[:labels]), *row[labels:]] for row in rows]
        return ["| " + " | ".join(row) + " |" for row in (head, rule, *cells)]

    columns, best = headings(evaluation), marked(evaluation)
    rows = [
        [
            label,
            *(
                _emphasized(cell, label in best[c].best, label in best[c].second)
                for c, cell in zip(evaluation.columns, cells, strict=True)
            ),
        ]
        for _, label, cells in table_rows(evaluation)
    ]
    lines = [caption(evaluation) + ".", "", *table(["", *columns], 1, rows)]
    if notes := verdict(evaluation):
        lines += ["", *table(["rank", *columns], 1, rank_rows(evaluation)), ""]
        lines.append("The best mean is bold, the second underlined; " + "; ".join(notes) + ".")
    if len(evaluation.pairs) > 1:
        lines += ["", *table(["95 % of the mean", *columns], 1, _interval_rows(evaluation)), ""]
        lines.append(f"Intervals of the means by {BOOTSTRAPS} bootstraps over the pairs.")
    for task in evaluation.tasks:
        head = ["", *task.columns]
        lines += ["", _capital(task.caption) + ".", "", *table(head, 1, _task_rows(task))]
    abouts = [f"- `{m.name}`: {m.about}" for m in evaluation.methods if m.about]
    lines += ["", *abouts] if abouts else []
    notes = [*evaluation.warnings, *([PAPER_NOTE] if evaluation.paper else [])]
    lines += [line for note in notes for line in ("", f"**Note:** {note}.")]
    if per_image:
        rows = [[p, m, *cells] for p, m, cells in image_rows(evaluation)]
        lines += ["", *table(["pair", "method", *columns], 2, rows)]
    return "\n".join(lines) + "\n"


def _interval_rows(evaluation: Evaluation) -> list[list[str]]:
    def cell(method: MethodScores, column: str) -> str:
        return " to ".join(format_value(end, column) for end in interval(method.values[column]))

    return [[m.name, *(cell(m, c) for c in evaluation.columns)] for m in evaluation.methods]


def _task_rows(task: TaskScores) -> list[list[str]]:
    rows = []
    for name, row in task.rows.items():
        marks = task.marks(name)
        cells = [
            _emphasized(shown(row[c]), marks.get(c) == "best", marks.get(c) == "second")
            for c in task.columns
        ]
        rows.append([name, *cells])
    return rows


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _emphasized(cell: str, best: bool, second: bool) -> str:
    if best:
        return f"**{cell}**"
    return f"<u>{cell}</u>" if second else cell


def _plain(name: str) -> str:
    """Escape a name of the user's so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", name)


def rank_rows(evaluation: Evaluation) -> list[list[str]]:
    """Give each method's mean ranks and the letters of its groups; a dash if it has none."""
    columns = []
    for column in evaluation.columns:
        found, marks = ranks(evaluation, column), letters(evaluation, column)
        means = [f"{x:.2f}" for x in found.mean] if found else ["–" for _ in marks]
        widest = max(map(len, marks))
        cells = [f"{x} {mark:<{widest}}" for x, mark in zip(means, marks, strict=True)]
        columns.append(cells if widest else means)
    return [[m.name, *(column[n] for column in columns)] for n, m in enumerate(evaluation.methods)]


def _latex(evaluation: Evaluation, per_image: bool) -> str:
    del per_image  # a paper has no room for it
    rows = [(label, cells) for kind, label, cells in table_rows(evaluation) if kind != "std"]
    about = caption(evaluation).replace("mean ± standard deviation", "mean")
    notes = [PAPER_NOTE] if evaluation.paper else []
    text = "; ".join([about, *verdict(evaluation), *notes])
    return latex(evaluation, text, headings(evaluation), rows)


def _csv(evaluation: Evaluation, per_image: bool) -> str:
    names, asked = list(evaluation.methods[0].values), csv_columns(evaluation)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "pair", "near_copy", *names, *asked])
    empty = ["" for _ in asked]
    for m in evaluation.methods:
        copies = len(m.near_copies)
        found = csv_cells(evaluation, m.name)
        writer.writerow([m.name, "mean", copies, *(m.mean(n) for n in names), *found])
        writer.writerow([m.name, "std", copies, *(m.std(n) for n in names), *empty])
        ends = zip(*(interval(m.values[n]) for n in names), strict=True)
        for end, values in zip(("low95", "high95"), ends, strict=True):
            writer.writerow([m.name, end, copies, *values, *empty])
    for label, row in evaluation.paper_rows():
        writer.writerow([label, "mean", "", *(row.get(n, "") for n in names), *empty])
    for label in sources(evaluation):
        writer.writerow([label, "mean", "", *("" for _ in names), *csv_cells(evaluation, label)])
    for n, pair in enumerate(evaluation.pairs if per_image else ()):
        for m in evaluation.methods:
            cells = (float(m.values[c][n]) for c in names)
            writer.writerow([m.name, pair, m.near_copies.get(pair, ""), *cells, *empty])
    return out.getvalue()


def _json(evaluation: Evaluation, per_image: bool) -> str:
    return json.dumps(as_dict(evaluation, per_image=per_image), indent=2) + "\n"


class _Renderer(NamedTuple):
    suffix: str
    render: Callable[[Evaluation, bool], str]


_RENDERERS = {
    "table": _Renderer(".txt", _text),
    "csv": _Renderer(".csv", _csv),
    "json": _Renderer(".json", _json),
    "markdown": _Renderer(".md", _markdown),
    "latex": _Renderer(".tex", _latex),
}
FORMATS = {name: renderer.suffix for name, renderer in _RENDERERS.items()}
"""what ``render`` writes, and the suffix of a file that holds it"""


def as_dict(evaluation: Evaluation, *, per_image: bool = False) -> dict[str, Any]:
    """Collect everything for JSON, with None for values that are not finite."""

    def finite(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    def method(m: MethodScores) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": m.name,
            "folder": m.folder,
            "about": m.about,
            "mean": {n: finite(m.mean(n)) for n in m.values},
            "std": {n: finite(m.std(n)) for n in m.values},
            "interval95": {n: [*map(finite, interval(v))] for n, v in m.values.items()},
            "near_copies": m.near_copies,
        }
        if per_image:
            found["per_image"] = {
                pair: {n: finite(v[k]) for n, v in m.values.items()}
                for k, pair in enumerate(evaluation.pairs)
            }
        return found

    def ranked(column: str) -> dict[str, Any] | None:
        if (r := ranks(evaluation, column)) is None:
            return None
        names = [m.name for m in evaluation.methods]
        mean = dict(zip(names, r.mean, strict=True))
        return {"mean": mean, "p": finite(r.p), "groups": groups(evaluation, r)}

    paper = [{"name": label, "mean": row} for label, row in evaluation.paper_rows()]
    return {
        "ok": not evaluation.failures,
        "version": __version__,
        "convention": evaluation.convention,
        "definitions": evaluation.definitions,
        "columns": list(evaluation.columns),
        "pairs": evaluation.pairs,
        "methods": [method(m) for m in evaluation.methods],
        "ranks": {c: found for c in evaluation.columns if (found := ranked(c)) is not None},
        "critical_difference": critical_difference(len(evaluation.methods), len(evaluation.pairs)),
        "tasks": as_dicts(evaluation),
        "paper": {"note": PAPER_NOTE, "rows": paper} if paper else None,
        "warnings": evaluation.warnings,
        "failures": evaluation.failures,
    }
