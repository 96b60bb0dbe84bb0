"""Results as text: one table on the terminal, the same as Markdown."""

from __future__ import annotations

from .results import FEWEST_SIZES, Candidate, Measurement, Report

HEAD = ("what", "path", "median", "p20 - p80", "times faster", "of the limit", "memory", "notes")
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def seconds(value: float) -> str:
    """Format seconds with three digits, in a fitting unit."""
    for factor, unit in UNITS:
        if value >= factor:
            return f"{value / factor:.3g} {unit}" if value < 1000 * factor else f"{value:.0f} s"
    return f"{value:.1e} s"


def size(count: float) -> str:
    """Format bytes in MiB."""
    return f"{count / 2**20:.3g} MiB" if count < 1000 * 2**20 else f"{count / 2**30:.3g} GiB"


def cells(measurement: Measurement, name: str) -> list[str]:
    """Make a row: what, path, median, p20 to p80, times faster, share of limit, memory, notes."""
    candidate = measurement.candidates[name]
    faster = measurement.times_faster(name)
    floor = candidate.floor
    if not candidate.samples:
        return [_what(measurement), name, *[""] * 5, notes(candidate)]
    return [
        _what(measurement),
        name,
        seconds(candidate.median),
        f"{seconds(candidate.p20)} - {seconds(candidate.p80)}",
        "" if faster is None or name == measurement.baseline else f"{faster:.2f}",
        "" if not floor else f"{floor / candidate.median:.2f}",
        "" if candidate.memory is None else size(candidate.memory),
        notes(candidate),
    ]


def notes(candidate: Candidate) -> str:
    """Say whether it is lossy, and give the scores."""
    words = [] if candidate.lossless is None else [["lossy", "lossless"][candidate.lossless]]
    for name, value in candidate.quality.items():
        if value is None:  # an infinite PSNR
            number = "equal"
        elif name == "PSNR":
            number = f"{value:.1f} dB"
        else:
            number = f"{value:.1e}" if 0 < value < 1e-3 else f"{value:.3f}"
        words.append(f"{name} {number}")
    return ", ".join(words)


def red_cells(measurement: Measurement) -> list[str]:
    """Return a row without times, and the reason."""
    if measurement.failed:
        return [_what(measurement), *[""] * 6, f"FAILED: {measurement.failed}"]
    worst = next(p for p in measurement.parity if not p.green)
    note = f"RED: {worst.what}: {worst.difference:.1e} > {worst.limit:.0e}; no timing is reported"
    return [_what(measurement), *[""] * 6, note]


def _what(measurement: Measurement) -> str:
    return f"{measurement.section}: {measurement.name}, {measurement.size}"


def table(report: Report) -> list[list[str]]:
    rows = [list(HEAD)]
    for measurement in report.measurements:
        if not measurement.green:
            rows.append(red_cells(measurement))
            continue
        for n, name in enumerate(measurement.candidates):
            row = cells(measurement, name)
            rows.append(row if n == 0 else ["", *row[1:]])
    return rows


def text(report: Report) -> str:
    """Return the report for a terminal: a line for a measurement, and one for each of its paths."""
    lines = [*card_lines(report), ""]
    rows = [row[1:] for row in table(report)]
    widths = [max(len(row[n]) for row in rows) for n in range(6)]
    for whole, row in zip(table(report), rows, strict=True):
        if whole[0] and whole[0] != HEAD[0]:
            lines.append(whole[0])
        first, *others = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False))
        lines.append("  ".join(["", f"{first.strip():<{widths[0]}}", *others, row[6]]).rstrip())
    lines += fits(report)
    return "\n".join(lines)


def card_lines(report: Report) -> list[str]:
    """Return the machine and its measured limits."""
    card, limits = report.machine, report.ceilings
    lines = [
        f"{card.get('gpu') or card['cpu']}, {card['threads']} threads, torch {card['torch']}, "
        f"commit {card['commit']}, {report.date.replace('T', ' ')}"
    ]
    if limits:
        products = ", ".join(
            f"{name} products {limit['rate'] / 1e9:,.0f} GFLOP/s"
            for name, limit in limits.items()
            if name not in ("copy", "launch")
        )
        lines.append(
            f"measured limits: copy {limits['copy']['rate'] / 1e9:,.1f} GB/s, {products}, "
            f"{1e6 / limits['launch']['rate']:.1f} µs per launch"
        )
    if "gpu" not in card and (card.get("load") or 0) > 1:
        lines.append(
            f"warning: other programs ran too (load {card['load']} before the start); "
            "the ratios hold better than the times"
        )
    if left := report.settings.get("left_out"):
        lines.append(f"stopped early: {len(left)} measurements are missing, from {left[0]!r} on")
    if report.settings.get("rehearse"):
        lines.append("a rehearsal on the CPU: its figures mean nothing")
    return lines


def exponents(m: Measurement) -> dict[str, dict]:
    """Return the fits of a measurement's groups, without those of too few points."""
    sizes = [name.partition(", ")[0] for name in m.facts.get("x", ())]
    fitted = (m.facts.get("fits") or {}).items()
    return {group: fit for group, fit in fitted if fit and sizes.count(group) >= FEWEST_SIZES}


def fits(report: Report) -> list[str]:
    """Return the fitted exponents."""
    lines = [
        f"{m.name}, {group}: cost ~ {m.facts['against']}^{fit['exponent']:.2f} (r2 {fit['r2']:.3f})"
        for m in report.of("scaling")
        for group, fit in exponents(m).items()
    ]
    return ["", *lines] if lines else []
