"""Figures of README and of the topic `performance`, from the recorded results and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ddfm_fast.files.paths import atomic_write_bytes

from . import machine
from .fidelity import METRICS
from .model import markdown_table
from .results import SHOWN, Measurement, Report
from .table import seconds, size

README = machine.FOLDER.parent / "README.md"
TOPIC = machine.FOLDER.parent / "ddfm_fast" / "docs" / "performance.md"
RESULTS = "../../bench/results"
"""the folder of results, as the topic sees it"""
START, END = "<!-- figures: python -m bench --save --report -->", "<!-- end of figures -->"
NOT_YET = "No GPU has been recorded yet; `bash bench/gpu_suite.sh` records one."
Recorded = dict[str, tuple[Path, Report]]
"""device → file and report of its latest full run"""


def update(recorded: Recorded, path: Path, compose: Callable[[Recorded], str]) -> Path:
    """Put what ``compose`` makes of the latest results between the markers of a page.

    Raises:
        ValueError: The page has no markers.
    """
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(START)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"{path} has no lines {START!r} and {END!r}; put the figures' place back")
    parts = [START, compose(recorded), END]
    return atomic_write_bytes(path, (before + "\n".join(parts) + after).encode())


def update_all(recorded: Recorded) -> list[Path]:
    """Update the README and the topic; return what was written."""
    return [update(recorded, README, summary), update(recorded, TOPIC, section)]


def summary(recorded: Recorded) -> str:
    """Return Markdown for the README: machine and ratios of every device, and no times."""
    parts = []
    for _, (_, report) in _in_order(recorded):
        rows = [[row[0], row[-1]] for row in _rows(report, quality=False)]
        parts += [f"{_machine(report)}, {report.date[:10]}:", "\n".join(markdown_table([[HEAD[0], HEAD[-1]], *rows]))]
    return "\n\n".join([*parts, *_missing(recorded)])


def section(recorded: Recorded) -> str:
    """Return Markdown for the topic: the CPU's result, then every GPU's, with date and file."""
    parts = [_device(*found) for _, found in _in_order(recorded)]
    return "\n\n".join([*parts, *_missing(recorded)])


def _in_order(recorded: Recorded) -> list[tuple[str, tuple[Path, Report]]]:
    return sorted(recorded.items(), key=lambda item: (item[0] != "CPU", item[0]))


def _missing(recorded: Recorded) -> list[str]:
    return [] if any(name != "CPU" for name in recorded) else [NOT_YET]


def _machine(report: Report) -> str:
    card = report.machine
    return card.get("gpu") or f"{card['threads']} threads of an {card['cpu']}"


def _device(path: Path, report: Report) -> str:
    card = report.machine
    page = path.with_suffix(".html").name
    lines = [
        f"**{_machine(report)}**, {report.date[:10]}, PyTorch {card['torch']}, commit {card['commit']} "
        f"([samples]({RESULTS}/{path.name}), page: `bench/results/{page}`):",
        "",
        *markdown_table([HEAD, *_rows(report)]),
    ]
    rows = waterfall_rows(report)
    if rows:
        m = report.of("waterfall")[0]
        lines += [
            "",
            f"From the authors' path to the default, one optimization at a time "
            f"({m.facts['steps']} steps, {m.size}, embedded prior; PSNR against float64):",
            "",
            *markdown_table(rows),
            "",
            f"![waterfall]({RESULTS}/{machine.device_name(card)}-waterfall.png)",
            "",
            "![speed against quality]"
            f"({RESULTS}/{machine.device_name(card)}-speed_quality.png)",
        ]
    return "\n".join(lines)


HEAD = ["benchmark", "reference", "ours", "times faster"]
PATHS = (
    *("ddfm_fast", "official", "balanced", "fast", "torch, graph"),
    *("official, graph", "balanced, graph", "fast, graph"),
    *("video preset balanced", "video preset realtime"),
)


def _rows(report: Report, quality: bool = True) -> list[list[str]]:
    """The measurements that have a baseline, ours beside it; lossy ones say so."""
    rows = []
    for m in report.measurements:
        if m.section not in {*SHOWN, "throughput", "video", "metrics"} or not m.green:
            continue
        base = m.candidates.get(m.baseline or "")
        for path in PATHS if base else ():
            if path in m.candidates and path != m.baseline:
                rows.append(_row(m, path, quality))
    return rows


def _row(m: Measurement, path: str, quality: bool) -> list[str]:
    candidate, what = m.candidates[path], f"{m.section}: {m.name}, {m.size}"
    words = [what] if path == "ddfm_fast" else [what, path]
    if candidate.lossless is False:
        words.append("lossy")
    if quality and candidate.lossless is False and "Qabf" in candidate.quality:
        words += [f"{name} {candidate.quality[name]:.2f}" for name in ("VIF", "Qabf", "SSIM")]
    times = (seconds(c.median) for c in (m.candidates[m.baseline], candidate))
    return [", ".join(words), *times, f"{m.times_faster(path):.2f}"]


def waterfall_rows(report: Report) -> list[list[str]]:
    """Head and rows of the waterfall, [] where it was not measured or is red."""
    m = next((m for m in report.of("waterfall") if m.green and m.candidates), None)
    if m is None:
        return []
    rows = [["", "time", "times faster", "memory", "kind", "PSNR", *METRICS]]
    for name, c in m.candidates.items():
        distance = c.quality.get("PSNR")
        default = " (the default)" if name == m.facts["default"] else ""
        row = [name + default, seconds(c.median), f"{m.times_faster(name):.2f}"]
        row += ["" if c.memory is None else size(c.memory), "lossless" if c.lossless else "lossy"]
        row.append("equal" if distance is None else f"{distance:.1f} dB")
        rows.append([*row, *(f"{c.quality[metric]:.3f}" for metric in METRICS)])
    return rows
