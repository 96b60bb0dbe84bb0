"""What a prior has learned: ``python -m ddfm_fast.priors.training.evaluate --help``.

The measures of ``measures.py``, beside another prior's, and pictures of denoisings and of
unconditional samples. From Python: :func:`evaluate`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from ...files.paths import SUFFIXES
from ...files.reading import read_image
from ..atomic import atomic_path
from ..load import load_prior
from ..prior import Prior
from .command import Threads, make_app, start
from .measures import center, eps_losses, lattice, noisy, sample, scale_losses, to_x0, wiener_losses

TIMESTEPS = (2, 10, 25, 50, 100, 200, 300, 500, 700, 900)
GRID_TIMESTEPS = (50, 150, 300, 500, 800)
LATTICE_TIMESTEPS = (300, 500, 800)
SIZES = ((256, 256), (512, 640), (1088, 1920))
SKIMAGE_NAMES = ("astronaut", "camera", "chelsea", "coffee")

MODULE = "ddfm_fast.priors.training.evaluate"
EPILOG = f"""
Examples:

\b
Pictures and losses of a trained prior, on scikit-image's photographs:
  python -m {MODULE} prior.safetensors --out looks
Against the embedded prior, on infrared images too:
  python -m {MODULE} prior.safetensors --against embedded --out looks \\
      --images infrared=pairs/ir

Writes into the folder: losses.json, denoising.png (clean, noisy and predicted x0) and samples.png
(unconditional samples at 256x256, which no fusion needs: they show what the prior believes).
"""


def photographs() -> list[np.ndarray]:
    """Return scikit-image's astronaut, camera, chelsea and coffee, RGB uint8."""
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError('needs scikit-image: pip install "ddfm_fast[test]"') from error
    images = [getattr(data, name)() for name in SKIMAGE_NAMES]
    return [np.repeat(i[..., None], 3, axis=2) if i.ndim == 2 else i for i in images]


def read_folder(folder: Path) -> list[np.ndarray]:
    """Read every image of a folder as RGB uint8, by name; ValueError when there is none."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"--images {str(folder)!r} holds no image ({', '.join(SUFFIXES)})")
    images = []
    for path in paths:
        image = read_image(path)
        image = image if image.dtype == np.uint8 else (image / 257).round().astype(np.uint8)
        images.append(np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3])
    return images


@torch.inference_mode()
def denoisings(prior: Prior, images: Sequence[Tensor]) -> tuple[np.ndarray, list[float]]:
    """Draw clean | noisy | predicted x0 by timestep, uint8, and return the PSNR of each x0."""
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
    """Put columns of [N, 3, H, W] in [-1, 1] side by side under their titles, RGB uint8."""
    values = torch.cat([torch.cat(list(c), dim=1) for c in columns], dim=2)
    picture = ((values + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    header = np.full((20, picture.shape[1], 3), 255, np.uint8)
    width = columns[0].shape[-1]
    font = cv2.FONT_HERSHEY_SIMPLEX
    for i, title in enumerate(titles):
        cv2.putText(header, title, (i * width + 3, 14), font, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([header, picture])


def write_palette(picture: np.ndarray, target: Path) -> None:
    """Write a PNG of 256 colors: noise does not compress."""
    image = Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE)
    with atomic_path(target) as temporary:
        image.save(temporary, "PNG", optimize=True)


def measure(prior: Prior, other: Prior | None, sets: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Measure losses and lattice, ready for JSON; keys of ``sets`` name the rows."""
    priors = {"prior": prior} | ({"against": other} if other else {})
    multiple = math.lcm(*(p.multiple for p in priors.values()))
    result: dict[str, Any] = {
        "timesteps": list(TIMESTEPS),
        "fingerprints": {name: p.fingerprint for name, p in priors.items()},
    }
    for label, images in sets.items():
        tiles = [center(image, multiple) for image in images]
        rows = {name: eps_losses(p, tiles, TIMESTEPS) for name, p in priors.items()}
        rows["wiener"] = wiener_losses(tiles, TIMESTEPS)
        result[f"eps {label}"] = {k: [round(v, 6) for v in row] for k, row in rows.items()}
        result[f"lattice {label}"] = {
            name: {t: round(lattice(p, tiles, t), 3) for t in LATTICE_TIMESTEPS}
            for name, p in priors.items()
        }
    return result


def markdown(result: dict) -> str:
    """Format the eps losses as tables, one for each set of images."""
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


def image_sets(named: Iterable[str] = ()) -> dict[str, list[np.ndarray]]:
    """Read scikit-image's photographs and the sets given as NAME=FOLDER; by name."""
    sets = {"photographs": photographs()}
    for text in named:
        name, equals, folder = text.partition("=")
        if not equals or not Path(folder).is_dir():
            raise ValueError(f"--images is {text!r}; expected NAME=FOLDER of a folder that exists")
        sets.setdefault(name, []).extend(read_folder(Path(folder)))
    return sets


def evaluate(
    prior: Prior,
    out: Path,
    sets: dict[str, list[np.ndarray]],
    *,
    against: Prior | None = None,
    samples: int = 4,
) -> dict[str, Any]:
    """Measure a prior, draw what it does, and write both into a folder.

    Args:
        prior: The prior.
        out: The folder, made if it does not exist: losses.json, denoising.png and samples.png.
        sets: From :func:`image_sets`; the pictures that are drawn are the photographs.
        against: Another prior to compare with.
        samples: Unconditional samples; 0: none.

    Returns:
        What is in losses.json.
    """
    images = sets["photographs"]
    out.mkdir(parents=True, exist_ok=True)
    result = measure(prior, against, sets)
    result["scale"] = {str(t): scale_losses(prior, images[0], t, SIZES) for t in (50, 300)}
    small = [cv2.resize(_square(i), (96, 96), interpolation=cv2.INTER_AREA) for i in images]
    picture, psnr = denoisings(prior, [center(i, prior.multiple, 96) for i in small])
    write_palette(picture, out / "denoising.png")
    result["psnr"] = dict(zip(map(str, GRID_TIMESTEPS), (round(p, 2) for p in psnr), strict=True))
    with atomic_path(out / "losses.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    if samples:
        row = torch.cat(list(sample(prior, samples)), dim=2)
        pixels = ((row + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        write_palette(pixels, out / "samples.png")
    return result


def _square(image: np.ndarray) -> np.ndarray:
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def command(
    prior: Annotated[
        str, typer.Argument(help='A .safetensors file of the training, or "embedded".')
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Made if it does not exist.")],
    against: Annotated[
        str | None, typer.Option(metavar="PRIOR", help="Another prior to set beside it.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="One more set of images; may be repeated.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Unconditional samples (0: none).")] = 4,
    threads: Threads = 0,
) -> None:
    """Measure and draw what a prior has learned, on images it was not trained on."""
    if threads:
        torch.set_num_threads(threads)
    sets = image_sets(images or ())
    other = load_prior(against) if against else None
    result = evaluate(load_prior(prior), out, sets, against=other, samples=samples)
    typer.echo(markdown(result))


app = make_app(MODULE, command, EPILOG)

if __name__ == "__main__":
    start(app)
