"""A UNet of ours as a prior: laid out for the device, run by the engine."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..images.doubts import warn
from ..images.integers import as_int
from .checkpoint import build_unet
from .conditioning import Conditioning
from .engine import Engine
from .foreign import why_channels
from .ops.fused import FusedOps
from .ops.native import NativeOps
from .ops.onepass import OnePassOps
from .ops.plain import PlainOps
from .precision import PRECISIONS, check_precision, cpu_has, float32_products
from .prior import Prior, same_device
from .reuse import Kept
from .state_dict import not_finite, some, weights_sha256
from .unet import UNet


class UNetPrior(Prior):
    """Our own network engine; ``unet`` is used as it is and never changed.

    ``load_prior`` gives it a copy laid out for speed. ``tf32``: round float32 matrix products on
    CUDA (a CPU has no TF32: there it is float32). ``compiled``: run PyTorch's plain operators
    through torch.compile in place of ours.
    """

    def __init__(
        self,
        unet: UNet,
        *,
        name: str = "unet",
        multiple: int | None = None,
        tf32: bool = False,
        compiled: bool = False,
        **keywords,
    ):
        config = unet.config
        self.channels = config.in_channels
        if config.in_channels not in (1, 3) or config.out_channels not in (
            config.in_channels,
            2 * config.in_channels,
        ):
            raise ValueError(
                f"prior: the network maps {config.in_channels} to {config.out_channels} channels, "
                "expected 3 to 3 or 6, or 1 to 1 or 2 (a noise predictor of color or of gray, "
                f"without or with learned variance){why_channels(config.in_channels)}"
            )
        multiple = config.multiple if multiple is None else multiple
        if (number := as_int(multiple)) is not None and number % config.multiple:
            raise ValueError(
                f"config: multiple={multiple}, expected a multiple of {config.multiple}, "
                "which the network needs"
            )
        super().__init__(
            name=name, multiple=multiple, device=unet.device, dtype=unet.dtype, **keywords
        )
        diffusion = self.noise_schedule, self.num_train_timesteps
        if config.sigma_data and diffusion != ("linear", 1000):
            raise ValueError(
                f"config: sigma_data={config.sigma_data} with noise_schedule={diffusion[0]!r} and "
                f"num_train_timesteps={diffusion[1]}, expected 'linear' and 1000, the only "
                "process that preconditioned networks know"
            )
        if self.device.type == "cpu" and not cpu_has(self.dtype):
            warn(
                f"dtype: this CPU has no {self.precision} arithmetic, so it is slower than float32 "
                "here and no more accurate; use float32",
            )
        self.unet = unet
        self.has_variance = config.out_channels == 2 * self.channels
        self.tf32, self.compiled = tf32 and self.dtype == torch.float32, compiled
        self.engine = Engine(unet, PlainOps() if compiled else None)
        # our own layers add in a fixed order; oneDNN and cuDNN choose theirs by threads and batch
        self.reuses = not compiled
        self.reproducible = isinstance(self.engine.ops, NativeOps) and not compiled
        self._evaluate = _compiled(self.engine.__call__, self.device) if compiled else self.engine

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of names, shapes and float32 values of the weights."""
        return weights_sha256(self.unet.state_dict())

    def to(
        self,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool | None = None,
    ) -> UNetPrior:
        """Return this prior on a device and in a precision; a new one unless nothing changes."""
        device = self.device if device is None else torch.device(device)
        precision = check_precision(dtype) or self.precision
        compiled = self.compiled if compile is None else compile
        wanted = precision, compiled
        if same_device(device, self.device) and wanted == (self.precision, self.compiled):
            return self
        unet = optimized(self.unet, device, PRECISIONS[precision])
        tf32 = precision == "tf32"
        prior = UNetPrior(unet, tf32=tf32, compiled=compiled, **self.keywords())
        if self.dtype in (torch.float32, prior.dtype):  # otherwise it was rounded on the way
            prior.origin = self.origin
        return prior

    def __getstate__(self) -> dict[str, Any]:
        unet = self.unet if self.device.type == "cpu" else copy.deepcopy(self.unet).cpu()
        keywords = {**self.keywords(), "tf32": self.tf32, "compiled": self.compiled}
        return {"unet": unet, "device": self.device, "keywords": keywords}

    def __setstate__(self, state: dict[str, Any]) -> None:
        UNetPrior.__init__(self, state["unet"].to(state["device"]), **state["keywords"])

    def activation_bytes(self, n: int, height: int, width: int) -> int:
        """Find the most bytes of activations during ``eps`` of n such images.

        They are found on the meta device; convolution libraries' workspaces come on top.
        """
        fused = isinstance(self.engine.ops, FusedOps | OnePassOps)
        return _activation_bytes(self.unet.config, n, height, width, self.dtype, fused)

    def kept_bytes(self, n: int, height: int, width: int) -> int:
        """See :meth:`Prior.kept_bytes`; counts the map that deep layers pass to the full size."""
        if not self.reuses:
            return 0
        config = self.unet.config
        channels = int(config.model_channels * config.channel_mult[:2][-1])
        area = config.pixel_unshuffle**2
        return n * channels * (height * width // area) * self.dtype.itemsize

    @torch.no_grad()
    def conditioning(self, timesteps: Tensor) -> Conditioning:
        return self.unet.conditioning(self.network_timesteps(timesteps))

    @torch.no_grad()
    def eps(
        self, x: Tensor, cond: Any, *, variance: bool = False, kept: Kept | None = None
    ) -> Tensor:
        self.check_input(x, variance)
        with self._products():
            wanted = None if variance else self.channels
            more = () if kept is None else (kept,)
            if self.device.type == "cpu" and not self.reproducible and len(x) > 1:
                # oneDNN picks its algorithm by the batch
                return torch.cat([self._evaluate(one, cond, wanted, *more) for one in x.split(1)])
            return self._evaluate(x, cond, wanted, *more)

    def _products(self) -> AbstractContextManager[None]:
        """Return how float32 is multiplied in ``eps``."""
        if self.device.type != "cuda" or self.dtype != torch.float32:
            return nullcontext()
        return float32_products(self.tf32, convolutions=self.compiled)


def optimized(
    unet: UNet, device: torch.device, dtype: torch.dtype, *, copied: bool = False
) -> UNet:
    """Lay a network out for a device; tensors that already fit are shared, unless ``copied``.

    Convolutions are in channels_last, and qkv in the order in which attention reads it. Upsampling
    is folded on CPUs, where measurements show it to be faster.

    Raises:
        ValueError: Weights are beyond the range of bfloat16.
    """
    tensors = {
        k: v.to(device, dtype, memory_format=torch.channels_last, copy=copied)
        if v.ndim == 4
        else v.to(device, dtype, copy=copied)
        for k, v in unet.state_dict().items()
    }
    return _arranged(build_unet(unet.config, tensors))


def optimize_(unet: UNet, device: torch.device, dtype: torch.dtype) -> UNet:
    """Lay a network out as :func:`optimized` does, but itself: for one that nobody else has."""
    unet.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _arranged(unet)


def _arranged(unet: UNet) -> UNet:
    on_cpu = unet.device.type == "cpu"
    low = on_cpu and unet.dtype == torch.bfloat16
    if low and (bad := not_finite(unet.state_dict())):
        raise ValueError(f"dtype: {unet.dtype} cannot hold the weights of {some(bad)}; use float32")
    unet.reorder_attention()
    return unet.fold_upsampling() if on_cpu else unet


@functools.lru_cache(maxsize=256)
def _activation_bytes(config, n: int, height: int, width: int, dtype, fused: bool) -> int:
    from .cost import engine_cost

    return engine_cost(config, n, height, width, dtype, fused=fused).peak_bytes


def _compiled(function: Callable, device: torch.device) -> Callable:
    """Pass the function through torch.compile: one program per size, without its CUDA graphs."""
    mode = "max-autotune-no-cudagraphs" if device.type == "cuda" else None
    return torch.compile(function, mode=mode, dynamic=False)
