"""``python -m bench.peers``: our presets and plain baselines beside public networks.

Every method fuses the same pairs, clean and corrupted (``corruptions``), and is scored in the
convention ``cddfuse`` against the clean sources. The output is a result in the project's format, a
table in Markdown, and one sheet of crops. If a method fails, a sentence in its row says why.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from ddfm_fast import PRESETS, Fuser
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.paths import atomic_write_bytes
from ddfm_fast.files.reading import read_image
from ddfm_fast.files.writing import write_image
from ddfm_fast.images.panel import draw_panel
from ddfm_fast.metrics import compute, to_luma

from .adapters import PEERS, Method, Plane
from .baselines import BASELINES
from .corruptions import CORRUPTIONS, noise_levels
from .machine import machine
from .memory import peak_of
from .model import markdown_table
from .results import Candidate, Measurement, Report, free_path, save
from .table import card_lines, seconds, size

CPU = torch.device("cpu")
EPILOG = "Peers: " + ", ".join(f"{name} (git clone {p.repository})" for name, p in PEERS.items())
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Scene:
    """A pair and its corrupted form: float32 lumas [H, W] in [0, 1]; ``crop`` is for the sheet."""

    pair: str
    corruption: str
    clean: tuple[Plane, Plane]
    seen: tuple[Plane, Plane]
    crop: tuple[slice, ...]


def middle(shape: tuple[int, ...], most: tuple[int, ...]) -> tuple[slice, ...]:
    """Cut out the central part, of at most that size."""
    sizes = [min(pair) for pair in zip(shape, most, strict=True)]
    starts = [(n - size) // 2 for n, size in zip(shape, sizes, strict=True)]
    return tuple(slice(start, start + n) for start, n in zip(starts, sizes, strict=True))


def read_scenes(
    root: list[Path], names: list[str], shape: tuple[int, ...] | None, limit: int | None, side: int
) -> list[Scene]:
    """Read the pairs' lumas, in whole gray levels, and corrupt them, each by its own seed."""
    scenes = []
    for seed, item in enumerate(find_pairs(root if len(root) > 1 else root[0])[:limit]):
        lumas = [to_luma(read_image(path)).numpy() for path in (item.ir, item.vis)]
        cut = middle(lumas[0].shape, shape or lumas[0].shape)
        ir, vis = ((p[cut] / 255).astype(np.float32) for p in lumas)
        crop = middle(ir.shape, (side, side))
        for name in names:
            seen = CORRUPTIONS[name](ir, vis, seed)
            scenes.append(Scene(item.name, name, (ir, vis), seen, crop))
    return scenes


def methods(
    peers: dict[str, Path], presets: list[str]
) -> dict[str, Callable[[], Callable[[Scene], Plane]]]:
    """List every method with a function that makes it: loading may fail, and takes memory."""

    def of_lumas(fused: Method) -> Callable[[Scene], Plane]:
        return lambda scene: fused(*scene.seen)

    def preset(name: str) -> Callable[[Scene], Plane]:
        fuser = Fuser(preset=name, color=False, device="cpu", progress=False)
        return of_lumas(lambda ir, vis: fuser(ir, vis, value_range=(0, 1)))

    def baseline(name: str) -> Callable[[Scene], Plane]:
        return lambda scene: BASELINES[name](
            *scene.seen, noise_levels(scene.corruption, scene.seen[1])
        )

    made = {name: lambda name=name: baseline(name) for name in BASELINES}
    made |= {f"preset {name}": lambda name=name: preset(name) for name in presets}
    return made | {
        name: lambda name=name, folder=folder: of_lumas(PEERS[name].load(folder))
        for name, folder in peers.items()
    }


class Row:
    """One method over all scenes."""

    def __init__(self, make: Callable[[], Callable[[Scene], Plane]]):
        self.crops: dict[tuple[str, str], Plane] = {}
        self.candidates: dict[str, Candidate] = {}
        self.values: dict[str, list[dict[str, float]]] = {}
        self.make = make
        self.failed = ""

    def run(self, scenes: list[Scene]) -> None:
        """Load, fuse once for the peak memory, then fuse every scene; the first failure ends it."""
        try:
            fused = self.make()
            release_memory()
            peak = peak_of(lambda: fused(scenes[-1]), CPU)  # a noisy one, if there is any
            for scene in scenes:
                self._add(scene, fused, peak)
        except Exception as error:  # a failing method must not cost the others' results
            first = str(error).strip().split("\n")[0]
            self.failed = f"{type(error).__name__}: {first}"
        for name, candidate in self.candidates.items():
            values = self.values[name]
            common = [n for n in values[0] if all(n in v for v in values)]  # small pairs have fewer
            candidate.quality = {n: float(np.mean([v[n] for v in values])) for n in common}

    def _add(self, scene: Scene, fused: Callable[[Scene], Plane], peak: int | None) -> None:
        start = time.perf_counter()
        plane = fused(scene)
        took = time.perf_counter() - start
        if plane.ndim != 2 or not np.isfinite(plane).all():
            raise ValueError(f"the result is no finite plane, but of shape {plane.shape}")
        gray = np.floor(np.clip(plane, 0, 1) * 255 + 0.5).astype(np.uint8)
        height, width = gray.shape  # a preset may crop at the bottom and right
        sources = (np.round(p[:height, :width] * 255) for p in scene.clean)
        found = compute(gray, *(torch.from_numpy(p) for p in sources))
        candidate = self.candidates.setdefault(scene.corruption, Candidate(memory=peak))
        candidate.samples.append(took)
        self.values.setdefault(scene.corruption, []).append(
            {name: float(value[0]) for name, value in found.items()}
        )
        self.crops[scene.pair, scene.corruption] = gray[scene.crop]


def release_memory() -> None:
    """Return freed memory to the system, if the C library can: it would hide a peak."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def report_of(rows: dict[str, Row], scenes: list[Scene], settings: dict) -> Report:
    """Make a measurement per corruption, with a candidate per method, and the pairs' values."""
    report = Report(machine(), {}, {"sections": ["peers"], **settings})
    pairs = list(dict.fromkeys(scene.pair for scene in scenes))
    shapes = sorted({"x".join(map(str, scene.clean[0].shape)) for scene in scenes})
    for name in dict.fromkeys(scene.corruption for scene in scenes):
        found = Measurement("peers", name, ", ".join(shapes), settings["command"])
        found.facts = {"convention": "cddfuse", "pairs": pairs, "values": {}}
        for method, row in rows.items():
            candidate = row.candidates.get(name, Candidate())
            if row.failed:
                candidate = Candidate(about=f"failed: {row.failed}")
            found.candidates[method] = candidate
            found.facts["values"][method] = row.values.get(name, [])
        report.measurements.append(found)
    return report


def to_markdown(report: Report) -> str:
    """Format a table per corruption: seconds of the median image, memory, every metric's mean."""
    pairs = report.measurements[0].facts["pairs"]
    lines = [
        *card_lines(report),
        "",
        f"{len(pairs)} pairs, {report.measurements[0].size}; means of the convention cddfuse "
        "against the clean sources (`_min`: the worse source); median seconds per image, each "
        "method by itself after one call; memory of the first call above what was there.",
    ]
    for measurement in report.measurements:
        green = [c.quality for c in measurement.candidates.values() if c.quality]
        names = [n for n in (green[0] if green else {}) if not n.endswith(("_ir", "_vis"))]
        rows = [["", "time", "memory", *names]]
        for method, c in measurement.candidates.items():
            if not c.samples:
                rows.append([method, c.about, "", *[""] * len(names)])
                continue
            memory = "" if c.memory is None else size(c.memory)
            scores = (f"{c.quality[name]:.3f}" for name in names)
            rows.append([method, seconds(c.median), memory, *scores])
        lines += ["", f"## {measurement.name}", "", *markdown_table(rows)]
    return "\n".join(lines) + "\n"


def sheet(rows: dict[str, Row], scenes: list[Scene]) -> Plane:
    """Draw the crops: a row per scene, the sources as methods saw them, then every method."""
    drawn = []
    for scene in scenes:
        ir, vis = ((p[scene.crop] * 255 + 0.5).astype(np.uint8) for p in scene.seen)
        row = [(f"{scene.pair} {scene.corruption}", ir), ("visible", vis)]
        key = scene.pair, scene.corruption
        blank = np.zeros_like(ir)
        row += [(name, r.crops.get(key, blank)) for name, r in rows.items() if r.crops]
        drawn.append(row)
    return draw_panel(drawn)[..., 0]  # all of it is gray


def chosen(text: str | None, known: list[str], option: str) -> list[str]:
    """Read a list with commas; ValueError for an unknown name."""
    names = [name.strip() for name in text.split(",") if name.strip()] if text else known
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option} has {unknown[0]!r}; expected some of {', '.join(known)}")
    return names


def height_and_width(text: str | None) -> tuple[int, ...] | None:
    """Read HEIGHTxWIDTH."""
    parts = text.lower().split("x") if text else []
    if parts and not (len(parts) == 2 and all(part.isdecimal() for part in parts)):
        raise ValueError(f"--size is {text!r}; expected HEIGHTxWIDTH, such as 240x320")
    return tuple(map(int, parts)) or None


def folders(given: list[str]) -> dict[str, Path]:
    """Read NAME=FOLDER of every peer."""
    found = {}
    for text in given:
        name, _, folder = text.partition("=")
        if name not in PEERS or not folder:
            raise ValueError(
                f"--peer is {text!r}; expected NAME=FOLDER with one of {', '.join(PEERS)}"
            )
        found[name] = Path(folder).expanduser().resolve()
    return found


@app.command(epilog=EPILOG)
def main(
    root: Annotated[list[Path], typer.Argument(help="A data set, or two folders: ir, vis.")],
    peer: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of a clone.")] = None,
    presets: Annotated[str | None, typer.Option(help="Ours, with commas; all if left out.")] = None,
    corruptions: Annotated[str | None, typer.Option(help="With commas; all if left out.")] = None,
    size: Annotated[str | None, typer.Option(help="Central part, HEIGHTxWIDTH.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first pairs.", min=1)] = None,
    crop: Annotated[int, typer.Option(help="Side of the sheet's crops.", min=16)] = 160,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the results.")] = Path("out"),
) -> None:
    """Compare our presets and plain baselines with public fusion networks."""
    try:
        peers = folders(peer or [])
        ours = chosen(presets, list(PRESETS), "--presets")
        names = chosen(corruptions, list(CORRUPTIONS), "--corruptions")
        shape = height_and_width(size)
        scenes = read_scenes(root, names, shape, limit, crop)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    options = [f"--peer {name}=FOLDER" for name in peers]  # the paths are private
    options += [f"--presets {','.join(ours)}", f"--corruptions {','.join(names)}"]
    options += [f"--{key} {value}" for key, value in (("size", size), ("limit", limit)) if value]
    command = " ".join(["python -m bench.peers PAIRS", *options])
    rows: dict[str, Row] = {}
    path: Path | None = None
    for name, make in methods(peers, ours).items():
        rows[name] = Row(make)
        rows[name].run(scenes)
        typer.echo(f"{name}: {rows[name].failed or 'done'}")
        report = report_of(rows, scenes, {"command": command})
        path = path or free_path(out, "peers", report.date[:10])
        save(report, path)  # a run that is stopped keeps what it has
        atomic_write_bytes(path.with_suffix(".md"), to_markdown(report).encode())
    write_image(path.with_suffix(".png"), sheet(rows, scenes))
    typer.echo(f"wrote {path}, {path.with_suffix('.md').name}, {path.with_suffix('.png').name}")


if __name__ == "__main__":
    app(prog_name="python -m bench.peers")
