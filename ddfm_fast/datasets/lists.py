"""Lists of pairs: CSV, TSV, JSON and JSON lines; every path in them is checked."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, TextIO

from ..files.packed import is_packed
from ..files.paths import ImageFileError, few, look
from ..files.radiometric import is_radiometric
from ..files.texts import encoding
from .items import BadItem, PairItem

MANIFEST_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
_COLUMNS = {
    "ir": ("ir", "infrared", "thermal", "source1"),
    "vis": ("vis", "vi", "visible", "rgb", "source2"),
    "name": ("name", "stem"),
}
Find = Callable[[str], str | os.PathLike[str]]
"""finds the file of a path in a list"""
_PLAIN_NAME = re.compile(r"[^.\\:\0][^\\:\0]*")
_RUN, _TOO_MANY = 32, 16
"""files in a row from which on their folder is listed, and names in it per file above which no
further folder is listed"""


def read_list(
    path: Path,
    root: Path | None,
    locate: Callable[[str], Path] | None = None,
    *,
    strict: bool = True,
) -> list[PairItem]:
    """Read the pair of every entry.

    Args:
        path: The list.
        root: What its paths are relative to; None for the list's folder.
        locate: Finds the file of a path instead.
        strict: Raise if an entry is bad; else a bad entry has an ``error``, unless all are bad.

    Raises:
        ImageFileError: It is not a list of pairs, or names files that do not exist.
    """
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise ImageFileError(
            f"{path}: not a list of pairs; expected a folder or one of "
            f"{', '.join(MANIFEST_SUFFIXES)}"
        )
    is_table = path.suffix.lower() in (".csv", ".tsv")
    base = path.parent if root is None else root
    find = partial(os.path.join, base) if locate is None else locate
    try:
        with path.open("rb") as start:
            coded = encoding(start.read(2))
        with path.open(encoding=coded, newline="" if is_table else None) as file:
            rows = _table_rows(file, path) if is_table else _json_rows(file, path)
            items = [_item(row, path, place, find) for place, row in rows]
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ImageFileError(f"{path}: cannot be read as text in UTF-8, UTF-16 ({why})") from error
    except csv.Error as error:
        raise ImageFileError(f"{path}: not a table of pairs ({error})") from None
    if not items:
        raise ImageFileError(f"{path}: lists no pairs")
    missing = _missing(items)
    wrong = [item.error for item in items if item.error]
    if (wrong or missing) and (strict or len(wrong) + len(missing) == len(items)):
        if wrong:
            raise ImageFileError(wrong[0])
        files = [file for found in missing.values() for file in found]
        raise ImageFileError(
            f"{path}: {len(files)} files do not exist: {few(files)}; paths are relative to {base}"
        )
    for n, found in missing.items():
        item, are = items[n], "is" if len(found) == 1 else "are"
        why = f"{' and '.join(found)} {are} not there; paths in the list are relative to {base}"
        items[n] = BadItem(item.name, *item.files, why)
    return items


def names_urls(path: Path | None) -> bool:
    """Return whether a local file is a list of pairs that names URLs."""
    if path is None or path.suffix.lower() not in MANIFEST_SUFFIXES or not path.is_file():
        return False
    end = b""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            if b"://" in end + block:
                return True
            end = block[-2:]
    return False


def _missing(items: Sequence[PairItem]) -> dict[int, list[str]]:
    """Return the files that do not exist, by the place of their pair.

    If many files of a folder follow one another, the folder is listed, so that no single file is
    looked up.
    """
    names = _Names()
    missing: dict[int, list[str]] = {}
    whole = (n for n, item in enumerate(items) if not item.error)
    for folders, group in groupby(whole, lambda n: items[n].folders):
        run = list(group)
        known = [names.of(folder, len(run)) for folder in folders]
        for n in run:
            for file, there in zip(items[n].files, known, strict=True):
                if os.path.basename(file) not in there and _is_missing(file):
                    missing.setdefault(n, []).append(str(Path(file)))
    return missing


class _Names:
    """Names in recently listed folders, without links, which may be dangling."""

    def __init__(self) -> None:
        self._found: dict[str, frozenset[str]] = {}
        self._worth = True

    def of(self, folder: str, files: int) -> frozenset[str]:
        """Return existing names; not all of them if listing the folder is not worthwhile."""
        if folder not in self._found and self._worth and files >= _RUN:
            if len(self._found) > 1:
                self._found.pop(next(iter(self._found)))
            self._found[folder] = self._listed(folder)
            self._worth = len(self._found[folder]) <= _TOO_MANY * files
        return self._found.get(folder, frozenset())

    @staticmethod
    def _listed(folder: str) -> frozenset[str]:
        try:
            with os.scandir(folder) as entries:
                return frozenset(entry.name for entry in entries if not entry.is_symlink())
        except (OSError, ValueError):  # each file says what is wrong
            return frozenset()


def _is_missing(path: str) -> bool:
    """Return whether a file is missing; a name that reading refuses fails only its own item."""
    try:
        return look(path) is None
    except ImageFileError:
        return False


def _table_rows(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    header = file.readline()
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(chain([header], file), delimiter=delimiter)
    columns = {(name or "").strip().casefold(): name for name in reader.fieldnames or ()}
    chosen = {
        key: next((columns[a] for a in aliases if a in columns), None)
        for key, aliases in _COLUMNS.items()
    }
    if chosen["ir"] is None or chosen["vis"] is None:
        raise ImageFileError(
            f"{path}: columns are {few([*columns])}; expected a first line with ir and vis "
            "(and perhaps name)"
        )
    for row in reader:
        place = f"line {reader.line_num}"
        yield place, {key: row.get(column) for key, column in chosen.items() if column}


def _json_rows(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    rows: Any
    try:
        rows = _json_lines(file, path) if path.suffix.lower() == ".jsonl" else json.load(file)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ImageFileError(f"{path}: not JSON ({error})") from None
    if isinstance(rows, dict):
        rows = rows.get("pairs")
    if not isinstance(rows, list | Iterator):
        raise ImageFileError(
            f'{path}: expected a list of pairs, or an object with such a list as "pairs"'
        )
    for n, row in enumerate(rows, 1):
        yield f"pair {n}", row


def _json_lines(file: TextIO, path: Path) -> Iterator[Any]:
    for line in file:
        if line.strip():
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ImageFileError(f"{path}: not JSON ({error})") from None


def _item(row: Any, path: Path, place: str, find: Find) -> PairItem:
    try:
        return _whole(row, f"{path}, {place}", find)
    except ImageFileError as error:
        return BadItem(place, path, path, str(error))


def _whole(row: Any, place: str, find: Find) -> PairItem:
    if isinstance(row, list) and len(row) == 2:
        row = {"ir": row[0], "vis": row[1]}
    if not isinstance(row, dict):
        raise ImageFileError(
            f'{place}: expected {{"ir": …, "vis": …}} or [ir, vis], got {json.dumps(row)[:60]}'
        )
    row = {
        key: next((row[a] for a in aliases if a in row), None) for key, aliases in _COLUMNS.items()
    }
    for key in ("ir", "vis"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ImageFileError(f"{place}: {key} is {row.get(key)!r}; expected a path")
    ir, vis = (find(row[key].strip()) for key in ("ir", "vis"))
    if _same(ir, vis) and not (is_packed(Path(ir)) or is_radiometric(Path(ir))):
        raise ImageFileError(
            f"{place}: {ir} is given for ir and for vis; give two files, or one of four channels"
        )
    name = row.get("name")
    name = Path(ir).stem if name is None or name == "" else name
    # outputs are named after it, so it must not lead out of the output folder
    if not isinstance(name, str) or not all(map(_PLAIN_NAME.fullmatch, name.split("/"))):
        raise ImageFileError(
            f"{place}: name is {name!r}; expected a plain name, perhaps with folders: test/0001"
        )
    return PairItem(name, ir, vis)


def _same(ir: str | os.PathLike[str], vis: str | os.PathLike[str]) -> bool:
    """Return whether two paths are equal; the costly check is done only if their names are."""
    same = os.path.basename(ir) == os.path.basename(vis)
    return same and os.path.normpath(ir) == os.path.normpath(vis) and Path(ir) == Path(vis)
