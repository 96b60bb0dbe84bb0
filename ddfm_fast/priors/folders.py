"""A diffusers folder converted: other weights, as one safetensors file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from .atomic import atomic_folder
from .checkpoint import check_dtype, stored_as, write_tensors
from .hf import WEIGHTS, Folder, load_diffusers, read_folder
from .state_dict import read_tensors

_EXACT = ("time_proj.weight",)
"""Fourier frequencies: rounded, they give the sines of other times"""
_BESIDE = (
    "model_index.json", "scheduler_config.json", "scheduler/scheduler_config.json", "README.md",
    "LICENSE", "LICENSE.md", "LICENSE.txt",
)  # fmt: skip
"""files that are copied: those that describe the process, and the authors' terms"""


def convert_folder(
    src: str | os.PathLike, dst: str | os.PathLike, dtype: str | torch.dtype | None = None
) -> Path:
    """Convert a folder of a ``UNet2DModel``, as diffusers and ``load_prior`` read it.

    Its shards or its pickle become one safetensors file; configurations, model card and license
    are copied. The Fourier frequencies of variance-exploding networks keep their type.

    Args:
        src: The folder, as :func:`.load.load_prior` takes it.
        dst: A folder that does not exist yet, or is empty.
        dtype: "float32", "float16", "bfloat16", or None for that of ``src``.

    Raises:
        ValueError: ``dst`` exists, lies in ``src``, or cannot be written; ``src`` is no such
            folder; or the dtype cannot hold the weights.
        ImportError: diffusers, which checks that the weights are the network's, is missing.
    """
    src, dst = Path(src), Path(dst)
    _check_target(src, dst)
    target = check_dtype(dtype)
    found = read_folder(src)
    load_diffusers(src)
    tensors = stored_as(read_tensors(found.weights, pickled=(".bin",))[0], target, _EXACT)
    with atomic_folder(dst) as temporary:
        root = temporary / found.root.relative_to(src)
        root.mkdir(exist_ok=True)
        write_tensors(root / f"{WEIGHTS}.safetensors", tensors, {"format": "pt"})
        _copy(src, found, temporary)
    return dst


def _copy(src: Path, found: Folder, temporary: Path) -> None:
    inner = str((found.root / "config.json").relative_to(src))
    for name in (inner, *_BESIDE):
        if (src / name).is_file():
            (temporary / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(src / name, temporary / name)


def _check_target(src: Path, dst: Path) -> None:
    if dst.suffix.lower() in (".safetensors", ".pt", ".pth", ".bin"):
        raise ValueError(
            f"dst: got {str(dst)!r}, a file, but src {str(src)!r} is a folder of diffusers, whose "
            "configuration is in files of its own; expected the name of a new folder"
        )
    if src.resolve() in (dst.resolve(), *dst.resolve().parents):
        raise ValueError(
            f"dst: {str(dst)!r} is src, or in it ({str(src)!r}); choose another folder"
        )
    if dst.is_symlink() or (dst.exists() and not (dst.is_dir() and not any(dst.iterdir()))):
        raise ValueError(
            f"dst: {str(dst)!r} is there already, and a folder is never replaced; choose a new "
            "name, or remove it"
        )
