"""``python -m bench.engines``: a forward pass of the prior by our and by other engines, one page.

Every engine gets the same weights (``exported``) and is compared with the authors' module before
anything is timed; one that computes something else gets no time. Then all take turns. The output is
a result in the project's format, a table in Markdown and a plot of time over pixels.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from ddfm_fast.files.paths import atomic_write_bytes
from ddfm_fast.priors.load import load_prior
from ddfm_fast.schedule import trained_alphas

from . import runner
from .data import network, pair
from .exported import ENGINES, OFFICIAL, OURS, Forward, Work, missing
from .machine import installed_version, machine
from .model import markdown_table
from .peers import chosen, height_and_width, release_memory
from .place import Place, Task, apart, named, require
from .plots import engines_over_pixels
from .results import Candidate, Measurement, Parity, Report, free_path, save
from .table import card_lines, seconds

CPU = torch.device("cpu")
COMMAND = "python -m bench.engines"
NAMES = ("embedded", "ADM 32", "ADM 128")
SIZES = ("128x128", "256x320", "512x640", "1088x1920")
PACKAGES = ("openvino", "nncf", "onnxruntime", "onnx", "onnxscript")
TIMESTEP = 56
"""timestep at which the noise of x_t is σ 25 of 255"""
LIMITS = {"float32": 2e-4, "bfloat16": 5e-2, "int8": 0.5}
"""error of eps: for float32 the largest over the largest value, else the root mean square over that
of eps. What int8 loses (.1 to .2 was seen) is stated, not judged: an eps of 0 would have 1"""
PICTURES = 6
"""number of pictures on which int8 is calibrated"""
SHARE_OF_MEMORY = 0.5
REST = 0.3
"""seconds before each turn: OpenMP's threads spin for up to .2 after their work"""
app = typer.Typer(add_completion=False)


@dataclass
class Run:
    """What is requested, and what earlier sizes cost: seconds per pixel by network and engine."""

    place: Place
    engines: list[str]
    threads: int
    longest: float
    precisions: list[str] = field(default_factory=lambda: list(LIMITS))
    rates: dict[tuple[str, str], float] = field(default_factory=dict)

    def too_long(self, name: str, engine: str, pixels: int) -> str | None:
        """Say that a forward pass would exceed ``longest``, judging by a smaller size."""
        expected = self.rates.get((name, engine), 0.0) * pixels
        return f"about {seconds(expected)} a forward" if expected > self.longest else None


def pictures(count: int, height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw x_0 from the demo pair, mirrored to the size, and x_t at ``TIMESTEP``.

    Each is [count, 3, height, width]; the visible and the infrared one (as gray) in turn, moved.
    """
    gray, color = (torch.from_numpy(plane).float() / 127.5 - 1 for plane in pair(256))
    found = [color.movedim(-1, 0), gray.expand(3, *gray.shape)]
    mirrored = [torch.cat([x, x.flip(1)], 1) for x in found]
    mirrored = [torch.cat([x, x.flip(2)], 2) for x in mirrored]
    times = -(-height // 512), -(-width // 512)
    clean = torch.stack(
        [
            mirrored[n % 2]
            .roll([37 * (n + seed)] * 2, (1, 2))
            .repeat(1, *times)[:, :height, :width]
            for n in range(count)
        ]
    )
    alpha = float(trained_alphas()[TIMESTEP])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return clean, math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise


def denoised_psnr(clean: Tensor, x: Tensor, eps: Tensor) -> float:
    """Return the PSNR in dB of the x_0 that eps implies, for a range of 255."""
    alpha = float(trained_alphas()[TIMESTEP])
    x0 = (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
    return 10 * math.log10(4 / float(F.mse_loss(x0, clean)))


def rms_error(exact: Tensor, found: Tensor) -> float:
    """Return the root mean square of the difference over that of ``exact``."""
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def checked(exact: Tensor, found: Tensor, engine: str, precision: str) -> Parity:
    """Return how far an engine's eps is from the authors' module, and how far it may be."""
    if found.shape != exact.shape:
        raise ValueError(f"the result has shape {tuple(found.shape)}, not {tuple(exact.shape)}")
    worst = apart(exact, found) if precision == "float32" else rms_error(exact, found.float())
    return Parity(f"{engine}, {precision}, against the {OFFICIAL}", worst, LIMITS[precision])


def path_of(engine: str, precision: str) -> str:
    """Return the name of a candidate."""
    return engine if precision == "float32" else f"{engine}, {precision}"


class Contest:
    """One network at one size and batch: engines are made and checked, then timed in turn."""

    def __init__(self, run: Run, work: Work, clean: Tensor):
        self.run, self.work, self.clean = run, work, clean
        self.exact = ENGINES[OFFICIAL].make(work, "float32")().clone()
        self.forwards: dict[str, Forward] = {}
        self.found = Measurement(baseline=OFFICIAL, facts={"missing": [], "made in seconds": {}})

    def add(self, engine: str, precision: str) -> None:
        """Make an engine and compare it; if it is not timed, its row says why."""
        path, x = path_of(engine, precision), self.work.x
        if reason := missing(engine, precision):
            if reason not in self.found.facts["missing"]:
                self.found.facts["missing"].append(reason)
            return
        pixels = x[:, 0].numel()
        candidate = self.found.candidates[path] = Candidate(lossless=precision == "float32")
        if reason := self.run.too_long(self.work.network, path, pixels):
            candidate.about = f"left out: {reason}"
            return
        started = time.monotonic()
        try:
            forward = ENGINES[engine].make(self.work, precision)
            eps = forward().float()
            check = checked(self.exact, eps, engine, precision)
        except Exception as error:  # a failing engine must not cost the others' times
            first = str(error).strip().split("\n")[0]
            candidate.about = f"failed: {type(error).__name__}: {first}"
            return
        self.found.facts["made in seconds"][path] = round(time.monotonic() - started, 1)
        candidate.quality = {"error of eps (rms)": rms_error(self.exact, eps)}
        if self.work.network == "embedded":
            exact, own = (denoised_psnr(self.clean, x, e) for e in (self.exact, eps))
            candidate.quality["dB of denoising lost"] = exact - own
        if engine == OURS and candidate.lossless:  # without it nothing counts
            self.found.parity += require(check)
        elif not check.green:
            candidate.about = f"RED: off by {check.difference:.1e}, more than {check.limit:.0e}"
            return
        self.forwards[path] = forward

    def timed(self) -> Measurement:
        """Time what is green; the seconds per pixel predict the time of the next size."""
        taken = self.run.place.times(self.forwards, rest=REST)
        pixels = self.work.x[:, 0].numel()
        for path, timed in taken.items():
            self.found.candidates[path].samples = timed.samples
            self.run.rates[self.work.network, path] = timed.median / pixels
        self.found.facts |= {"pixels": pixels, "batch": len(self.work.x)}
        return self.found


def impossible(run: Run, name: str, batch: int, size: tuple[int, int]) -> str | None:
    """Return why a whole measurement is left out: its time or its memory."""
    for engine in (OURS, OFFICIAL):  # without both there is nothing to compare
        if reason := run.too_long(name, engine, batch * size[0] * size[1]):
            return f"{engine} takes {reason}"
    prior = load_prior(network(name), device=CPU, dtype="float32")
    needed = prior.activation_bytes(batch, *size) * len(run.engines)
    if needed > SHARE_OF_MEMORY * (machine()["memory_bytes"] or math.inf):
        return f"its engines would hold about {needed / 2**30:.0f} GiB"
    return None


def compare(run: Run, name: str, batch: int, size: tuple[int, int]) -> Measurement:
    """Return a network at a size, by every engine in every precision that it has here."""
    torch.compiler.reset()
    clean, x = pictures(batch, *size, seed=0)
    enough = max(1, round(PICTURES * 256 * 320 / x[:, 0].numel()))
    seeds = range(1, 1 + min(PICTURES, enough))
    calibration = [pictures(batch, *size, seed=seed)[1] for seed in seeds]
    with tempfile.TemporaryDirectory(prefix="ddfm_fast-") as folder:
        work = Work(name, TIMESTEP, x, calibration, run.threads, Path(folder))
        contest = Contest(run, work, clean)
        for engine in run.engines:
            for precision in ENGINES[engine].precisions:
                if precision in run.precisions:
                    contest.add(engine, precision)
        found = contest.timed()
    del contest, work
    gc.collect()
    release_memory()
    return found


def best(measurement: Measurement, wanted: Callable[[str], bool]) -> float:
    """Return the least median of the candidates with wanted names, in seconds; else infinity."""
    found = measurement.candidates.items()
    return min((c.median for name, c in found if c.samples and wanted(name)), default=math.inf)


def lead(measurement: Measurement, int8: bool) -> float:
    """Return the fastest other engine's median over our fastest; in float precision or int8."""
    own = best(measurement, lambda name: name.startswith(OURS))
    return best(measurement, lambda n: not n.startswith(OURS) and n.endswith("int8") == int8) / own


def cell(measurement: Measurement, name: str) -> str:
    """Format milliseconds, median (p20 to p80); else a dash and the reason's first word."""
    c = measurement.candidates.get(name)
    if c is None or not c.samples:
        return "–" if c is None else c.about.partition(":")[0]
    return f"{c.median * 1e3:.4g} ({c.p20 * 1e3:.4g}–{c.p80 * 1e3:.4g})"


def to_markdown(report: Report) -> str:
    """Format the page: the machine, a table of times, what low precision loses, what is absent."""
    green = [m for m in report.measurements if m.green and m.candidates]
    paths = list(dict.fromkeys(name for m in green for name in m.candidates))
    shown = (f"{n} {report.machine[n]}" for n in PACKAGES if report.machine.get(n))
    lines = [
        "# A forward of the prior by several engines, the same weights in all of them",
        "",
        f"`{report.settings['command']}`",
        "",
        *card_lines(report),
        ", ".join(shown),
        "",
        "Milliseconds a forward, median (p20–p80), all in turn in one run, each compared with the "
        f"authors' module first, and timed after {REST:g} s without work and one forward that "
        "does not count. The last two columns: the fastest other engine over our fastest, in a "
        "float precision and in int8; below 1 we are behind.",
        "",
    ]
    rows = [["network", "images", *paths, "others / ours", "int8 / ours"]]
    for m in green:
        leads = (lead(m, int8) for int8 in (False, True))
        cells = (f"{value:.2f}" if math.isfinite(value) else "–" for value in leads)
        rows.append([m.name, m.size, *(cell(m, path) for path in paths), *cells])
    lines += [*markdown_table(rows), "", *losses(green), *absences(report)]
    return "\n".join(lines).rstrip() + "\n"


def losses(measurements: list[Measurement]) -> list[str]:
    """Say what each low precision changes, the worst size of each network."""
    worst: dict[tuple[str, str], list[float]] = {}
    for m in measurements:
        for path, c in m.candidates.items():
            if c.quality and not c.lossless:
                values = [float(v or 0) for v in c.quality.values()]
                before = worst.setdefault((path, m.name), values)
                worst[path, m.name] = [max(p) for p in zip(before, values, strict=True)]
    if not worst:
        return []
    lines = [
        "What it loses, at the worst size (root mean square of the error over that of eps):",
        "",
    ]
    for (path, name), (error, *lost) in worst.items():
        words = f", {lost[0]:.2f} dB of denoising at σ 25" if lost else ""
        lines.append(f"- {path}, {name}: {error:.1e}{words}")
    return [*lines, ""]


def absences(report: Report) -> list[str]:
    """Say what is not in the table and why."""
    reasons = [reason for m in report.measurements for reason in m.facts.get("missing", [])]
    for m in report.measurements:
        where = f"{m.name}, {m.size}"
        reasons += [f"{n}, {where}: {c.about}" for n, c in m.candidates.items() if c.about]
        reasons += [f"{where}: {line}" for line in runner.red([m])]
    reasons += [f"{what}: left out, {why}" for what, why in report.settings["not_run"].items()]
    return [f"- {reason}" for reason in dict.fromkeys(reasons)]


def measure_all(
    run: Run, tasks: list[tuple[str, int, tuple[int, int]]], command: str, minutes: float, out: Path
) -> Path:
    """Return every task that the time allows, the files written after each: JSON, Markdown, PNG."""
    card = machine() | {name: found for name in PACKAGES if (found := installed_version(name))}
    report = Report(card, {}, {"sections": ["engines"], "command": command, "not_run": {}})
    path, started = free_path(out, "engines", report.date[:10]), time.monotonic()
    for name, batch, size in tasks:
        what = named(*size) if batch == 1 else f"{batch} of {named(*size)}"
        spent = time.monotonic() - started > 60 * minutes
        reason = f"{minutes:g} minutes were over" if spent else impossible(run, name, batch, size)
        if reason:
            report.settings["not_run"][f"{name}, {what}"] = reason
        else:
            task = Task("engines", name, what, partial(compare, run, name, batch, size))
            found = replace(runner.measure(task, run.place), command=command)
            report.measurements.append(found)
        typer.echo(f"{name}, {what}: {reason or found.failed or 'done'}")
        save(report, path)  # a run that is stopped keeps what it has
        atomic_write_bytes(path.with_suffix(".md"), to_markdown(report).encode())
        if (png := engines_over_pixels(report)) is not None:
            atomic_write_bytes(path.with_suffix(".png"), png)
    return path


@app.command()
def main(
    networks: Annotated[str | None, typer.Option(help=f"Of {', '.join(NAMES)}.")] = None,
    sizes: Annotated[str, typer.Option(help="HEIGHTxWIDTH, with commas.")] = ",".join(SIZES),
    batches: Annotated[str, typer.Option(help="Images at once, with commas.")] = "1,4",
    engines: Annotated[str | None, typer.Option(help=f"Of {', '.join(ENGINES)}.")] = None,
    precisions: Annotated[str | None, typer.Option(help=f"Of {', '.join(LIMITS)}.")] = None,
    minutes: Annotated[float, typer.Option(help="No measurement starts later.", min=0)] = 60,
    longest: Annotated[float, typer.Option(help="Seconds of the longest forward.", min=0)] = 10,
    rounds: Annotated[int, typer.Option(help="Of each measurement, at most.", min=1)] = 15,
    threads: Annotated[int, typer.Option(help="Of every engine.", min=1)] = 2,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the results.")] = Path("out"),
) -> None:
    """Compare a forward of the prior by ours, the authors' module and other engines."""
    try:
        names = chosen(networks, list(NAMES), "--networks")
        wanted = chosen(engines, list(ENGINES), "--engines")
        low = chosen(precisions, list(LIMITS), "--precisions")
        shapes: list[Any] = [height_and_width(text.strip()) for text in sizes.split(",")]
        counts = [int(text) for text in batches.split(",")]
        if uneven := [s for s in shapes if not s or not min(s) or s[0] % 16 or s[1] % 16]:
            raise ValueError(f"--sizes has {uneven[0]}; expected multiples of 16")
        if min(counts) < 1:
            raise ValueError(f"--batches has {min(counts)}; expected 1 or more")
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    for name in wanted:
        if reason := missing(name, "float32"):
            typer.echo(reason)
    torch.set_num_threads(threads)
    place = Place(CPU, repeats=rounds, seconds=20.0)
    compared = [n for n in ENGINES if n in {*wanted, OURS, OFFICIAL}]
    run = Run(place, compared, threads, longest, ["float32", *low])
    given = f"--networks '{','.join(names)}' --sizes {sizes} --batches {batches}"
    command = f"{COMMAND} {given} --engines '{','.join(wanted)}' --rounds {rounds}"
    command += "" if precisions is None else f" --precisions {precisions}"
    shapes.sort(key=lambda size: size[0] * size[1])  # small ones predict what large ones take
    tasks = [(name, n, size) for n in counts for size in shapes for name in names]
    path = measure_all(run, tasks, command, minutes, out)
    typer.echo(f"wrote {path}, {path.with_suffix('.md').name}, {path.with_suffix('.png').name}")


if __name__ == "__main__":
    app(prog_name=COMMAND)
