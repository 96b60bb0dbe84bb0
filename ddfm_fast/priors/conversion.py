"""Priors written to other files, and what fewer bits cost, measured on what was written."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..images.doubts import DDFMWarning
from ..storage import cache
from ..storage.urls import as_url
from . import checkpoint
from .check import Answer, answers, decibels
from .folders import convert_folder
from .hf import read_folder
from .load import ASSETS, load_prior
from .state_dict import read_tensors


class Loss(NamedTuple):
    """The loss at one noise level, on the picture that ``prior check`` uses."""

    sigma: float
    """gray levels of 255"""
    error: float
    """‖ε' − ε‖ / ‖ε‖ of the prediction"""
    before: float
    """PSNR of the picture denoised by one evaluation, in decibels, like ``after``"""
    after: float


class Weights(NamedTuple):
    """What became of the numbers of a file."""

    largest: float
    limit: float
    """the largest number that their type holds"""
    vanished: float
    """share of the numbers that became 0"""


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    dtype: str | torch.dtype | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """Convert a prior: a checkpoint or a network of the package to one file, a folder to one.

    Args:
        src: A checkpoint, its URL, "embedded", "embedded-gray", or a folder of diffusers.
        dst: The ``.safetensors`` file or, for a folder, a new folder; never ``src``.
        dtype: "float32", "float16", "bfloat16", or None for that of ``src``.
        config: What a checkpoint lacks, as :func:`.load.load_prior` takes it; it is stored.

    Raises:
        TypeError: ``src`` is a module, a function or a prior, which has no file.
        ValueError: Whatever else cannot be converted, as :func:`.checkpoint.convert` and
            :func:`.folders.convert_folder` say.
        ImportError: A folder without diffusers.
    """
    path = _path_of(src)
    if config and (path.is_dir() or path in ASSETS.values()):
        raise ValueError(
            f"config: {str(src)!r} brings its own; leave config out"
            + (" and change scheduler_config.json" if path.is_dir() else "")
        )
    if path.is_dir():
        return convert_folder(path, dst, dtype)
    return checkpoint.convert(path, dst, dtype, config)


def _path_of(src: Any) -> Path:
    """Return the file or the folder that ``convert`` is given."""
    if not isinstance(src, str | os.PathLike):
        raise TypeError(
            f"src: got {type(src).__name__}, expected the path of a checkpoint or of a folder of "
            "diffusers: a function has no weights to store; of a module save state_dict() by "
            "torch.save, and of a prior give what it was loaded from"
        )
    if isinstance(src, str) and src in ASSETS:
        return ASSETS[src]
    return Path(src) if (url := as_url(src)) is None else cache.cached(url)


def loss_of(
    src: str | os.PathLike, dst: str | os.PathLike, config: dict[str, Any] | None = None
) -> list[Loss]:
    """Evaluate both files in float32 on one noisy picture at three noise levels.

    Args:
        src: As :func:`convert` takes it, with ``config``.
        dst: What it was converted to.
        config: What ``src`` lacks.
    """
    dst = os.path.abspath(dst)  # a path, even if its name is that of a prior
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DDFMWarning)
        wanted = _answers(src, config)  # one network in memory at a time
        found = _answers(dst, None)
    return [_loss(a, b) for a, b in zip(wanted, found, strict=True)]


def _answers(path: str | os.PathLike, config: dict[str, Any] | None) -> list[Answer]:
    with torch.inference_mode():
        return list(answers(load_prior(path, config)))


def _loss(wanted: Answer, found: Answer) -> Loss:
    error = (found.eps - wanted.eps).norm() / wanted.eps.norm().clamp(min=1e-12)
    before, after = (decibels(a.sigma * (a.noise - a.eps)) for a in (wanted, found))
    return Loss(wanted.sigma * 127.5, float(error), before, after)


def _tensors_of(src: str | os.PathLike) -> dict[str, torch.Tensor]:
    path = _path_of(src)
    if path.is_dir():
        return read_tensors(read_folder(path).weights, pickled=(".bin",))[0]
    return read_tensors(path)[0]


def weights_of(src: str | os.PathLike, dst: str | os.PathLike) -> Weights:
    """Compare the numbers of two files or folders with the same tensors."""
    before, after = _tensors_of(src), _tensors_of(os.path.abspath(dst))
    there = sum(int(v.count_nonzero()) for v in before.values())
    left = sum(int(v.count_nonzero()) for v in after.values())
    largest = max(float(v.abs().max()) for v in after.values())
    limit = min(torch.finfo(v.dtype).max for v in after.values())
    return Weights(largest, limit, (there - left) / max(there, 1))
