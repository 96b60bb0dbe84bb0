"""State dicts in files: read without running code that may be in them, checked, hashed.

``.pt`` and ``.pth`` files are read with ``weights_only=True``; safetensors hold no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read floating-point tensors by key, and the metadata of a safetensors file (else empty)."""
    path = Path(path)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        name = str(path) if len(str(path)) < 200 else f"{str(path)[:200]}…"
        raise ValueError(f"prior: there is no file {name!r} ({why}); check the path") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"prior: {str(path)!r} is no file; check the path")
    if found.st_size == 0:
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
    if unreal := [k for k, v in tensors.items() if not _is_plain(v)]:
        raise ValueError(
            f"prior: {str(path)!r} holds tensors without values of their own ({some(unreal)}: "
            "sparse, nested, meta, or larger than the data in the file); save the dense weights"
        )
    wrong = [k for k, v in tensors.items() if not v.is_floating_point()]
    if wrong:
        raise ValueError(
            f"prior: {str(path)!r} holds tensors that are not floating point ({some(wrong)}); "
            "quantised checkpoints are not supported, give the float one"
        )
    if bad := not_finite(tensors):
        raise ValueError(
            f"prior: {str(path)!r} holds weights that are NaN or inf ({some(bad)}); "
            "get the file again"
        )
    return tensors, metadata


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has a number in memory for each of its elements."""
    if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    if tensor.is_quantized:
        return True  # refused later, by what it is
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _check_zip(path: Path) -> None:
    """Refuse an archive that unfolds to more than its size; PyTorch stores without compression."""
    with zipfile.ZipFile(path) as archive:
        packed = [i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
        total = sum(i.file_size for i in archive.infolist())
    if packed or total > path.stat().st_size:
        raise ValueError(
            f"prior: {str(path)!r} is a compressed archive ({some(packed) or total}), expected "
            "what torch.save writes"
        )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()  # the file itself is no iterable
            return {k: file.get_tensor(k) for k in keys}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"prior: {str(path)!r} is not a whole safetensors file ({_first_line(error)}); "
            "get the file again"
        ) from None


def _read_pickle(path: Path) -> Any:
    try:
        if is_zip := zipfile.is_zipfile(path):
            _check_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
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
        zipfile.BadZipFile,
        RecursionError,
        NotImplementedError,
        MemoryError,
        OverflowError,
    ) as error:
        if str(error).startswith("prior: "):
            raise
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
            f"prior: {str(path)!r} is not a dict of tensors: {some(wrong)} is something else; "
            "save the UNet's state dict alone"
        )
    return dict(content)


def json_metadata(path: str | os.PathLike, metadata: dict[str, str], key: str) -> dict[str, Any]:
    """Parse a JSON object of the metadata; {} where there is none."""
    try:
        value = json.loads(metadata.get(key, "{}"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r}: metadata {key} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{os.fspath(path)!r}: metadata {key} is not a JSON object")
    return value


def some(items: list, count: int = 3) -> str:
    """Name the first few items, and how many more there are."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + more


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]


def weights_sha256(tensors: dict[str, Tensor]) -> str:
    """Hash names, shapes and float32 values: the same sha256 for a .pt and its safetensors."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.numpy().data)
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike) -> str:
    """Hash a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """List the keys of tensors that hold NaN or inf."""
    return [k for k, v in tensors.items() if not v.sum(dtype=torch.float32).isfinite()]
