"""Which architecture and loss weighting the embedded prior gets: ``python -m bench.prior_search``.

Trains every candidate alike, for a short while, and sets its held-out loss beside its cost a
pixel. "level mean" is the geometric mean over ranges of t of the loss divided by the first
candidate's: the plain mean is nearly all decided below t = 150.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from ddfm_fast.priors.checkpoint import atomic_path
from ddfm_fast.priors.cost import engine_cost, parameter_count
from ddfm_fast.priors.training.photos import find_photos
from ddfm_fast.priors.training.train import PRECISIONS, WEIGHTINGS, Run, Settings
from ddfm_fast.priors.unet import UNetConfig

OPTIONS = (
    "sigma_data", "unshuffle", "channels", "multipliers", "blocks", "attention",
    "residual resampling",
)  # fmt: skip
CANDIDATES = {
    "first": (0.0, 2, 32, (1, 2, 2, 2), 1, (), True),
    "a": (3.0, 2, 32, (1, 2, 2, 2), 1, (), True),
    "b": (3.0, 2, 32, (1, 2, 2, 3), 1, (), False),
    "c": (3.0, 2, 32, (1, 1, 2, 2), 2, (), False),
    "f": (3.0, 4, 64, (1, 2), 1, (), False),
    "h": (3.0, 2, 32, (1, 1, 2, 2), 3, (), False),
    "c8": (3.0, 2, 32, (1, 1, 2, 2), 2, (8,), False),
}
HELDOUT_COUNT = 400


def config_of(name: str) -> UNetConfig:
    """The network of a candidate."""
    sigma_data, unshuffle, channels, mult, blocks, attention, residual = CANDIDATES[name]
    return UNetConfig(
        model_channels=channels,
        num_res_blocks=blocks,
        channel_mult=mult,
        attention_resolutions=attention,
        num_head_channels=32,
        out_channels=3,
        use_scale_shift_norm=True,
        resblock_updown=residual,
        pixel_unshuffle=unshuffle,
        middle_attention=False,
        sigma_data=sigma_data,
    )


def train_one(name: str, weighting: str, photos: list[Path], options: argparse.Namespace) -> dict:
    """Train a candidate and measure it; the row of the table."""
    steps, lr = options.steps, options.lr
    settings = Settings(
        steps=steps,
        batch=16,
        patch=64,
        lr=lr,
        seed=options.seed,
        holdout=3,
        weighting=weighting,
        precision=options.precision,
        ema_decay=0.998,
        compiled=True,
        wide_every=0,
    )
    config = config_of(name)
    run = Run(config, settings, photos)
    with tqdm(total=steps, desc=f"{name} {weighting}", unit="step", mininterval=5) as bar:
        while not run.finished():
            run.train_step()
            bar.update()
    cost = engine_cost(config, 1, 256, 256, torch.float32, fused=False)
    return {
        "candidate": name,
        "weighting": weighting,
        "steps": steps,
        "lr": lr,
        "precision": options.precision,
        **dict(zip(OPTIONS, CANDIDATES[name], strict=True)),
        "parameters": parameter_count(config),
        "kflop_a_pixel": round(cost.flops / 256**2 / 1e3, 1),
        "bytes_a_pixel": round(cost.bytes / 256**2),
        "heldout": run.heldout_loss(HELDOUT_COUNT),
    }


def level_mean(heldout: dict[str, float], first: dict[str, float]) -> float:
    """Geometric mean over the ranges of t of the loss divided by the first candidate's."""
    ratios = [heldout[k] / first[k] for k in first if k != "all"]
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def table(rows: list[dict]) -> str:
    """The rows as Markdown, against the first of them."""
    first = rows[0]["heldout"]
    ranges = [k for k in first if k != "all"]
    head = [
        "",
        "loss",
        "steps",
        "rate",
        *OPTIONS,
        "M parameters",
        "kFLOP/pixel",
        "level mean",
        "all t",
    ]
    head += [f"t {k}" for k in ranges]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["candidate"], row["weighting"], str(row["steps"]), f"{row['lr']:g}"]
        for option in OPTIONS:
            value = row[option]
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            cells.append({"True": "yes", "False": "no", "": "none"}.get(text, text))
        cells += [f"{row['parameters'] / 1e6:.2f}", f"{row['kflop_a_pixel']:.0f}"]
        cells += [f"{level_mean(row['heldout'], first):.3f}", f"{row['heldout']['all']:.5f}"]
        cells += [f"{row['heldout'][k]:.5f}" for k in ranges]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.prior_search",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  every architecture, then print all rows of the file as a table:
    python -m bench.prior_search --data photos --out search.json a b c f h
  the weightings for one of them:
    python -m bench.prior_search --data photos --out search.json a:p2 a:min-snr""",
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="candidate[:weighting]; rows in --out are kept")
    add("--data", type=Path, required=True, metavar="FOLDER", help="folder of photographs")
    add("--out", type=Path, required=True, metavar="JSON", help="rows, added to what is there")
    add("--steps", type=int, default=1500, help="updates of each (default %(default)s)")
    add("--lr", type=float, default=1e-3, help="peak learning rate (default %(default)s)")
    add("--seed", type=int, default=0)
    add("--precision", default="bfloat16", choices=PRECISIONS, help="of the convolutions")
    add("--threads", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    photos = find_photos(options.data)
    for text in options.runs:
        name, _, weighting = text.partition(":")
        if name not in CANDIDATES or (weighting or "eps") not in WEIGHTINGS:
            parser.error(
                f"RUN {text!r}, expected one of {', '.join(CANDIDATES)} and, after a colon, "
                f"nothing or one of {', '.join(WEIGHTINGS)}"
            )
        row = train_one(name, weighting or "eps", photos, options)
        rows = json.loads(options.out.read_text()) if options.out.is_file() else []
        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps([*rows, row], indent=1) + "\n")
    if options.out.is_file():
        print(table(json.loads(options.out.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
