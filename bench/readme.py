"""Figures of README and of the topic `performance`, from the recorded results and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ddfm_fast.files.paths import atomic_write_bytes

from . import machine
from .fidelity import METRICS
from .model import markdown_table
from .results import SHOWN, Measurement, Report
from .table import seconds, size

README = machine.FOLDER.parent / "README.md"
TOPIC = machine.FOLDER.parent / "ddfm_fast" / "docs" / "performance.md"
RESULTS = "../../bench/results"  # relative to the topic
START, END = "<!-- figures: python -m bench --save --report -->", "<!-- end of figures -->"
NOT_YET = "No GPU has been recorded yet; `bash bench/gpu_suite.sh` records one."


def update(recorded: dict[str, tuple[Path, Report]], path: Path) -> Path:
    """Put the tables of the latest results between the markers; ValueError without markers."""
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(START)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"{path} has no lines {START!r} and {END!r}; put the figures' place back")
    parts = [START, section(recorded, short=path == README), END]
    return atomic_write_bytes(path, (before + "\n".join(parts) + after).encode())


def section(recorded: dict[str, tuple[Path, Report]], short: bool = False) -> str:
    """Return Markdown: the CPU's result, then every GPU's; ``short``: ratios without times."""
    names = sorted(recorded, key=lambda name: (name != "CPU", name))
    parts = [(_ratios if short else _device)(*recorded[name]) for name in names]
    if not any(name != "CPU" for name in names):
        parts.append(NOT_YET)
    return "\n\n".join(parts)


def _name(card: dict) -> str:
    return card.get("gpu") or f"{card['threads']} threads of an {card['cpu']}"


def _ratios(_: Path, report: Report) -> str:
    rows = [[row[0], row[-1]] for row in [HEAD, *_rows(report, quality=False)]]
    return "\n".join([f"{_name(report.machine)}, {report.date[:10]}:\n", *markdown_table(rows)])


def _device(path: Path, report: Report) -> str:
    card = report.machine
    page = path.with_suffix(".html").name
    lines = [
        f"**{_name(card)}**, {report.date[:10]}, PyTorch {card['torch']}, commit {card['commit']} "
        f"([samples]({RESULTS}/{path.name}), page: `bench/results/{page}`):\n",
        *markdown_table([HEAD, *_rows(report)]),
    ]
    if rows := waterfall_rows(report):
        m = report.of("waterfall")[0]
        lines += [
            f"\nFrom the authors' path to the default, one optimization at a time "
            f"({m.facts['steps']} steps, {m.size}, embedded prior; PSNR against float64):\n",
            *markdown_table(rows),
            f"\n![waterfall]({RESULTS}/{machine.device_name(card)}-waterfall.png)",
            f"\n![speed against quality]({RESULTS}/{machine.device_name(card)}-speed_quality.png)",
        ]
    return "\n".join(lines)


HEAD = ["benchmark", "reference", "ours", "times faster"]
PATHS = (
    *("ddfm_fast", "official", "balanced", "fast", "torch, graph"),
    *("official, graph", "balanced, graph", "fast, graph"),
    *("video preset balanced", "video preset realtime"),
)


def _rows(report: Report, quality: bool = True) -> list[list[str]]:
    """Return the measurements that have a baseline, with ours beside it."""
    return [_row(m, path, quality) for m, path in shown(report)]


def shown(report: Report) -> Iterator[tuple[Measurement, str]]:
    """Yield what the tables show: each measurement with the name of the candidate in a row."""
    for m in report.measurements:
        if m.section not in {*SHOWN, "throughput", "video", "metrics"} or not m.green:
            continue
        base = m.candidates.get(m.baseline or "")
        for path in PATHS if base else ():
            if path in m.candidates and path != m.baseline:
                yield m, path


def label(m: Measurement, path: str, quality: bool = False) -> str:
    """Name a row; lossy ones say so and, with ``quality``, give their scores."""
    candidate, what = m.candidates[path], f"{m.section}: {m.name}, {m.size}"
    words = [what] if path == "ddfm_fast" else [what, path]
    if candidate.lossless is False:
        words.append("lossy")
    if quality and candidate.lossless is False and "Qabf" in candidate.quality:
        words += [f"{name} {candidate.quality[name]:.2f}" for name in ("VIF", "Qabf", "SSIM")]
    return ", ".join(words)


def _row(m: Measurement, path: str, quality: bool) -> list[str]:
    times = (seconds(c.median) for c in (m.candidates[m.baseline or ""], m.candidates[path]))
    return [label(m, path, quality), *times, f"{m.times_faster(path):.2f}"]


def waterfall_rows(report: Report) -> list[list[str]]:
    """Return head and rows of the waterfall, [] if it was not measured or is red."""
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
