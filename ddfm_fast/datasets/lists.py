"""Lists of pairs: CSV, TSV, JSON and JSON lines; every path in them is looked for."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

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


def read_list(
    path: Path, root: Path | None, locate: Callable[[str], Path] | None = None
) -> list[tuple[str, Path, Path]]:
    """Read (name, infrared file, visible file) of every row.

    Args:
        path: The list.
        root: What its paths are relative to; None for the list's folder.
        locate: Finds the file of a path instead.

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
        items = [_item(row, place, locate or base.joinpath) for place, row in rows]
    except csv.Error as error:
        raise ImageFileError(f"{path}: not a table of pairs ({error})") from None
    if not items:
        raise ImageFileError(f"{path}: lists no pairs")
    missing = [str(p) for _, ir, vis in items for p in (ir, vis) if _is_missing(p)]
    if missing:
        raise ImageFileError(
            f"{path}: {len(missing)} files are not there: {few(missing)}; "
            f"paths are relative to {base}"
        )
    return items


def _is_missing(path: Path) -> bool:
    """Whether nothing is there; not of a name that reading refuses: that fails its item alone."""
    try:
        return look(path) is None
    except ImageFileError:
        return False


def _table_rows(text: str, path: Path) -> Iterator[tuple[str, dict]]:
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
        place = f"{path}, line {reader.line_num}"
        yield place, {key: row.get(column) for key, column in chosen.items() if column}


def _json_rows(text: str, path: Path) -> Iterator[tuple[str, dict]]:
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
        place = f"{path}, pair {n}"
        if isinstance(row, list) and len(row) == 2:
            row = {"ir": row[0], "vis": row[1]}
        if not isinstance(row, dict):
            raise ImageFileError(
                f'{place}: expected {{"ir": …, "vis": …}} or [ir, vis], got {json.dumps(row)[:60]}'
            )
        yield (
            place,
            {
                key: next((row[a] for a in aliases if a in row), None)
                for key, aliases in _COLUMNS.items()
            },
        )


def _item(row: dict, place: str, locate: Callable[[str], Path]) -> tuple[str, Path, Path]:
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
