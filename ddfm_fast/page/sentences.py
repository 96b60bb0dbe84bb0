"""What was found and done, in sentences, and what went wrong, without the server's paths."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..files.depth import Sources

NAMES = {"ir": "Infrared", "vis": "Visible"}
_WORDS = (
    (r'value_range=\{"ir": …\} or --ir-range', "the control Infrared range"),
    (r'value_range=\{"vis": …\} or --vis-range', "the control Visible range"),
    (
        r"pass --resize vis \(for files\) if both show the same view, else "
        r'align="homography" \(--align homography\)',
        "choose Resize if both show the same view, else Align homography",
    ),
    (r"pass --resize vis, or a calibration \(--align\)", "choose Resize"),
    (r'pass denoise="off"', "choose off for Noise to remove first"),
    (r"^((?:.*: )?)ir(?=: )", r"\1Infrared"),
    (r"^((?:.*: )?)vis(?=: )", r"\1Visible"),
)
"""words of the library and the commands, and the page's words for them"""
_EXPECTED = (ValueError, TypeError, ImportError, OSError, MemoryError, RuntimeError)


class Sentence(NamedTuple):
    """A line of the page."""

    text: str
    kind: str = "fact"
    """"fact", "warning" or "error": how it is drawn"""


def about_sources(found: Sources) -> list[Sentence]:
    """Describe two files: their size, depth, color and range."""
    lines = []
    for name, image, unit in zip(NAMES, (found.ir, found.vis), found.units, strict=True):
        height, width = unit.values.shape[:2]
        kind = "color" if image.ndim == 3 else "gray"
        depth = f"{unit.values.dtype.itemsize * 8} bits"
        if unit.values.dtype.kind == "f":
            depth = f"floats of {depth}"
        ends = f"black is {unit.low:g}, white is {unit.high:g}"
        lines.append(Sentence(f"{NAMES[name]}: {width} × {height} pixels, {kind}, {depth}; {ends}"))
    return lines


def about_report(report: Mapping[str, Any] | None) -> list[Sentence]:
    """Describe what was found in both sources and done about it: ``FusionReport.to_dict``."""
    if report is None:
        return []
    lines = [Sentence(f"{NAMES[n]}: {_about_source(report[n])}") for n in NAMES]
    work = "without steps"
    if report["steps"]:
        work = f"by {_count(report['steps'], 'step')}"
    lines.append(Sentence(f"Taken for a {report['images']} pair and fused {work}"))
    return lines


def _about_source(found: Mapping[str, Any]) -> str:
    parts = []
    if found["sigma"]:
        how = "grows with brightness, " if found["gain"] else ""
        parts.append(
            f"noise of {found['sigma']:.1f} gray levels, {how}taken out by "
            + _count(found["evaluations"], "evaluation")
            + " of the prior"
        )
    if found["columns"] or found["rows"]:
        parts.append(f"stripes of {max(found['columns'], found['rows']):.1f} gray levels removed")
    if found["dead_pixels"]:
        parts.append(f"{_count(found['dead_pixels'], 'dead pixel')} replaced")
    if found["chroma"]:
        parts.append(f"noise of color of {found['chroma']:.1f} gray levels smoothed")
    return "; ".join(parts) or "no noise was removed"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def of_error(error: Exception, root: Path) -> str:
    """Return the sentence of an error; for a fault of this program, also its type."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        text = "the memory of the server is not enough for this; try a smaller picture"
    if not isinstance(error, _EXPECTED):
        text = f"the program has a fault ({type(error).__name__}: {text}); its log says where"
    return in_words_of_the_page(without_paths(text, root))


def in_words_of_the_page(text: str) -> str:
    """Return the sentence with the page's controls in place of a call's options.

    >>> in_words_of_the_page("ir is large: pass --resize vis, or a calibration (--align)")
    'ir is large: choose Resize'
    """
    for pattern, word in _WORDS:
        text = re.sub(pattern, word, text)
    return text


def without_paths(text: str, root: Path) -> str:
    """Return the text with the server's files named as their visitor named them."""
    return re.sub(re.escape(str(root)) + r"[/\\](?:[^/\\\n:]+[/\\])*", "", text)


def as_html(lines: Iterable[Sentence], note: str = "") -> str:
    """Format sentences as a list, with a line to copy below it."""
    items = "".join(
        f'<p class="{line.kind}">{html.escape(_whole(line.text))}</p>' for line in lines
    )
    below = f"<code>{html.escape(note)}</code>" if note else ""
    return f'<div class="sentences">{items}{below}</div>' if items or below else ""


def _whole(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
