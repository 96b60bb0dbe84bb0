"""Trees of folders with pictures, listed by names alone, without looking up any file.

A listing itself tells folders from files (``d_type``), so that none of a million files is looked
up, except links. Names stay text, since a path takes several times the memory.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..files.paths import READ_SUFFIXES, SUFFIXES, ImageFileError, is_picture, split_suffix

Place = tuple[str, str]
"""a folder, and the name of a file in it"""


class Rest(NamedTuple):
    """Path below the folder, without suffix → file, for names that the other folder lacks."""

    ir: dict[str, Path]
    vis: dict[str, Path]


def listing(folder: Path, above: Iterable[str] = ()) -> tuple[list[Path], list[str]]:
    """List subfolders and names of image files, sorted, without hidden ones.

    Args:
        folder: The folder to list.
        above: The real paths of the folders above it: links that form a loop end there.

    Raises:
        ImageFileError: It cannot be listed.
    """
    if os.path.realpath(folder) in above:
        return [], []
    folders, files, rare = [], [], set[str]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(name)
                elif (suffix := split_suffix(name)[1].lower()) in READ_SUFFIXES:
                    files.append(name)
                    if suffix not in SUFFIXES:
                        rare.add(name)
    except OSError as error:
        raise ImageFileError(f"{folder}: cannot be listed ({error.strerror})") from error
    files.sort()
    return [folder / name for name in sorted(folders)], _without_copies(files, rare)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):  # a link that leads to no folder
            return False
        raise


def _without_copies(names: list[str], rare: set[str]) -> list[str]:
    """Leave out what `files.paths.image_files` does: a.npy, which is rare, beside a.png."""
    if not rare:
        return names
    usual = {_stem(name) for name in names if name not in rare}
    copies = {name for name in rare if _stem(name) in usual}
    return [name for name in names if name not in copies]


def walk(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield (path of a folder below this one, with "/", or "", its pictures) at any depth."""
    for prefix, here, names in _visits((folder,)):
        yield prefix, sorted(here[0] / name for name in names[0])


def equal_names(
    first: Path, second: Path, rest: Rest, above: str
) -> Iterator[tuple[str, Place, Place]]:
    """Yield pictures of two folders whose paths below them, without suffix, are equal.

    Args:
        first: The infrared folder.
        second: The visible one.
        rest: Takes those that the other folder lacks.
        above: The beginning of all names.

    Yields:
        The part of a pair's name before its stem, and where both files are.

    Raises:
        ImageFileError: Two pictures of one folder have the same stem.
    """
    for prefix, folders, (ir, vis) in _visits((first, second)):
        begins = sys.intern(above + prefix)
        places = [sys.intern(os.fspath(folder)) for folder in folders]
        firsts, seconds = map(_by_stem, (ir, vis), places)
        while firsts or seconds:
            a, b = (found[-1][0] if found else None for found in (firsts, seconds))
            if a is not None and a == b:
                yield begins, (places[0], firsts.pop()[1]), (places[1], seconds.pop()[1])
            elif b is None or (a is not None and a < b):
                assert a is not None
                rest.ir[prefix + a] = folders[0] / firsts.pop()[1]
            else:
                rest.vis[prefix + b] = folders[1] / seconds.pop()[1]


def _stem(name: str) -> str:
    return split_suffix(name)[0]


def _by_stem(names: list[str], place: str) -> list[tuple[str, str]]:
    """Return (stem, name) in reverse; raise ImageFileError if a stem occurs twice."""
    found = sorted(((_stem(name), name) for name in names), reverse=True)
    for (before, other), (stem, one) in pairwise(found):
        if before == stem:
            raise ImageFileError(f"{place}: {one} and {other} have the same stem; keep one")
    return found


def _visits(
    roots: tuple[Path, ...],
) -> Iterator[tuple[str, tuple[Path, ...], tuple[list[str], ...]]]:
    """Visit trees side by side; yield (path below the roots, the folders, their pictures' names).

    A folder that one of them lacks has no pictures there.
    """
    waiting: list[tuple[str, tuple[tuple[str, ...] | None, ...]]] = [("", tuple(() for _ in roots))]
    while waiting:
        prefix, above = waiting.pop()
        folders = tuple(root / prefix for root in roots)
        found = [
            ([], []) if over is None else listing(folder, over)
            for folder, over in zip(folders, above, strict=True)
        ]
        # folders that are named like pictures: they fail only their own pairs
        names = tuple(
            sorted([*files, *(sub.name for sub in subs if is_picture(sub))])
            for subs, files in found
        )
        below: dict[str, list[tuple[str, ...] | None]] = {}
        for n, (subs, _) in enumerate(found):
            for sub in subs:
                if not is_picture(sub):
                    over = (*(above[n] or ()), os.path.realpath(folders[n]))
                    below.setdefault(sub.name, [None] * len(roots))[n] = over
        later = sorted(below.items(), reverse=True)
        waiting += [(f"{prefix}{name}/", tuple(over)) for name, over in later]
        yield prefix, folders, names
