"""The one format of results: a machine, its ceilings, and measurements with every sample.

    {"schema": "ddfm_fast bench 1", "units": {…}, "date", "machine": {…}, "ceilings": {…},
     "settings": {…}, "measurements": [{"section", "name", "size", "command", "baseline",
     "parity": [{"what", "difference", "limit"}], "candidates": {name: {"samples", "floor",
     "memory", "quality": {…}, "lossless", "about", "summary": {"median", "p20", "p80",
     "times_faster"}}}, "yardstick": [seconds], "facts": {…}}]}

If the parity of a measurement is red, or if it "failed", it holds no samples and no ratio. A study
of quality alone has candidates without samples.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddfm_fast.files.paths import atomic_write_bytes

from .timing import quantile

SCHEMA = "ddfm_fast bench 1"
RENAMED = {"seconds a frame": "seconds per frame", "no PNG a step": "no PNG per step"}
"""beginnings of names in older files → what they are now"""
UNITS = {
    "samples": "seconds",
    "floor": "seconds",
    "memory": "bytes",
    "ceilings": "bytes, operations or launches per second",
    "times_faster": "the baseline's median over this one's, in one interleaved run",
}
FEWEST_SIZES = 6
"""fewest sizes over which an exponent of growth is fitted"""
SHOWN = frozenset({"step", "prior", "loop", "waterfall"})
"""sections that a run must have to represent its device in the README"""


@dataclass
class Candidate:
    """One way to do the work of a measurement."""

    samples: list[float] = field(default_factory=list)
    """seconds, in the order they were taken"""
    floor: float | None = None
    """seconds at the ceilings of the same run: least bytes over the copy, or operations over the
    matrix product, whichever is longer"""
    memory: int | None = None
    """peak bytes above what was there before"""
    quality: dict[str, float | None] = field(default_factory=dict)
    lossless: bool | None = None
    about: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def p20(self) -> float:
        return quantile(self.samples, 0.2)

    @property
    def p80(self) -> float:
        return quantile(self.samples, 0.8)


@dataclass
class Parity:
    """How far two results of one function are from each other, and how far they may be."""

    what: str
    difference: float
    limit: float

    @property
    def green(self) -> bool:
        return self.difference <= self.limit  # False for NaN


@dataclass
class Measurement:
    """Candidates that were timed in turn, and the checks that came before."""

    section: str = ""
    name: str = ""
    size: str = ""
    command: str = ""
    baseline: str | None = None
    parity: list[Parity] = field(default_factory=list)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    yardstick: list[float] = field(default_factory=list)
    """seconds of a fixed piece of work in the same rounds: how fast the machine was at the time"""
    facts: dict[str, Any] = field(default_factory=dict)

    failed: str = ""
    """what went wrong, if it could not be measured at all"""

    @property
    def green(self) -> bool:
        return not self.failed and all(p.green for p in self.parity)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.section, self.name, self.size

    def times_faster(self, name: str) -> float | None:
        """Return the baseline's median over this one's; None if there is none or parity is red."""
        base, candidate = self.candidates.get(self.baseline or ""), self.candidates[name]
        if not self.green or base is None or not base.samples or not candidate.samples:
            return None
        return base.median / candidate.median


@dataclass
class Report:
    """A whole run."""

    machine: dict[str, Any]
    ceilings: dict[str, dict]
    settings: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    date: str = field(default_factory=lambda: datetime.datetime.now().isoformat("T", "seconds"))

    @property
    def green(self) -> bool:
        return all(m.green for m in self.measurements)

    @property
    def full(self) -> bool:
        """Whether it may represent its device: no quick look, rehearsal or part of a run."""
        partial = any(self.settings.get(name) for name in ("quick", "rehearse", "size"))
        sections = self.settings.get("sections")
        begun = {m.section for m in self.measurements}
        left_out = {line.partition(":")[0] for line in self.settings.get("left_out", [])}
        if partial or (left_out - begun) & SHOWN:
            return False
        return not sections or set(sections) >= SHOWN

    def of(self, section: str) -> list[Measurement]:
        return [m for m in self.measurements if m.section == section]


def to_json(report: Report) -> str:
    """Return the report as JSON, with medians, percentiles and ratios beside the samples."""
    whole = {"schema": SCHEMA, "units": UNITS, **dataclasses.asdict(report)}
    for measurement, raw in zip(report.measurements, whole["measurements"], strict=True):
        for name, candidate in measurement.candidates.items():
            if candidate.samples:
                summary = {key: getattr(candidate, key) for key in ("median", "p20", "p80")}
                summary["times_faster"] = measurement.times_faster(name)
                raw["candidates"][name]["summary"] = summary
    return json.dumps(_finite(whole), indent=1, allow_nan=False) + "\n"


def _finite(value):
    """Return ``value`` with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save(report: Report, path: Path) -> Path:
    """Write the report, and make its folder; the file is written whole or not at all."""
    return atomic_write_bytes(path, to_json(report).encode())


def free_path(folder: Path, device: str, date: str) -> Path:
    """Return ``<device>-<date>.json``, with a number if that is taken: nothing is overwritten."""
    path, number = folder / f"{device}-{date}.json", 2
    while path.exists():
        path, number = folder / f"{device}-{date}-{number}.json", number + 1
    return path


def load(path: str | Path) -> Report:
    """Read a report from its file; FileNotFoundError or ValueError, naming it, if that fails."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; expected one that --save wrote")
    try:
        text = path.read_text(encoding="utf-8")
        for old, new in RENAMED.items():
            text = text.replace(f'"{old}', f'"{new}')
        raw = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}); expected a result") from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(
            f"{str(path)!r} has schema {found!r}; expected {SCHEMA!r}: record it again with --save"
        )
    try:
        measurements = [_measurement(m) for m in raw["measurements"]]
        return Report(raw["machine"], raw["ceilings"], raw["settings"], measurements, raw["date"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({type(error).__name__}: {error}); record it again"
        ) from None


def _measurement(raw: dict) -> Measurement:
    found = Measurement(**{**raw, "candidates": {}, "parity": []})
    for name, values in raw["candidates"].items():
        values = {key: value for key, value in values.items() if key != "summary"}
        found.candidates[name] = Candidate(**values)
    for check in raw["parity"]:
        worst = check["difference"]
        found.parity.append(Parity(**{**check, "difference": math.nan if worst is None else worst}))
    return found


def latest(folder: Path) -> dict[str, tuple[Path, Report]]:
    """Return the latest full result of each device in a folder, by device; skip other files."""
    found: dict[str, tuple[Path, Report]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            report = load(path)
        except ValueError:  # somebody else's file
            continue
        name = report.machine.get("gpu", "CPU")
        if report.full and (name not in found or found[name][1].date <= report.date):
            found[name] = path, report
    return found
