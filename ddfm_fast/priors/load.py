"""From a name, a path, a module or a callable to a :class:`Prior`."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch

from ..images.doubts import warn
from ..runtime.apart import on_the_host
from ..storage import cache
from ..storage.urls import as_url
from .architecture import like_consistency_models
from .callable import CallablePrior
from .checkpoint import load_checkpoint, split_config
from .hf import keywords_of_module
from .network import UNetPrior, optimize_, optimized
from .origin import Origin, file_identity
from .precision import PRECISIONS, check_precision, default_precision
from .predictions import PREDICTIONS, corrected, thousandth_log
from .prior import PREDICTION_KEYWORDS, PRIOR_KEYWORDS, Prior
from .state_dict import INDEX
from .tiled import TiledPrior, tiled
from .unet import UNet
from .wrapped import NetworkFunction, wrap

ASSETS = {
    "embedded": Path(__file__).with_name("embedded.safetensors"),
    "embedded-gray": Path(__file__).with_name("gray.safetensors"),
}
"""the networks that come with the package, by name"""
EMBEDDED = ASSETS["embedded"]

ACCEPTED = (
    '"embedded", "embedded-gray" (of one channel), the path of a .pt or .safetensors '
    "checkpoint, the folder of a diffusers UNet2DModel, an nn.Module or callable eps(x, t), or a "
    "Prior"
)


@on_the_host()
def load_prior(
    spec: Any,
    config: dict[str, Any] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    compile: bool = False,
) -> Prior:
    """Load a :class:`Prior` from "embedded", a checkpoint path, a folder, a module or a callable.

    ``spec``: "embedded" (the small network that comes with the package, read once per process), the
    path of a guided-diffusion ``.pt``/``.pth``/``.safetensors`` checkpoint or its URL, the folder
    of a diffusers ``UNet2DModel`` (extra ``diffusers``), an ``nn.Module`` or callable ``eps(x, t)``
    (:class:`CallablePrior`), or a :class:`Prior`, which is returned as it is. A network of ours is
    copied; if its training continues, load it again.
    ``config``: guided-diffusion's ``UNetModel`` keywords that a checkpoint does not determine
    (mostly ``num_head_channels`` or ``num_heads``), and the prior's own: ``noise_schedule``
    ("linear" | "cosine"), ``num_train_timesteps``, ``alphas`` (of any other process),
    ``rescale_timesteps``, ``multiple``; and for networks that do not predict eps ``prediction``,
    ``sigmas``, ``value_range`` and ``time`` of :func:`.wrapped.wrap`.
    ``device``: where to put it (default: CPU, or a module's device). ``dtype``: "float32" (the
    default), "tf32" (float32 whose matrix products CUDA rounds), "bfloat16", "float16", or "auto"
    for the device's own (:func:`.precision.default_precision`; only for networks from a name or a
    path, others stay as they are); for modules and callables, the dtype of the x they are given.
    ``compile``: run the network through torch.compile (Inductor), which takes a minute per
    new size and needs a C++ compiler on a CPU; bench/results shows what it gains.

    Raises ValueError or TypeError, naming what is wrong, for anything else; ImportError if
    diffusers is needed and missing.

    >>> prior = load_prior("embedded")
    >>> prior(torch.zeros(1, 3, 64, 64), 500).shape  # eps of the noisy image x, at timestep 500
    torch.Size([1, 3, 64, 64])
    >>> prior.multiple, prior.num_train_timesteps, prior.precision
    (16, 1000, 'float32')
    """
    device = None if device is None else _checked_device(device)
    if isinstance(dtype, str) and dtype == "auto":
        named = isinstance(spec, str | os.PathLike)
        dtype = default_precision(torch.device(device or "cpu")) if named else None
    dtype = check_precision(dtype)
    prior = _prior_of(spec, config, device, dtype)
    if isinstance(prior, UNetPrior):
        return prior.to(device, dtype, compile or None)
    if compile:
        raise ValueError(
            f"compile: works on networks of ddfm_fast, and prior {prior.name!r} is a module or "
            "callable; call torch.compile on it and pass the result"
        )
    return prior if device is None else prior.to(device)


def _checked_device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(
            f'device: got {device!r}, expected one of PyTorch, such as "cpu" or "cuda"'
        ) from None


def _prior_of(
    spec: Any,
    config: dict[str, Any] | None,
    device: str | torch.device | None,
    dtype: str | None,
) -> Prior:
    """Return the prior, in that precision if it is made here."""
    if isinstance(spec, Prior):
        if config:
            raise ValueError("config: a Prior is taken as it is; pass config where it is made")
        prior: Prior = spec
    elif isinstance(spec, str) and spec in ASSETS:
        if config:
            raise ValueError(f'config: the prior "{spec}" brings its own; leave config out')
        prior = _embedded(spec)
    elif isinstance(spec, str | os.PathLike):
        prior = _from_path(spec, config, device, dtype)
    elif isinstance(spec, UNet):
        unet_dtype = spec.dtype if dtype is None else PRECISIONS[dtype]
        # a whole copy: while a network is still in training, some layers would follow and others
        # not
        unet = optimized(spec, torch.device(device or spec.device), unet_dtype, copied=True)
        prior = _of_network(unet, {"tf32": dtype == "tf32", **_prior_keywords(config)})
    elif callable(spec) and not isinstance(spec, type):
        input_dtype = None if dtype is None else PRECISIONS[dtype]
        given = _prior_keywords(config)
        prior = _of_callable(spec, {"dtype": input_dtype, **keywords_of_module(spec, given)})
    else:
        raise TypeError(f"prior: got {type(spec).__name__}, expected {ACCEPTED}")
    return prior


def _prior_keywords(config: dict[str, Any] | None) -> dict[str, Any]:
    network, prior = split_config(config)
    if network:
        raise ValueError(
            f"config: {', '.join(map(repr, network))} has no effect on this kind of prior; "
            f"expected {', '.join((*PRIOR_KEYWORDS, *PREDICTION_KEYWORDS))}"
        )
    return corrected({}, prior)


def denoiser_of(prior: Prior) -> Prior:
    """Return the prior that denoises gray sources: for the embedded network, the gray one.

    Any other prior denoises by itself, in tiles if the prior is tiled.
    """
    if isinstance(prior, TiledPrior):
        return tiled(denoiser_of(prior.inner), prior.tile, prior.keeps)
    if (
        isinstance(prior, UNetPrior)
        and prior.name == "embedded"
        and ASSETS["embedded-gray"].is_file()
    ):
        return load_prior("embedded-gray", device=prior.device, dtype=prior.precision)
    return prior


def _of_callable(function: Any, keywords: dict[str, Any]) -> Prior:
    """Return a prior from a callable: as it is if it predicts ε, else wrapped."""
    if keywords.get("prediction", "eps") == "eps" and keywords.get("channels", 3) == 3:
        _check_unused(keywords)
        return CallablePrior(function, **_without_prediction(keywords))
    prediction = keywords.pop("prediction", "eps")
    schedule, alphas = keywords.pop("noise_schedule", None), keywords.pop("alphas", None)
    return wrap(function, prediction, schedule=schedule if alphas is None else alphas, **keywords)


def _of_network(unet: UNet, keywords: dict[str, Any]) -> Prior:
    """Return a prior from one of our networks, wrapped if it does not predict ε."""
    if keywords.get("prediction", "eps") == "eps":
        _check_unused(keywords)
        return UNetPrior(unet, **_without_prediction(keywords))
    if keywords["prediction"] == "edm":  # with ADM's keys it is one of consistency_models
        keywords.setdefault("time", thousandth_log)
    own = {k: keywords.pop(k) for k in ("name", "tf32", "multiple") if k in keywords}
    network = UNetPrior(unet, **own)
    keywords |= {"channels": network.channels, "device": network.device}
    return _of_callable(NetworkFunction(network), keywords)


def _check_unused(keywords: dict[str, Any]) -> None:
    if unused := [k for k in ("sigma_data", "sigmas", "value_range", "time") if k in keywords]:
        raise ValueError(
            f"config: {unused[0]!r} has no effect on a prediction of eps; name the prediction, one "
            f"of {', '.join(PREDICTIONS)}"
        )


def _without_prediction(keywords: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in keywords.items() if k not in (*PREDICTION_KEYWORDS, "channels")}


@functools.cache
def _embedded(name: str) -> Prior:
    if not ASSETS[name].is_file():
        raise ValueError(
            f'prior: the file of "{name}" is missing from this installation; install ddfm_fast '
            "again or give the path of a checkpoint"
        )
    prior = _checkpoint_prior(ASSETS[name], None, torch.device("cpu"), "float32", name)
    prior.origin = Origin(load_prior, name)
    return prior


def _checkpoint_prior(
    path: Path, config: dict[str, Any] | None, device: torch.device, precision: str, name: str
) -> Prior:
    unet, info = load_checkpoint(path, config)
    if "prediction" not in info["prior"] and like_consistency_models(unet.config):
        warn(
            f"prior: {path.name!r} is shaped as the networks of consistency_models, and is taken "
            'for one that predicts eps; pass config (--prior-config) {"prediction": '
            '"consistency"} for cd_* and ct_* files, "edm" for edm_* ones, "eps" if it does'
        )
    unet = optimize_(unet, device, PRECISIONS[precision])
    return _of_network(unet, {"name": name, "tf32": precision == "tf32", **info["prior"]})


def _from_path(
    spec: str | os.PathLike[str],
    config: dict[str, Any] | None,
    device: str | torch.device | None,
    precision: str | None,
) -> Prior:
    device = torch.device(device or "cpu")
    precision = precision or "float32"
    path = Path(spec) if (url := as_url(spec)) is None else cache.cached(url)
    if not os.path.exists(path):
        name = str(path) if len(str(path)) < 200 else f"{str(path)[:200]}…"
        raise ValueError(f"prior: there is no file or folder {name!r}; expected {ACCEPTED}")
    where = url or os.path.abspath(path)
    origin = Origin(load_prior, where, config, file_identity(Path(where)))
    prior: Prior
    if os.path.isdir(path):  # Path.is_dir raises for names that are too long
        from .hf import load_diffusers

        model, found = load_diffusers(path)
        keywords = corrected(found, _prior_keywords(config))
        # diffusers' own ``to`` warns about things that concern none of these networks
        model = torch.nn.Module.to(model, device, PRECISIONS[precision])
        prior = _of_callable(model, {"name": path.name, **keywords})
    else:
        prior = _checkpoint_prior(path, config, device, precision, _stem(path))
    prior.origin = origin
    return prior


def _stem(path: Path) -> str:
    return path.name[: -len(INDEX)] if path.name.lower().endswith(INDEX) else path.stem


def identity_of(prior: Any) -> Any:
    """Return what identifies a prior while its file stays unchanged; None if unknown."""
    if isinstance(prior, Prior) or (isinstance(prior, str) and prior == "embedded"):
        return prior
    return file_identity(Path(prior)) if isinstance(prior, str | os.PathLike) else None
