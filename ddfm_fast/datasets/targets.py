"""Where each picture of a batch goes, and where none may go."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..files.paths import SUFFIXES, as_told_apart
from ..images.integers import as_int
from .items import PairItem, are_unique

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def check_counts(**counts: int | None) -> None:
    """Raise TypeError or ValueError, naming the argument, unless it is a positive int or None."""
    for name, value in counts.items():
        if value is not None and as_int(value) is None:
            raise TypeError(f"{name} is a {type(value).__name__}; expected an int")
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")


def checked_suffix(format: str) -> str:
    """Return the suffix of a format; ValueError if it is not one."""
    suffix = "." + str(format).lower().lstrip(".")
    if suffix not in SUFFIXES:
        names = ", ".join(s.lstrip(".") for s in SUFFIXES)
        raise ValueError(f"format is {format!r}; expected one of {names}")
    return suffix


class Targets:
    """Name → output path: made on demand, as there may be a million."""

    def __init__(self, out: Path, suffix: str):
        self.out, self.suffix = out, suffix
        self._before = os.path.join(out, "")

    def __getitem__(self, name: str) -> Path:
        return Path(self.text(name))

    def text(self, name: str) -> str:
        """Return the path as text."""
        return f"{self._before}{name}{self.suffix}"


def checked_targets(items: Sequence[PairItem], out: Path, suffix: str) -> Targets:
    """Return where each picture goes: no input, no folder, and no other pair's place."""
    if not items:
        raise ValueError("items is empty; expected at least one pair")
    if not are_unique(items) and (names := len({as_told_apart(item.name) for item in items})) < len(
        items
    ):
        raise ValueError(f"items: {len(items)} pairs have {names} names; expected unique names")
    targets = Targets(out, suffix)
    real_folder = functools.lru_cache(maxsize=None)(_real)
    folders = _folders_of(targets, items)
    ours = {*map(real_folder, folders)}
    theirs = {*map(real_folder, {folder for item in items for folder in item.folders})}
    if common := ours & theirs:  # an input in another folder cannot be an output
        _refuse_inputs(items, targets, common, real_folder)
    for folder in folders:
        there = _folders_in(folder)
        for item in items if there else ():
            target = targets.text(item.name)
            if os.path.basename(target) in there and os.path.dirname(target) == folder:
                raise ValueError(f"output {target} is a folder; choose another --out")
    return targets


def _folders_of(targets: Targets, items: Sequence[PairItem]) -> set[str]:
    above = {name[: name.rfind("/") + 1] for name in (item.name for item in items)}
    return {os.path.dirname(targets.text(f"{one}x")) for one in above}


def _refuse_inputs(
    items: Sequence[PairItem], targets: Targets, common: set[str], real: Callable[[str], str]
) -> None:
    inputs = {
        (folder, as_told_apart(os.path.basename(file)))
        for item in items
        for file in item.files
        if (folder := real(os.path.dirname(file))) in common
    }
    for item in items:
        target = targets.text(item.name)
        name = as_told_apart(os.path.basename(target))
        if (real(os.path.dirname(target)), name) in inputs:
            raise ValueError(f"output {target} would replace an input; choose another --out")


def _folders_in(folder: str) -> set[str]:
    """Return names of the folders in a folder; none if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_dir()}
    except (OSError, ValueError):  # a problem with it fails the pairs that go there
        return set()


def _real(folder: str) -> str:
    try:
        return as_told_apart(os.path.realpath(folder))
    except ValueError:  # an impossible name: its item fails when it is read or written
        return folder


def no_room(error: BaseException | None) -> str | None:
    """Return the system's message if the error comes from a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return error.strerror
        error = error.__cause__
    return None
