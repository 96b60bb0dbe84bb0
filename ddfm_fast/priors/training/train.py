"""Train an unconditional prior: ``python -m ddfm_fast.priors.training.train --help``.

Denoising diffusion training (Ho et al. 2020, eq. 14) with linear betas: mean squared error of eps,
weighted by noise level. Every step draws all of its randomness from (seed, step), and the learning
rate depends on the step alone, so a run that was killed and resumed gives the weights of one that
was not.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ...schedule import trained_alphas
from ..checkpoint import atomic_path, save_unet
from ..unet import UNet, UNetConfig
from .photos import Patches, find_photos, hash_files, split_photos

T = 1000
HELDOUT_BUCKETS = (0, 50, 150, 300, 600, T)
DEFAULT_STEPS = 36000
WEIGHTINGS = ("eps", "p2-mild", "p2", "min-snr")
PRECISIONS = ("float32", "bfloat16")

_SHARED = {
    "out_channels": 3,
    "use_scale_shift_norm": True,
    "num_head_channels": 32,
    "sigma_data": 3.0,
}
ARCHITECTURES = {
    "embedded": UNetConfig.from_dict(
        {
            **_SHARED,
            "model_channels": 32,
            "num_res_blocks": 2,
            "channel_mult": (1, 1, 2, 2),
            "resblock_updown": False,
            "pixel_unshuffle": 2,
            "middle_attention": False,
        }
    ),
    "embedded-large": UNetConfig.from_dict(
        {
            **_SHARED,
            "model_channels": 96,
            "num_res_blocks": 2,
            "channel_mult": (1, 2, 2, 2),
            "resblock_updown": False,
            "pixel_unshuffle": 2,
            "middle_attention": True,
        }
    ),
}


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
    """every so many updates have patches twice as wide, and a quarter as many of them: the norms'
    statistics and far structures of whole images differ from those of small patches; 0: never"""


def alphas_cumprod() -> Tensor:
    """``schedule.trained_alphas`` as a tensor: float64 [1000]."""
    return torch.from_numpy(trained_alphas())


def loss_weights(weighting: str) -> Tensor:
    """Weights [1000] of the squared eps error by timestep, float32 of mean 1.

    "eps": all 1 (Ho et al. 2020). "p2": (1 + SNR)^-1/2, Choi et al. 2022 with k = 1 and gamma 1/2;
    "p2-mild": the same with gamma 1/4.
    "min-snr": min(SNR, 5) / SNR, Hang et al. 2023. ValueError for other names.
    """
    alpha_bar = alphas_cumprod()
    snr = alpha_bar / (1 - alpha_bar)
    if weighting == "eps":
        weights = torch.ones_like(snr)
    elif weighting == "p2":
        weights = (1 + snr) ** -0.5
    elif weighting == "p2-mild":
        weights = (1 + snr) ** -0.25
    elif weighting == "min-snr":
        weights = snr.clamp(max=5) / snr
    else:
        raise ValueError(f"--weighting {weighting!r}, expected one of {', '.join(WEIGHTINGS)}")
    return (weights / weights.mean()).float()


def diffuse(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise, one float64 alpha_bar a sample."""
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt().float() * x0 + (1 - alpha_bar).sqrt().float() * noise


def keep_float32(layer: torch.nn.Conv2d) -> None:
    """Have a convolution compute in float32 under autocast too.

    x_t in bfloat16 has errors of the size of the noise at the smallest timesteps.
    """

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), layer.weight, layer.bias, padding=1)

    layer.forward = forward


class Run:
    """Network, averaged network, optimiser and clock of a training run."""

    def __init__(
        self, config: UNetConfig, settings: Settings, photos: list[Path], device: str = "cpu"
    ):
        torch.manual_seed(settings.seed)
        self.settings, self.config, self.device = settings, config, torch.device(device)
        self.model = UNet(config).to(self.device, memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        keep_float32(self.model.input_blocks[0][0])
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-3
        )
        self.step, self.seconds = 0, 0.0
        train, held = split_photos(photos, settings.holdout)
        self.data_sha256, self.names = hash_files(photos), [p.name for p in photos]
        self.heldout_names = [p.name for p in held]
        self.patches = Patches(train, settings.patch)
        self.heldout = Patches(held, settings.patch)
        self.alphas = alphas_cumprod()
        self.weights = loss_weights(settings.weighting)
        # One graph a patch size: sizes known beforehand make the better code.
        self.loss = torch.compile(self._loss, dynamic=False) if settings.compiled else self._loss

    def _loss(self, x_t: Tensor, t: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
        low = self.settings.precision == "bfloat16"
        step = self.model.fold(t)  # outside of autocast: bfloat16 blurs neighbouring timesteps
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=low):
            eps = self.model.run(x_t, step)
        return ((eps.float() - noise).square().mean((1, 2, 3)) * weight).mean()

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to zero."""
        steps = self.settings.steps
        warm_up = min(1.0, (self.step + 1) / min(500, max(1, steps // 10)))
        return (
            self.settings.lr * warm_up * 0.5 * (1 + math.cos(math.pi * min(self.step / steps, 1)))
        )

    def finished(self) -> bool:
        return self.step >= self.settings.steps

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Patches, timesteps and noise of the step; t is stratified, one a 1/N-th of the range."""
        rng = np.random.default_rng((self.settings.seed, self.step))
        size, side = self.settings.batch, self.settings.patch
        wide = self.settings.wide_every
        if wide and size >= 4 and self.step % wide == wide - 1:
            size, side = size // 4, 2 * side
        x0 = self.patches.batch(size, rng, side=side)
        t = torch.from_numpy(((np.arange(size) + rng.random(size)) * T / size).astype(np.int64))
        noise = torch.from_numpy(rng.standard_normal(tuple(x0.shape), dtype=np.float32))
        return x0, t, noise

    def train_step(self) -> float:
        """One update; the loss before it. FloatingPointError when it is not finite."""
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

    @torch.inference_mode()
    def heldout_loss(self, count: int = 100) -> dict[str, float]:
        """Mean squared eps error of the averaged network on fixed patches, by range of t."""
        rng = np.random.default_rng(0)
        errors = []
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
        return {k: round(v, 5) for k, v in losses.items()}

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
        with atomic_path(state_path(out)) as temporary:
            torch.save(state, temporary)
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
        """Continue from the state beside ``out``; ValueError if it is of another run."""
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
    return out.with_suffix(".state.pt")


def log_path(out: Path) -> Path:
    return out.with_suffix(".log.jsonl")


def curve_path(out: Path) -> Path:
    return out.with_suffix(".curve.png")


def draw_curve(log: Path, target: Path) -> bool:
    """Draw the held-out losses of a log by step; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    if not lines:
        return False
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.add_subplot(
        xlabel="updates", ylabel="mean squared error of eps", title="held-out loss by range of t"
    )
    steps = [line["step"] for line in lines]
    for key in lines[0]["heldout"]:
        losses = [line["heldout"][key] for line in lines]
        style = {"color": "black", "linewidth": 2} if key == "all" else {}
        axis.loglog(steps, losses, label="all t" if key == "all" else f"t {key}", **style)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    return True


def trim_log(path: Path, step: int) -> None:
    """Drop the log lines past a step, which a resumed run writes again."""
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept))


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
    """Run to the end (or to step ``stop_at``), saving and logging on the way and at the end."""
    if resume:
        run.restore(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    trim_log(log_path(out), run.step if resume else -1)
    losses, saved, heldout = [], time.monotonic(), {}
    with (
        tqdm(
            total=run.settings.steps,
            initial=run.step,
            unit="step",
            disable=not progress,
            mininterval=5,
        ) as bar,
        log_path(out).open("a") as log,
    ):
        while not run.finished() and run.step != stop_at:
            losses.append(run.train_step())
            bar.update()
            if run.step % log_every == 0 or run.finished():
                heldout = run.heldout_loss()
                entry = {
                    "step": run.step,
                    "minutes": round(run.seconds / 60, 2),
                    "lr": round(run.learning_rate(), 7),
                    "train": round(float(np.mean(losses)), 5),
                    "heldout": heldout,
                }
                print(json.dumps(entry), file=log, flush=True)
                bar.set_postfix(train=entry["train"], heldout=heldout["all"])
                losses.clear()
            if time.monotonic() - saved > 60 * save_minutes:
                run.save(out, heldout)
                saved = time.monotonic()
    run.save(out, heldout)
    draw_curve(log_path(out), curve_path(out))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ddfm_fast.priors.training.train",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a small unconditional diffusion prior on a folder of photographs.",
        epilog="""examples:
  as the embedded prior was made (its model card tells how long that takes):
    python -m ddfm_fast.priors.training.train --data photos --out prior.safetensors
  go on after an interruption (same options as before; the result is the same):
    python -m ddfm_fast.priors.training.train --data photos --out prior.safetensors --resume
  try the path in a minute:
    python -m ddfm_fast.priors.training.train --data photos --out p.safetensors --steps 200 \
      --no-compile
  look at what it learnt:
    python -m ddfm_fast.priors.training.evaluate prior.safetensors --out looks
  use it:
    ddfm-fast fuse ir.png vis.png -o fused.png --prior prior.safetensors

beside prior.safetensors (float16, averaged weights) lie prior.state.pt, to resume from,
prior.log.jsonl, one line of losses every --log-every steps, and, with matplotlib installed,
prior.curve.png, drawn from it at the end.""",
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="FOLDER", help="folder of photographs")
    add("--out", type=Path, metavar="FILE", required=True, help="the prior, a .safetensors file")
    add("--steps", type=int, default=DEFAULT_STEPS, help="updates (default %(default)s)")
    add("--batch", type=int, default=16, help="patches an update (default %(default)s)")
    add("--patch", type=int, default=64, help="side of a patch in pixels (default %(default)s)")
    add("--lr", type=float, default=3e-3, help="peak learning rate (default %(default)s)")
    add("--seed", type=int, default=0, help="decides weights, patches and noise (default 0)")
    add("--holdout", type=int, default=3, help="photographs kept for the held-out loss (default 3)")
    add(
        "--weighting",
        default="p2-mild",
        choices=WEIGHTINGS,
        help="of the loss by noise level (default %(default)s)",
    )
    add(
        "--precision",
        default="bfloat16",
        choices=PRECISIONS,
        help="of the convolutions; weights and norms' statistics stay in float32 "
        "(default %(default)s)",
    )
    add("--ema", type=float, default=0.9995, help="decay of the averaged weights (default .9995)")
    add("--device", default="auto", help='"cpu", "cuda", or "auto": CUDA where there is one')
    add("--threads", type=int, default=0, help="CPU threads (0: PyTorch's choice)")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile the step: minutes at the start, then about twice as fast (default: yes)",
    )
    add("--resume", action="store_true", help="go on from the state beside --out")
    add("--save-minutes", type=float, default=4, help="minutes between checkpoints (default 4)")
    add("--log-every", type=int, default=250, help="steps between log lines (default 250)")
    group = parser.add_argument_group("architecture")
    arch = group.add_argument
    arch(
        "--arch",
        default="embedded",
        choices=tuple(ARCHITECTURES),
        help="what the options below start from (default %(default)s)",
    )
    arch("--unshuffle", type=int, help="fold u x u pixels into channels")
    arch("--channels", type=int, help="base channels, a multiple of 32")
    arch("--channel-mult", help="a multiplier a level, such as 1,2,2,2")
    arch("--blocks", type=int, help="residual blocks a level")
    arch("--attention", help="downsampling rates with attention, such as 8,16, or none")
    arch(
        "--residual-resampling",
        action=argparse.BooleanOptionalAction,
        help="resample in residual blocks instead of by a convolution",
    )
    return parser


def config_from_options(options: argparse.Namespace) -> UNetConfig:
    """The architecture of ``--arch`` with the other options' changes; ValueError if impossible."""
    changes = {
        "pixel_unshuffle": options.unshuffle,
        "model_channels": options.channels,
        "channel_mult": _numbers("--channel-mult", options.channel_mult),
        "num_res_blocks": options.blocks,
        "attention_resolutions": _numbers("--attention", options.attention),
        "resblock_updown": options.residual_resampling,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    return UNetConfig.from_dict({**ARCHITECTURES[options.arch].to_dict(), **changes})


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None or text == "none":
        return None if text is None else ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{option} {text!r}, expected numbers such as 1,2,2") from error


def check_options(options: argparse.Namespace, config: UNetConfig) -> None:
    """ValueError for values that cannot be trained with."""
    if options.out.suffix != ".safetensors":
        raise ValueError(f"--out {str(options.out)!r} must end in .safetensors")
    for name in ("steps", "batch", "holdout", "log_every"):
        if getattr(options, name) < 1:
            option, value = name.replace("_", "-"), getattr(options, name)
            raise ValueError(f"--{option} {value}, expected 1 or more")
    if options.patch < config.multiple or options.patch % config.multiple:
        raise ValueError(
            f"--patch {options.patch}, expected a multiple of {config.multiple} for this network"
        )
    if not options.lr > 0:
        raise ValueError(f"--lr {options.lr}, expected a number above 0")
    if not 0 <= options.ema < 1:
        raise ValueError(f"--ema {options.ema}, expected at least 0 and below 1")


def pick_device(name: str) -> str:
    """The device of ``--device``; ValueError for one that this machine does not have."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise ValueError(
            f"--device {name!r}, expected cpu, or cuda where PyTorch finds a GPU (here it does "
            f"{'' if torch.cuda.is_available() else 'not'}); leave it out to have one picked"
        )
    return name


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        if options.data is None:
            raise ValueError("--data is missing; give a folder of photographs")
        config = config_from_options(options)
        check_options(options, config)
        settings = Settings(
            steps=options.steps,
            batch=options.batch,
            patch=options.patch,
            lr=options.lr,
            seed=options.seed,
            holdout=options.holdout,
            weighting=options.weighting,
            precision=options.precision,
            ema_decay=options.ema,
            compiled=options.compile,
        )
        device = pick_device(options.device)
        run = Run(config, settings, find_photos(options.data), device)
        train(
            run,
            options.out,
            save_minutes=options.save_minutes,
            log_every=options.log_every,
            resume=options.resume,
        )
    except (ValueError, ImportError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
