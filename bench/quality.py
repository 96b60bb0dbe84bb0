"""``python -m bench.quality``: the quality of our presets' pictures, against stated targets.

``--view`` takes parts and mirrored pairs, ``--prior`` measures reverse steps on clean pictures.

Every set is fused by our presets, by plain baselines, and by what ``balanced`` was in 0.2.0, clean
and corrupted (``corruptions``), and scored in the convention ``cddfuse`` against the clean sources.
A target is a ratio to that older preset on the same pairs. The exit code is 1 if one is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import cv2
import numpy as np
import typer

from ddfm_fast import PRESETS, FuseConfig, Fuser
from ddfm_fast.files.paths import atomic_write_bytes

from .baselines import BASELINES
from .corruptions import CORRUPTIONS, noise_levels
from .machine import machine
from .model import markdown_table
from .peers import Plane, Row, Scene, chosen, read_scenes
from .plots import quality_front
from .results import Candidate, Measurement, Report, free_path, save
from .table import card_lines

BEFORE = FuseConfig(
    variant="gradient", steps=10, start=100, spacing=1.5, psi=5.0, eta=10.0, stretch="percentile"
)
"""``balanced`` of 0.2.0, to which the targets are ratios"""
REFERENCE = "balanced of 0.2.0"
PRESETS_SHOWN = ("balanced", "fast", "robust", "instant")
METRICS = ("VIF", "Qabf", "SCD", "VIF_min", "SSIM", "SSIM_min", "relief")
CORRUPTED = (240, 320)
"""central part that is fused if noise is added"""
VIEWS: dict[str, Callable[[Plane], Plane]] = {
    "whole": lambda plane: plane,
    "mirrored": lambda plane: plane[:, ::-1],
    "turned": lambda plane: np.rot90(plane),
    "corner": lambda plane: plane[1 : 3 * plane.shape[0] // 4, 1 : 3 * plane.shape[1] // 4],
}
"""what is used of each pair: the presets were tuned on the whole ones"""
ETAS = (100, 1000, 3000, 10000)
"""couplings at which the reverse steps are measured, see ``with_steps``"""


class Set(NamedTuple):
    """Folders of a kind of pairs under the data's root."""

    ir: str
    vis: str
    images: str
    corruptions: tuple[str, ...] = ("clean",)


SETS = {
    "infrared-visible": Set("ivf/ir", "ivf/vi", "photographic", tuple(CORRUPTIONS)),
    "CT": Set("mif/MRI_CT/MRI", "mif/MRI_CT/CT", "photographic"),
    "PET": Set("mif/MRI_PET/MRI", "mif/MRI_PET/PET", "functional"),
    "SPECT": Set("mif/MRI_SPECT/MRI", "mif/MRI_SPECT/SPECT", "functional"),
}


class Target(NamedTuple):
    """The least that ``balanced`` must reach."""

    set: str
    corruption: str
    metric: str
    least: float
    absolute: bool = False
    """whether it is a difference, not a ratio; ``relief`` is always a ratio, and an upper limit"""


def _ratios(name: str, corruption: str, **least: float) -> list[Target]:
    return [Target(name, corruption, metric, value) for metric, value in least.items()]


TARGETS = [
    *_ratios("infrared-visible", "clean", VIF=1.2, Qabf=1.15, SCD=0.975, VIF_min=0.97),
    *_ratios("infrared-visible", "clean", SSIM_min=0.8, relief=1.0),
    *_ratios("CT", "clean", VIF=1.2, Qabf=1.18, VIF_min=0.95, SSIM=0.99),
    Target("CT", "clean", "SCD", 0.2, absolute=True),
    *_ratios("PET", "clean", VIF=0.95, Qabf=0.97, SCD=0.97, VIF_min=0.9, SSIM=0.97),
    *_ratios("SPECT", "clean", VIF=0.95, Qabf=0.97, SCD=0.97, VIF_min=0.9, SSIM=0.97),
    *_ratios("infrared-visible", "ir-sigma25", VIF=2.5, SSIM=2.5),
    *_ratios("infrared-visible", "ir-sigma10", VIF=1.6, SSIM=1.4),
    *_ratios("infrared-visible", "low-light", VIF=2.0, SSIM=1.4),
]

Values = dict[tuple[str, str], dict[str, dict[str, float]]]
"""(set, corruption) → method → metric → mean"""


def relief(fused: Plane, vis: Plane) -> float | None:
    """Measure texture in flat bright sky: mean |F − G₄ ∗ F| in gray levels of a luma in 0..255.

    Sky is where the visible luma in [0, 1] is above .7 and its deviation within σ = 3 below .012;
    None if that is less than 200 pixels.
    """
    mean, square = (cv2.GaussianBlur(x.astype(np.float32), (0, 0), 3) for x in (vis, vis * vis))
    sky = (vis > 0.7) & (np.sqrt(np.maximum(square - mean * mean, 0)) < 0.012)
    if sky.sum() < 200:
        return None
    plane = fused.astype(np.float32)
    return float(np.abs(plane - cv2.GaussianBlur(plane, (0, 0), 4))[sky].mean())


def methods(images: str) -> dict[str, Row]:
    """Return a row per method, not yet run."""

    def preset(config: FuseConfig | str):
        def make():
            fuser = Fuser(preset=config, images=images, color=False, device="cpu")
            return lambda scene: fuser(*scene.seen, value_range=(0, 1))

        return make

    def baseline(name: str):
        return lambda: (
            lambda scene: BASELINES[name](
                *scene.seen, noise_levels(scene.corruption, scene.seen[1])
            )
        )

    made = {REFERENCE: preset(BEFORE)}
    made |= {f"preset {name}": preset(name) for name in PRESETS_SHOWN}
    made |= {name: baseline(name) for name in BASELINES}
    return {name: Row(make) for name, make in made.items()}


def with_steps(images: str) -> dict[str, Row]:
    """Return rows for what the prior adds to clean pictures: closed form, and steps around it."""

    def preset(**changed: float | int):
        config = replace(PRESETS["balanced"], denoise="off", **changed)
        fuser = Fuser(preset=config, images=images, color=False, device="cpu")
        return lambda scene: fuser(*scene.seen, value_range=(0, 1))

    made = {"closed form": Row(lambda: preset(steps=0))}
    for eta in ETAS:
        made[f"3 steps from t = 20, η {eta}"] = Row(lambda eta=eta: preset(eta=eta))
    made["10 steps from t = 100, η 1000"] = Row(lambda: preset(steps=10, start=100, eta=1000))
    return made


def scenes_of(root: Path, kind: Set, limit: int | None, view: str = "whole") -> list[Scene]:
    """Return the scenes of a set: clean pairs whole, corrupted ones as their central part."""
    folders = [root / kind.ir, root / kind.vis]
    scenes = read_scenes(folders, ["clean"], None, limit, 64)
    noisy = [name for name in kind.corruptions if name != "clean"]
    scenes += read_scenes(folders, noisy, CORRUPTED, limit, 64) if noisy else []

    def viewed(planes: tuple[Plane, Plane]) -> tuple[Plane, Plane]:
        ir, vis = (np.ascontiguousarray(VIEWS[view](plane)) for plane in planes)
        return ir, vis

    # relief needs the whole picture, which a row keeps as its crop
    whole = (slice(None), slice(None))
    return [replace(s, clean=viewed(s.clean), seen=viewed(s.seen), crop=whole) for s in scenes]


def run(
    root: Path,
    names: list[str],
    limit: int | None = None,
    view: str = "whole",
    rows_of: Callable[[str], dict[str, Row]] = methods,
) -> tuple[Values, Report]:
    """Fuse and score the sets of those names; the report has one measurement per corruption."""
    values: Values = {}
    report = Report(machine(), {}, {"sections": ["quality"], "view": view})
    for name in names:
        scenes = scenes_of(root, SETS[name], limit, view)
        rows = rows_of(SETS[name].images)
        for label, row in rows.items():
            row.run(scenes)
            typer.echo(f"{name}: {label}: {row.failed or 'done'}")
        for corruption in SETS[name].corruptions:
            found = Measurement("quality", f"{name}, {corruption}", "", "python -m bench.quality")
            for label, row in rows.items():
                candidate = row.candidates.get(corruption, Candidate(about=row.failed))
                _add_relief(candidate, row, scenes, corruption)
                found.candidates[label] = candidate
            values[name, corruption] = {m: c.quality for m, c in found.candidates.items()}
            report.measurements.append(found)
    return values, report


def _add_relief(candidate: Candidate, row: Row, scenes: list[Scene], corruption: str) -> None:
    found = [
        value
        for scene in scenes
        if scene.corruption == corruption
        and (fused := row.crops.get((scene.pair, corruption))) is not None
        and (value := relief(fused, scene.clean[1])) is not None
    ]
    if found and corruption == "clean":
        candidate.quality["relief"] = float(np.mean(found))


def verdicts(values: Values) -> list[tuple[Target, float, bool]]:
    """Return what ``balanced`` reached of each target that was run, and whether it is enough."""
    found = []
    for target in TARGETS:
        scores = values.get((target.set, target.corruption))
        if scores is None:
            continue
        ours, before = (
            scores.get(m, {}).get(target.metric) for m in ("preset balanced", REFERENCE)
        )
        if ours is None or before is None:
            continue
        reached = ours - before if target.absolute else ours / before
        enough = reached <= target.least if target.metric == "relief" else reached >= target.least
        found.append((target, reached, enough))
    return found


def to_markdown(values: Values, report: Report) -> str:
    """Return the targets, then a table per set and corruption."""
    rows = [["set", "pairs are", "metric", "target", "reached", ""]]
    for target, reached, enough in verdicts(values):
        sign = "≤" if target.metric == "relief" else "≥"
        unit = "" if target.absolute else " ×"
        cells = [target.set, target.corruption, target.metric.replace("_", " ")]
        rows.append(
            [*cells, f"{sign} {target.least:g}{unit}", f"{reached:.3f}", "" if enough else "missed"]
        )
    lines = [*card_lines(report), "", *(markdown_table(rows) if rows[1:] else [])]
    for (name, corruption), scores in values.items():
        metrics = [m for m in METRICS if any(m in s for s in scores.values())]
        table = [["", *(m.replace("_", " ") for m in metrics)]]
        table += [
            [method, *(f"{s[m]:.3f}" if m in s else "" for m in metrics)]
            for method, s in scores.items()
        ]
        lines += ["", f"## {name}, {corruption}", "", *markdown_table(table)]
    return "\n".join(lines) + "\n"


app = typer.Typer(add_completion=False)


@app.command()
def main(
    root: Annotated[Path, typer.Argument(help="Folder that holds ivf/ and mif/.")] = Path(
        "../shared/data"
    ),
    sets: Annotated[str | None, typer.Option(help="With commas; all if left out.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first pairs.", min=1)] = None,
    view: Annotated[
        str, typer.Option(help=f"What of each pair: {', '.join(VIEWS)}, or all but whole: others.")
    ] = "whole",
    prior: Annotated[
        bool, typer.Option("--prior", help="Only what reverse steps add to clean pictures.")
    ] = False,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the results.")] = Path("out"),
) -> None:
    """Measure our presets against their targets and plain baselines."""
    others = [name for name in VIEWS if name != "whole"]
    try:
        views = others if view == "others" else chosen(view, list(VIEWS), "--view")
        names = chosen(sets, list(SETS), "--sets")
        found = [run(root, names, limit, v, with_steps if prior else methods) for v in views]
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    for name, (values, report) in zip(views, found, strict=True):
        stem = "quality-prior" if prior else "quality" if name == "whole" else f"quality-{name}"
        path = free_path(out, stem, report.date[:10])
        save(report, path)
        text = to_markdown(values, report)
        atomic_write_bytes(path.with_suffix(".md"), text.encode())
        if (figure := quality_front(report)) is not None:
            atomic_write_bytes(path.with_suffix(".png"), figure)
        typer.echo(text)
    missed = [t for values, _ in found for t, _, enough in verdicts(values) if not enough]
    raise typer.Exit(1 if missed else 0)


if __name__ == "__main__":
    app(prog_name="python -m bench.quality")
