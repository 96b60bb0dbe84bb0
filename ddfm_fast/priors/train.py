"""Train a small unconditional prior from photographs: ``python -m ddfm_fast.priors.train --help``.

Standard denoising diffusion training (Ho et al. 2020, eq. 14): uniform t, linear betas, mean
squared error of eps. Every step draws all of its randomness from (seed, step), so a resumed run
repeats what an uninterrupted one does without storing generator states.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import hashlib
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from . import load_prior
from .checkpoint import atomic_path, save_unet
from .unet import UNet, UNetConfig

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
T = 1000
HELDOUT_BUCKETS = (0, 50, 150, 300, 600, T)
GRID_TIMESTEPS = (50, 150, 300, 500, 800)
EMA_DECAY = 0.999


@dataclass(frozen=True)
class Settings:
    """What decides the result of a run, stored in its checkpoints; see ``--help`` for meanings."""

    steps: int
    minutes: float
    batch: int
    patch: int
    lr: float
    seed: int
    holdout: int


def alphas_cumprod() -> Tensor:
    """Cumulative products [1000] of 1 - beta for betas linear from 1e-4 to 0.02, in float64."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64), 0)


def find_photos(folder: Path) -> list[Path]:
    """Photographs in a folder, sorted by name; ValueError when there are fewer than two."""
    if not folder.is_dir():
        raise ValueError(f"--data {str(folder)!r} is not a folder; give a folder of photographs")
    photos = sorted(p for p in folder.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES)
    if len(photos) < 2:
        raise ValueError(
            f"--data {str(folder)!r} holds {len(photos)} photographs, expected at least 2 "
            f"({', '.join(PHOTO_SUFFIXES)})"
        )
    return photos


def hash_files(paths: list[Path]) -> str:
    """sha256 over the names and contents of the files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def load_pyramid(path: Path, patch: int) -> list[np.ndarray]:
    """The photograph as RGB uint8 at every scale of ``SCALES`` that still holds a patch."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"--data: {path.name!r} cannot be read as an image; remove or replace it")
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    height, width = image.shape[:2]
    pyramid = []
    for scale in SCALES:
        size = round(width / scale), round(height / scale)
        if min(size) >= patch:
            pyramid.append(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    if not pyramid:
        raise ValueError(f"--data: {path.name!r} is {width}x{height}, smaller than --patch {patch}")
    return pyramid


def split_photos(photos: list[Path], holdout: int) -> tuple[list[Path], list[Path]]:
    """Training and held-out photographs: every n-th by name is held out, spread evenly."""
    holdout = min(holdout, len(photos) - 1)
    held = {int((i + 0.5) * len(photos) / holdout) for i in range(holdout)}
    train = [p for i, p in enumerate(photos) if i not in held]
    return train, [p for i, p in enumerate(photos) if i in held]


class Patches:
    """Random augmented patches of photographs, drawn in proportion to their area."""

    def __init__(self, photos: list[Path], patch: int):
        self.patch = patch
        self.pyramids = [load_pyramid(p, patch) for p in photos]
        # The square root keeps a few large photographs from hiding the small, textured ones.
        area = np.array([math.sqrt(p[0].shape[0] * p[0].shape[1]) for p in self.pyramids])
        self.weights = area / area.sum()

    def crop(self, rng: np.random.Generator) -> np.ndarray:
        """One patch [P, P, 3] uint8; nearly flat ones are mostly drawn again."""
        for _ in range(8):
            pyramid = self.pyramids[rng.choice(len(self.pyramids), p=self.weights)]
            image = pyramid[rng.integers(len(pyramid))]
            top, left = (rng.integers(n - self.patch + 1) for n in image.shape[:2])
            tile = image[top : top + self.patch, left : left + self.patch]
            if tile.std(axis=(0, 1)).mean() > 6 or rng.random() < 0.15:
                break
        return tile

    def batch(self, size: int, rng: np.random.Generator, augmented: bool = True) -> Tensor:
        """[size, 3, P, P] float32 in [-1, 1]."""
        tiles = [self.crop(rng).astype(np.float32) / 255 for _ in range(size)]
        if augmented:
            tiles = [augment(tile, rng) for tile in tiles]
        return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2) * 2 - 1


def augment(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn, mirror and recolour a tile [P, P, 3] in [0, 1].

    Infrared and medical images are grey, sometimes inverted and of any gamma, and fused ones lie
    between those and photographs, so part of the patches is made to look so.
    """
    tile = np.rot90(tile, rng.integers(4))
    if rng.random() < 0.5:
        tile = tile[:, ::-1]
    kind = rng.random()
    if kind < 0.3:
        grey = tile @ np.array([0.299, 0.587, 0.114], np.float32)
        tile = np.repeat(grey[..., None], 3, axis=2)
    elif kind < 0.45:
        tile = np.repeat(tile[..., rng.integers(3), None], 3, axis=2)
    elif kind < 0.5:
        tile = tile[..., rng.permutation(3)]
    if rng.random() < 0.15:
        tile = 1 - tile
    if rng.random() < 0.35:
        tile = tile ** np.float32(np.exp(rng.uniform(-0.7, 0.7)))
    return np.ascontiguousarray(tile, dtype=np.float32)


class Run:
    """Network, averaged network, optimiser and clock of a training run."""

    def __init__(self, config: UNetConfig, settings: Settings, photos: list[Path]):
        torch.manual_seed(settings.seed)
        self.settings, self.config = settings, config
        self.model = UNet(config).to(memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
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

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to zero by whichever of steps and minutes ends first."""
        progress = self.step / self.settings.steps
        if self.settings.minutes:
            progress = max(progress, self.seconds / (60 * self.settings.minutes))
        warm_up = min(1.0, (self.step + 1) / min(200, max(1, self.settings.steps // 10)))
        return self.settings.lr * warm_up * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def finished(self) -> bool:
        limit = 60 * self.settings.minutes
        return self.step >= self.settings.steps or bool(limit and self.seconds >= limit)

    def train_step(self) -> float:
        """One update; the loss before it. FloatingPointError when it is not finite."""
        began = time.monotonic()
        rng = np.random.default_rng((self.settings.seed, self.step))
        x0 = self.patches.batch(self.settings.batch, rng)
        t = torch.from_numpy(rng.integers(0, T, len(x0)))
        noise = torch.from_numpy(rng.standard_normal(tuple(x0.shape), dtype=np.float32))
        loss = F.mse_loss(self.model(diffuse(x0, noise, self.alphas[t]), t), noise)
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
        decay = min(EMA_DECAY, (self.step + 1) / (self.step + 10))
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
            eps = self.ema(diffuse(x0, noise, self.alphas[part]), part)
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
            "cpu_minutes": round(self.seconds / 60, 1),
            "ema_decay": EMA_DECAY,
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


def diffuse(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise, one float64 alpha_bar a sample."""
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt().float() * x0 + (1 - alpha_bar).sqrt().float() * noise


def state_path(out: Path) -> Path:
    return out.with_suffix(".state.pt")


def log_path(out: Path) -> Path:
    return out.with_suffix(".log.jsonl")


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


def grid_images(size: int) -> list[np.ndarray]:
    """Crops of scikit-image's astronaut, camera, chelsea and coffee, [size, size, 3] uint8."""
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError('--grid needs scikit-image: pip install "ddfm_fast[test]"') from error
    images = []
    for name in ("astronaut", "camera", "chelsea", "coffee"):
        image = getattr(data, name)()
        image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
        top, left = ((n - min(image.shape[:2])) // 2 for n in image.shape[:2])
        side = min(image.shape[:2])
        image = image[top : top + side, left : left + side]
        images.append(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))
    return images


@torch.inference_mode()
def write_grid(prior: Path, target: Path, size: int = 96, seed: int = 0) -> list[float]:
    """Draw clean | noisy | predicted x0 for each image and timestep; PSNR of x0 a timestep."""
    loaded = load_prior(prior)
    size = -(-size // loaded.multiple) * loaded.multiple
    clean = np.stack([i.astype(np.float32) for i in grid_images(size)])
    clean = torch.from_numpy(clean).permute(0, 3, 1, 2) / 127.5 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    columns, psnr = [clean], []
    conditioning = loaded.conditioning(torch.tensor(GRID_TIMESTEPS))
    for t, step in zip(GRID_TIMESTEPS, conditioning, strict=True):
        alpha_bar = alphas_cumprod()[t].expand(len(clean))
        noisy = diffuse(clean, noise, alpha_bar)
        eps = loaded.eps(noisy, step)
        a = alpha_bar[0].item()
        x0 = ((noisy - math.sqrt(1 - a) * eps) / math.sqrt(a)).clamp(-1, 1)
        psnr.append(-10 * math.log10((x0 - clean).square().mean().item() / 4))
        columns += [noisy.clamp(-1, 1), x0]
    picture = torch.cat([torch.cat(list(c), dim=1) for c in columns], dim=2)
    picture = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    header = np.full((20, picture.shape[1], 3), 255, np.uint8)
    titles = ["clean"] + [f"{kind} t={t}" for t in GRID_TIMESTEPS for kind in ("noisy", "x0")]
    for i, title in enumerate(titles):
        cv2.putText(
            header,
            title,
            (i * size + 3, 14),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.42,
            (0, 0, 0),
            1,
            cv2.LINE_AA,
        )
    # Noise does not compress: a palette keeps the file small.
    image = Image.fromarray(np.vstack([header, picture]))
    with atomic_path(target) as temporary:
        image.quantize(256, dither=Image.Dither.NONE).save(temporary, "PNG", optimize=True)
    return psnr


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ddfm_fast.priors.train",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a small unconditional diffusion prior on a folder of photographs.",
        epilog="""examples:
  an hour on one core, as the embedded prior was made:
    python -m ddfm_fast.priors.train --data photos --out prior.safetensors --minutes 60
  go on after an interruption (same options as before):
    python -m ddfm_fast.priors.train --data photos --out prior.safetensors --minutes 60 --resume
  look at what it learnt:
    python -m ddfm_fast.priors.train --grid grid.png --out prior.safetensors
  use it:
    ddfm-fast fuse ir.png vis.png -o fused.png --prior prior.safetensors

beside prior.safetensors (float16, averaged weights) lie prior.state.pt, to resume from, and
prior.log.jsonl, one line of losses every --log-every steps.""",
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="FOLDER", help="folder of photographs")
    add("--out", type=Path, metavar="FILE", required=True, help="the prior, a .safetensors file")
    add("--grid", type=Path, metavar="PNG", help="draw denoisings of the prior in --out, then end")
    add("--steps", type=int, default=6000, help="updates (default %(default)s)")
    add(
        "--minutes",
        type=float,
        default=0,
        help="end after this much training time if steps take longer (0: no limit)",
    )
    add("--batch", type=int, default=16, help="patches an update (default %(default)s)")
    add("--patch", type=int, default=64, help="side of a patch in pixels (default %(default)s)")
    add("--lr", type=float, default=1e-3, help="peak learning rate (default %(default)s)")
    add("--seed", type=int, default=0, help="decides weights, patches and noise (default 0)")
    add("--holdout", type=int, default=3, help="photographs kept for the held-out loss (default 3)")
    add("--threads", type=int, default=0, help="CPU threads (0: PyTorch's choice)")
    add("--resume", action="store_true", help="go on from the state beside --out")
    add("--save-minutes", type=float, default=4, help="minutes between checkpoints (default 4)")
    add("--log-every", type=int, default=250, help="steps between log lines (default 250)")
    group = parser.add_argument_group("architecture (defaults: those of the embedded prior)")
    arch = group.add_argument
    arch("--unshuffle", type=int, default=2, help="fold u x u pixels into channels (default 2)")
    arch("--channels", type=int, default=32, help="base channels, a multiple of 32 (default 32)")
    arch("--channel-mult", default="1,2,2,2", help="a multiplier a level (default %(default)s)")
    arch("--blocks", type=int, default=1, help="residual blocks a level (default 1)")
    return parser


def config_from_options(options: argparse.Namespace) -> UNetConfig:
    try:
        mult = tuple(float(m) for m in options.channel_mult.split(","))
    except ValueError as error:
        raise ValueError(
            f"--channel-mult {options.channel_mult!r}, expected numbers such as 1,2,2"
        ) from error
    return UNetConfig.from_dict(
        {
            "model_channels": options.channels,
            "num_res_blocks": options.blocks,
            "channel_mult": mult,
            "out_channels": 3,
            "use_scale_shift_norm": True,
            "resblock_updown": True,
            "pixel_unshuffle": options.unshuffle,
            "middle_attention": False,
        }
    )


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
    if not options.lr > 0 or options.minutes < 0:
        raise ValueError("--lr must be above 0 and --minutes not below 0")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        if options.grid:
            for t, psnr in zip(GRID_TIMESTEPS, write_grid(options.out, options.grid), strict=True):
                print(f"t = {t}: predicted x0 {psnr:.2f} dB")
            return 0
        if options.data is None:
            raise ValueError("--data is missing; give a folder of photographs")
        config = config_from_options(options)
        check_options(options, config)
        settings = Settings(
            options.steps,
            options.minutes,
            options.batch,
            options.patch,
            options.lr,
            options.seed,
            options.holdout,
        )
        run = Run(config, settings, find_photos(options.data))
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
