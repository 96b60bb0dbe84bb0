"""Lists of pairs: CSV, TSV, JSON and JSON lines; every path in them is looked for."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..files.packed import is_packed
from ..files.paths import ImageFileError, few, look
from ..files.radiometric import is_radiometric

MANIFEST_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
_COLUMNS = {
    "ir": ("ir", "infrared", "thermal", "source1"),
    "vis": ("vis", "vi", "visible", "rgb", "source2"),
    "name": ("name", "stem"),
}
_PLAIN_NAME = re.compile(r"[^.\\:\0][^\\:\0]*")


class Row(NamedTuple):
    """An entry of a list."""

    name: str
    """of a bad entry, where it stands: "line 3\""""
    ir: Path
    """of a bad entry the list itself, unless a file of it is missing; likewise ``vis``"""
    vis: Path
    error: str = ""
    """what is wrong with it"""


def read_list(
    path: Path,
    root: Path | None,
    locate: Callable[[str], Path] | None = None,
    *,
    strict: bool = True,
) -> list[Row]:
    """Read every entry of a list.

    Args:
        path: The list.
        root: What its paths are relative to; None for the list's folder.
        locate: Finds the file of a path instead.
        strict: Raise where an entry is bad; else it says so, unless all are.

    Raises:
        ImageFileError: It is no list of pairs, or names files that are not there.
    """
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise ImageFileError(
            f"{path}: not a list of pairs; expected a folder or one of "
            f"{', '.join(MANIFEST_SUFFIXES)}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ImageFileError(f"{path}: cannot be read as UTF-8 text ({why})") from error
    is_table = path.suffix.lower() in (".csv", ".tsv")
    rows = _table_rows(text, path) if is_table else _json_rows(text, path)
    base = path.parent if root is None else root
    try:
        items = [_row(row, path, place, locate or base.joinpath) for place, row in rows]
    except csv.Error as error:
        raise ImageFileError(f"{path}: not a table of pairs ({error})") from None
    if not items:
        raise ImageFileError(f"{path}: lists no pairs")
    whole = [row for row in items if not row.error]
    missing = [str(p) for row in whole for p in (row.ir, row.vis) if _is_missing(p)]
    items = [row if row.error else _looked_for(row, base) for row in items]
    bad = [row.error for row in items if row.error]
    if bad and (strict or len(bad) == len(items)):
        if len(whole) < len(items):
            raise ImageFileError(next(row.error for row in items if row not in whole and row.error))
        raise ImageFileError(
            f"{path}: {len(missing)} files are not there: {few(missing)}; "
            f"paths are relative to {base}"
        )
    return items


def _row(row: Any, path: Path, place: str, locate: Callable[[str], Path]) -> Row:
    try:
        return Row(*_item(row, f"{path}, {place}", locate))
    except ImageFileError as error:
        return Row(place, path, path, str(error))


def _looked_for(row: Row, base: Path) -> Row:
    missing = [str(path) for path in (row.ir, row.vis) if _is_missing(path)]
    if not missing:
        return row
    verb = "is" if len(missing) == 1 else "are"
    return row._replace(
        error=f"{' and '.join(missing)} {verb} not there; paths of the list are relative to {base}"
    )


def _is_missing(path: Path) -> bool:
    """Whether nothing is there; not of a name that reading refuses: that fails its item alone."""
    try:
        return look(path) is None
    except ImageFileError:
        return False


def _table_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
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


def _json_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        if path.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ImageFileError(f"{path}: not JSON ({error})") from None
    if isinstance(rows, dict):
        rows = rows.get("pairs")
    if not isinstance(rows, list):
        raise ImageFileError(
            f'{path}: expected a list of pairs, or an object with such a list as "pairs"'
        )
    for n, row in enumerate(rows, 1):
        yield f"pair {n}", row


def _item(row: Any, place: str, locate: Callable[[str], Path]) -> tuple[str, Path, Path]:
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
    ir, vis = (locate(row[key].strip()) for key in ("ir", "vis"))
    if ir == vis and not (is_packed(ir) or is_radiometric(ir)):
        raise ImageFileError(
            f"{place}: {ir} is given for ir and for vis; give two files, or one of four channels"
        )
    name = row.get("name")
    name = ir.stem if name is None or name == "" else name
    # Outputs are called after it, so it must not lead out of the output folder.
    if not isinstance(name, str) or not all(map(_PLAIN_NAME.fullmatch, name.split("/"))):
        raise ImageFileError(
            f"{place}: name is {name!r}; expected a plain name, perhaps with folders: test/0001"
        )
    return name, ir, vis
