"""The cost of a conversion to fewer bits, measured on the file that was written."""

from __future__ import annotations

import os
import warnings
from typing import Any, NamedTuple

import torch

from ..images.doubts import DDFMWarning
from .check import Answer, answers, decibels
from .load import load_prior
from .state_dict import read_tensors


class Loss(NamedTuple):
    """At one noise level of the picture that ``prior check`` takes."""

    sigma: float
    """gray levels of 255"""
    error: float
    """‖ε' − ε‖ / ‖ε‖ of the prediction"""
    before: float
    """PSNR of the picture denoised by one evaluation, in decibels, like ``after``"""
    after: float


class Weights(NamedTuple):
    """What the numbers of a file became."""

    largest: float
    limit: float
    """the largest that their type holds"""
    vanished: float
    """share of those that were not 0 and are now"""


def loss_of(
    src: str | os.PathLike, dst: str | os.PathLike, config: dict[str, Any] | None = None
) -> list[Loss]:
    """Evaluate both files in float32 on one noisy picture at three noise levels.

    Args:
        src: A checkpoint, as :func:`.checkpoint.convert` takes it, with ``config``.
        dst: What was made of it.
        config: What ``src`` lacks.
    """
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


def weights_of(src: str | os.PathLike, dst: str | os.PathLike) -> Weights:
    """Compare the numbers of two files of the same tensors."""
    before, after = (read_tensors(path)[0] for path in (src, dst))
    there = sum(int(v.count_nonzero()) for v in before.values())
    left = sum(int(v.count_nonzero()) for v in after.values())
    largest = max(float(v.abs().max()) for v in after.values())
    limit = min(torch.finfo(v.dtype).max for v in after.values())
    return Weights(largest, limit, (there - left) / max(there, 1))
