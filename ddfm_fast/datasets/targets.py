"""Where each picture of a batch goes, and what is no place for one."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from ..files.paths import SUFFIXES
from .pairs import PairItem

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def check_counts(**counts: int | None) -> None:
    """Raise TypeError or ValueError, naming the argument, for what is no positive int or None."""
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} is a {type(value).__name__}; expected an int")
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")


def checked_suffix(format: str) -> str:
    """Return the suffix of a format; ValueError for what is none."""
    suffix = "." + str(format).lower().lstrip(".")
    if suffix not in SUFFIXES:
        names = ", ".join(s.lstrip(".") for s in SUFFIXES)
        raise ValueError(f"format is {format!r}; expected one of {names}")
    return suffix


def checked_targets(items: Sequence[PairItem], out: Path, suffix: str) -> dict[str, Path]:
    """Name → output path, none of which is an input, a folder, or another pair's output."""
    if not items:
        raise ValueError("items is empty; expected at least one pair")
    real_folder = functools.lru_cache(maxsize=None)(_real)
    targets = {item.name: out / f"{item.name}{suffix}" for item in items}
    if len(targets) < len(items):
        raise ValueError(
            f"items: {len(items)} pairs have {len(targets)} names; expected unique names"
        )
    inputs = {(real_folder(p.parent), p.name) for item in items for p in (item.ir, item.vis)}
    for target in targets.values():
        if (real_folder(target.parent), target.name) in inputs:
            raise ValueError(f"output {target} would replace an input; choose another --out")
        if os.path.isdir(target):
            raise ValueError(f"output {target} is a folder; choose another --out")
    return targets


def _real(folder: Path) -> str:
    try:
        return os.path.realpath(folder)
    except ValueError:  # a name that there cannot be: its item fails when it is read or written
        return os.fspath(folder)


def no_room(error: BaseException | None) -> str | None:
    """What the system says, if the error comes from a disk that takes no more from anyone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return error.strerror
        error = error.__cause__
    return None
