"""Priors: unconditional noise predictors eps(x_t, t) from any source, behind one class.

:func:`load_prior` turns the embedded network, a checkpoint, a diffusers folder, an ``nn.Module``
or a callable into a :class:`Prior`, the only thing that the sampler knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..faces import face

if TYPE_CHECKING:
    from .callable import CallablePrior
    from .check import check
    from .conditioning import Conditioning
    from .load import load_prior
    from .network import UNetPrior
    from .precision import PRECISIONS
    from .prior import EPS_DTYPES, Prior
    from .wrapped import denoiser, wrap

__all__ = [
    "CallablePrior",
    "Conditioning",
    "EPS_DTYPES",
    "PRECISIONS",
    "Prior",
    "UNetPrior",
    "check",
    "denoiser",
    "load_prior",
    "wrap",
]

__getattr__, __dir__ = face(
    __name__,
    {
        "EPS_DTYPES": "prior",
        "CallablePrior": "callable",
        "Conditioning": "conditioning",
        "Prior": "prior",
        "UNetPrior": "network",
        "load_prior": "load",
        "PRECISIONS": "precision",
        "check": "check",
        "denoiser": "wrapped",
        "wrap": "wrapped",
    },
)
