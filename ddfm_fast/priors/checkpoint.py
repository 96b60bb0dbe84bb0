"""Load, describe and convert checkpoints of guided-diffusion UNets.

A checkpoint is a flat dict of tensors under the official state-dict keys (``state_dict.py``). What
the tensor shapes determine about the network is inferred (``architecture.py``); the rest comes from
the caller, from the file's metadata or from the list of known networks. Loading is strict, so
weights are never left random.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from .architecture import (
    HEAD_KEYWORDS,
    complete_config,
    infer_config,
    known_head_channels,
    uses_attention,
)
from .atomic import atomic_path
from .predictions import corrected
from .prior import PREDICTION_KEYWORDS, PRIOR_KEYWORDS, Prior
from .state_dict import (
    check_finite,
    file_sha256,
    files_of,
    json_metadata,
    not_finite,
    read_tensors,
    some,
    weights_sha256,
)
from .unet import UNet
from .unet_config import UNetConfig

FORMAT_VERSION = 1
FORMAT_KEY = "ddfm_fast.format"
CONFIG_KEY = "ddfm_fast.config"
TRAINING_KEY = "ddfm_fast.training"
SOURCE_KEY = "ddfm_fast.source"
_OURS = "ddfm_fast."

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_checkpoint(
    path: str | os.PathLike, config: dict[str, Any] | None = None
) -> tuple[UNet, dict[str, Any]]:
    """Load the network of a checkpoint, on the CPU in the file's dtype, and what the file says.

    ``config`` holds ``UNetModel`` keywords (see :class:`UNetConfig`), needed only if shapes do not
    determine them; prior keywords (``PRIOR_KEYWORDS``) may be among them. Weights are mapped
    from the file, not copied. The second value has ``prior`` (prior keywords), ``training``
    (metadata of our own training, or None) and ``metadata`` (all of it, strings).

    Raises ValueError if the path is not a checkpoint, keys or shapes do not fit, or weights are not
    finite.
    """
    tensors, metadata = read_tensors(path)
    stored = json_metadata(path, metadata, CONFIG_KEY)
    given, prior = split_config(config)
    stored, stored_prior = split_config(stored)
    given = _of_family({**stored_prior, **prior}, stored, given)
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    try:
        unet_config = complete_config(shapes, given, stored)
        unet = build_unet(unet_config, tensors)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from None
    check_finite(path, tensors)
    return unet, {
        "prior": corrected(stored_prior, prior),
        "training": json_metadata(path, metadata, TRAINING_KEY) or None,
        "metadata": metadata,
    }


def _of_family(prior: dict[str, Any], *network: dict[str, Any]) -> dict[str, Any]:
    """Return the last keywords of a network with its family's defaults, unless one says otherwise.

    The networks of consistency_models under ADM's keys keep q, k and v of all heads together.
    """
    order = "use_new_attention_order"
    if prior.get("prediction") not in ("edm", "consistency") or any(order in n for n in network):
        return network[-1]
    return {**network[-1], order: True}


def build_unet(config: UNetConfig, tensors: dict[str, Tensor]) -> UNet:
    """Build a network on these tensors, uncopied; ValueError unless keys and shapes fit exactly."""
    with _Unfilled():
        unet = UNet(config)
    wanted = {k: tuple(v.shape) for k, v in unet.state_dict().items()}
    problems = []
    if missing := [k for k in wanted if k not in tensors]:
        problems.append(f"{len(missing)} missing: {some(missing)}")
    if extra := [k for k in tensors if k not in wanted]:
        problems.append(f"{len(extra)} unexpected: {some(extra)}")
    shaped = [
        f"{k} {tuple(tensors[k].shape)} instead of {shape}"
        for k, shape in wanted.items()
        if k in tensors and tuple(tensors[k].shape) != shape
    ]
    if shaped:
        problems.append(f"{len(shaped)} misshapen: {some(shaped)}")
    if problems:
        raise ValueError(
            f"the tensors do not fit the network ({'; '.join(problems)}); check that the file is "
            "complete and that config= is the one the network was trained with"
        )
    unet.load_state_dict(tensors, assign=True)
    return unet.requires_grad_(False).eval()


class _Unfilled(TorchFunctionMode):
    """Layers made inside are on the meta device, and their weights are not initialized.

    It differs from ``torch.device("meta")``, under which PyTorch initializes what has no memory, in
    more than half of the time that making a network takes.
    """

    FILLS = (init.kaiming_uniform_, init.uniform_, Tensor.zero_, Tensor.fill_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],  # noqa: ARG002
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.FILLS:
            return args[0] if args else kwargs["tensor"]
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def split_config(config: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a ``config=`` argument into network keywords and prior keywords."""
    if config is None:
        return {}, {}
    if not isinstance(config, dict):
        raise TypeError(f"config: expected a dict of keywords, got {type(config).__name__}")
    of_prior = {*PRIOR_KEYWORDS, *PREDICTION_KEYWORDS}
    network = {k: v for k, v in config.items() if k not in of_prior}
    return network, {k: v for k, v in config.items() if k in of_prior}


def describe(path: str | os.PathLike, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Describe what a checkpoint holds, as JSON types.

    Keys: path, bytes, sha256 (of the file), weights_sha256 (``Prior.fingerprint``), parameters,
    dtype, config (complete, or what shapes determine), unknown (keywords that must be passed as
    config= before it loads), prior (prior keywords stored), source (of a converted file) and
    training (metadata of our own training). Raises ValueError as :func:`load_checkpoint` does,
    except that unknown heads are reported instead.
    """
    tensors, metadata = read_tensors(path)
    stored, prior = split_config(json_metadata(path, metadata, CONFIG_KEY))
    given, given_prior = split_config(config)
    given = _of_family({**prior, **given_prior}, stored, given)
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    try:
        found = infer_config(shapes, {**stored, **given}.get("pixel_unshuffle"))
        known = (given | stored).keys() & set(HEAD_KEYWORDS) or not uses_attention(found)
        unknown = [] if known or known_head_channels(found) else list(HEAD_KEYWORDS)
        # one head is a stand-in, so that the strict check of keys and shapes can run
        guess = {"num_heads": 1} if unknown else {}
        unet_config = complete_config(shapes, {**given, **guess}, stored)
        build_unet(unet_config, tensors)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from None
    check_finite(path, tensors)
    full = unet_config.to_dict()
    return {
        "path": os.fspath(path),
        "bytes": sum(map(os.path.getsize, files_of(path))),
        "sha256": file_sha256(*files_of(path)),
        "weights_sha256": weights_sha256(tensors),
        "parameters": sum(v.numel() for v in tensors.values()),
        "dtype": ", ".join(sorted({str(v.dtype).removeprefix("torch.") for v in tensors.values()})),
        "config": {k: v for k, v in full.items() if k not in unknown},
        "unknown": unknown,
        "prior": corrected(prior, given_prior),
        "source": json_metadata(path, metadata, SOURCE_KEY) or None,
        "training": json_metadata(path, metadata, TRAINING_KEY) or None,
    }


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    dtype: str | torch.dtype | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint as safetensors with its configuration in the metadata.

    ``dtype``: "float32", "float16", "bfloat16" or None for the source's. ``config`` as for
    :func:`load_checkpoint`; prior keywords in it are stored too, and so is the rest of the source's
    metadata, such as a license. The result replaces ``dst`` in one step, and never ``src``. Raises
    ValueError for an unknown dtype, a ``dst`` that is not a writable .safetensors path or is
    ``src`` by any name, weights that float16 cannot hold, and all that :func:`load_checkpoint`
    refuses.
    """
    dst = Path(dst)
    if dst.suffix.lower() != ".safetensors":
        raise ValueError(f"dst: {str(dst)!r} must end in .safetensors")
    with contextlib.suppress(OSError):  # one of them does not exist
        if os.path.samefile(src, dst):
            raise ValueError(f"dst: {str(dst)!r} is src, {str(src)!r}; choose another name")
    target = check_dtype(dtype)
    unet, info = load_checkpoint(src, config)
    prior = _storable(info["prior"], unet)
    source = {"file": Path(src).name, "sha256": file_sha256(*files_of(src))}
    notes = {k: v for k, v in info["metadata"].items() if not k.startswith(_OURS)}
    return save_unet(
        dst, unet, dtype=target, training=info["training"], prior=prior, source=source, notes=notes
    )


def _storable(prior: dict[str, Any], unet: UNet) -> dict[str, Any]:
    """Return prior keywords as JSON types; ValueError for what no prior takes or no file holds."""
    if "time" in prior:
        raise ValueError(
            "config: time is a function, which a file cannot hold; leave it out here, and give it "
            "when the prior is loaded"
        )
    process = {k: v for k, v in prior.items() if k in PRIOR_KEYWORDS and k != "multiple"}
    made = Prior(name="", multiple=1, device=unet.device, dtype=unet.dtype, **process)
    return prior if made.alphas is None else {**prior, "alphas": made.alphas.tolist()}


def check_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the dtype of a name; ValueError for others than ``DTYPES``."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None and dtype is not None or found not in (None, *DTYPES.values()):
        raise ValueError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    return found


def save_unet(
    path: str | os.PathLike,
    unet: UNet,
    *,
    dtype: torch.dtype | None = None,
    training: dict[str, Any] | None = None,
    prior: dict[str, Any] | None = None,
    source: dict[str, Any] | None = None,
    notes: dict[str, str] | None = None,
) -> Path:
    """Write a network as safetensors, with configuration, prior keywords, training and source.

    ``notes``: further metadata.
    """
    tensors = stored_as(unet.state_dict(), dtype)
    metadata = {
        **(notes or {}),
        FORMAT_KEY: str(FORMAT_VERSION),
        CONFIG_KEY: json.dumps({**unet.config.to_dict(), **(prior or {})}),
    }
    for key, value in ((TRAINING_KEY, training), (SOURCE_KEY, source)):
        if value:
            metadata[key] = json.dumps(value)
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, metadata)
    return Path(path)


def stored_as(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, exact: Collection[str] = ()
) -> dict[str, Tensor]:
    """Convert tensors to another dtype, as a file will hold them, except those of keys ``exact``.

    Raises:
        ValueError: The dtype cannot hold some of them.
    """
    found = {
        k: v.detach().to("cpu", (None if k in exact else dtype) or v.dtype).contiguous()
        for k, v in tensors.items()
    }
    if bad := not_finite(found):
        largest = max(float(tensors[k].abs().max()) for k in bad)
        raise ValueError(
            f"dtype: {dtype} cannot hold the weights of {some(bad)}, up to {largest:.4g}; use "
            "bfloat16"
        )
    return found


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file and read it back; OSError if it holds something else."""
    save_file(tensors, path, metadata)
    with safe_open(path, framework="pt") as file:
        whole = set(file.keys()) == tensors.keys() and all(
            torch.equal(file.get_tensor(k), v) for k, v in tensors.items()
        )
    if not whole:
        raise OSError(errno.EIO, "what was written cannot be read back")
