"""A training run: networks, optimizer and clock, step by step, saved and resumed.

Denoising diffusion training (Ho et al. 2020, eq. 14) with linear betas: mean squared error of eps,
weighted by noise level. Every step draws all of its randomness from (seed, step), and the learning
rate depends on the step alone, so a run that was killed and resumed gives the weights of one that
was not.
"""

from __future__ import annotations

import copy
import datetime
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..atomic import atomic_path
from ..checkpoint import save_unet
from ..load import load_prior
from ..network import UNetPrior
from ..unet import Stage, UNet
from ..unet_config import UNetConfig
from .architectures import ARCHITECTURES
from .diffusion import (
    T,
    alphas_cumprod,
    denoised_psnr,
    diffuse,
    draw_timesteps,
    loss_weights,
)
from .log import append_line, curve_path, draw_curve, log_path, trim_log
from .photos import Patches, find_photos, hash_files, split_photos
from .start import start_from

HELDOUT_BUCKETS = (0, 50, 150, 300, 600, T)
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """What decides the result of a run, stored in its checkpoints; see ``--help`` for meanings."""

    steps: int
    batch: int
    patch: int
    lr: float
    seed: int
    holdout: int
    weighting: str = "eps"
    precision: str = "float32"
    ema_decay: float = 0.999
    compiled: bool = False
    wide_every: int = 4
    """every so many updates, patches are twice as wide and a quarter as many: the norms' statistics
    and distant structures of whole images differ from those of small patches; 0: never"""
    levels: str = "uniform"
    start: str = ""
    """sha256 of the prior whose weights the run started from, "" for none"""

    def check(self, config: UNetConfig) -> None:
        """Raise a ValueError, which names the option, for settings that cannot train it."""
        for name in ("steps", "batch", "holdout"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; expected 1 or more")
        if self.patch < config.multiple or self.patch % config.multiple:
            raise ValueError(
                f"--patch is {self.patch}; expected a multiple of {config.multiple}, as this "
                "network needs"
            )
        if not self.lr > 0:
            raise ValueError(f"--lr is {self.lr}; expected a number above 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema is {self.ema_decay}; expected at least 0 and below 1")
        loss_weights(self.weighting)
        draw_timesteps(self.levels, 1, np.random.default_rng(0))
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"--precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}"
            )


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32 even under autocast.

    x_t in bfloat16 has errors of the size of the noise at the smallest timesteps.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve at the same size."""
        with torch.autocast(input.device.type, enabled=False):
            return F.conv2d(input.float(), self.weight, self.bias, padding=1)


def keep_float32(unet: UNet) -> None:
    """Make the network's first convolution compute in float32 even under autocast."""
    old = unet.input_conv
    new = Float32Conv2d(old.in_channels, old.out_channels, 3, padding=1, device="meta")
    new.weight, new.bias = old.weight, old.bias
    unet.input_blocks[0] = Stage([new])


class Run:
    """Network, averaged network, optimizer and clock of a training run."""

    def __init__(
        self,
        config: UNetConfig,
        settings: Settings,
        photos: list[Path],
        device: str = "cpu",
        start: UNet | None = None,
    ):
        settings.check(config)
        torch.manual_seed(settings.seed)
        self.settings, self.config, self.device = settings, config, torch.device(device)
        # the stub of Module.to knows no memory format
        self.model = UNet(config).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if start is not None:
            start_from(self.model, start)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        keep_float32(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-3
        )
        self.step, self.seconds = 0, 0.0
        train, held = split_photos(photos, settings.holdout)
        self.data_sha256, self.names = hash_files(photos), [p.name for p in photos]
        self.heldout_names = [p.name for p in held]
        self.patches = Patches(train, settings.patch, config.in_channels)
        self.heldout = Patches(held, settings.patch, config.in_channels)
        self.alphas = alphas_cumprod()
        self.weights = loss_weights(settings.weighting)
        # one graph per patch size: sizes known beforehand make better code
        self.loss = torch.compile(self._loss, dynamic=False) if settings.compiled else self._loss

    def _loss(self, x_t: Tensor, t: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
        low = self.settings.precision == "bfloat16"
        step = self.model.fold(t)  # outside of autocast: bfloat16 blurs neighboring timesteps
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=low):
            eps = self.model.run(x_t, step)
        return ((eps.float() - noise).square().mean((1, 2, 3)) * weight).mean()

    def learning_rate(self) -> float:
        """Compute the rate of the step: linear warm-up, then a cosine to zero."""
        steps = self.settings.steps
        warm_up = min(1.0, (self.step + 1) / min(500, max(1, steps // 10)))
        return (
            self.settings.lr * warm_up * 0.5 * (1 + math.cos(math.pi * min(self.step / steps, 1)))
        )

    def finished(self) -> bool:
        """Return whether all steps are done."""
        return self.step >= self.settings.steps

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw patches, timesteps and noise of the step; one t from each N-th of the range."""
        rng = np.random.default_rng((self.settings.seed, self.step))
        size, side = self.settings.batch, self.settings.patch
        wide = self.settings.wide_every
        if wide and size >= 4 and self.step % wide == wide - 1:
            size, side = size // 4, 2 * side
        x0 = self.patches.batch(size, rng, side=side)
        t = draw_timesteps(self.settings.levels, size, rng)
        noise = torch.from_numpy(rng.standard_normal(tuple(x0.shape), dtype=np.float32))
        return x0, t, noise

    def train_step(self) -> float:
        """Update once; return the loss before it. FloatingPointError if it is not finite."""
        began = time.monotonic()
        x0, t, noise = self.draw()
        x_t = diffuse(x0, noise, self.alphas[t]).contiguous(memory_format=torch.channels_last)
        batch = (x.to(self.device) for x in (x_t, t, noise, self.weights[t]))
        loss = self.loss(*batch)
        if not math.isfinite(value := loss.item()):
            raise FloatingPointError(
                f"the loss became {value} at step {self.step}; train again with a lower --lr "
                "(the last checkpoint was kept)"
            )
        lr = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.settings.ema_decay, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(
            list(self.ema.parameters()), [p.data for p in self.model.parameters()], 1 - decay
        )
        self.step += 1
        self.seconds += time.monotonic() - began
        return value

    def heldout_loss(self, count: int = 100) -> dict[str, float]:
        """Measure the averaged network's squared eps error on fixed patches, by range of t."""
        return self.measured(count)[0]

    @torch.inference_mode()
    def measured(self, count: int = 100) -> tuple[dict[str, float], float]:
        """Return ``heldout_loss``, and the PSNR of the pictures that it denoises on the way.

        The PSNR is that of x0 in decibels, averaged over timesteps with the noise of real pictures.
        """
        rng = np.random.default_rng(0)
        errors: list[tuple[int, float]] = []
        t = torch.from_numpy(((np.arange(count) + 0.5) * T / count).astype(np.int64))
        for part in t[torch.from_numpy(rng.permutation(count))].split(25):
            x0 = self.heldout.batch(len(part), rng, augmented=False)
            noise = torch.from_numpy(rng.standard_normal(tuple(x0.shape), dtype=np.float32))
            x_t = diffuse(x0, noise, self.alphas[part])
            eps = self.ema(x_t.to(self.device), part.to(self.device)).cpu()
            errors += zip(
                part.tolist(), (eps - noise).square().mean((1, 2, 3)).tolist(), strict=True
            )
        losses = {"all": float(np.mean([e for _, e in errors]))}
        for low, high in zip(HELDOUT_BUCKETS, HELDOUT_BUCKETS[1:], strict=False):
            losses[f"{low}-{high - 1}"] = float(np.mean([e for t, e in errors if low <= t < high]))
        psnr = denoised_psnr(errors, self.alphas)
        return {k: round(v, 5) for k, v in losses.items()}, round(psnr, 2)

    def save(self, out: Path, heldout: dict[str, float]) -> None:
        """Write the exported prior to ``out`` and the state to resume from beside it."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "settings": asdict(self.settings),
            "config": self.config.to_dict(),
            "data_sha256": self.data_sha256,
        }
        # through a Python file, whose errors carry the system's message
        with atomic_path(state_path(out)) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
        training = {
            **asdict(self.settings),
            "steps_done": self.step,
            "minutes": round(self.seconds / 60, 1),
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "photos": len(self.names),
            "heldout_photos": self.heldout_names,
            "data_sha256": self.data_sha256,
            "heldout_loss": heldout,
            "torch": torch.__version__,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        }
        save_unet(out, self.ema, dtype=torch.float16, training=training)

    def restore(self, out: Path) -> None:
        """Continue from the state beside ``out``; ValueError if it belongs to another run."""
        path = state_path(out)
        if not path.is_file():
            raise ValueError(f"--resume: there is no {str(path)!r}; leave --resume out to start")
        state = torch.load(path, map_location="cpu", weights_only=True)
        ours = {
            "settings": asdict(self.settings),
            "config": self.config.to_dict(),
            "data_sha256": self.data_sha256,
        }
        for key, value in ours.items():
            if state[key] != value:
                raise ValueError(
                    f"--resume: {str(path)!r} was trained with {key} {state[key]}, but this call "
                    f"has {value}; repeat the first call's options"
                )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def state_path(out: Path) -> Path:
    """Return where the state of the run that makes ``out`` is kept."""
    return out.with_suffix(".state.pt")


def train(
    run: Run,
    out: Path,
    *,
    save_minutes: float = 4,
    log_every: int = 250,
    resume: bool = False,
    stop_at: int | None = None,
    progress: bool = True,
) -> None:
    """Run to the end (or to step ``stop_at``), saving and logging on the way and at the end.

    Args:
        run: The run, fresh or with ``resume``.
        out: The prior, a .safetensors file; state, log and curve lie beside it.
        save_minutes: Minutes between checkpoints.
        log_every: Steps between log lines.
        resume: Continue from the state beside ``out``.
        stop_at: Step to stop at early.
        progress: Show a bar.

    Raises:
        ValueError: ``out`` or ``log_every`` is impossible, or the state is another run's.
        FloatingPointError: The loss is not finite.
    """
    _check_outputs(out, log_every)
    if resume:
        run.restore(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    trim_log(log_path(out), run.step if resume else -1)
    losses: list[float] = []
    heldout: dict[str, float] = {}
    saved = time.monotonic()
    with tqdm(
        total=run.settings.steps,
        initial=run.step,
        unit="step",
        disable=not progress,
        mininterval=5,
    ) as bar:
        while not run.finished() and run.step != stop_at:
            losses.append(run.train_step())
            bar.update()
            if run.step % log_every == 0 or run.finished():
                heldout, psnr = run.measured()
                loss = round(float(np.mean(losses)), 5)
                append_line(log_path(out), _log_line(run, loss, heldout, psnr))
                bar.set_postfix(train=loss, heldout=heldout["all"], psnr=f"{psnr} dB")
                losses.clear()
            if time.monotonic() - saved > 60 * save_minutes:
                run.save(out, heldout)
                saved = time.monotonic()
    run.save(out, heldout)
    draw_curve(log_path(out), curve_path(out))


def _log_line(run: Run, loss: float, heldout: dict[str, float], psnr: float) -> str:
    entry = {
        "step": run.step,
        "minutes": round(run.seconds / 60, 2),
        "lr": round(run.learning_rate(), 7),
        "train": loss,
        "heldout": heldout,
        "psnr": psnr,
    }
    return json.dumps(entry)


def train_prior(
    data: Path,
    out: Path,
    settings: Settings,
    config: UNetConfig | None = None,
    *,
    device: str = "auto",
    save_minutes: float = 4,
    log_every: int = 250,
    resume: bool = False,
    progress: bool = True,
    start: str | Path | None = None,
) -> Run:
    """Train a prior on a folder of photographs, from the start or from where it stopped.

    Args:
        data: The folder.
        out: The prior, a .safetensors file; state, log and curve lie beside it.
        settings: What decides the result.
        config: The network (default: that of the embedded prior).
        device: "cpu", "cuda" or "auto": CUDA if there is one.
        save_minutes: Minutes between checkpoints.
        log_every: Steps between log lines.
        resume: Continue from the state beside ``out``.
        progress: Show a bar.
        start: Prior whose weights to start from: "embedded" or a checkpoint.

    Returns:
        The finished run.

    Raises:
        ValueError: An argument does not allow training; the message names the command's option.
        FloatingPointError: The loss is not finite.
    """
    config = config or ARCHITECTURES["embedded"]
    _check_outputs(out, log_every)
    first = None
    if start:
        prior = load_prior(start)
        if not isinstance(prior, UNetPrior):
            raise ValueError(
                f"--start {str(start)!r} is not a network of ddfm_fast; give a checkpoint"
            )
        first, settings = prior.unet, replace(settings, start=prior.fingerprint)
    settings.check(config)
    run = Run(config, settings, find_photos(data), pick_device(device), first)
    train(
        run, out, save_minutes=save_minutes, log_every=log_every, resume=resume, progress=progress
    )
    return run


def _check_outputs(out: Path, log_every: int) -> None:
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {str(out)!r} must end in .safetensors")
    if log_every < 1:
        raise ValueError(f"--log-every is {log_every}; expected 1 or more")


def pick_device(name: str) -> str:
    """Pick the device of ``--device``; ValueError for one that this machine does not have."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise ValueError(
            f"--device is {name!r}; expected cpu, or cuda where PyTorch finds a GPU (here it "
            f"{'does' if torch.cuda.is_available() else 'does not'}); leave it out to have one "
            "picked"
        )
    return name
