"""What a prior is worth by itself: ``python -m ddfm_fast.priors.training.evaluate --help``.

Its eps error by noise level on images it never saw, beside another prior's and a Wiener filter's;
pictures of denoisings and of unconditional samples; and two measures of what should not be there,
a fixed lattice of the pixel-unshuffle's period and a larger error near the borders.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...images.files import SUFFIXES, read_image
from ...schedule import make_schedule, step_rows
from ..checkpoint import atomic_path
from ..load import load_prior
from ..prior import Prior
from .train import alphas_cumprod, diffuse

TIMESTEPS = (2, 10, 25, 50, 100, 200, 300, 500, 700, 900)
GRID_TIMESTEPS = (50, 150, 300, 500, 800)
LATTICE_TIMESTEPS = (300, 500, 800)
SIZES = ((256, 256), (512, 640), (1088, 1920))
BORDER = 16
"""pixels from the edge that count as border"""
SKIMAGE_NAMES = ("astronaut", "camera", "chelsea", "coffee")


def photographs() -> list[np.ndarray]:
    """scikit-image's astronaut, camera, chelsea and coffee, RGB uint8; ImportError without it."""
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError('needs scikit-image: pip install "ddfm_fast[test]"') from error
    images = [getattr(data, name)() for name in SKIMAGE_NAMES]
    return [np.repeat(i[..., None], 3, axis=2) if i.ndim == 2 else i for i in images]


def read_folder(folder: Path) -> list[np.ndarray]:
    """Every image of a folder as RGB uint8, by name; ValueError when there is none."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"--images {str(folder)!r} holds no image ({', '.join(SUFFIXES)})")
    images = []
    for path in paths:
        image = read_image(path)
        image = image if image.dtype == np.uint8 else (image / 257).round().astype(np.uint8)
        images.append(np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3])
    return images


def centre(image: np.ndarray, multiple: int, side: int = 256) -> Tensor:
    """The middle of an image as [1, 3, H, W] in [-1, 1], H and W multiples, at most ``side``."""
    height, width = (min(n, side) // multiple * multiple for n in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    tile = image[top : top + height, left : left + width]
    return torch.from_numpy(tile.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def noisy(x0: Tensor, t: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x_t and its noise; the same for every prior: drawn from (seed, t)."""
    generator = torch.Generator().manual_seed(1000 * seed + t)
    noise = torch.randn(x0.shape, generator=generator)
    return diffuse(x0, noise, alphas_cumprod()[t].expand(len(x0))), noise


def to_x0(x_t: Tensor, eps: Tensor, t: int) -> Tensor:
    """(x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar), clamped to [-1, 1]."""
    a = alphas_cumprod()[t].item()
    return ((x_t - math.sqrt(1 - a) * eps) / math.sqrt(a)).clamp(-1, 1)


@torch.inference_mode()
def eps_losses(prior: Prior, images: Sequence[Tensor], timesteps: Sequence[int]) -> list[float]:
    """Mean squared error of eps [timesteps] over images [1, 3, H, W] in [-1, 1]."""
    losses = []
    for t, step in zip(timesteps, prior.conditioning(torch.tensor(timesteps)), strict=True):
        errors = []
        for number, x0 in enumerate(images):
            x_t, noise = noisy(x0, t, number)
            errors.append((prior.eps(x_t, step).float() - noise).square().mean().item())
        losses.append(float(np.mean(errors)))
    return losses


def wiener_losses(images: Sequence[Tensor], timesteps: Sequence[int]) -> list[float]:
    """The same of a Wiener filter, the best linear denoiser of a known spectrum.

    It is told what no denoiser knows: the clean image's mean, its principal colour axes and the
    radially averaged power spectrum along each. So it bounds what linear filtering can do.
    """
    losses = []
    for t in timesteps:
        errors = []
        for number, x0 in enumerate(images):
            x_t, noise = noisy(x0, t, number)
            errors.append((wiener_eps(x0[0], x_t[0], t) - noise[0]).square().mean().item())
        losses.append(float(np.mean(errors)))
    return losses


def wiener_eps(x0: Tensor, x_t: Tensor, t: int) -> Tensor:
    """eps [3, H, W] by the Wiener filter of the clean x0's statistics; both [3, H, W]."""
    a = alphas_cumprod()[t].item()
    mean = x0.mean((1, 2), keepdim=True)
    flat = (x0 - mean).flatten(1)
    axes = torch.linalg.eigh(flat @ flat.t() / flat.shape[1])[1]
    clean = torch.einsum("cd,chw->dhw", axes, x0 - mean)
    observed = torch.einsum("cd,chw->dhw", axes, x_t - math.sqrt(a) * mean)
    power = _radial_power(clean)
    gain = (1 - a) / (a * power + (1 - a))  # of the noise: one minus the signal's
    residual = torch.fft.ifft2(torch.fft.fft2(observed) * gain).real / math.sqrt(1 - a)
    return torch.einsum("cd,dhw->chw", axes, residual)


def _radial_power(planes: Tensor) -> Tensor:
    """Power spectra [C, H, W] a frequency, averaged over rings of equal spatial frequency."""
    height, width = planes.shape[-2:]
    power = torch.fft.fft2(planes).abs().square() / (height * width)
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    ring = (radius * min(height, width)).round().long().flatten()
    count = torch.bincount(ring).clamp(min=1)
    rings = torch.stack([torch.bincount(ring, p.flatten()) / count for p in power])
    return rings[:, ring].view_as(power)


@torch.inference_mode()
def lattice(prior: Prior, images: Sequence[Tensor], t: int, period: int = 4) -> float:
    """Grey levels (of 255) of a fixed pattern with that period in predicted x0.

    The mean of the prediction less its local mean, for each of the period x period places, and of
    those the standard deviation: 0 where no place differs from another. What the clean image itself
    has of it is taken off.
    """
    step = prior.conditioning(torch.tensor([t]))[0]
    found = []
    for number, x0 in enumerate(images):
        x_t, _ = noisy(x0, t, number)
        predicted = to_x0(x_t, prior.eps(x_t, step).float(), t)
        difference = _places(predicted, period) - _places(x0, period)
        found.append(difference.std(dim=(-1, -2), correction=0).mean().item())
    return 127.5 * float(np.mean(found))


def _places(x: Tensor, period: int) -> Tensor:
    detail = x - torch.nn.functional.avg_pool2d(x, 9, 1, 4, count_include_pad=False)
    height, width = (n // period * period for n in x.shape[-2:])
    detail = detail[..., :height, :width]
    return detail.unflatten(-1, (-1, period)).unflatten(-3, (-1, period)).mean((0, -4, -2))


@torch.inference_mode()
def scale_losses(
    prior: Prior, image: np.ndarray, t: int, sizes: Sequence[tuple[int, int]]
) -> list[dict[str, float]]:
    """eps error of the inside and of the border of one photograph resized to each size (H, W)."""
    step = prior.conditioning(torch.tensor([t]))[0]
    rows = []
    for height, width in sizes:
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        x0 = centre(resized, prior.multiple, side=max(height, width))
        x_t, noise = noisy(x0, t)
        error = (prior.eps(x_t, step).float() - noise).square().mean((0, 1))
        inside = error[BORDER:-BORDER, BORDER:-BORDER]
        border = (error.sum() - inside.sum()) / (error.numel() - inside.numel())
        rows.append(
            {
                "height": height,
                "width": width,
                "inside": round(inside.mean().item(), 5),
                "border": round(border.item(), 5),
            }
        )
    return rows


@torch.inference_mode()
def sample(
    prior: Prior, count: int = 4, size: int = 256, steps: int = 100, seed: int = 0
) -> Tensor:
    """Unconditional samples [count, 3, size, size] in [-1, 1] by DDIM, eta 0."""
    schedule = make_schedule(steps)
    conditioning = prior.conditioning(torch.as_tensor(schedule.timesteps[::-1].copy()))
    x = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    rows = step_rows(schedule, "ddim")
    for row, step in tqdm(zip(rows, conditioning, strict=True), total=steps, desc="sample"):
        eps = prior.eps(x, step).float()
        x0 = (row.recip * x - row.recipm1 * eps).clamp_(-1, 1)
        x = row.a * x + row.b * x0
    return x.clamp(-1, 1)


@torch.inference_mode()
def denoisings(prior: Prior, images: Sequence[Tensor]) -> tuple[np.ndarray, list[float]]:
    """A picture of clean | noisy | predicted x0 by timestep, uint8, and the PSNR of each x0."""
    clean = torch.cat(list(images))
    columns, psnr = [clean], []
    steps = prior.conditioning(torch.tensor(GRID_TIMESTEPS))
    for t, step in zip(GRID_TIMESTEPS, steps, strict=True):
        x_t, _ = noisy(clean, t)
        x0 = to_x0(x_t, prior.eps(x_t, step).float(), t)
        psnr.append(-10 * math.log10((x0 - clean).square().mean().item() / 4))
        columns += [x_t.clamp(-1, 1), x0]
    titles = ["clean"] + [f"{kind} t={t}" for t in GRID_TIMESTEPS for kind in ("noisy", "x0")]
    return _titled(columns, titles), psnr


def _titled(columns: Sequence[Tensor], titles: Sequence[str]) -> np.ndarray:
    """Columns of [N, 3, H, W] in [-1, 1] side by side under their titles, RGB uint8."""
    picture = torch.cat([torch.cat(list(c), dim=1) for c in columns], dim=2)
    picture = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    header = np.full((20, picture.shape[1], 3), 255, np.uint8)
    width = columns[0].shape[-1]
    font = cv2.FONT_HERSHEY_SIMPLEX
    for i, title in enumerate(titles):
        cv2.putText(header, title, (i * width + 3, 14), font, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([header, picture])


def write_palette(picture: np.ndarray, target: Path) -> None:
    """A PNG of 256 colours: noise does not compress."""
    image = Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE)
    with atomic_path(target) as temporary:
        image.save(temporary, "PNG", optimize=True)


def measure(
    prior: Prior, other: Prior | None, sets: dict[str, list[np.ndarray]]
) -> dict[str, object]:
    """The numbers that the module's text names, ready for JSON; keys of ``sets`` name its rows."""
    priors = {"prior": prior} | ({"against": other} if other else {})
    multiple = math.lcm(*(p.multiple for p in priors.values()))
    result: dict[str, object] = {
        "timesteps": list(TIMESTEPS),
        "fingerprints": {name: p.fingerprint for name, p in priors.items()},
    }
    for label, images in sets.items():
        tiles = [centre(image, multiple) for image in images]
        rows = {name: eps_losses(p, tiles, TIMESTEPS) for name, p in priors.items()}
        rows["wiener"] = wiener_losses(tiles, TIMESTEPS)
        result[f"eps {label}"] = {k: [round(v, 6) for v in row] for k, row in rows.items()}
        result[f"lattice {label}"] = {
            name: {t: round(lattice(p, tiles, t), 3) for t in LATTICE_TIMESTEPS}
            for name, p in priors.items()
        }
    return result


def markdown(result: dict) -> str:
    """The eps losses as tables, one for each set of images."""
    lines = []
    for key, rows in result.items():
        if not key.startswith("eps "):
            continue
        lines += [f"{key[4:]}:", "", "| t | " + " | ".join(map(str, result["timesteps"])) + " |"]
        lines.append("|---" * (1 + len(result["timesteps"])) + "|")
        for name, losses in rows.items():
            lines.append(f"| {name} | " + " | ".join(f"{v:.4f}" for v in losses) + " |")
        lines.append("")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ddfm_fast.priors.training.evaluate",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure and draw what a prior has learnt, on images it was not trained on.",
        epilog="""examples:
  pictures and losses of a trained prior, on scikit-image's photographs:
    python -m ddfm_fast.priors.training.evaluate prior.safetensors --out looks
  against the embedded prior, on infrared images too:
    python -m ddfm_fast.priors.training.evaluate prior.safetensors --against embedded --out looks \\
        --images infrared=pairs/ir

writes into the folder: losses.json, denoising.png (clean, noisy and predicted x0) and samples.png
(unconditional samples at 256x256, which no fusion needs: they show what the prior believes).""",
    )
    add = parser.add_argument
    add("prior", help='a .safetensors file of the training, or "embedded"')
    add("--out", type=Path, required=True, metavar="FOLDER", help="made if it does not exist")
    add("--against", metavar="PRIOR", help="another prior to set beside it")
    add(
        "--images",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="one more set of images; may be repeated",
    )
    add("--samples", type=int, default=4, help="unconditional samples (default 4, 0: none)")
    add("--threads", type=int, default=0, help="CPU threads (0: PyTorch's choice)")
    return parser


def image_sets(options: argparse.Namespace) -> dict[str, list[np.ndarray]]:
    """The sets of images by name: scikit-image's photographs and those of ``--images``."""
    sets = {"photographs": photographs()}
    for text in options.images:
        name, equals, folder = text.partition("=")
        if not equals or not Path(folder).is_dir():
            raise ValueError(f"--images {text!r}, expected NAME=FOLDER with a folder that exists")
        sets.setdefault(name, []).extend(read_folder(Path(folder)))
    return sets


def run(options: argparse.Namespace) -> None:
    """Measure, draw and write what ``--help`` says."""
    sets = image_sets(options)
    prior = load_prior(options.prior)
    other = load_prior(options.against) if options.against else None
    options.out.mkdir(parents=True, exist_ok=True)
    result = measure(prior, other, sets)
    result["scale"] = {
        str(t): scale_losses(prior, sets["photographs"][0], t, SIZES) for t in (50, 300)
    }
    small = [
        cv2.resize(_square(i), (96, 96), interpolation=cv2.INTER_AREA) for i in sets["photographs"]
    ]
    picture, psnr = denoisings(prior, [centre(i, prior.multiple, 96) for i in small])
    write_palette(picture, options.out / "denoising.png")
    result["psnr"] = dict(zip(map(str, GRID_TIMESTEPS), (round(p, 2) for p in psnr), strict=True))
    with atomic_path(options.out / "losses.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))
    if options.samples:
        samples = sample(prior, options.samples)
        row = torch.cat(list(samples), dim=2)
        pixels = ((row + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        write_palette(pixels, options.out / "samples.png")


def _square(image: np.ndarray) -> np.ndarray:
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        run(options)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
