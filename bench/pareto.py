"""``python -m bench.pareto``: prior evaluations against quality, over all pairs of data sets.

Fuses every pair with each setting, scores it by ``ddfm_fast.metrics`` (preset cddfuse), and writes
a Markdown table, the numbers per pair as JSON, and a plot. Settings that are in the JSON already
are not computed again unless the prior changed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from ddfm_fast import PRESETS, FuseConfig, Fuser, load_prior
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.images.files import atomic_write_bytes
from ddfm_fast.images.stretch import stretch_minmax, stretch_percentile
from ddfm_fast.metrics import compute
from ddfm_fast.metrics.ablation import PartFuser
from ddfm_fast.metrics.evaluation import read_lumas

from .machine import RESULTS, machine

COLUMNS = (
    "SCD", "CC", "VIF", "VIF_min", "MI", "MI_min", "Qabf", "SSIM", "SSIM_min", "SD", "EN",
)  # fmt: skip
NAMES = tuple(c for c in COLUMNS if not c.endswith("_min"))


def settings() -> dict[str, FuseConfig | None]:
    """Row name → configuration; None for the baselines that need no prior.

    "EM alone" iterates the rectification on the mean of the sources, with no prior at work.
    """
    official = PRESETS["official"]
    gradient = PRESETS["balanced"]
    rows: dict[str, FuseConfig | None] = {
        "mean": None,
        "mean, min-max": None,
        "mean, percentile": None,
        "max": None,
        "gradient, EM alone": gradient,
        "official, EM alone": official.with_overrides(steps=10),
        "preset fast": PRESETS["fast"],
        "preset balanced": PRESETS["balanced"],
    }
    for steps, start, spacing in ((3, 20, 1.5), (5, 50, 1.5), (10, 100, 1.5), (10, 200, 1.0)):
        where = dict(steps=steps, start=start, spacing=spacing)
        rows[f"official, from t = {start}"] = official.with_overrides(**where)
        if start in (50, 200):
            rows[f"gradient, from t = {start}"] = gradient.with_overrides(**where)
    rows["gradient, from t = 20, min-max"] = PRESETS["fast"].with_overrides(stretch="minmax")
    rows["official, 25 steps"] = official.with_overrides(steps=25)
    rows["preset official"] = official
    return rows


def baseline(name: str, ir: torch.Tensor, vis: torch.Tensor) -> torch.Tensor:
    if name == "max":
        return torch.maximum(ir, vis)
    mean = (ir + vis) / 510
    if name == "mean":
        return torch.floor(mean * 255 + 0.5)
    stretch = stretch_minmax if name.endswith("min-max") else stretch_percentile
    return torch.floor(stretch(mean[None, None])[0, 0] * 255 + 0.5)


def score(name: str, config: FuseConfig | None, pairs: list, prior: str = "embedded") -> dict:
    """Means and per-pair values of a row; the fused pictures are rounded to 8 bits."""
    alone = name.endswith("EM alone")
    fuser = None
    if config:
        settings = dict(preset=config, prior=prior)
        fuser = PartFuser("em", **settings) if alone else Fuser(**settings)
    values: dict[str, list[float]] = {c: [] for c in COLUMNS}
    seconds = 0.0
    for ir, vis in pairs:
        start = time.perf_counter()
        if fuser is None:
            fused = baseline(name, ir, vis)
        else:
            fused = fuser(ir.to(torch.uint8).numpy(), vis.to(torch.uint8).numpy())
        seconds += time.perf_counter() - start
        found = compute(fused, ir, vis, names=NAMES)
        for column in COLUMNS:
            values[column].append(float(found[column][0]))
    return {
        "evaluations": config.steps if config and not alone else 0,
        "settings": repr(config),
        "prior": fuser.prior.fingerprint if fuser else "",
        "seconds": seconds,
        "values": values,
    }


def table(rows: dict[str, dict], pairs: slice) -> str:
    lines = ["| | prior evaluations | " + " | ".join(COLUMNS) + " |", "|---" * 13 + "|"]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["evaluations"]):
        means = (f"{np.mean(row['values'][c][pairs]):.3f}" for c in COLUMNS)
        lines.append(f"| {name} | {row['evaluations']} | " + " | ".join(means) + " |")
    return "\n".join(lines)


def plot(rows: dict[str, dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(14, 6.5), sharex=True)
    shown = ("SCD", "VIF", "Qabf", "SSIM", "VIF_min", "SSIM_min")
    colors = plt.get_cmap("tab10")
    for axis, column in zip(axes.flat, shown, strict=True):
        for n, (name, row) in enumerate(rows.items()):
            x, y = max(row["evaluations"], 0.7), np.mean(row["values"][column])
            marker = "*" if name.startswith("preset") else "os^Dv"[n // 10 + 2 * (n % 2)]
            size = 13 if marker == "*" else 7
            axis.plot(x, y, marker, color=colors(n % 10), markersize=size, label=name)
        axis.set(xscale="log", title=column)
    for axis in axes[1]:
        axis.set_xlabel("prior evaluations (none: at the left)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="center right", fontsize=8)
    figure.tight_layout(rect=(0, 0, 0.82, 1))
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.pareto", description=__doc__)
    parser.add_argument("roots", nargs="+", type=Path, help="data sets, in any known layout")
    parser.add_argument("--name", default="pareto", help="results/<name>.{json,md,png}")
    parser.add_argument("--prior", default="embedded", help="as for load_prior")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows in place of all")
    args = parser.parse_args()
    wanted = settings()
    if unknown := set(args.only or ()) - set(wanted):
        parser.error(f"--only {sorted(unknown)}, expected rows out of {', '.join(wanted)}")
    groups = {root.name: find_pairs(root) for root in args.roots}
    pairs = [read_lumas(item) for items in groups.values() for item in items]
    path = RESULTS / f"{args.name}.json"
    old = json.loads(path.read_text())["rows"] if path.is_file() else {}
    prior = load_prior(args.prior).fingerprint
    rows = {}
    for name, config in wanted.items():
        if args.only and name not in args.only:
            continue
        known = old.get(name)
        if known and known["settings"] == repr(config) and known["prior"] in ("", prior):
            rows[name] = known
            continue
        rows[name] = score(name, config, pairs, args.prior) | {"commit": machine()["commit"]}
        print(f"{name}: {rows[name]['seconds']:.0f} s", flush=True)
        report = {"machine": machine(), "groups": {k: len(v) for k, v in groups.items()}}
        atomic_write_bytes(path, json.dumps({**report, "rows": {**old, **rows}}).encode())
    commits = sorted({row["commit"] for row in rows.values()})
    text, first = [], 0
    text.append(
        f"Metric convention cddfuse, prior {args.prior} ({prior[:12]}), seed 3407, commit "
        f"{', '.join(commits)}; settings and values per pair in {path.name}.\n"
    )
    text.append(f"## All {len(pairs)} pairs\n\n{table(rows, slice(None))}\n")
    for group, items in groups.items():
        part = slice(first, first + len(items))
        text.append(f"## {group}, {len(items)} pairs\n\n{table(rows, part)}\n")
        first += len(items)
    atomic_write_bytes(RESULTS / f"{args.name}.md", "\n".join(text).encode())
    plot(rows, RESULTS / f"{args.name}.png")
    print("\n".join(text))


if __name__ == "__main__":
    main()
