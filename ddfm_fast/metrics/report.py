"""An evaluation as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from ..datasets.items import PairItem
from ..files.packed import read_pair
from ..files.paths import atomic_write_bytes
from ..files.reading import DEFAULT_MAX_PIXELS
from ..images.panel import to_rgb8
from .conventions import lower
from .evaluation import (
    PAPER_NOTE,
    SOURCES,
    Evaluation,
    MethodPictures,
    MethodScores,
    Results,
    read_lumas,
)
from .page import PAGE, SCRIPT, STYLE
from .ranking import verdict
from .tables import caption, format_value, headings, rank_rows, table_rows
from .task_tables import text_rows
from .tasks import TaskScores

_JPEG_QUALITY = 90


def write_report(
    path: Path,
    evaluation: Evaluation,
    items: Sequence[PairItem],
    methods: Sequence[MethodPictures],
    *,
    title: str = "Fusion results",
    max_pairs: int = 60,
    max_width: int = 640,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Path:
    """Write one HTML file that needs nothing else: the table, and a panel of pictures per pair.

    Its script plots the scores over the pairs, orders pairs and methods by a score, enlarges one
    place of all the pictures of a pair, and shows their differences from one of them.

    Of more than ``max_pairs`` pairs the page shows that many, those with a near copy first and the
    rest evenly spread, and says so. Written atomically.

    Args:
        path: The file to write.
        evaluation: What to show.
        items: The pairs of the evaluation.
        methods: The methods of the evaluation.
        title: Heading of the page.
        max_pairs: Most pairs to show.
        max_width: Most pixels across of a picture, which is embedded as JPEG: the pixels that the
            page enlarges.
        max_pixels: Limit of an input file, see :func:`.files.reading.read_image`.

    Returns:
        The path.
    """
    shown = _shown(evaluation, max_pairs)
    by_name = {item.name: item for item in items}
    results = [Results(m, items) for m in methods]
    panels = []
    for number, pair in enumerate(shown, 1):
        pictures = _pictures(evaluation, by_name[pair], results, max_width, max_pixels)
        panels.append(_panel(evaluation, pair, pictures, f"Pair {number} of {len(shown)}"))
    page = _page(evaluation, title, shown, panels)
    return atomic_write_bytes(path, page.encode("utf-8"))


def _shown(evaluation: Evaluation, limit: int) -> list[str]:
    """Return the pairs to show, in the evaluation's order."""
    pairs = evaluation.pairs
    if len(pairs) <= limit:
        return pairs
    suspects = {p for m in evaluation.methods for p in m.near_copies}
    chosen = [p for p in pairs if p in suspects][:limit]
    rest = [p for p in pairs if p not in suspects]
    room = limit - len(chosen)
    chosen += [rest[n * len(rest) // room] for n in range(room)]
    return sorted(chosen, key=pairs.index)


def _pictures(
    evaluation: Evaluation, item: PairItem, results: list[Results], max_width: int, max_pixels: int
) -> str:
    """Return a figure for each source and each method's result."""
    ir, vis = read_lumas(item, max_pixels)
    figures = []
    for label, picture in zip(
        SOURCES.values(), read_pair(item.ir, item.vis, max_pixels), strict=True
    ):
        figures.append(_figure(escape(label), f"{item.name}, {label} source", picture, max_width))
    for result, scores in zip(results, evaluation.methods, strict=True):
        name, baseline = result.method.name, result.method.folder is None
        label = escape(f"{name} of the sources" if baseline else name) + _flag(scores, item.name)
        picture = result.picture(item, ir, vis, max_pixels)
        figures.append(_figure(label, f"{item.name}, fused by {name}", picture, max_width))
    return "".join(figures)


def _figure(label: str, alt: str, picture: np.ndarray, max_width: int) -> str:
    return (
        f'<figure><div class="view"><img src="{_uri(picture, max_width)}" alt="{escape(alt)}">'
        "</div>"
        f"<figcaption>{label}</figcaption></figure>"
    )


def _flag(scores: MethodScores, pair: str) -> str:
    source = scores.near_copies.get(pair)
    if source is None:
        return ""
    return f' <strong class="flag">nearly the {escape(SOURCES[source])} source</strong>'


def _uri(picture: np.ndarray, max_width: int) -> str:
    image = Image.fromarray(to_rgb8(picture))
    if image.width > max_width:
        height = max(1, round(image.height * max_width / image.width))
        image = image.resize((max_width, height), Image.Resampling.LANCZOS)
    if (np.ptp(np.asarray(image), axis=2) == 0).all():
        image = image.convert("L")
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _panel(evaluation: Evaluation, pair: str, pictures: str, position: str) -> str:
    index = evaluation.pairs.index(pair)
    rows = []
    for m in evaluation.methods:
        cells = [format_value(m.values[c][index], c) for c in evaluation.columns]
        rows.append(("", escape(m.name) + _flag(m, pair), cells))
    return (
        f'<section class="panel" aria-label="{position}: {escape(pair)}"><h2>{escape(pair)}</h2>'
        f'<div class="pictures">{pictures}</div>'
        f"{_html_table(evaluation, rows, f'Scores of {pair}')}</section>"
    )


def _html_table(evaluation: Evaluation, rows, label: str, first: str = "method") -> str:
    """Make a table; ``rows``: (class, label as HTML, cells); ``first``: heading of the labels."""
    texts = evaluation.definitions
    head = "".join(
        f'<th scope="col" title="{escape(texts.get(c, ""))}">{escape(shown)}</th>'
        for c, shown in zip(evaluation.columns, headings(evaluation), strict=True)
    )
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{name}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for kind, name, cells in rows
    )
    return _scrolled(label, f'<tr><th scope="col">{escape(first)}</th>{head}</tr>', body)


def _scrolled(label: str, head: str, body: str) -> str:
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table>'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )


def _ranks(evaluation: Evaluation) -> str:
    """Show the mean ranks with Nemenyi's groups, and what they mean; empty if there are none."""
    if not (sentences := verdict(evaluation)):
        return ""
    rows = [("", escape(name), cells) for name, *cells in rank_rows(evaluation)]
    text = "; ".join(sentences)
    return f'<p class="hint">{escape(text[:1].upper() + text[1:])}.</p>' + _html_table(
        evaluation, rows, "Ranks", "rank"
    )


def _task(evaluation: Evaluation, task: TaskScores) -> str:
    """Show what a network found in the pictures."""
    texts = evaluation.definitions
    _, *rows = text_rows(task)
    head = "".join(
        f'<th scope="col" title="{escape(texts[c])}">{escape(c)}</th>' for c in task.columns
    )
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    caption = task.caption[:1].upper() + task.caption[1:]
    table = _scrolled(caption, f'<tr><th scope="col">method</th>{head}</tr>', body)
    return f'<p class="hint">{escape(caption)}.</p>{table}'


def _page(evaluation: Evaluation, title: str, shown: list[str], panels: list[str]) -> str:
    rows = [(kind, escape(label), cells) for kind, label, cells in table_rows(evaluation)]
    notes = [("warning", note) for note in evaluation.warnings]
    notes += [("note", PAPER_NOTE)] if evaluation.paper else []
    if len(shown) < len(evaluation.pairs):
        notes.append(
            ("note", f"{len(shown)} of {len(evaluation.pairs)} pairs are shown; the table has all")
        )
    options = "".join(
        f'<option value="{n}">{escape(pair)}</option>' for n, pair in enumerate(shown, 1)
    )
    parts = {
        "title": escape(title),
        "style": STYLE,
        "caption": escape(caption(evaluation)),
        "notes": "".join(f'<p class="{k}"><b>{k}:</b> {escape(t)}.</p>' for k, t in notes),
        "table": _html_table(evaluation, rows, "Summary"),
        "ranks": _ranks(evaluation),
        "tasks": "".join(_task(evaluation, task) for task in evaluation.tasks),
        "abouts": "".join(
            f"<li><b>{escape(m.name)}</b>: {escape(m.about)}</li>"
            for m in evaluation.methods
            if m.about
        ),
        "definitions": "".join(
            f"<dt>{escape(n)}</dt><dd>{escape(t)}</dd>" for n, t in evaluation.definitions.items()
        ),
        "options": options,
        "panels": "".join(panels),
        "script": SCRIPT,
        "scores": _scores(evaluation, shown),
    }
    return re.sub("@([a-z]+)@", lambda found: parts[found[1]], PAGE)


def _scores(evaluation: Evaluation, shown: list[str]) -> str:
    """Return what the page's script plots and sorts by, as JSON that no tag can end."""
    pairs = {pair: n for n, pair in enumerate(evaluation.pairs)}
    found = {
        "methods": [m.name for m in evaluation.methods],
        "pairs": evaluation.pairs,
        "shown": [pairs[pair] for pair in shown],
        "columns": [
            {
                "name": c,
                "lower": lower(c),
                "values": [_short(m.values[c]) for m in evaluation.methods],
            }
            for c in evaluation.columns
        ],
    }
    return json.dumps(found, separators=(",", ":")).replace("<", "\\u003c")


def _short(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values]
