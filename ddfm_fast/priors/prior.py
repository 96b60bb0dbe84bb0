"""What the sampler knows of a prior: an unconditional noise predictor eps(x_t, t)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checkpoint import PRIOR_KEYWORDS
from .conditioning import Conditioning

EPS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""what a prior may answer in"""

NOISE_SCHEDULES = ("linear", "cosine")


class Prior:
    """A noise predictor as the sampler sees it.

    Attributes: ``multiple`` (height and width handed in are multiples of it),
    ``num_train_timesteps``, ``noise_schedule`` ("linear" or "cosine" betas of its training),
    ``rescale_timesteps`` (the network is given t * 1000 / num_train_timesteps, not t),
    ``has_variance`` (can return the learned-range half), ``name``, ``fingerprint`` (sha256 of the
    weights, "" for callables), ``device`` and ``dtype`` of the weights, ``tf32`` (float32 matrix
    products are rounded to TF32 on CUDA), ``compiled`` (by torch.compile).
    """

    fingerprint: str = ""
    has_variance: bool = False
    tf32: bool = False
    compiled: bool = False

    @property
    def precision(self) -> str:
        """The name of the arithmetic: "tf32", or that of ``dtype``."""
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

    def activation_bytes(self, n: int, height: int, width: int) -> int | None:
        """Most bytes of activations during ``eps`` of n such images, or None if unknown."""
        return None

    def __init__(
        self,
        *,
        name: str,
        multiple: int,
        device: torch.device,
        dtype: torch.dtype,
        noise_schedule: str = "linear",
        num_train_timesteps: int = 1000,
        rescale_timesteps: bool = False,
    ):
        if noise_schedule not in NOISE_SCHEDULES:
            raise ValueError(
                f"config: noise_schedule={noise_schedule!r}, expected one of "
                f"{', '.join(NOISE_SCHEDULES)}"
            )
        for key, value in (("num_train_timesteps", num_train_timesteps), ("multiple", multiple)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"config: {key}={value!r}, expected an integer of at least 1")
        if not isinstance(rescale_timesteps, bool):
            raise ValueError(f"config: rescale_timesteps={rescale_timesteps!r}, expected a bool")
        self.name, self.multiple = name, multiple
        self.noise_schedule, self.num_train_timesteps = noise_schedule, num_train_timesteps
        self.rescale_timesteps = rescale_timesteps
        self.device, self.dtype = device, dtype

    def to(self, device: str | torch.device) -> Prior:
        """This prior on a device: itself if it is there, else a new one; never moved in place."""
        raise NotImplementedError

    def conditioning(self, timesteps: Tensor) -> Conditioning:
        """One item for each of the training timesteps [S], to hand to ``eps``."""
        raise NotImplementedError

    def eps(self, x: Tensor, cond: Any, *, variance: bool = False) -> Tensor:
        """Predicted noise [N, 3, H, W] of x [N, 3, H, W] float32, no autograd.

        ``cond`` is an item of ``conditioning``. With ``variance`` [N, 6, H, W], the second half
        the learned-range interpolation weight v in [-1, 1] (Nichol and Dhariwal 2021, eq. 15).
        The result is as the network leaves it, in any memory format, and float32, bfloat16 or
        float16: compute with it in float32.
        """
        raise NotImplementedError

    def _network_timesteps(self, timesteps: Tensor) -> Tensor:
        timesteps = torch.as_tensor(timesteps, device=self.device)
        if self.rescale_timesteps:
            return timesteps.float() * (1000.0 / self.num_train_timesteps)
        return timesteps

    def _check_input(self, x: Tensor, variance: bool) -> None:
        multiple = self.multiple
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError(
                f"x: shape {tuple(x.shape)}, expected [N, 3, H, W] with H and W multiples of "
                f"{multiple} for prior {self.name!r}; pad it"
            )
        if variance and not self.has_variance:
            raise ValueError(
                f"variance: prior {self.name!r} predicts no variance; "
                "use a sampler with a fixed one"
            )

    def _keywords(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("name", *PRIOR_KEYWORDS)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.dtype}, device={str(self.device)!r})"


def _same_device(a: torch.device, b: torch.device) -> bool:
    return a.type == b.type and (a.index == b.index or a.type == "cpu")
