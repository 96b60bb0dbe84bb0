"""Priors: unconditional noise predictors eps(x_t, t), whatever they come from, behind one class.

:func:`load_prior` turns the embedded network, a checkpoint, a diffusers folder, an ``nn.Module``
or a callable into a :class:`Prior`, which is all that the sampler knows.
"""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import (
    PRIOR_KEYWORDS,
    build_unet,
    load_checkpoint,
    split_config,
    weights_sha256,
)
from .conditioning import Conditioning
from .engine import Engine
from .ops import FusedOps, PlainOps
from .precision import (
    PRECISIONS,
    check_precision,
    cpu_has,
    default_precision,
    float32_products,
)
from .unet import UNet

__all__ = ["EPS_DTYPES", "CallablePrior", "Conditioning", "Prior", "UNetPrior", "load_prior"]

EPS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""what a prior may answer in"""

EMBEDDED = Path(__file__).with_name("embedded.safetensors")
NOISE_SCHEDULES = ("linear", "cosine")
ACCEPTED = (
    '"embedded", the path of a .pt or .safetensors checkpoint, the folder of a diffusers '
    "UNet2DModel, an nn.Module or callable eps(x, t), or a Prior"
)


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
        if config.in_channels != 3 or config.out_channels not in (3, 6):
            raise ValueError(
                f"prior: the network maps {config.in_channels} to {config.out_channels} channels, "
                "expected 3 to 3 or 6 (an RGB noise predictor, without or with learned variance)"
            )
        multiple = config.multiple if multiple is None else multiple
        if isinstance(multiple, int) and multiple % config.multiple:
            raise ValueError(
                f"config: multiple={multiple}, expected a multiple of {config.multiple}, "
                "which the network needs"
            )
        weight = unet.out[2].weight
        super().__init__(
            name=name, multiple=multiple, device=weight.device, dtype=weight.dtype, **keywords
        )
        diffusion = self.noise_schedule, self.num_train_timesteps
        if config.sigma_data and diffusion != ("linear", 1000):
            raise ValueError(
                f"config: sigma_data={config.sigma_data} with noise_schedule={diffusion[0]!r} and "
                f"num_train_timesteps={diffusion[1]}, expected 'linear' and 1000, the only "
                "process that preconditioned networks know"
            )
        if self.device.type == "cpu" and not cpu_has(self.dtype):
            warnings.warn(
                f"dtype: this CPU has no {self.precision} arithmetic, so it is slower than float32 "
                "here and no truer; use float32",
                stacklevel=2,
            )
        self.unet = unet
        self.tf32, self.compiled = tf32 and self.dtype == torch.float32, compiled
        self.engine = Engine(unet, PlainOps() if compiled else None)
        self._evaluate = _compiled(self.engine.__call__, self.device) if compiled else self.engine
        self.has_variance = config.out_channels == 6

    @functools.cached_property
    def fingerprint(self) -> str:
        return weights_sha256(self.unet.state_dict())

    def to(
        self,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool | None = None,
    ) -> UNetPrior:
        """This prior on a device (and in a precision); a new one unless nothing changes."""
        device = self.device if device is None else torch.device(device)
        precision = check_precision(dtype) or self.precision
        compiled = self.compiled if compile is None else compile
        wanted = precision, compiled
        if _same_device(device, self.device) and wanted == (self.precision, self.compiled):
            return self
        unet = _optimised(self.unet, device, PRECISIONS[precision])
        return UNetPrior(unet, tf32=precision == "tf32", compiled=compiled, **self._keywords())

    def activation_bytes(self, n: int, height: int, width: int) -> int:
        """Most bytes of activations during ``eps`` of n such images.

        Found on the meta device; convolution libraries' workspaces come on top.
        """
        fused = isinstance(self.engine.ops, FusedOps)
        return _activation_bytes(self.unet.config, n, height, width, self.dtype, fused)

    @torch.no_grad()
    def conditioning(self, timesteps: Tensor) -> Conditioning:
        return self.unet.conditioning(self._network_timesteps(timesteps))

    @torch.no_grad()
    def eps(self, x: Tensor, cond: Any, *, variance: bool = False) -> Tensor:
        self._check_input(x, variance)
        exact = self.device.type == "cuda" and self.dtype == torch.float32
        with float32_products(self.tf32) if exact else nullcontext():
            return self._evaluate(x, cond, None if variance else 3)


def _optimised(unet: UNet, device: torch.device, dtype: torch.dtype) -> UNet:
    """A copy of the network, fast on the device; tensors that fit already are shared, not copied.

    Convolutions are in channels_last, and qkv in the order in which attention reads it. Upsampling
    is folded on CPUs, where it was measured to win.
    """
    tensors = {
        k: v.to(device, dtype, memory_format=torch.channels_last)
        if v.ndim == 4
        else v.to(device, dtype)
        for k, v in unet.state_dict().items()
    }
    optimised = build_unet(unet.config, tensors).reorder_attention()
    return optimised.fold_upsampling() if device.type == "cpu" else optimised


@functools.lru_cache(maxsize=256)
def _activation_bytes(config, n: int, height: int, width: int, dtype, fused: bool) -> int:
    from .cost import engine_cost

    return engine_cost(config, n, height, width, dtype, fused=fused).peak_bytes


def _compiled(function: Callable, device: torch.device) -> Callable:
    """The function through torch.compile, one program a size, without CUDA graphs of its own."""
    mode = "max-autotune-no-cudagraphs" if device.type == "cuda" else None
    return torch.compile(function, mode=mode, dynamic=False)


def _same_device(a: torch.device, b: torch.device) -> bool:
    return a.type == b.type and (a.index == b.index or a.type == "cpu")


class CallablePrior(Prior):
    """Any ``eps(x, t)``: x [N, 3, H, W], t [N] training timesteps (int64 unless rescaled).

    It returns [N, 3, H, W], or [N, 6, H, W] with the variance half, or an object with such a
    tensor as ``.sample`` (diffusers). ``multiple`` is the callable's attribute of that name,
    else 32; ``has_variance`` its attribute, or ``out_channels == 6``, else found by one evaluation
    on zeros when first asked for.
    """

    def __init__(
        self,
        function: Callable,
        *,
        name: str | None = None,
        multiple: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **keywords,
    ):
        parameter = None
        if isinstance(function, nn.Module):
            parameter = next((p for p in function.parameters() if p.is_floating_point()), None)
        if parameter is not None:
            device, dtype = parameter.device, dtype or parameter.dtype
        if multiple is None:
            multiple = getattr(function, "multiple", None) or 32
        super().__init__(
            name=name or getattr(function, "__name__", type(function).__name__),
            multiple=multiple,
            device=torch.device(device or "cpu"),
            dtype=dtype or torch.float32,
            **keywords,
        )
        self.function = function

    @functools.cached_property
    def has_variance(self) -> bool:
        known = getattr(self.function, "has_variance", None)
        if known is None:
            # A module's own attribute; diffusers keeps it in .config and warns about the shortcut.
            holder = getattr(self.function, "config", self.function)
            channels = getattr(holder, "out_channels", None)
            known = None if channels is None else channels == 6
        if known is None:
            side = -(-64 // self.multiple) * self.multiple
            zeros = torch.zeros(1, 3, side, side, device=self.device)
            known = self._call(zeros, self.conditioning(torch.tensor([0]))[0]).shape[1] == 6
        return bool(known)

    def to(self, device: str | torch.device) -> CallablePrior:
        """This prior on a device; modules are copied, plain callables get x on that device."""
        device = torch.device(device)
        if _same_device(device, self.device):
            return self
        function = self.function
        if isinstance(function, nn.Module):
            function = copy.deepcopy(function).to(device)
        return CallablePrior(function, device=device, dtype=self.dtype, **self._keywords())

    def conditioning(self, timesteps: Tensor) -> Conditioning:
        timesteps = self._network_timesteps(timesteps)
        if not timesteps.is_floating_point():
            timesteps = timesteps.long()
        return Conditioning(timesteps[:, None], lambda row: row[0])

    @torch.no_grad()
    def eps(self, x: Tensor, cond: Any, *, variance: bool = False) -> Tensor:
        self._check_input(x, variance)
        out = self._call(x, cond)
        if variance and out.shape[1] != 6:
            raise ValueError("prior: the callable returned no variance half, expected 6 channels")
        out = out if variance else out[:, :3]
        return out if out.dtype in EPS_DTYPES else out.float()

    @torch.no_grad()
    def _call(self, x: Tensor, cond: Tensor) -> Tensor:
        out = self.function(x.to(self.dtype), cond.repeat(len(x)))
        if not isinstance(out, Tensor):
            out = getattr(out, "sample", out)
        if not isinstance(out, Tensor) or not out.is_floating_point():
            what = f"a tensor of {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(
                f"prior: eps(x, t) returned {what}, expected a floating-point tensor "
                "[N, 3, H, W] or [N, 6, H, W]"
            )
        n, _, height, width = x.shape
        if tuple(out.shape) not in ((n, 3, height, width), (n, 6, height, width)):
            raise ValueError(
                f"prior: eps(x, t) returned shape {tuple(out.shape)} for x {tuple(x.shape)}, "
                f"expected {(n, 3, height, width)} or {(n, 6, height, width)}"
            )
        if out.device != x.device:
            raise ValueError(
                f"prior: eps(x, t) returned a tensor on {out.device} for x on {x.device}; "
                "keep it on one device"
            )
        return out


def load_prior(
    spec: Any,
    config: dict[str, Any] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    compile: bool = False,
) -> Prior:
    """A :class:`Prior` from ``"embedded"``, a checkpoint path, a folder, a module or a callable.

    ``spec``: "embedded" (the small network that comes with the package, read once a process), the
    path of a guided-diffusion ``.pt``/``.pth``/``.safetensors`` checkpoint, the folder of a
    diffusers ``UNet2DModel`` (extra ``diffusers``), an ``nn.Module`` or callable ``eps(x, t)``
    (:class:`CallablePrior`), or a :class:`Prior`, which comes back as it is.
    ``config``: guided-diffusion's ``UNetModel`` keywords for what a checkpoint does not tell
    (mostly ``num_head_channels`` or ``num_heads``), and the prior's own: ``noise_schedule``
    ("linear" | "cosine"), ``num_train_timesteps``, ``rescale_timesteps``, ``multiple``.
    ``device``: where to put it (default: CPU, or where a module is). ``dtype``: "float32" (the
    default), "tf32" (float32 whose matrix products CUDA rounds), "bfloat16", "float16", or "auto"
    for the device's own (:func:`.precision.default_precision`; networks from a name or a path
    only, others stay as they are); for modules and callables, the dtype of the x they are given.
    ``compile``: run the network through torch.compile (Inductor), which costs a minute at each
    new size and needs a C++ compiler on a CPU; what it gains is in bench/results.

    ValueError or TypeError, naming what is wrong, for anything else; ImportError when diffusers
    is needed and absent.
    """
    if dtype == "auto":
        named = isinstance(spec, str | os.PathLike)
        dtype = default_precision(torch.device(device or "cpu")) if named else None
    dtype = check_precision(dtype)
    if isinstance(spec, Prior):
        if config:
            raise ValueError("config: a Prior is taken as it is; pass config where it is made")
        prior: Prior = spec
    elif isinstance(spec, str) and spec == "embedded":
        if config:
            raise ValueError('config: the prior "embedded" brings its own; leave config out')
        prior = _embedded()
    elif isinstance(spec, str | os.PathLike):
        prior = _from_path(Path(spec), config, device, dtype)
    elif isinstance(spec, UNet):
        weight = spec.out[2].weight
        to = torch.device(device or weight.device), PRECISIONS.get(dtype, weight.dtype)
        prior = UNetPrior(_optimised(spec, *to), tf32=dtype == "tf32", **_prior_keywords(config))
    elif callable(spec) and not isinstance(spec, type):
        prior = CallablePrior(spec, dtype=PRECISIONS.get(dtype), **_prior_keywords(config))
    else:
        raise TypeError(f"prior: got {type(spec).__name__}, expected {ACCEPTED}")
    if isinstance(prior, UNetPrior):
        return prior.to(device, dtype, compile or None)
    if compile:
        raise ValueError(
            f"compile: works on networks of ddfm_fast, and prior {prior.name!r} is a module or "
            "callable; call torch.compile on it and pass the result"
        )
    return prior if device is None else prior.to(device)


def _prior_keywords(config: dict[str, Any] | None) -> dict[str, Any]:
    network, prior = split_config(config)
    if network:
        raise ValueError(
            f"config: {', '.join(map(repr, network))} has no effect on this kind of prior; "
            f"expected {', '.join(PRIOR_KEYWORDS)}"
        )
    return prior


@functools.cache
def _embedded() -> UNetPrior:
    if not EMBEDDED.is_file():
        raise ValueError(
            'prior: the file of "embedded" is missing from this installation; install ddfm_fast '
            "again or give the path of a checkpoint"
        )
    return _checkpoint_prior(EMBEDDED, None, torch.device("cpu"), "float32", "embedded")


def _checkpoint_prior(
    path: Path, config: dict[str, Any] | None, device: torch.device, precision: str, name: str
) -> UNetPrior:
    unet, info = load_checkpoint(path, config)
    unet = _optimised(unet, device, PRECISIONS[precision])
    return UNetPrior(unet, name=name, tf32=precision == "tf32", **info["prior"])


def _from_path(
    path: Path,
    config: dict[str, Any] | None,
    device: str | torch.device | None,
    precision: str | None,
) -> Prior:
    device = torch.device(device or "cpu")
    precision = precision or "float32"
    if path.is_dir():
        from .hf import load_diffusers

        model, found = load_diffusers(path)
        keywords = {**found, **_prior_keywords(config)}
        model = model.to(device, PRECISIONS[precision])
        return CallablePrior(model, name=path.name, **keywords)
    if not path.exists():
        raise ValueError(f"prior: there is no file or folder {str(path)!r}; expected {ACCEPTED}")
    return _checkpoint_prior(path, config, device, precision, path.stem)
