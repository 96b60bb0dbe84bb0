"""State dicts in files: read without running code that may be in them, checked, hashed.

``.pt`` and ``.pth`` files are read with ``weights_only=True``, after their pickle was checked
(``pickles.py``); safetensors hold no code. Names, shapes, dtypes and sizes are checked on tensors
that are mapped from the file, before any weight is read.
"""

from __future__ import annotations

import hashlib
import io
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

from .foreign import refusal_of_suffix, what_it_is
from .pickles import MOST_BYTES, ForeignObject, check_pickles
from .unwrap import unwrap, without_prefix

WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MOST_TENSORS = 10_000
MOST_WEIGHTS = 1 << 34
"""bytes; the largest published network of this kind has 2.2 GB"""
INDEX = ".safetensors.index.json"
"""end of the name of an index, which lists the safetensors files of one network"""
_MOST_SHARDS = 256


def read_tensors(
    path: str | os.PathLike,
    pickled: tuple[str, ...] = (".pt", ".pth"),
    dtypes: tuple[torch.dtype, ...] = WEIGHTS,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map tensors of ``dtypes`` by key, and read the metadata of a safetensors file (else empty).

    Weights are not read: ``check_finite`` reads them, once the tensors are known to fit.
    ``path``: a checkpoint, or the ``.safetensors.index.json`` of one in several files.
    ``pickled``: suffixes of files that ``torch.save`` wrote.
    """
    path = Path(path)
    size = _file_size(path)
    if path.name.lower().endswith(INDEX):
        return _read_shards(path)
    metadata: dict[str, str] = {}
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = _read_safetensors(path)
    elif path.suffix.lower() in pickled:
        tensors = _unwrap(path, _read_pickle(path))
    else:
        why = refusal_of_suffix(path)
        raise ValueError(
            f"prior: {str(path)!r} must be a .pt, .pth or .safetensors checkpoint"
            + (f": {why}" if why else "")
        )
    if not tensors:
        raise ValueError(f"prior: {str(path)!r} holds no tensors; give a UNet's state dict")
    if unreal := [k for k, v in tensors.items() if not _is_plain(v)]:
        raise ValueError(
            f"prior: {str(path)!r} holds tensors without values of their own ({some(unreal)}: "
            "sparse, nested, meta, or larger than the data in the file); save the dense weights"
        )
    if wrong := [k for k, v in tensors.items() if v.dtype not in dtypes]:
        kinds = sorted({str(tensors[k].dtype).removeprefix("torch.") for k in wrong})
        raise ValueError(
            f"prior: {str(path)!r} holds tensors that are not floating point of 16 to 64 bits "
            f"({some(wrong)}: {some(kinds)}); quantized checkpoints are not supported, give the "
            "float one"
        )
    if (total := sum(v.numel() * v.element_size() for v in tensors.values())) > size:
        raise ValueError(
            f"prior: {str(path)!r} holds {total:,} bytes of tensors in a file of {size:,}: they "
            "share their data; save each tensor with data of its own"
        )
    return without_prefix(tensors), metadata


def files_of(path: str | os.PathLike) -> list[Path]:
    """Return the files that a checkpoint consists of, the named one first."""
    path = Path(path)
    if not path.name.lower().endswith(INDEX):
        return [path]
    return [path, *(path.parent / name for name in sorted(set(_weight_map(path).values())))]


def _read_shards(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the files that an index names, each on its own, and check them against the index."""
    places = _weight_map(path)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files_of(path)[1:]:
        found, said = read_tensors(file)
        wanted = [key for key, name in places.items() if name == file.name]
        bare = without_prefix(dict.fromkeys(wanted))  # type: ignore[arg-type]
        if bare.keys() != found.keys():
            odd = sorted(bare.keys() ^ found.keys())
            raise ValueError(
                f"prior: {file.name!r} does not hold what {path.name!r} says of it ({some(odd)}); "
                "get all of its files again"
            )
        tensors |= found
        metadata |= said
    return tensors, metadata


def _weight_map(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"prior: {str(path)!r} is not JSON ({_first_line(error)})") from None
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not 0 < len(places) <= MOST_TENSORS:
        places = {"": None}
    names = {name for name in places.values() if isinstance(name, str) and _is_beside(name)}
    plain = all(isinstance(name, str) for name in places.values())
    if not plain or len(names) > _MOST_SHARDS or names != set(places.values()):
        raise ValueError(
            f"prior: {str(path)!r} has no weight_map of names of .safetensors files beside it, at "
            f"most {_MOST_SHARDS}; get it again"
        )
    return places


def _is_beside(name: str) -> bool:
    """Return whether a name is that of a safetensors file in the same folder."""
    plain = name == os.path.basename(name) and "\\" not in name and "\0" not in name
    return plain and name.endswith(".safetensors")


def check_finite(path: str | os.PathLike, tensors: dict[str, Tensor]) -> None:
    """Read the weights; ValueError, with their keys, if any are NaN or inf."""
    if bad := not_finite(tensors):
        raise ValueError(
            f"prior: {os.fspath(path)!r} holds weights that are NaN or inf ({some(bad)}); "
            "get the file again"
        )


def _file_size(path: Path) -> int:
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
    if found.st_size > MOST_WEIGHTS:
        raise ValueError(
            f"prior: {str(path)!r} has {found.st_size:,} bytes, expected at most {MOST_WEIGHTS:,} "
            "of a UNet; save its state dict alone"
        )
    return found.st_size


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor has a number in memory for each of its elements."""
    if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


class _SmallReads(io.FileIO):
    """A file for ``zipfile``, which reads a whole directory at once: refuses one of gigabytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        most = MOST_BYTES + 1
        data = super().read(most if size is None or size < 0 else min(size, most))
        if len(data) == most:
            raise zipfile.BadZipFile(f"a directory or record of more than {MOST_BYTES:,} bytes")
        return data


def _check_zip(path: Path) -> None:
    """Check an archive's directory and its pickles; PyTorch stores without compression."""
    with _SmallReads(path) as file, zipfile.ZipFile(file) as archive:
        items = archive.infolist()
        packed = [i.filename for i in items if i.compress_type != zipfile.ZIP_STORED]
        total = sum(i.file_size for i in items)
        if packed or total > path.stat().st_size:
            raise ValueError(
                f"prior: {str(path)!r} is a compressed archive ({some(packed) or total}), expected "
                "what torch.save writes"
            )
        for item in items:
            if item.filename.endswith(".pkl"):
                if item.file_size > MOST_BYTES:
                    raise ValueError(f"{item.filename} has {item.file_size:,} bytes")
                check_pickles(io.BytesIO(archive.read(item)))


def _check_legacy(path: Path) -> None:
    """Check the five pickles in front of the weights, as PyTorch wrote them before version 1.6."""
    with path.open("rb") as file:
        check_pickles(file, count=5)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with path.open("rb") as start:
            if (length := int.from_bytes(start.read(8), "little")) > MOST_BYTES:
                raise ValueError(f"a header of {length:,} bytes, expected at most {MOST_BYTES:,}")
        with safe_open(path, framework="pt") as file:
            keys = file.keys()  # the file itself is not iterable
            if len(keys) > MOST_TENSORS:
                raise ValueError(f"{len(keys):,} tensors, expected at most {MOST_TENSORS:,}")
            return {k: file.get_tensor(k) for k in keys}, file.metadata() or {}
    except _UNREADABLE as error:
        raise ValueError(
            f"prior: {str(path)!r} is not a whole safetensors file ({_first_line(error)}); "
            f"get the file again{what_it_is(path)}"
        ) from None


_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,  # NotImplementedError, RecursionError
    EOFError,
    OSError,
    ValueError,  # UnicodeDecodeError
    LookupError,
    AttributeError,
    AssertionError,
    TypeError,
    struct.error,
    zipfile.BadZipFile,
    MemoryError,
    OverflowError,
)
"""what libraries raise for damaged or malicious files"""


def _read_pickle(path: Path) -> Any:
    try:
        is_zip = zipfile.is_zipfile(path)
        (_check_zip if is_zip else _check_legacy)(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except _UNREADABLE as error:
        if str(error).startswith("prior: "):
            raise
        is_global = isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower()
        if is_global or isinstance(error, ForeignObject):
            raise ValueError(
                f"prior: {str(path)!r} holds pickled Python objects besides dense tensors "
                f"({_first_line(error)}), which could run code or fill memory; in an environment "
                "that you trust, save model.state_dict() alone and give that file"
            ) from None
        raise ValueError(
            f"prior: {str(path)!r} is not a whole PyTorch checkpoint ({_first_line(error)}); "
            f"get the file again and check its size{what_it_is(path)}"
        ) from None


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    content = unwrap(path, content)
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
    """Parse a JSON object of the metadata; {} if there is none."""
    try:
        value = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r}: metadata {key} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{os.fspath(path)!r}: metadata {key} is not a JSON object")
    return value


def some(items: list, count: int = 3) -> str:
    """Name the first few items, the beginnings of long ones, and how many more there are."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    names = (str(i) if isinstance(i, str | int) else type(i).__name__ for i in items[:count])
    return ", ".join(n if len(n) <= 120 else f"{n[:120]}…" for n in names) + more


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


def file_sha256(*paths: str | os.PathLike) -> str:
    """Hash the bytes of a file, or of several one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """List the keys of tensors that hold NaN or inf."""
    if not tensors:
        return []
    finite = torch.stack([v.sum(dtype=torch.float32) for v in tensors.values()]).isfinite()
    return [k for k, good in zip(tensors, finite.tolist(), strict=True) if not good]
