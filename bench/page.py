"""The report: one HTML page with everything in it, PNGs, and the README's figures."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from ddfm_fast.images.files import atomic_write_bytes

from . import machine, model, readme
from .plots import Figure, figures
from .results import Report, latest
from .table import HEAD, card_lines, fits, table

NO_GPU = "No GPU has been recorded yet: bash bench/gpu_suite.sh records the first."


def write_all(report: Report, page: Path, folder: Path) -> Iterator[Path]:
    """Write the page and its figures; into the README too where it is the repository's folder.

    The README's figures come from full runs only: a quick look or a rehearsal leaves it alone.
    """
    drawn = figures(report)
    recorded = latest(folder)
    yield atomic_write_bytes(page, render(report, drawn, recorded).encode())
    ours = machine.IN_CHECKOUT and folder.resolve() == machine.RESULTS.resolve() and report.full
    stem = machine.device_name(report.machine) if ours else page.with_suffix("").name
    for figure in drawn:
        yield atomic_write_bytes(folder / f"{stem}-{figure.name}.png", figure.png)
    if ours:
        yield readme.update(recorded)


def render(report: Report, drawn: list[Figure], recorded: dict) -> str:
    """The whole page; nothing in it points outside."""
    parts = {
        "title": escape(f"ddfm_fast on {report.machine.get('gpu') or report.machine['cpu']}"),
        "lead": "<br>".join(escape(line) for line in card_lines(report)),
        "alarm": _alarm(report),
        "figures": "".join(_figure(f) for f in drawn),
        "rows": _rows(table(report)),
        "fits": "".join(f"<li>{escape(line)}</li>" for line in fits(report) if line),
        "steps": _waterfall_table(report),
        "model": _model(report),
        "card": _card(report),
        "recorded": _recorded(recorded),
        "style": _STYLE,
    }
    return re.sub("@([a-z]+)@", lambda found: parts[found[1]], _PAGE)


def _alarm(report: Report) -> str:
    if report.green:
        checks = sum(len(m.parity) for m in report.measurements)
        return f'<p class="ok">All {checks} parity checks were green before anything was timed.</p>'
    return (
        '<p class="red">Some parity checks were RED, or a measurement failed: no time is told '
        "for them.</p>"
    )


def _figure(figure: Figure) -> str:
    data = base64.b64encode(figure.png).decode()
    return (
        f'<section id="{figure.name}"><h2>{escape(figure.title)}</h2>'
        f'<p>{escape(figure.text)}</p><img alt="{escape(figure.text)}" '
        f'src="data:image/png;base64,{data}"><p class="how">Again: '
        f"<code>{escape(figure.command)}</code></p></section>"
    )


def _html_table(rows: list[list[str]], kind: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _rows(rows: list[list[str]]) -> str:
    """The table with a line of its own for what was measured."""
    width = len(HEAD) - 1
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0][1:])
    body = []
    for row in rows[1:]:
        if row[0]:
            body.append(f'<tr class="what"><th colspan="{width}">{escape(row[0])}</th></tr>')
        kind = "red" if row[-1].startswith(("RED", "FAILED")) else ""
        body.append(
            f'<tr class="{kind}">' + "".join(f"<td>{escape(c)}</td>" for c in row[1:]) + "</tr>"
        )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="All measurements"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _waterfall_table(report: Report) -> str:
    rows = readme.waterfall_rows(report)
    return _html_table(rows, "waterfall") if rows else "<p>Not measured in this run.</p>"


def _model(report: Report) -> str:
    parts = [f"<p>{escape(model.assumptions())}</p>", _html_table(model.gpu_table())]
    parts.append("<p>A forward of the authors' network, and its launches by kind at 512x640:</p>")
    parts += [_html_table(model.forward_table()), _html_table(model.kind_table())]
    if model.checks(report):
        parts.append("<p>The same model on this CPU, at the limits of this run:</p>")
        parts.append(_html_table(model.check_table(report)))
        parts += [f"<p>{escape(text)}</p>" for text in model.WHY]
    return "".join(parts)


def _card(report: Report) -> str:
    settings = {k: v for k, v in report.settings.items() if v not in (None, [], (), False)}
    pairs = {**report.machine, "settings": settings}
    return "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in pairs.items())


def _recorded(recorded: dict) -> str:
    rows = [["device", "date", "commit", "file"]]
    rows += [
        [name, report.date[:10], report.machine["commit"], path.name]
        for name, (path, report) in recorded.items()
    ]
    text = "" if any(name != "CPU" for name in recorded) else f"<p>{NO_GPU}</p>"
    return (_html_table(rows) if recorded else "") + text


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>@title@</title>
<style>@style@</style>
</head>
<body>
<header><h1>@title@</h1><p>@lead@</p>@alarm@</header>
<main>
@figures@
<section><h2>Waterfall, row by row</h2>@steps@</section>
<section><h2>All measurements</h2>
<p>Times faster: the median of the first path in a group over that of the row. Of the limit: the
least time for the bytes and operations at the limits measured in this run, over the median; where
the caches hold the data it can pass 1. Every sample is in the JSON file beside this page.</p>
@rows@<ul>@fits@</ul></section>
<section><h2>Cost on paper</h2>@model@</section>
<section><h2>Machine card</h2><dl>@card@</dl></section>
<section><h2>Recorded results</h2>@recorded@</section>
</main>
</body>
</html>
"""

_STYLE = """
:root { --ink: #1b1e23; --soft: #5c6470; --line: #d5d9df; --wash: #f3f5f7; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1rem 1.5rem 3rem; color: var(--ink);
  background: #fff; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .4rem; }
header p, .how, dd { color: var(--soft); } .how { font-size: .9em; }
.ok { color: #1e6b3a; } p.red { color: #8f1d1d; font-weight: 700; } tr.red td { color: #8f1d1d; }
header p.ok { color: #1e6b3a; }
img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
td:first-child, th:first-child, td:last-child { text-align: left; }
tr.what th { text-align: left; background: var(--wash); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
:focus-visible { outline: 3px solid #4c8dff; outline-offset: 2px; }
"""
