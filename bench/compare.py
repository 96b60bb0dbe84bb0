"""Two results side by side: what became slower beyond the noise of both.

A path counts as slower if its samples do not overlap (p20 of the new run above p80 of the old) and
if three things rose by more than the threshold and the scatter of both runs (p80 − p20, over the
median): its median, its median over that of the baseline beside it, and its median over that of the
yardstick, a fixed piece of work in the same rounds. A machine that is slower today slows those two
as well. Its fastest sample, which other programs on the machine affect least, must also have risen
beyond the threshold. A measurement with fewer than three samples is not judged. For what happens
once in a process (section startup), differences below a millisecond do not count: there the file
system's cache decides, run by run.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from .results import Candidate, Measurement, Report
from .table import seconds
from .timing import LEAST_ROUNDS

THRESHOLD, QUICK_THRESHOLD = 0.10, 0.50
"""a quick run has few samples of short calls: it only tells a catastrophe from noise"""
ONCE_RESOLUTION = 1e-3
"""seconds; two runs of one tree had `import ddfm_fast` at 0.2 and 0.5 ms"""
SAME = ("cpu", "gpu", "threads", "torch", "driver")


@dataclass(frozen=True)
class Change:
    """A path in both runs: ``ratio`` of the medians, new over old, and the verdict."""

    key: tuple[str, str, str]
    path: str
    old: Candidate
    new: Candidate
    ratio: float
    noise: float
    verdict: str
    """"slower", "faster", "same", or "red" (no time in the new run)"""


def scatter(candidate: Candidate) -> float:
    return (candidate.p80 - candidate.p20) / candidate.median


def judge(old: Measurement, new: Measurement, path: str, threshold: float) -> Change:
    """Return the verdict on one path."""
    a, b = old.candidates[path], new.candidates[path]
    ratio = b.median / a.median
    noise = scatter(a) + scatter(b)
    verdict, resolution = "same", ONCE_RESOLUTION if old.section == "startup" else 0.0
    enough = min(len(a.samples), len(b.samples)) >= LEAST_ROUNDS
    if enough and abs(b.median - a.median) >= resolution:
        beside = [1.0, *_drifts(old, new, path)]
        beyond = 1 + threshold + noise
        best = min(b.samples) / min(a.samples)
        if ratio / max(beside) > beyond and b.p20 > a.p80 and best > 1 + threshold:
            verdict = "slower"
        elif ratio / min(beside) < 1 / beyond and b.p80 < a.p20 and best < 1 / (1 + threshold):
            verdict = "faster"
    return Change(new.key, path, a, b, ratio, noise, verdict)


def _drifts(old: Measurement, new: Measurement, path: str) -> list[float]:
    """Return how much slower the path's baseline and the yardstick are now."""
    found = []
    if old.yardstick and new.yardstick:
        found.append(statistics.median(new.yardstick) / statistics.median(old.yardstick))
    name = new.baseline
    if name and name != path and old.baseline == name:
        found.append(new.candidates[name].median / old.candidates[name].median)
    return found


def compare(old: Report, new: Report, threshold: float | None = None) -> list[Change]:
    """Compare every path that both runs timed, in the new run's order; include what is red now."""
    if threshold is None:
        quick = old.settings.get("quick") or new.settings.get("quick")
        threshold = QUICK_THRESHOLD if quick else THRESHOLD
    before = {m.key: m for m in old.measurements}
    changes = []
    for measurement in new.measurements:
        known = before.get(measurement.key)
        if known is None or not known.green:
            continue
        for path, before_it in known.candidates.items():
            now = measurement.candidates.get(path, Candidate())
            if not measurement.green:
                red = Change(measurement.key, path, before_it, now, float("nan"), 0, "red")
                changes.append(red)
            elif before_it.samples and now.samples:
                changes.append(judge(known, measurement, path, threshold))
    return changes


def unmatched(old: Report, new: Report) -> list[str]:
    """Return what only one of the two has."""
    keys = [{(*m.key, path) for m in r.measurements for path in m.candidates} for r in (old, new)]
    reds = {m.key for m in (*old.measurements, *new.measurements) if not m.green}
    lines = [(k, "the first") for k in keys[0] - keys[1] if k[:3] not in reds]
    lines += [(k, "the second") for k in keys[1] - keys[0] if k[:3] not in reds]
    return [f"only in {where}: {', '.join(key)}" for key, where in sorted(lines)]


def text(old: Report, new: Report, changes: list[Change]) -> str:
    """Return the comparison for a terminal; regressions are marked and come last again."""
    lines = []
    for key in SAME:
        a, b = old.machine.get(key), new.machine.get(key)
        if a != b:
            lines.append(f"warning: {key} is {a!r} in the first and {b!r} in the second")
    lines += [f"first:  {old.date}, commit {old.machine['commit']}"]
    lines += [f"second: {new.date}, commit {new.machine['commit']}", ""]
    last = None
    for change in changes:
        if change.key != last:
            lines.append(", ".join(change.key))
            last = change.key
        lines.append(_line(change))
    lines += unmatched(old, new)
    slower = [c for c in changes if c.verdict in ("slower", "red")]
    lines += ["", f"{len(slower)} of {len(changes)} paths are slower beyond noise"]
    lines += [f"  REGRESSION {', '.join(c.key)}: {c.path}" for c in slower]
    return "\n".join(lines)


def _line(change: Change) -> str:
    if change.verdict == "red":
        return f"  {change.path:<38} RED: its results are wrong now, no time was taken"
    mark = {"slower": "  <-- REGRESSION", "faster": "  faster", "same": ""}[change.verdict]
    return (
        f"  {change.path:<38} {seconds(change.old.median):>9} -> {seconds(change.new.median):>9}"
        f"  x{change.ratio:.2f} (noise {change.noise:.0%}){mark}"
    )
