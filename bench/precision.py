"""``python -m bench.precision IVF_FOLDER``: what a low precision of the prior costs in the picture.

Fuses pairs with each preset in each precision, and compares the fused luma with that of float32:
PSNR (peak 255, before rounding to 8 bits), the largest difference, and the metrics (preset
cddfuse, on the picture rounded to 8 bits). On a CPU "tf32" is float32 and is left out; on CUDA it
is measured too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from ddfm_fast import Fuser
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.images.files import atomic_write_bytes
from ddfm_fast.metrics import compute
from ddfm_fast.metrics.evaluation import read_lumas

from .machine import RESULTS, machine

COLUMNS = ("EN", "SD", "MI", "VIF", "Qabf", "SSIM", "SCD")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of planes in [0, 1]; infinite where they are equal."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def measure(preset: str, pairs: list, precisions: list[str], device: str, prior: str) -> dict:
    """precision → lists over the pairs: psnr, largest difference (of 255), and each metric."""
    found = {p: {c: [] for c in ("psnr", "largest", *COLUMNS)} for p in precisions}
    fusers = {
        p: Fuser(prior=prior, preset=preset, device=device, dtype=p, color=False)
        for p in precisions
    }
    for name, ir, vis in pairs:
        sources = [(plane / 255).float().numpy() for plane in (ir, vis)]
        fused = {p: fuser(*sources) for p, fuser in fusers.items()}
        for p, picture in fused.items():
            row = found[p]
            row["psnr"].append(psnr(picture, fused["float32"]))
            row["largest"].append(255 * float(np.abs(picture - fused["float32"]).max()))
            scores = compute(np.floor(picture * 255 + 0.5), ir, vis, names=COLUMNS)
            for column in COLUMNS:
                row[column].append(float(scores[column][0]))
        print(preset, name, {p: round(found[p]["psnr"][-1], 1) for p in precisions[1:]}, flush=True)
    return found


def lines(results: dict[str, dict]) -> list[str]:
    """A Markdown table: a row a preset and precision, means over the pairs."""
    head = ["preset, precision", "pairs", "PSNR, mean", "PSNR, worst", "largest of 255", *COLUMNS]
    table = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for preset, rows in results.items():
        for precision, row in rows.items():
            mean = {c: statistics.fmean(row[c]) for c in COLUMNS}
            same = precision == "float32"
            cells = [
                f"{preset}, {precision}",
                str(len(row["psnr"])),
                "–" if same else f"{statistics.fmean(row['psnr']):.1f}",
                "–" if same else f"{min(row['psnr']):.1f}",
                "–" if same else f"{max(row['largest']):.2f}",
                *(f"{mean[c]:.4f}" for c in COLUMNS),
            ]
            table.append("| " + " | ".join(cells) + " |")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.precision", description=__doc__)
    parser.add_argument("folder", type=Path, help="a data set of pairs")
    parser.add_argument("--presets", default="official,balanced,fast")
    parser.add_argument("--limit", type=int, help="most pairs of each preset")
    parser.add_argument("--limit-official", type=int, help="most pairs of the preset official")
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads for PyTorch")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of precision.md, .json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    about = machine() | {"device": args.device, "prior": args.prior}  # of the code as it started
    pairs = []
    for item in find_pairs(args.folder)[: args.limit]:
        ir, vis = read_lumas(item)
        pairs.append((item.name, ir, vis))
    precisions = [p for p in PRECISIONS if p != "tf32" or args.device.startswith("cuda")]
    results = {}
    for preset in args.presets.split(","):
        # spread over the list, so that few pairs are of more than one kind
        most = args.limit_official if preset == "official" else None
        chosen = pairs if most is None else pairs[:: max(1, -(-len(pairs) // most))]
        results[preset] = measure(preset, chosen, precisions, args.device, args.prior)
    table = lines(results)
    report = {"machine": about, "date": str(datetime.date.today()), "results": results}
    args.out.mkdir(parents=True, exist_ok=True)
    text = [
        "# What a low precision of the prior costs in the picture",
        "",
        f"Prior {args.prior} on {args.device} ({about['cpu']}), commit {about['commit']}, "
        f"{report['date']}; made by `python -m bench.precision`. PSNR in dB of the fused luma "
        "against float32 of the same preset; largest: the largest difference of any pixel in grey "
        "levels; the rest are means of the metrics (cddfuse).",
        "",
        *table,
    ]
    atomic_write_bytes(args.out / "precision.md", ("\n".join(text) + "\n").encode())
    atomic_write_bytes(args.out / "precision.json", (json.dumps(report, indent=1) + "\n").encode())
    print("\n".join(table))


if __name__ == "__main__":
    main()
