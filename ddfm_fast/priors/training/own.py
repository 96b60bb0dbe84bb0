"""Train a prior on one's own pictures, from the embedded prior's weights, and compare the two."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import describe
from ..load import load_prior
from ..network import UNetPrior
from ..precision import cpu_has
from ..prior import Prior
from ..unet_config import UNetConfig
from .architectures import ARCHITECTURES
from .diffusion import alphas_cumprod
from .evaluate import write_palette
from .measures import center, eps_losses, noisy, sample, to_x0
from .photos import LUMA, find_photos, hash_files, read_photo, split_photos
from .run import Run, Settings, pick_device, state_path, train

NOISE = (5, 15, 30, 60, 120)
"""noise in gray levels of 255 at which a prior is compared with another"""
GRAY_NOISE = NOISE[:-1]
"""the same for gray priors, of which the embedded one is only a denoiser"""
PATCH = 64
_MOST_HELD = 8
_TIMED = 4
_SHEET = 128
_SAMPLE_STEPS = 50


class Outcome(NamedTuple):
    """A finished training, and how it compares."""

    path: Path
    updates: int
    minutes: float
    noise: tuple[int, ...]
    """gray levels"""
    psnr: list[float]
    """of held-out pictures denoised at each, in decibels"""
    embedded_psnr: list[float]
    """likewise by the prior of the package"""
    held_out: list[str]
    """names of the pictures"""
    sheet: Path
    """pictures of denoisings and of samples"""

    @property
    def gain(self) -> float:
        """Mean decibels above the prior of the package."""
        return float(np.mean(np.subtract(self.psnr, self.embedded_psnr)))

    @property
    def better(self) -> bool:
        """Whether it denoises pictures like these better than the prior of the package."""
        return self.gain > 0


def train_own(
    folder: Path,
    out: Path,
    *,
    gray: bool = False,
    minutes: float = 60,
    updates: int | None = None,
    start: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Outcome:
    """Train a prior on a folder of pictures, and compare it with the one of the package.

    The network is that of "embedded", or of "embedded-gray". Every fifth picture or so, eight at
    most, is held out. Called again after an interruption, it resumes from the state next to
    ``out``, with the settings of the interrupted run.

    Args:
        folder: The folder of pictures, 8 bits or deeper.
        out: The prior, a .safetensors file; state, log and sheet lie next to it.
        gray: Train with one channel, for thermal, MRI or SAR.
        minutes: Approximate duration, from which the number of updates is estimated.
        updates: Number of updates, instead of ``minutes``.
        start: Prior whose weights to start from (default: the package's), "none" for random ones.
        device: "cpu", "cuda" or "auto": CUDA if there is one.
        progress: Show bars.

    Raises:
        ValueError: An argument is wrong, or the pictures are not those of the run to resume.
        FloatingPointError: The loss is not finite.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {str(out)!r} must end in .safetensors")
    if updates is None and not 0 < minutes < 1e5:
        raise ValueError(f"--minutes is {minutes}; expected a number above 0")
    base = "embedded-gray" if gray else "embedded"
    config = ARCHITECTURES["gray" if gray else "embedded"]
    device = pick_device(device)
    photos = find_photos(folder, "FOLDER")
    settings = _resumed(out, photos, config)
    resume, first, weights = settings is not None, None, None
    if settings is None:
        first = None if start == "none" else _network(start or base)
        settings = _settings(photos, config, first, device)
        weights = first.unet if first else None
        counted = updates or _affordable(Run(config, settings, photos, device, weights), minutes)
        settings = replace(settings, steps=counted, ema_decay=_decay(counted))
    run = Run(config, settings, photos, device, weights)
    every = max(1, min(250, settings.steps // 10))
    train(run, out, save_minutes=1, log_every=every, resume=resume, progress=progress)
    return judged(out, base, photos, settings, progress=progress)


def _network(start: str) -> UNetPrior:
    prior = load_prior(start)
    if not isinstance(prior, UNetPrior):
        raise ValueError(
            f"--start {start!r} is not a network of ddfm_fast; give a checkpoint, or none"
        )
    return prior


def _resumed(out: Path, photos: list[Path], config: UNetConfig) -> Settings | None:
    """Read the settings of the run to resume; None if there is none."""
    path = state_path(out)
    if not path.is_file():
        if out.exists():
            raise ValueError(
                f"--out {str(out)!r} exists, without the state of a training to resume; choose "
                "another name, or remove it"
            )
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        settings, same = Settings(**state["settings"]), state["data_sha256"] == hash_files(photos)
        other = state["config"] != config.to_dict()
    except Exception as error:  # a damaged file may make PyTorch raise anything
        raise ValueError(
            f"--out: {str(path)!r} is not the state of a training ({type(error).__name__}); remove "
            "it to start again"
        ) from None
    if other or not same:
        what = "a network of other channels" if other else "other pictures"
        raise ValueError(
            f"--out: {str(path)!r} is of {what}; give the folder and --gray of its first call, or "
            "choose another name"
        )
    return settings


def _settings(
    photos: list[Path], config: UNetConfig, first: UNetPrior | None, device: str
) -> Settings:
    sides = [min(read_photo(path).shape[:2]) for path in photos]
    patch = min(PATCH, min(sides)) // config.multiple * config.multiple
    if patch < 2 * config.multiple:
        small = photos[int(np.argmin(sides))].name
        raise ValueError(
            f"FOLDER: {small!r} is {min(sides)} pixels wide or high, expected at least "
            f"{2 * config.multiple}; remove it, or give larger pictures"
        )
    gray = config.in_channels == 1
    low = device != "cpu" or cpu_has(torch.bfloat16)
    rate = 5e-4 if first else 2e-3
    return Settings(
        steps=1,
        batch=16 if device != "cpu" else 8,
        patch=patch,
        lr=rate,
        seed=0,
        holdout=max(1, min(len(photos) // 5, _MOST_HELD)),
        weighting="eps" if gray else "p2-mild",
        precision="bfloat16" if low and not gray else "float32",
        wide_every=4 if min(sides) >= 2 * patch else 0,
        levels="low" if gray else "uniform",
        start=first.fingerprint if first else "",
    )


def _decay(steps: int) -> float:
    return min(0.9995, max(0.9, 1 - 20 / steps))


def _affordable(run: Run, minutes: float) -> int:
    """Count the updates that fit into so many minutes, by the time of a few that are discarded."""
    run.train_step()
    began = time.monotonic()
    for _ in range(_TIMED):
        run.train_step()
    each = (time.monotonic() - began) / _TIMED
    return max(10, int(0.9 * 60 * minutes / each))  # the rest: held-out losses and the verdict


def judged(
    out: Path, base: str, photos: list[Path], settings: Settings, *, progress: bool = True
) -> Outcome:
    """Compare a trained prior with the package's on pictures that it never saw, and draw both."""
    prior, other = load_prior(out), load_prior(base)
    _, held = split_photos(photos, settings.holdout)
    tiles = [_tile(path, prior) for path in held]
    noise = GRAY_NOISE if prior.channels == 1 else NOISE
    levels = 127.5 * (1 / alphas_cumprod() - 1).sqrt()
    steps = [int((levels - sigma).abs().argmin()) for sigma in noise]
    sheet = out.with_suffix(".samples.png")
    write_palette(_sheet(prior, tiles, steps[1:4], progress), sheet)
    state = describe(out)["training"]

    def psnr(judged: Prior) -> list[float]:
        errors = eps_losses(judged, tiles, steps)
        sigmas = [float(levels[t]) for t in steps]
        return [round(_psnr(s, e), 3) for s, e in zip(sigmas, errors, strict=True)]

    return Outcome(
        path=out,
        updates=state["steps_done"],
        minutes=state["minutes"],
        noise=noise,
        psnr=psnr(prior),
        embedded_psnr=psnr(other),
        held_out=[path.name for path in held],
        sheet=sheet,
    )


def _psnr(sigma: float, error: float) -> float:
    """Return the PSNR of x0 in decibels; its error is that of eps times sigma, in gray levels."""
    return 10 * math.log10(255**2 / max(sigma**2 * error, 1e-9))


def _tile(path: Path, prior: Prior, side: int = 256) -> Tensor:
    tile = center(read_photo(path), prior.multiple, side)
    if prior.channels == 3:
        return tile
    return (tile * torch.from_numpy(LUMA)[None, :, None, None]).sum(1, keepdim=True)


@torch.inference_mode()
def _sheet(prior: Prior, tiles: list[Tensor], steps: list[int], progress: bool) -> np.ndarray:
    """Draw clean | noisy | denoised … of a few pictures, and a row of samples; RGB uint8."""
    columns = 1 + 2 * len(steps)
    conditions = list(prior.conditioning(torch.tensor(steps)))
    rows = []
    for tile in tiles[:3]:
        cells = [tile]
        for t, step in zip(steps, conditions, strict=True):
            x_t, _ = noisy(tile, t)
            cells += [x_t, to_x0(x_t, prior.eps(x_t, step).float(), t)]
        rows.append(np.hstack([_cell(cell) for cell in cells]))
    drawn = sample(prior, 4, _SHEET, _SAMPLE_STEPS, progress=progress)
    samples = [_cell(one[None]) for one in drawn]
    samples += [np.full((_SHEET, _SHEET, 3), 255, np.uint8)] * (columns - len(samples))
    rows.append(np.hstack(samples))
    return np.vstack(rows)


def _cell(x: Tensor) -> np.ndarray:
    """Make a cell of the sheet from [1, C, H, W] in [-1, 1]: its middle, padded with white."""
    values = ((x[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    top, left = (max(0, (n - _SHEET) // 2) for n in values.shape[:2])
    cut = values[top : top + _SHEET, left : left + _SHEET]
    cell = np.full((_SHEET, _SHEET, 3), 255, np.uint8)
    cell[: cut.shape[0], : cut.shape[1]] = cut
    return cell
