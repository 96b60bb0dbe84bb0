"""The figures of a report, drawn from a result: PNG bytes, and how each is made again."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

from . import model
from .machine import MODULE
from .results import Measurement, Report
from .table import seconds

OURS, THEIRS, LOSSY, INK = "#1f6f8b", "#9a9da3", "#d9822b", "#2b2e33"
DPI = 110


@dataclass(frozen=True)
class Figure:
    """``name``: of the file; ``text``: what it shows, for those who do not see it too."""

    name: str
    title: str
    text: str
    command: str
    png: bytes


def figures(report: Report) -> list[Figure]:
    """Every figure that the result has the numbers for."""
    made = (draw(report) for draw in (waterfall, roofline, scaling, pareto, cost))
    return [figure for figure in made if figure is not None]


def _png(draw: Callable, width: float, height: float) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": INK, "axes.titlesize": 11, "axes.titlelocation": "left",
        "grid.color": "#e3e5e8", "axes.axisbelow": True,
    }  # fmt: skip
    with plt.rc_context(style):
        figure = plt.figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        plt.close(figure)
    return buffer.getvalue()


def _one(report: Report, section: str, name: str = "") -> Measurement | None:
    found = [m for m in report.of(section) if m.green and m.candidates and name in m.name]
    return found[0] if found else None


def waterfall(report: Report) -> Figure | None:
    m = _one(report, "waterfall")
    if m is None:
        return None
    names = list(m.candidates)
    has_memory = any(m.candidates[n].memory is not None for n in names)

    def draw(figure) -> None:
        axes = figure.subplots(1, 2 if has_memory else 1, sharey=True, squeeze=False,
                               width_ratios=[3, 1] if has_memory else [1])[0]  # fmt: skip
        rows = range(len(names))[::-1]
        colours = [OURS if m.candidates[n].lossless else LOSSY for n in names]
        colours[0] = THEIRS
        times = [m.candidates[n].median for n in names]
        axes[0].barh(rows, times, color=colours, height=0.66)
        for row, name in zip(rows, names, strict=True):
            axes[0].text(
                times[len(names) - 1 - row], row, _beside(m, name), va="center", fontsize=9
            )
        axes[0].set(yticks=list(rows), yticklabels=names, xlim=(0, max(times) * 1.42))
        axes[0].set_xlabel("seconds a fusion, median")
        axes[0].set_title("blue: lossless   orange: lossy (another picture)   grey: reference")
        if has_memory:
            memory = [(m.candidates[n].memory or 0) / 2**20 for n in names]
            axes[1].barh(rows, memory, color=colours, height=0.66)
            axes[1].set_xlabel("peak memory, MiB")
            for row, value in zip(rows, memory, strict=True):
                axes[1].text(value, row, f" {value:.0f}" if value else " in the graph", va="center",
                             fontsize=9)  # fmt: skip
            axes[1].set_xlim(0, max(memory) * 1.2)

    text = (
        f"From the reference path to the shipped default ({m.facts['default']}), one optimisation "
        f"at a time: {m.facts['steps']} steps at {m.size}, embedded prior. PSNR is against the "
        "exact result (float64)."
    )
    png = _png(draw, 11, 1.2 + 0.42 * len(names))
    return Figure("waterfall", "Waterfall", text, m.command, png)


def _beside(m: Measurement, name: str) -> str:
    candidate, faster = m.candidates[name], m.times_faster(name)
    words = [f" {seconds(candidate.median)}"]
    if faster and name != m.baseline:
        words.append(f"{faster:.2f}x")
    distance = candidate.quality.get("PSNR")
    if distance is not None:
        words.append(f"{distance:.0f} dB")
    return ", ".join(words)


def roofline(report: Report) -> Figure | None:
    points = _points(report)
    if not points:
        return None
    limits = report.ceilings

    def draw(figure) -> None:
        import numpy as np

        axis = figure.subplots()
        bandwidth, products = limits["copy"]["rate"], limits["float32"]["rate"]
        x = np.logspace(-0.5, 2.5, 200)
        axis.plot(x, np.minimum(x * bandwidth, products) / 1e9, color=INK, lw=1.5)
        axis.text(0.8, 0.7 * bandwidth / 1e9, f"copy {bandwidth / 1e9:.1f} GB/s",
                  ha="left", va="top", fontsize=9)  # fmt: skip
        axis.text(300, products / 1e9 * 0.93, f"float32 product {products / 1e9:.0f} GFLOP/s",
                  ha="right", va="top", fontsize=9)  # fmt: skip
        markers = iter("os^Dv*PXhp<>os^Dv*PXhp<>")
        for label, intensity, rate, ours in points:
            axis.plot(intensity, rate / 1e9, next(markers), ms=8, label=label,
                      color=OURS if ours else THEIRS)  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="operations a byte (least bytes, by operator)",
                 ylabel="GFLOP/s")  # fmt: skip
        axis.grid(True)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)

    text = (
        "What the prior's forward reaches (blue: ours, grey: the authors' module on the same "
        "operation count) under this run's own limits."
    )
    command = _one(report, "prior").command.split(" --size")[0]
    return Figure("roofline", "Roofline", text, command, _png(draw, 9.5, 4.6))


def _points(report: Report) -> list[tuple[str, float, float, bool]]:
    """(label, operations a byte, operations a second, ours) of every forward in float32."""
    found = []
    for m in report.of("prior"):
        flops = m.facts.get("operations")
        if not m.green or not flops:
            continue
        for path in ("ddfm_fast", "reference"):
            if path in m.candidates:
                rate = flops / m.candidates[path].median
                label = f"{m.name} {m.size}, {path}"
                found.append((label, flops / m.facts["bytes"], rate, path == "ddfm_fast"))
    return found


def scaling(report: Report) -> Figure | None:
    found = [m for m in report.of("scaling") if m.green and len(m.candidates) > 2]
    if not found:
        return None

    def draw(figure) -> None:
        axes = figure.subplots(1, len(found), squeeze=False)[0]
        for axis, m in zip(axes, found, strict=True):
            for group, fit in m.facts["fits"].items():
                names = [n for n in m.facts["x"] if n.startswith(f"{group}, ")]
                x = [m.facts["x"][n] for n in names]
                y = [m.candidates[n].median * 1e3 for n in names]
                low = [(m.candidates[n].median - m.candidates[n].p20) * 1e3 for n in names]
                high = [(m.candidates[n].p80 - m.candidates[n].median) * 1e3 for n in names]
                label = f"{group}: ^{fit['exponent']:.2f}" if fit else group
                colour = OURS if group == "ddfm_fast" else THEIRS
                axis.errorbar(x, y, [low, high], fmt="o-", ms=4, color=colour, label=label)
            axis.set(xscale="log", yscale="log", xlabel=m.facts["against"])
            axis.set_title(_wrapped(m.name), fontsize=9)
            if m.facts["against"] != "pixels":
                _plain_numbers(axis.xaxis)
            axis.grid(True)
            axis.legend(fontsize=8, frameon=False)
        axes[0].set_ylabel("ms, median (bars: p20 to p80)")

    text = (
        "Cost against pixels, images in a batch and steps, with the exponent fitted by least "
        "squares on logarithms; overheads flatten the small sizes."
    )
    png = _png(draw, 3.1 * len(found), 3.4)
    return Figure("scaling", "Scaling", text, found[0].command, png)


def _plain_numbers(axis) -> None:
    """1, 3, 10 on a logarithmic axis, not powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _wrapped(name: str) -> str:
    head, _, tail = name.partition(" against ")
    return f"{head}\nagainst {tail}" if tail else name


def pareto(report: Report) -> Figure | None:
    m = _one(report, "loop")
    if m is None:
        return None
    shown = ("VIF", "Qabf", "SSIM", "VIF_min")
    names = [n for n, c in m.candidates.items() if c.quality and n.split(",")[0] != "reference"]

    def draw(figure) -> None:
        axes = figure.subplots(1, len(shown))
        for axis, metric in zip(axes, shown, strict=True):
            for name in names:
                candidate = m.candidates[name]
                colour = LOSSY if candidate.lossless is False else OURS
                axis.plot(candidate.median, candidate.quality[metric], "o", ms=7, color=colour)
                below = name.startswith("official-script")
                axis.annotate(
                    name,
                    (candidate.median, candidate.quality[metric]),
                    fontsize=8,
                    xytext=(5, -12 if below else 5),
                    textcoords="offset points",
                )
            axis.axvline(m.candidates["reference"].median, color=THEIRS, ls="--", lw=1)
            axis.set(xscale="log", xlabel="seconds a fusion", title=metric)
            _plain_numbers(axis.xaxis)
            axis.margins(0.35, 0.2)
            axis.grid(True)

    text = (
        f"Speed against quality by preset, {m.size}, one pair: blue computes the reference's "
        "picture, orange another one. Dashed: the reference's time. VIF_min is the worse source's; "
        "one pair proves nothing: bench/results/pareto.md has 16."
    )
    return Figure("speed_quality", "Speed against quality", text, m.command, _png(draw, 13, 3.4))


def cost(report: Report) -> Figure | None:
    found = model.checks(report)
    if not found:
        return None

    def draw(figure) -> None:
        axis = figure.subplots()
        rows = range(len(found))[::-1]
        axis.barh([r + 0.2 for r in rows], [c.predicted * 1e3 for c in found], 0.36, color=THEIRS,
                  label="on paper, at this run's limits")  # fmt: skip
        axis.barh([r - 0.2 for r in rows], [c.measured * 1e3 for c in found], 0.36, color=OURS,
                  label="measured")  # fmt: skip
        for row, c in zip(rows, found, strict=True):
            axis.text(
                c.measured * 1e3, row - 0.2, f" {c.ratio:.2f} of paper", va="center", fontsize=8
            )
        axis.set(yticks=list(rows), yticklabels=[c.what for c in found], xscale="log", xlabel="ms")
        axis.set_xlim(right=axis.get_xlim()[1] * 2)
        axis.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    text = "The cost model against the measurements of the same run."
    png = _png(draw, 9, 0.9 + 0.42 * len(found))
    return Figure("cost_model", "Cost model, checked", text, f"python -m {MODULE}.model", png)
