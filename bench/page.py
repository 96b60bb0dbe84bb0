"""The report: one HTML page with everything in it, PNGs, and the README's figures."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from ddfm_fast.files.paths import atomic_write_bytes

from . import machine, model, readme
from .plots import Figure, figures
from .results import Report, latest
from .table import HEAD, card_lines, fits, table

TEMPLATE = machine.FOLDER / "page.html"


def write_all(report: Report, page: Path, folder: Path) -> Iterator[Path]:
    """Write the page and its figures; if this is the latest full run, update the README, too."""
    drawn = figures(report)
    yield atomic_write_bytes(page, render(report, drawn).encode())
    newest = [path.with_suffix(".html").resolve() for path, _ in latest(machine.RESULTS).values()]
    ours = machine.IN_CHECKOUT and page.resolve() in newest
    stem = machine.device_name(report.machine) if ours else page.with_suffix("").name
    for figure in drawn:
        yield atomic_write_bytes(folder / f"{stem}-{figure.name}.png", figure.png)
    if ours:
        yield from (readme.update(latest(folder), p) for p in (readme.README, readme.TOPIC))


def render(report: Report, drawn: list[Figure]) -> str:
    """Return the whole page, which refers to nothing outside of itself."""
    parts = {
        "title": escape(f"ddfm_fast on {report.machine.get('gpu') or report.machine['cpu']}"),
        "lead": "<br>".join(escape(line) for line in card_lines(report)),
        "alarm": _alarm(report),
        "figures": "".join(_figure(f) for f in drawn),
        "rows": _rows(table(report)),
        "fits": "".join(f"<li>{escape(line)}</li>" for line in fits(report) if line),
        "model": _model(),
        "card": _card(report),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub("@([a-z]+)@", lambda found: parts[found[1]], template)


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


def _html_table(rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _rows(rows: list[list[str]]) -> str:
    """Return the table, with a separate line for what was measured."""
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


def _model() -> str:
    parts = [f"<p>{escape(model.assumptions())}</p>", _html_table(model.gpu_table())]
    parts.append("<p>A forward of the authors' network, and its launches by kind at 512x640:</p>")
    parts += [_html_table(model.forward_table()), _html_table(model.kind_table())]
    return "".join(parts)


def _card(report: Report) -> str:
    settings = {k: v for k, v in report.settings.items() if v not in (None, [], (), False)}
    pairs = {**report.machine, "settings": settings}
    return "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in pairs.items())
