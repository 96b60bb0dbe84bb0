"""Train an unconditional prior: ``python -m ddfm_fast.priors.training.train --help``.

From Python: :func:`ddfm_fast.priors.training.run.train_prior`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from .architectures import ARCHITECTURES, architecture, parse_numbers
from .command import Threads, make_app, start
from .diffusion import LEVELS, WEIGHTINGS
from .run import PRECISIONS, Settings, train_prior

MODULE = "ddfm_fast.priors.training.train"
EPILOG = f"""
Examples:

\b
As the embedded prior was made (its model card says how long that takes):
  python -m {MODULE} --data photos --out prior.safetensors
Resume after an interruption (same options as before; the result is the same):
  python -m {MODULE} --data photos --out prior.safetensors --resume
As the denoiser of gray sources was made:
  python -m {MODULE} --data photos --out gray.safetensors --arch gray \
      --levels low --lr 2e-3 --batch 8 --steps 9000 --precision float32
Try the path in a minute:
  python -m {MODULE} --data photos --out p.safetensors --steps 200 --no-compile
Look at what it learnt:
  python -m ddfm_fast.priors.training.evaluate prior.safetensors --out looks
Use it:
  ddfm-fast fuse ir.png vis.png -o fused.png --prior prior.safetensors

Beside prior.safetensors (float16, averaged weights) lie prior.state.pt, to resume from,
prior.log.jsonl, one line of losses every --log-every steps, and, with matplotlib installed,
prior.curve.png, drawn from it at the end.
"""


def _of(names) -> str:
    return f"[{'|'.join(names)}]"


Data = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder of photographs.", show_default=False)
]
Out = Annotated[Path, typer.Option(metavar="FILE", help="The prior, a .safetensors file.")]
Steps = Annotated[int, typer.Option(help="Updates.")]
Batch = Annotated[int, typer.Option(help="Patches per update.")]
Patch = Annotated[int, typer.Option(help="Side of a patch in pixels.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int, typer.Option(help="Decides weights, patches and noise.")]
Holdout = Annotated[int, typer.Option(help="Photographs kept for the held-out loss.")]
Weighting = Annotated[
    str, typer.Option(metavar=_of(WEIGHTINGS), help="Weighting of the loss by noise level.")
]
Levels = Annotated[
    str,
    typer.Option(
        metavar=_of(LEVELS),
        help="Noise levels: all alike, or three quarters below 60 of 255, for a denoiser.",
    ),
]
Start = Annotated[
    str | None, typer.Option(metavar="PRIOR", help="Prior whose weights to start from.")
]
Precision = Annotated[
    str,
    typer.Option(
        metavar=_of(PRECISIONS),
        help="Of the convolutions; weights and norms' statistics stay in float32.",
    ),
]
Ema = Annotated[float, typer.Option(help="Decay of the averaged weights.")]
Device = Annotated[str, typer.Option(help='"cpu", "cuda", or "auto": CUDA where there is one.')]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the step: minutes at the start, then about twice as fast.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume from the state beside --out.")]
SaveMinutes = Annotated[float, typer.Option(help="Minutes between checkpoints.")]
LogEvery = Annotated[int, typer.Option(help="Steps between log lines.")]
Arch = Annotated[
    str, typer.Option(metavar=_of(ARCHITECTURES), help="What the options below start from.")
]
Unshuffle = Annotated[int | None, typer.Option(help="Fold u x u pixels into channels.")]
Channels = Annotated[int | None, typer.Option(help="Base channels, a multiple of 32.")]
ChannelMult = Annotated[str | None, typer.Option(help="A multiplier per level, such as 1,2,2,2.")]
Blocks = Annotated[int | None, typer.Option(help="Residual blocks per level.")]
Attention = Annotated[
    str | None, typer.Option(help="Downsampling rates with attention, such as 8,16, or none.")
]
ResidualResampling = Annotated[
    bool | None,
    typer.Option(
        "--residual-resampling/--no-residual-resampling",
        help="Resample in residual blocks instead of by a convolution.",
    ),
]


def command(
    out: Out,
    data: Data = None,
    steps: Steps = 36000,
    batch: Batch = 16,
    patch: Patch = 64,
    lr: Rate = 3e-3,
    seed: Seed = 0,
    holdout: Holdout = 3,
    weighting: Weighting = "p2-mild",
    levels: Levels = "uniform",
    start: Start = None,
    precision: Precision = "bfloat16",
    ema: Ema = 0.9995,
    device: Device = "auto",
    threads: Threads = 0,
    compile: Compile = True,
    resume: Resume = False,
    save_minutes: SaveMinutes = 4,
    log_every: LogEvery = 250,
    arch: Arch = "embedded",
    unshuffle: Unshuffle = None,
    channels: Channels = None,
    channel_mult: ChannelMult = None,
    blocks: Blocks = None,
    attention: Attention = None,
    residual_resampling: ResidualResampling = None,
) -> None:
    """Train a small unconditional diffusion prior on a folder of photographs."""
    if threads:
        torch.set_num_threads(threads)
    if data is None:
        raise ValueError("--data is missing; give a folder of photographs")
    config = architecture(
        arch,
        pixel_unshuffle=unshuffle,
        model_channels=channels,
        channel_mult=parse_numbers("--channel-mult", channel_mult),
        num_res_blocks=blocks,
        attention_resolutions=parse_numbers("--attention", attention),
        resblock_updown=residual_resampling,
    )
    settings = Settings(
        steps, batch, patch, lr, seed, holdout, weighting, precision, ema,
        compiled=compile, levels=levels,
    )  # fmt: skip
    train_prior(
        data, out, settings, config,
        device=device, resume=resume, save_minutes=save_minutes, log_every=log_every, start=start,
    )  # fmt: skip


app = make_app(MODULE, command, EPILOG)

if __name__ == "__main__":
    start(app)
