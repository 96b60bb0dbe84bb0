"""The README's figures: between two markers, from the recorded results and nothing else."""

from __future__ import annotations

from pathlib import Path

from ddfm_fast.files.paths import atomic_write_bytes

from . import machine
from .fidelity import METRICS
from .model import markdown_table
from .results import SHOWN, Measurement, Report
from .table import seconds, size

README = machine.FOLDER.parent / "README.md"
START, END = "<!-- figures: python -m bench --save --report -->", "<!-- end of figures -->"
NOT_YET = "No GPU has been recorded yet; `bash bench/gpu_suite.sh` records one."


def update(recorded: dict[str, tuple[Path, Report]], readme: Path = README) -> Path:
    """Put the tables of the latest results between the markers. ValueError without markers."""
    text = readme.read_text(encoding="utf-8")
    before, found, rest = text.partition(START)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(
            f"{readme} has no lines {START!r} and {END!r}; put the figures' place back"
        )
    parts = [START, section(recorded), END]
    return atomic_write_bytes(readme, (before + "\n".join(parts) + after).encode())


def section(recorded: dict[str, tuple[Path, Report]]) -> str:
    """Markdown: the CPU's result, then every GPU's, each with its date and file."""
    names = sorted(recorded, key=lambda name: (name != "CPU", name))
    parts = [_device(*recorded[name]) for name in names]
    if not any(name != "CPU" for name in names):
        parts.append(NOT_YET)
    return "\n\n".join(parts)


def _device(path: Path, report: Report) -> str:
    card = report.machine
    name = card.get("gpu") or f"{card['threads']} threads of an {card['cpu']}"
    page = path.with_suffix(".html").name
    lines = [
        f"**{name}**, {report.date[:10]}, PyTorch {card['torch']}, commit {card['commit']} "
        f"([samples](bench/results/{path.name}), page: `bench/results/{page}`):",
        "",
        *markdown_table([HEAD, *_rows(report)]),
    ]
    rows = waterfall_rows(report)
    if rows:
        m = report.of("waterfall")[0]
        lines += [
            "",
            f"From the authors' path to the default, one optimisation at a time "
            f"({m.facts['steps']} steps, {m.size}, embedded prior; PSNR against float64):",
            "",
            *markdown_table(rows),
            "",
            f"![waterfall](bench/results/{machine.device_name(card)}-waterfall.png)",
            "",
            "![speed against quality]"
            f"(bench/results/{machine.device_name(card)}-speed_quality.png)",
        ]
    return "\n".join(lines)


HEAD = ["benchmark", "reference", "ours", "times faster"]
PATHS = (
    *("ddfm_fast", "official", "balanced", "fast", "torch, graph"),
    *("official, graph", "balanced, graph", "fast, graph"),
    *("video preset balanced", "video preset realtime"),
)


def _rows(report: Report) -> list[list[str]]:
    """The measurements that have a baseline, ours beside it; lossy ones say so."""
    rows = []
    for m in report.measurements:
        if m.section not in {*SHOWN, "throughput", "video", "metrics"} or not m.green:
            continue
        base = m.candidates.get(m.baseline or "")
        for path in PATHS if base else ():
            if path in m.candidates and path != m.baseline:
                rows.append(_row(m, path))
    return rows


def _row(m: Measurement, path: str) -> list[str]:
    candidate, what = m.candidates[path], f"{m.section}: {m.name}, {m.size}"
    words = [what] if path == "ddfm_fast" else [what, path]
    if candidate.lossless is False:
        words.append("lossy")
    if candidate.lossless is False and "Qabf" in candidate.quality:
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
