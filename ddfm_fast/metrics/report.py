"""An evaluation as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
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
from .evaluation import (
    PAPER_NOTE,
    SOURCES,
    Evaluation,
    MethodPictures,
    MethodScores,
    Results,
    read_lumas,
)
from .tables import caption, format_value, table_rows

_JPEG_QUALITY = 90


def write_report(
    path: Path,
    evaluation: Evaluation,
    items: Sequence[PairItem],
    methods: Sequence[MethodPictures],
    *,
    title: str = "Fusion results",
    max_pairs: int = 60,
    max_width: int = 480,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Path:
    """Write one HTML file that needs nothing else: the table, and a panel of pictures per pair.

    Of more than ``max_pairs`` pairs the page shows that many, those with a near copy first and the
    rest evenly spread, and says so. Written atomically.

    Args:
        path: The file to write.
        evaluation: What to show.
        items: The pairs of the evaluation.
        methods: The methods of the evaluation.
        title: Heading of the page.
        max_pairs: Most pairs to show.
        max_width: Most pixels across of a picture, which is embedded as JPEG.
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
    """The pairs to show, in the evaluation's order."""
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
    """A figure for each source and each method's result."""
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
        f'<figure><img src="{_uri(picture, max_width)}" alt="{escape(alt)}">'
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


def _html_table(evaluation: Evaluation, rows, label: str) -> str:
    """``rows``: (class, label as HTML, cells as text)."""
    texts = evaluation.definitions
    head = "".join(
        f'<th scope="col" title="{escape(texts.get(c, ""))}">{escape(c)}</th>'
        for c in evaluation.columns
    )
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{name}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for kind, name, cells in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table>'
        f'<thead><tr><th scope="col">method</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


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
        "style": _STYLE,
        "caption": escape(caption(evaluation)),
        "notes": "".join(f'<p class="{k}"><b>{k}:</b> {escape(t)}.</p>' for k, t in notes),
        "table": _html_table(evaluation, rows, "Summary"),
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
        "script": _SCRIPT,
    }
    return re.sub("@([a-z]+)@", lambda found: parts[found[1]], _PAGE)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>@title@</title>
<style>@style@</style>
</head>
<body>
<header><h1>@title@</h1><p>@caption@</p></header>
<main>
@notes@
@table@
<ul>@abouts@</ul>
<details><summary>What the columns are</summary><dl>@definitions@</dl></details>
<nav aria-label="Pairs" hidden>
<button type="button" id="previous" aria-label="Previous pair">&larr;</button>
<label>Pair <select id="choice">@options@</select></label>
<button type="button" id="next" aria-label="Next pair">&rarr;</button>
<span id="position" role="status"></span>
<span class="hint">arrow keys leaf through</span>
</nav>
@panels@
</main>
<script>@script@</script>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1e23; --paper: #fff; --soft: #5c6470; --line: #d5d9df;
  --wash: #f3f5f7; --warn: #8a4b00; --warn-wash: #fff3df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #15171a; --soft: #9aa3af;
  --line: #353a41; --wash: #1e2125; --warn: #ffc46b; --warn-wash: #33260f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 1rem 1.5rem 3rem; color: var(--ink);
  background: var(--paper); font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; }
h2 { font-size: 1.15rem; margin: 1rem 0 .5rem; overflow-wrap: anywhere; }
header p, .hint, figcaption, .note { color: var(--soft); }
header p { margin: .25rem 0 1rem; }
.warning { color: var(--warn); background: var(--warn-wash); border-left: 4px solid currentColor;
  padding: .5rem .75rem; }
.flag { color: var(--warn); font-weight: 600; font-size: .85em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .55rem; text-align: right; white-space: nowrap; }
tbody th, thead th:first-child { text-align: left; }
thead th { border-bottom: 2px solid var(--line); }
tbody th { font-weight: 600; }
tr.std td { color: var(--soft); font-size: .85em; padding-top: 0; }
tr.paper th, tr.paper td { color: var(--soft); font-weight: 400; font-style: italic; }
tr:not(.std) + tr:not(.std) > *, tr.std + tr:not(.std) > * { border-top: 1px solid var(--line); }
details { margin: 1rem 0; }
dt { font-weight: 600; }
dd { margin: 0 0 .4rem 1.2rem; color: var(--soft); }
ul:empty { display: none; }
nav { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .6rem;
  align-items: center; padding: .6rem 0; background: var(--paper);
  border-bottom: 1px solid var(--line); }
nav[hidden] { display: none; }
button, select { font: inherit; color: inherit; background: var(--wash); padding: .3rem .8rem;
  border: 1px solid var(--line); border-radius: 6px; }
select { max-width: 60vw; }
:focus-visible { outline: 3px solid #4c8dff; outline-offset: 2px; }
.pictures { display: grid; gap: .8rem; margin-bottom: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; background: var(--wash); border-radius: 3px; }
figcaption { padding-top: .2rem; }
"""

_SCRIPT = """
const panels = [...document.querySelectorAll('.panel')];
const choice = document.getElementById('choice');
let current = 0;
function show(n, note = true) {
  current = (n + panels.length) % panels.length;
  panels.forEach((panel, k) => { panel.hidden = k !== current; });
  choice.value = String(current + 1);
  document.getElementById('position').textContent = `${current + 1} of ${panels.length}`;
  if (note) history.replaceState(null, '', `#pair-${current + 1}`);
}
function fromAddress(note) {
  const found = /^#pair-(\\d+)$/.exec(location.hash);
  show(found ? Math.min(Number(found[1]), panels.length) - 1 : 0, note);
}
document.querySelector('nav').hidden = false;
document.getElementById('previous').addEventListener('click', () => show(current - 1));
document.getElementById('next').addEventListener('click', () => show(current + 1));
choice.addEventListener('change', () => show(Number(choice.value) - 1));
addEventListener('hashchange', () => fromAddress(true));
addEventListener('keydown', (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.closest?.('select, .scroll')) return;
  if (event.key === 'ArrowLeft') show(current - 1);
  else if (event.key === 'ArrowRight') show(current + 1);
  else return;
  event.preventDefault();
});
fromAddress(false);
"""
