"""The figures of a report, drawn from a result: PNG bytes, and how to redraw each."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

from .results import Candidate, Measurement, Report
from .table import exponents, seconds

OURS, THEIRS, LOSSY, INK = "#1f6f8b", "#9a9da3", "#d9822b", "#2b2e33"
DPI = 110
MARKS = {OURS: "o", THEIRS: "s", LOSSY: "^"}
"""shapes in addition to colors, for readers in gray"""


@dataclass(frozen=True)
class Figure:
    """``name``: of the file; ``text``: what it shows, also for readers who cannot see it."""

    name: str
    title: str
    text: str
    command: str
    png: bytes


def figures(report: Report) -> list[Figure]:
    """Return every figure for which the result has the numbers."""
    made = (draw(report) for draw in (waterfall, scaling, pareto))
    return [figure for figure in made if figure is not None]


def _about(report: Report, *shown: Measurement) -> str:
    """Describe the machine, the samples behind a point, and whether it was just a quick look."""
    card = report.machine
    counts = {len(c.samples) for m in shown for c in m.candidates.values() if c.samples}
    n = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts, default=0)}"
    device = card.get("gpu") or f"{card['threads']} threads of {card['cpu']}"
    words = f"{device}, {report.date[:10]}, PyTorch {card['torch']}; n = {n} samples a point"
    for name, what in (("quick", "QUICK LOOK"), ("rehearse", "REHEARSAL")):
        if report.settings.get(name):
            words = f"{what}, no figures to rely on. {words}"
    return words


def _spread(candidate: Candidate, factor: float = 1.0) -> list[list[float]]:
    """Return bars from the median to the 20th and 80th percentile, as errorbar takes them."""
    low, high = candidate.median - candidate.p20, candidate.p80 - candidate.median
    return [[low * factor], [high * factor]]


def _png(draw: Callable, width: float, height: float, about: str) -> bytes:
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
        figure.supxlabel(about, x=0.01, ha="left", fontsize=7, color=INK)
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

    def draw(figure) -> None:
        axis, rows = figure.subplots(), range(len(names))[::-1]
        colors = [THEIRS, *(OURS if m.candidates[n].lossless else LOSSY for n in names[1:])]
        times = [m.candidates[n].median for n in names]
        bars = axis.barh(rows, times, color=colors, height=0.66)
        for bar, row, name, color in zip(bars, rows, names, colors, strict=True):
            bar.set_hatch({LOSSY: "///", THEIRS: ".."}.get(color, ""))
            bar.set_edgecolor("white")
            c = m.candidates[name]
            axis.errorbar(c.median, row, xerr=_spread(c), color=INK, lw=1, capsize=2)
            axis.text(max(c.median, c.p80), row, _beside(m, name), va="center", fontsize=9)
        most = max(m.candidates[name].p80 for name in names)
        axis.set(yticks=list(rows), yticklabels=names, xlim=(0, most * 1.42))
        axis.set_xlabel("seconds a fusion, median (lines: p20 to p80)")
        axis.set_title("blue: lossless   orange, hatched: lossy   gray, dotted: reference")

    text = (
        f"From the reference path to the shipped default ({m.facts['default']}), one optimization "
        f"at a time: {m.facts['steps']} steps at {m.size}, embedded prior. PSNR is against the "
        "exact result (float64)."
    )
    png = _png(draw, 9, 1.4 + 0.42 * len(names), _about(report, m))
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


def scaling(report: Report) -> Figure | None:
    found = [m for m in report.of("scaling") if m.green and m.facts.get("fits")]
    if not found:
        return None

    def draw(figure) -> None:
        axes = figure.subplots(1, len(found), squeeze=False)[0]
        for axis, m in zip(axes, found, strict=True):
            for group in m.facts["fits"]:
                names = [n for n in m.facts["x"] if n.startswith(f"{group}, ")]
                x = [m.facts["x"][n] for n in names]
                y = [m.candidates[n].median * 1e3 for n in names]
                low = [(m.candidates[n].median - m.candidates[n].p20) * 1e3 for n in names]
                high = [(m.candidates[n].p80 - m.candidates[n].median) * 1e3 for n in names]
                fit = exponents(m).get(group)
                label = f"{group}: ^{fit['exponent']:.2f}" if fit else group
                color = OURS if group == "ddfm_fast" else THEIRS
                style = f"{MARKS[color]}{'-' if color == OURS else '--'}"
                axis.errorbar(x, y, [low, high], fmt=style, ms=4, color=color, label=label)
            axis.set(xscale="log", yscale="log", xlabel=m.facts["against"])
            axis.set_title(_wrapped(m.name), fontsize=9)
            if m.facts["against"] != "pixels":
                _plain_numbers(axis.xaxis)
            axis.grid(True)
            axis.legend(fontsize=8, frameon=False)
        axes[0].set_ylabel("ms, median (bars: p20 to p80)")

    text = (
        "Cost against pixels, images in a batch and steps; the exponent is fitted by least squares "
        "on logarithms where there are six sizes or more. Overheads flatten the small sizes."
    )
    png = _png(draw, 3.1 * len(found), 3.6, _about(report, *found))
    return Figure("scaling", "Scaling", text, found[0].command, png)


def _plain_numbers(axis) -> None:
    """Label a logarithmic axis 1, 3, 10, not by powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 300 * low else (1.0,)))
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
                point = candidate.median, candidate.quality[metric]
                color = LOSSY if candidate.lossless is False else OURS
                bars = _spread(candidate)
                axis.errorbar(*point, xerr=bars, fmt=MARKS[color], ms=7, color=color, elinewidth=1)
            points = {n: (m.candidates[n].median, m.candidates[n].quality[metric]) for n in names}
            for point, label in _labels(points, lambda _: True):
                right = point[0] > max(x for x, _ in points.values()) / 5
                side = {"xytext": (5, -12 if right else 5), "ha": "right" if right else "left"}
                axis.annotate(label, point, textcoords="offset points", fontsize=8, **side)
            axis.axvline(m.candidates["reference"].median, color=THEIRS, ls="--", lw=1)
            axis.set(xscale="log", xlabel="seconds a fusion, median, p20 to p80", title=metric)
            axis.margins(0.35, 0.2)
            _plain_numbers(axis.xaxis)
            axis.grid(True)

    text = (
        f"Speed against quality by preset, {m.size}, one pair: blue dots compute the reference's "
        "picture, orange triangles another one. Dashed: the reference's time. VIF_min is the worse "
        "source's; one pair proves nothing: bench/results/pareto.md has 16."
    )
    png = _png(draw, 13, 3.6, _about(report, m))
    return Figure("speed_quality", "Speed against quality", text, m.command, png)


def quality_front(report: Report) -> bytes | None:
    """Draw quality against time by preset and baseline, a row per corruption: PNG, or None."""
    shown = ("VIF", "Qabf", "VIF_min", "SSIM_min")
    found = [m for m in report.measurements if m.name.startswith("infrared")]
    found = [m for m in found if any(c.samples for c in m.candidates.values())]
    if not found:
        return None

    def draw(figure) -> None:
        axes = figure.subplots(len(found), len(shown), squeeze=False)
        for row, m in zip(axes, found, strict=True):
            for axis, metric in zip(row, shown, strict=True):
                for name, c in m.candidates.items():
                    if c.samples:
                        color = OURS if name.startswith("preset") else THEIRS
                        point = c.median, c.quality[metric]
                        axis.errorbar(
                            *point,
                            xerr=_spread(c),
                            fmt=MARKS[color],
                            ms=6,
                            color=color,
                            elinewidth=1,
                        )
                points = {
                    n: (c.median, c.quality[metric]) for n, c in m.candidates.items() if c.samples
                }
                for point, label in _labels(points, lambda name: name.startswith("preset")):
                    right = point[0] > max(c.median for c in m.candidates.values()) / 12
                    where: dict = (
                        {"xytext": (-4, 4), "ha": "right"} if right else {"xytext": (4, 4)}
                    )
                    note = axis.annotate(
                        label, point, textcoords="offset points", fontsize=7, **where
                    )
                    note.set_in_layout(False)
                axis.set(xscale="log", title=f"{metric}, {m.name.split(', ')[1]}")
                axis.margins(0.35, 0.15)
                axis.grid(True)
        for axis in axes[-1]:
            axis.set_xlabel("seconds a picture, median, p20 to p80")

    return _png(draw, 14, 3.1 * len(found), _about(report, *found))


def _labels(
    points: dict[str, tuple[float, float]], joined: Callable[[str], bool]
) -> list[tuple[tuple[float, float], str]]:
    """Name the points of a figure; neighbors that may be ``joined`` share a label at the last."""
    heights = [y for _, y in points.values()]
    near = 0.05 * (max(heights) - min(heights))
    groups: list[list[str]] = []
    for name in sorted(points, key=lambda n: points[n]):
        x, y = points[name]
        for group in groups if joined(name) else ():
            last = points[group[-1]]
            if joined(group[0]) and x < 5 * last[0] and abs(y - last[1]) <= near:
                group.append(name)
                break
        else:
            groups.append([name])
    return [
        (points[group[-1]], ", ".join(n.removeprefix("preset ") for n in group)) for group in groups
    ]


def engines_over_pixels(report: Report) -> bytes | None:
    """Draw the time of a forward over its pixels, a part per network: PNG, or None without times.

    One image as a line, several at once as open marks of the same color.
    """
    found = [m for m in report.measurements if any(c.samples for c in m.candidates.values())]
    names = list(dict.fromkeys(m.name for m in found))
    paths = list(dict.fromkeys(path for m in found for path in m.candidates))
    if not found:
        return None

    def draw(figure) -> None:
        import matplotlib

        axes = figure.subplots(1, len(names), squeeze=False)[0]
        engines = list(dict.fromkeys(path.partition(",")[0] for path in paths))
        colors = dict(zip(engines, [OURS, *matplotlib.color_sequences["Dark2"][1:]], strict=False))
        marks = dict(zip(engines, "osD^v*", strict=False))
        for axis, name in zip(axes, names, strict=True):
            for path in paths:
                points = [
                    (m.facts["pixels"], m.candidates[path], m.facts["batch"])
                    for m in found
                    if m.name == name and path in m.candidates and m.candidates[path].samples
                ]
                color = colors[path.partition(",")[0]]
                line = {"float32": "-", "bfloat16": ":", "int8": "--"}
                style = line[path.partition(", ")[2] or "float32"]
                mark = marks[path.partition(",")[0]]
                single = [(x, c.median * 1e3) for x, c, n in points if n == 1] or [(math.nan,) * 2]
                axis.plot(
                    *zip(*single, strict=True), marker=mark, ls=style, ms=4, color=color, label=path
                )
                for pixels, c, batch in points:
                    open_mark = {"marker": mark, "ms": 7, "mfc": "none"} if batch > 1 else {}
                    bars = {"yerr": _spread(c, 1e3), "elinewidth": 1, "color": color}
                    axis.errorbar(pixels, c.median * 1e3, **bars, **open_mark)
            axis.set(xscale="log", yscale="log", title=name)
            _plain_numbers(axis.yaxis)
            ticks = {m.facts["pixels"]: m.size for m in found if m.facts["batch"] == 1}
            axis.set_xticks(list(ticks), list(ticks.values()))
            axis.set_xlabel("pixels of all images at once (open marks: several)")
            axis.minorticks_off()
            axis.grid(True)
        axes[0].set_ylabel("ms a forward, median (bars: p20 to p80)")
        axes[-1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    return _png(draw, 4.2 * len(names) + 1.6, 4.4, _about(report, *found))
