"""A pair of files and its name, small enough for a million of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files.paths import as_told_apart, split_suffix


class PairItem:
    """A pair of a data set. ``name`` is unique in it and has no suffix: "00001D", "test/00001D".

    Folders are stored once, and so is a file name that both sources share; a pair's name that
    follows from it is not stored at all. So a million pairs take some 150 MB.
    """

    __slots__ = ("_above", "_ir_file", "_ir_folder", "_name", "_vis_file", "_vis_folder")

    def __init__(self, name: str, ir: str | os.PathLike[str], vis: str | os.PathLike[str]):
        self._ir_folder, self._ir_file = os.path.split(os.fspath(ir))
        self._vis_folder, self._vis_file = os.path.split(os.fspath(vis))
        stem = split_suffix(self._ir_file)[0]
        self._name: str | None = name
        self._above = ""
        if name.endswith(stem):
            self._name, self._above = None, sys.intern(name[: len(name) - len(stem)])
        self._share()

    @classmethod
    def within(cls, above: str, ir: tuple[str, str], vis: tuple[str, str]) -> PairItem:
        """Make a pair of (folder, file) each, called ``above`` and the infrared file's stem."""
        item = cls.__new__(cls)
        item._name, item._above = None, above
        item._ir_folder, item._ir_file = ir
        item._vis_folder, item._vis_file = vis
        item._share()
        return item

    def _share(self) -> None:
        self._ir_folder, self._vis_folder = (
            sys.intern(self._ir_folder),
            sys.intern(self._vis_folder),
        )
        if self._vis_file == self._ir_file:
            self._vis_file = self._ir_file

    @property
    def name(self) -> str:
        """The name of the pair."""
        if self._name is not None:
            return self._name
        stem = self._ir_file.rpartition(".")[0]  # asked for often, and so not by `split_suffix`
        if not stem or stem[0] == ".":
            stem = split_suffix(self._ir_file)[0]
        return self._above + stem

    @property
    def ir(self) -> Path:
        """The infrared file."""
        return Path(self._ir_folder, self._ir_file)

    @property
    def vis(self) -> Path:
        """The visible file."""
        return Path(self._vis_folder, self._vis_file)

    @property
    def error(self) -> str:
        """Why a bad entry or a lone file (`BadItem`) cannot be fused; else ""."""
        return ""

    @property
    def files(self) -> tuple[str, str]:
        """Both files as text, which takes less memory than paths."""
        return _path(self._ir_folder, self._ir_file), _path(self._vis_folder, self._vis_file)

    @property
    def folders(self) -> tuple[str, str]:
        """The folders of both."""
        return self._ir_folder, self._vis_folder

    def with_files(self, ir: str | os.PathLike[str], vis: str | os.PathLike[str]) -> PairItem:
        """Return the pair of this name with other files."""
        return self._made(self.name, ir, vis)

    def with_name(self, name: str) -> PairItem:
        """Return the pair of these files under another name."""
        return self._made(name, *self.files)

    def _made(self, name: str, ir: str | os.PathLike[str], vis: str | os.PathLike[str]) -> PairItem:
        return PairItem(name, ir, vis)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PairItem):
            return NotImplemented
        own, others = ((one.name, one.ir, one.vis, one.error) for one in (self, other))
        return own == others

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"PairItem({self.name!r}, {self.ir!r}, {self.vis!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return PairItem, (self.name, *self.files)


def _path(folder: str, file: str) -> str:
    """Join as `os.path.join` does, in a third of its time where there is a plain folder."""
    if folder and folder[-1] not in "/\\:":
        return f"{folder}{os.sep}{file}"
    return os.path.join(folder, file)


class BadItem(PairItem):
    """A bad entry of a list, or a file without a partner: not fused, because of its ``error``.

    A bad entry's name is its position ("line 3") and both files are the list itself, unless the
    only problem is that a file is missing. A lone file is both files, and its name is its path.
    """

    __slots__ = ("_error",)

    def __init__(
        self, name: str, ir: str | os.PathLike[str], vis: str | os.PathLike[str], error: str
    ):
        super().__init__(name, ir, vis)
        self._error = error

    @property
    def error(self) -> str:
        """What is wrong with it."""
        return self._error

    def _made(self, name: str, ir: str | os.PathLike[str], vis: str | os.PathLike[str]) -> BadItem:
        return BadItem(name, ir, vis, self._error)

    def __repr__(self) -> str:
        return f"BadItem({self.name!r}, {self.ir!r}, {self.vis!r}, {self._error!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return BadItem, (self.name, *self.files, self._error)


def are_unique(items: Sequence[PairItem]) -> bool:
    """Return whether no two pairs share a name (or its hash, which is extremely rare)."""
    names = (as_told_apart(item.name) for item in items)
    hashes = np.fromiter(map(hash, names), np.int64, len(items))
    hashes.sort()
    return not (hashes[1:] == hashes[:-1]).any()
