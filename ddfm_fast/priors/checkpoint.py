"""Read, check, describe and convert checkpoints of guided-diffusion UNets.

A checkpoint is a flat dict of tensors under the official state-dict keys, in a ``.pt`` / ``.pth``
file (read with ``weights_only=True``, so no code in it can run) or in safetensors. What the
tensor shapes tell about the network is inferred, the rest comes from the caller, from the file's
metadata or from the list of known networks; loading is strict, so weights are never left random.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .unet import UNet, UNetConfig

FORMAT_VERSION = 1
FORMAT_KEY = "ddfm_fast.format"
CONFIG_KEY = "ddfm_fast.config"
TRAINING_KEY = "ddfm_fast.training"
SOURCE_KEY = "ddfm_fast.source"

PRIOR_KEYWORDS = ("noise_schedule", "num_train_timesteps", "rescale_timesteps", "multiple")
HEAD_KEYWORDS = ("num_heads", "num_head_channels")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# (model_channels, channel_mult) of published unconditional networks -> channels of a head.
_KNOWN_HEAD_CHANNELS = {
    (256, (1, 1, 2, 2, 4, 4)): 64,
    (256, (0.5, 1, 1, 2, 2, 4, 4)): 64,
}
_REQUIRED_KEYS = (
    "time_embed.0.weight",
    "input_blocks.0.0.weight",
    "input_blocks.1.0.in_layers.2.weight",
    "output_blocks.0.0.in_layers.2.weight",
    "out.2.weight",
)

Shapes = dict[str, tuple[int, ...]]


def infer_config(shapes: Shapes, pixel_unshuffle: int | None = None) -> dict[str, Any]:
    """``UNetModel`` keywords that the shapes of a state dict tell.

    Not told by shapes, so never in the result: ``num_heads``, ``num_head_channels``,
    ``num_heads_upsample`` and ``use_new_attention_order``; ``conv_resample`` where residual blocks
    resample; both resampling keywords where there is a single level. Images are taken to have
    three channels where that leaves a whole ``pixel_unshuffle``, unless it is given.
    ValueError if the keys are not those of an unconditional guided-diffusion UNet.
    """
    if "label_emb.weight" in shapes:
        raise ValueError(
            f"the checkpoint is class-conditional (label_emb.weight {shapes['label_emb.weight']}), "
            "but DDFM needs an unconditional prior; use an unconditional checkpoint"
        )
    if missing := [k for k in _REQUIRED_KEYS if k not in shapes]:
        raise ValueError(
            f"the tensors are not those of a guided-diffusion UNet: {', '.join(missing)} missing, "
            f"found {_some(sorted(shapes))}; give a state dict of guided-diffusion's UNetModel"
        )
    width = shapes["time_embed.0.weight"][1]
    config = {"model_channels": width, **_infer_image_channels(shapes, pixel_unshuffle)}
    stages = 1 + max(_index(k) for k in shapes if k.startswith("output_blocks."))
    resampling, levels = _infer_resampling(shapes, stages)
    if stages % levels or stages // levels < 2:
        raise ValueError(
            f"the checkpoint has {stages} output blocks and {levels} levels, which no "
            "num_res_blocks gives; is the file complete?"
        )
    config |= resampling
    config["num_res_blocks"] = stages // levels - 1
    firsts = [1 + level * (stages // levels) for level in range(levels)]
    outs = []
    for i in firsts:
        key = f"input_blocks.{i}.0.in_layers.2.weight"
        if key not in shapes:
            raise ValueError(f"the checkpoint lacks {key}; is the file complete?")
        outs.append(shapes[key][0])
    config["channel_mult"] = tuple(_multiplier(out, width) for out in outs)
    config["attention_resolutions"] = tuple(
        2**level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in shapes
    )
    config["middle_attention"] = "middle_block.1.qkv.weight" in shapes
    emb = shapes.get("input_blocks.1.0.emb_layers.1.weight", (0,))[0]
    config["use_scale_shift_norm"] = emb == 2 * outs[0]
    return config


def _index(key: str) -> int:
    part = key.split(".")[1]
    return int(part) if part.isdigit() else 0


def _infer_image_channels(shapes: Shapes, unshuffle: int | None) -> dict[str, int]:
    inputs = shapes["input_blocks.0.0.weight"][1]
    outputs = shapes["out.2.weight"][0]
    if unshuffle is None:
        root = math.isqrt(inputs // 3)
        unshuffle = root if 3 * root**2 == inputs and outputs % root**2 == 0 else 1
    if inputs % unshuffle**2 or outputs % unshuffle**2:
        raise ValueError(
            f"config: pixel_unshuffle={unshuffle} contradicts the checkpoint, whose first "
            f"convolution has {inputs} inputs and whose last has {outputs} outputs; leave it out"
        )
    return {
        "in_channels": inputs // unshuffle**2,
        "out_channels": outputs // unshuffle**2,
        "pixel_unshuffle": unshuffle,
    }


def _infer_resampling(shapes: Shapes, stages: int) -> tuple[dict[str, bool], int]:
    """Resampling keywords and the number of levels; each level but one ends in a resampling."""
    blocks = range(stages)
    up_blocks = sum(
        any(f"output_blocks.{i}.{j}.in_layers.2.weight" in shapes for j in (1, 2)) for i in blocks
    )
    if up_blocks:
        return {"resblock_updown": True}, up_blocks + 1
    if convolutions := sum(f"input_blocks.{i}.0.op.weight" in shapes for i in blocks):
        return {"resblock_updown": False, "conv_resample": True}, convolutions + 1
    pools = sum(f"input_blocks.{i}.0.in_layers.2.weight" not in shapes for i in range(1, stages))
    return ({"resblock_updown": False, "conv_resample": False} if pools else {}), pools + 1


def _multiplier(channels: int, width: int) -> float:
    if channels % width == 0:
        return channels // width
    mult = channels / width
    return mult if int(mult * width) == channels else math.nextafter(mult, math.inf)


def complete_config(
    shapes: Shapes, given: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None
) -> UNetConfig:
    """The whole configuration: caller's keywords, then metadata, shapes and known networks.

    ValueError if a given value contradicts the shapes, or if a network with attention leaves the
    number of heads unknown.
    """
    found = None
    merged: dict[str, Any] = {}
    for source, values in (("metadata", metadata), ("config", given)):
        if not values:
            continue
        found = infer_config(shapes, values.get("pixel_unshuffle", merged.get("pixel_unshuffle")))
        # Through UNetConfig, so that lists, sets and unknown keywords are treated as everywhere.
        checked = UNetConfig.from_dict({**found, **values}).to_dict()
        for key, value in found.items():
            expected = list(value) if isinstance(value, tuple) else value
            if key in values and checked[key] != expected:
                raise ValueError(
                    f"{source}: {key}={values[key]!r} contradicts the checkpoint, whose tensors "
                    f"have {key}={value!r}; leave it out or use the checkpoint that it belongs to"
                )
        if source == "config" and any(k in values for k in HEAD_KEYWORDS):
            merged = {k: v for k, v in merged.items() if k not in HEAD_KEYWORDS}
        merged |= values
    merged = {**(found or infer_config(shapes)), **merged}
    if uses_attention(merged) and not any(k in merged for k in HEAD_KEYWORDS):
        family = merged["model_channels"], tuple(merged["channel_mult"])
        if family not in _KNOWN_HEAD_CHANNELS:
            raise ValueError(
                "config: the number of attention heads cannot be told from the tensors; pass "
                "config={'num_head_channels': ...} or config={'num_heads': ...} as the network "
                "was trained with (and use_new_attention_order=True if it was)"
            )
        merged["num_head_channels"] = _KNOWN_HEAD_CHANNELS[family]
    return UNetConfig.from_dict(merged)


def uses_attention(config: dict[str, Any]) -> bool:
    return bool(config["attention_resolutions"]) or config["middle_attention"]


def load_checkpoint(
    path: str | os.PathLike, config: dict[str, Any] | None = None
) -> tuple[UNet, dict[str, Any]]:
    """The network of a checkpoint, on the CPU in the file's dtype, and what the file says.

    ``config`` holds ``UNetModel`` keywords (see :class:`UNetConfig`), needed only where shapes do
    not tell; prior keywords (``PRIOR_KEYWORDS``) may stand among them. Weights are mapped from
    the file, not copied. The second value has ``prior`` (prior keywords), ``training`` (metadata
    of our own training, or None) and ``metadata`` (all of it, strings).

    ValueError if the path is no checkpoint, or keys or shapes do not fit, or weights are not
    finite.
    """
    tensors, metadata = read_tensors(path)
    stored = _json_metadata(path, metadata, CONFIG_KEY)
    given, prior = split_config(config)
    stored, stored_prior = split_config(stored)
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    try:
        unet_config = complete_config(shapes, given, stored)
        unet = build_unet(unet_config, tensors)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from None
    return unet, {
        "prior": {**stored_prior, **prior},
        "training": _json_metadata(path, metadata, TRAINING_KEY) or None,
        "metadata": metadata,
    }


def build_unet(config: UNetConfig, tensors: dict[str, Tensor]) -> UNet:
    """A network that uses these very tensors; ValueError unless keys and shapes fit exactly."""
    with torch.device("meta"):
        unet = UNet(config)
    wanted = {k: tuple(v.shape) for k, v in unet.state_dict().items()}
    problems = []
    if missing := [k for k in wanted if k not in tensors]:
        problems.append(f"{len(missing)} missing: {_some(missing)}")
    if extra := [k for k in tensors if k not in wanted]:
        problems.append(f"{len(extra)} unexpected: {_some(extra)}")
    shaped = [
        f"{k} {tuple(tensors[k].shape)} instead of {shape}"
        for k, shape in wanted.items()
        if k in tensors and tuple(tensors[k].shape) != shape
    ]
    if shaped:
        problems.append(f"{len(shaped)} misshapen: {_some(shaped)}")
    if problems:
        raise ValueError(
            f"the tensors do not fit the network ({'; '.join(problems)}); check that the file is "
            "complete and that config= is the one the network was trained with"
        )
    unet.load_state_dict(tensors, assign=True)
    return unet.requires_grad_(False).eval()


def _not_finite(tensors: dict[str, Tensor]) -> list[str]:
    return [k for k, v in tensors.items() if not v.sum(dtype=torch.float32).isfinite()]


def split_config(config: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Network keywords and prior keywords of a ``config=`` argument."""
    if config is None:
        return {}, {}
    if not isinstance(config, dict):
        raise TypeError(f"config: expected a dict of keywords, got {type(config).__name__}")
    network = {k: v for k, v in config.items() if k not in PRIOR_KEYWORDS}
    return network, {k: v for k, v in config.items() if k in PRIOR_KEYWORDS}


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Floating-point tensors by key, and the metadata of a safetensors file (else empty)."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"prior: there is no file {str(path)!r}; check the path")
    if path.stat().st_size == 0:
        raise ValueError(f"prior: {str(path)!r} is empty; get the file again")
    metadata: dict[str, str] = {}
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = _read_safetensors(path)
    elif path.suffix.lower() in (".pt", ".pth"):
        tensors = _unwrap(path, _read_pickle(path))
    else:
        raise ValueError(f"prior: {str(path)!r} must be a .pt, .pth or .safetensors checkpoint")
    if not tensors:
        raise ValueError(f"prior: {str(path)!r} holds no tensors; give a UNet's state dict")
    wrong = [k for k, v in tensors.items() if not v.is_floating_point()]
    if wrong:
        raise ValueError(
            f"prior: {str(path)!r} holds tensors that are not floating point ({_some(wrong)}); "
            "quantised checkpoints are not supported, give the float one"
        )
    if bad := _not_finite(tensors):
        raise ValueError(
            f"prior: {str(path)!r} holds weights that are NaN or inf ({_some(bad)}); "
            "get the file again"
        )
    return tensors, metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"prior: {str(path)!r} is not a whole safetensors file ({_first_line(error)}); "
            "get the file again"
        ) from None


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            raise ValueError(
                f"prior: {str(path)!r} holds pickled Python objects besides tensors, which could "
                "run code; in an environment that you trust, save model.state_dict() alone and "
                "give that file"
            ) from None
        raise _unreadable(path, error) from None
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        UnicodeDecodeError,
        AssertionError,
        TypeError,
        struct.error,
    ) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"prior: {str(path)!r} is not a whole PyTorch checkpoint ({_first_line(error)}); "
        "get the file again and check its size"
    )


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(
            f"prior: {str(path)!r} holds a {type(content).__name__}, expected a dict of tensors "
            "(a state dict)"
        )
    wrong = [k for k, v in content.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if wrong:
        raise ValueError(
            f"prior: {str(path)!r} is not a dict of tensors: {_some(wrong)} is something else; "
            "save the UNet's state dict alone"
        )
    return dict(content)


def _json_metadata(path: str | os.PathLike, metadata: dict[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(key, "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{os.fspath(path)!r}: metadata {key} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{os.fspath(path)!r}: metadata {key} is not a JSON object")
    return value


def _some(items: list, count: int = 3) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + more


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]


def weights_sha256(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and float32 values: the same for a .pt and its safetensors."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.numpy().data)
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def describe(path: str | os.PathLike, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a checkpoint holds, as JSON types.

    Keys: path, bytes, sha256 (of the file), weights_sha256 (``Prior.fingerprint``), parameters,
    dtype, config (complete, or what shapes tell), unknown (keywords that have to be passed as
    config= before it loads), prior (prior keywords stored), source (of a converted file) and
    training (metadata of our own training). ValueError as :func:`load_checkpoint`, except that
    unknown heads are reported instead.
    """
    tensors, metadata = read_tensors(path)
    stored, prior = split_config(_json_metadata(path, metadata, CONFIG_KEY))
    given, given_prior = split_config(config)
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    try:
        found = infer_config(shapes, {**stored, **given}.get("pixel_unshuffle"))
        known = (given | stored).keys() & set(HEAD_KEYWORDS) or not uses_attention(found)
        family = found["model_channels"], found["channel_mult"]
        unknown = [] if known or family in _KNOWN_HEAD_CHANNELS else list(HEAD_KEYWORDS)
        # One head is a stand-in that lets the strict check of keys and shapes run.
        guess = {"num_heads": 1} if unknown else {}
        unet_config = complete_config(shapes, {**given, **guess}, stored)
        build_unet(unet_config, tensors)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from None
    full = unet_config.to_dict()
    return {
        "path": os.fspath(path),
        "bytes": os.path.getsize(path),
        "sha256": file_sha256(path),
        "weights_sha256": weights_sha256(tensors),
        "parameters": sum(v.numel() for v in tensors.values()),
        "dtype": ", ".join(sorted({str(v.dtype).removeprefix("torch.") for v in tensors.values()})),
        "config": {k: v for k, v in full.items() if k not in unknown},
        "unknown": unknown,
        "prior": {**prior, **given_prior},
        "source": _json_metadata(path, metadata, SOURCE_KEY) or None,
        "training": _json_metadata(path, metadata, TRAINING_KEY) or None,
    }


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    dtype: str | torch.dtype | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint as safetensors with its configuration in the metadata.

    ``dtype``: "float32", "float16", "bfloat16" or None for the source's. ``config`` as for
    :func:`load_checkpoint`; prior keywords in it are stored too. The result replaces ``dst`` in
    one step. ValueError for an unknown dtype, a ``dst`` that is no writable .safetensors path,
    weights that float16 cannot hold, and all that :func:`load_checkpoint` refuses.
    """
    dst = Path(dst)
    if dst.suffix.lower() != ".safetensors":
        raise ValueError(f"dst: {str(dst)!r} must end in .safetensors")
    target = check_dtype(dtype)
    unet, info = load_checkpoint(src, config)
    source = {"file": Path(src).name, "sha256": file_sha256(src)}
    return save_unet(
        dst, unet, dtype=target, training=info["training"], prior=info["prior"], source=source
    )


def check_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def save_unet(
    path: str | os.PathLike,
    unet: UNet,
    *,
    dtype: torch.dtype | None = None,
    training: dict[str, Any] | None = None,
    prior: dict[str, Any] | None = None,
    source: dict[str, Any] | None = None,
) -> Path:
    """Write a network as safetensors, with configuration, prior keywords, training and source."""
    tensors = {
        k: v.detach().to("cpu", dtype or v.dtype).contiguous() for k, v in unet.state_dict().items()
    }
    if bad := _not_finite(tensors):
        raise ValueError(f"dtype: {dtype} cannot hold the weights of {_some(bad)}; use bfloat16")
    metadata = {
        FORMAT_KEY: str(FORMAT_VERSION),
        CONFIG_KEY: json.dumps({**unet.config.to_dict(), **(prior or {})}),
    }
    for key, value in ((TRAINING_KEY, training), (SOURCE_KEY, source)):
        if value:
            metadata[key] = json.dumps(value)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)
    return Path(path)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file in the target's folder that takes the target's place on success."""
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {str(path.parent)!r} to write {path.name!r} in")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
