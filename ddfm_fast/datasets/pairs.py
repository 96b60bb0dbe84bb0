"""Where the pairs of a data set lie: folder layouts, aliases, lists; nothing is decoded here.

A tree is searched for folders that hold an infrared and a visible folder side by side; below the
two, files pair up by their path without suffix. That one rule covers the published layouts of
`LAYOUTS`.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..images.files import (
    SUFFIXES,
    VIDEO_SUFFIXES,
    ImageFileError,
    few,
    files_alone,
    image_size,
    is_folder,
    is_picture,
    look,
)

INFRARED = ("ir", "infrared", "cropinfrared", "t", "thermal", "lwir", "infrared_enhance")
VISIBLE = ("vi", "vis", "visible", "rgb", "crop_lr_visible", "visible_enhance")
MRI, WITH_MRI = ("mri",), ("ct", "pet", "spect")

Roles = tuple[tuple[str, ...], tuple[str, ...]]
"""lower-case folder names of the first and of the second source"""


class Layout(NamedTuple):
    """How a data set lies on disk."""

    tree: str
    """as published, below the data set's folder"""
    roles: tuple[Roles, ...]
    """the folders it accepts for the two sources"""


LAYOUTS = {
    "auto": Layout("any of these", ((INFRARED, VISIBLE), (MRI, WITH_MRI))),
    "msrs": Layout("{train,test}/{ir,vi}/NAME", ((("ir",), ("vi",)),)),
    "roadscene": Layout(
        "{cropinfrared,crop_LR_visible}/NAME", ((("cropinfrared",), ("crop_lr_visible",)),)
    ),
    "m3fd": Layout("{Ir,Vis}/NAME or fusion/{ir,vis}/NAME", ((("ir",), ("vis",)),)),
    "tno": Layout("{ir,vi}/NAME", ((("ir",), ("vi", "vis")),)),
    "llvip": Layout("{infrared,visible}/{train,test}/NAME", ((("infrared",), ("visible",)),)),
    "harvard": Layout(
        "MRI_CT/{MRI,CT}/NAME, with PET and SPECT alike; MRI is the first source",
        ((MRI, WITH_MRI),),
    ),
    "m3svd": Layout("{train,val,test}/{ir,vi}/SEQUENCE/NAME", ((("ir",), ("vi",)),)),
    "vtmot": Layout("SEQUENCE/{infrared,visible}/NAME", ((("infrared",), ("visible",)),)),
    "lasher": Layout("SEQUENCE/{infrared,visible}/NAME", ((("infrared",), ("visible",)),)),
    "vtuav": Layout("SEQUENCE/{ir,rgb}/NAME", ((("ir", "infrared"), ("rgb", "visible")),)),
}
"""the published data sets by name; "auto" accepts every alias, in any case"""

MANIFEST_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
_COLUMNS = {
    "ir": ("ir", "infrared", "thermal", "source1"),
    "vis": ("vis", "vi", "visible", "rgb", "source2"),
    "name": ("name", "stem"),
}
_PLAIN_NAME = re.compile(r"[^.\\:\0][^\\:\0]*")


@dataclass(frozen=True)
class PairItem:
    """A pair of a data set. ``name`` is unique in it and has no suffix: "00001D", "test/00001D"."""

    name: str
    ir: Path
    vis: Path


def find_pairs(
    root: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    *,
    layout: str | tuple[str, str] | None = None,
    manifest: str | os.PathLike[str] | None = None,
    check_sizes: bool = True,
) -> list[PairItem]:
    """Find all pairs of a data set, sorted by name (in the order of the list, for a manifest).

    Args:
        root: The folder of the data set or of a part of it; or two folders (infrared, visible) of
            any name; or a manifest file.
        layout: A name of `LAYOUTS`, or two folder names such as ("lwir", "rgb") or "lwir,rgb";
            None for "auto".
        manifest: A list of the pairs. CSV (or TSV) with the columns ir, vis and perhaps name; JSON
            or JSON lines of {"ir": …, "vis": …, "name": …} or [ir, vis]. Paths are relative to
            ``root``, or to the list's folder where there is no root; names default to the infrared
            file's stem.
        check_sizes: Read every header and compare the two sizes of a pair. Headers that cannot be
            read are left for whoever decodes the file.

    Raises:
        ImageFileError: No pairs, files without a partner, sizes that differ, names that occur
            twice, folders that could be either; the message names the first few.
    """
    if manifest is None and isinstance(root, (str, os.PathLike)) and os.path.isfile(root):
        root, manifest = None, root
    if manifest is not None:
        if layout is not None:
            raise ValueError("layout and manifest exclude each other; leave out one")
        items = _read_manifest(Path(manifest), root)
    else:
        items = _from_folders(root, layout)
    _require_unique(items)
    if check_sizes:
        _require_equal_sizes(items)
    return items


# Folders


def _from_folders(root, layout) -> list[PairItem]:
    if isinstance(root, (tuple, list)):
        if layout is not None or len(root) != 2:
            raise ValueError(
                f"root has {len(root)} folders and layout is {layout!r}; "
                "expected (infrared folder, visible folder) and no layout"
            )
        ir, vis = (_require_folder(folder) for folder in root)
        if ir.samefile(vis):
            raise ImageFileError(f"{ir}: given for infrared and for visible; give two folders")
        found = [("", ir, vis)]
    else:
        folder = _require_folder(root)
        roles = _roles(layout)
        found = []
        halves: list[Path] = []
        _search(folder, "", roles, found, halves, ())
        if not found or halves:
            raise _nothing_found(folder, layout, roles, halves)
    return _match(found)


def _require_folder(root) -> Path:
    if not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"root is a {type(root).__name__}; expected a folder, or two of them")
    if not is_folder(root):
        raise ImageFileError(f"{root}: no such folder or list of pairs; check the name")
    return Path(root)


def _roles(layout) -> tuple[Roles, ...]:
    if layout is None:
        return LAYOUTS["auto"].roles
    if isinstance(layout, str) and layout.lower() in LAYOUTS:
        return LAYOUTS[layout.lower()].roles
    names = layout.split(",") if isinstance(layout, str) else layout
    names = [n.strip().casefold() for n in names] if all(isinstance(n, str) for n in names) else []
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise ValueError(
            f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)}, "
            'or two folder names such as "lwir,rgb" (infrared first)'
        )
    return (((names[0],), (names[1],)),)


def _search(folder, prefix, roles, found, halves, above) -> bool:
    """Collect (prefix, first, second) below the folder; True if there are any or images are."""
    folders, files = _listing(folder, above)
    above = (*above, os.path.realpath(folder))
    taken: set[Path] = set()
    alone: set[Path] = set()
    for first_names, second_names in roles:
        first = [f for f in folders if f.name.casefold() in first_names]
        second = [f for f in folders if f.name.casefold() in second_names]
        if first and second:
            if len(first) + len(second) > 2:
                raise ImageFileError(
                    f"{folder}: holds {few([f.name for f in first])} for one source and "
                    f"{few([f.name for f in second])} for the other; say which by layout "
                    f'(command line: --layout "{first[0].name},{second[0].name}")'
                )
            found.append((prefix, first[0], second[0]))
            taken.update((*first, *second))
        else:
            alone.update((*first, *second))
    any_image = bool(files)
    for sub in folders:
        if sub in taken:
            continue
        before = len(found)
        has_images = _search(sub, f"{prefix}{sub.name}/", roles, found, halves, above)
        if sub in alone and has_images and len(found) == before:
            halves.append(sub)
        any_image |= has_images
    return any_image


def _listing(folder: Path, above: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """Subfolders and image files, sorted, without hidden ones; nothing where links form a loop."""
    if os.path.realpath(folder) in above:
        return [], []
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(folder / entry.name)
                elif is_picture(folder / entry.name):
                    files.append(folder / entry.name)
    except OSError as error:
        raise ImageFileError(f"{folder}: cannot be listed ({error.strerror})") from error
    return folders, files


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):  # a link that leads to no folder
            return False
        raise


def _nothing_found(root, layout, roles, halves) -> ImageFileError:
    if halves:
        return ImageFileError(
            f"{root}: images with no folder of the other source beside them in "
            f"{few([str(h.relative_to(root)) for h in halves])}; add or rename the other folder, "
            "give a folder further down, or say by layout which two folders count"
        )
    folders, files = _listing(root, ())
    names = "; or ".join(f"{' or '.join(a)} beside {' or '.join(b)}" for a, b in roles)
    seen = few([f"{f.name}/" for f in folders] + [f.name for f in files])
    videos = " (videos are no image pairs)" if any(_has_videos(f) for f in (root, *folders)) else ""
    return ImageFileError(
        f"{root}: no pairs found with layout {layout or 'auto'}, which means folders {names}; "
        f"the folder holds {seen}{videos}. Give two folders, a layout of two folder names, "
        "or a manifest"
    )


def _has_videos(folder: Path) -> bool:
    return any(path.suffix.lower() in VIDEO_SUFFIXES for path in folder.iterdir())


def _match(found: list[tuple[str, Path, Path]]) -> list[PairItem]:
    items, only_ir, only_vis = [], [], []
    for prefix, first, second in found:
        ir, vis = dict(_stems(first)), dict(_stems(second))
        if not ir and not vis:
            raise ImageFileError(f"{first} and {second}: no images ({', '.join(SUFFIXES)})")
        items += [PairItem(prefix + stem, ir[stem], vis[stem]) for stem in ir.keys() & vis.keys()]
        only_ir += files_alone(ir[stem] for stem in ir.keys() - vis.keys())
        only_vis += files_alone(vis[stem] for stem in vis.keys() - ir.keys())
    if only_ir or only_vis:
        raise ImageFileError(
            f"{len(only_ir) + len(only_vis)} images without a partner of the same stem: "
            f"infrared alone: {few(sorted(map(str, only_ir)))}; "
            f"visible alone: {few(sorted(map(str, only_vis)))}; rename or remove them"
        )
    return sorted(items, key=lambda item: item.name)


def _stems(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path below the folder without suffix, file) of every image at any depth."""
    waiting: list[tuple[Path, str, tuple]] = [(folder, "", ())]
    while waiting:
        here, prefix, above = waiting.pop()
        folders, files = _listing(here, above)
        above = (*above, os.path.realpath(here))
        named = list(filter(is_picture, folders))  # no pictures: they fail their own pairs
        files = sorted((*files, *named))
        waiting += [(f, f"{prefix}{f.name}/", above) for f in folders if f not in named]
        first: dict[str, Path] = {}
        for file in files:
            if first.setdefault(file.stem, file) is not file:
                raise ImageFileError(
                    f"{here}: {first[file.stem].name} and {file.name} have the same stem; keep one"
                )
            yield prefix + file.stem, file


# Lists


def _read_manifest(path: Path, root) -> list[PairItem]:
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
    base = path.parent if root is None else _require_folder(root)
    try:
        items = [_manifest_item(row, place, base) for place, row in rows]
    except csv.Error as error:
        raise ImageFileError(f"{path}: not a table of pairs ({error})") from None
    if not items:
        raise ImageFileError(f"{path}: lists no pairs")
    missing = [str(p) for item in items for p in (item.ir, item.vis) if _is_missing(p)]
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


def _manifest_item(row: dict, place: str, base: Path) -> PairItem:
    for key in ("ir", "vis"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ImageFileError(f"{place}: {key} is {row.get(key)!r}; expected a path")
    ir, vis = (base / row[key].strip() for key in ("ir", "vis"))
    if ir == vis:
        raise ImageFileError(f"{place}: {ir} is given for ir and for vis; give two files")
    name = row.get("name")
    name = ir.stem if name is None or name == "" else name
    # Outputs are called after it, so it must not lead out of the output folder.
    if not isinstance(name, str) or not all(map(_PLAIN_NAME.fullmatch, name.split("/"))):
        raise ImageFileError(
            f"{place}: name is {name!r}; expected a plain name, perhaps with folders: test/0001"
        )
    return PairItem(name, ir, vis)


# Checks on the whole


def _require_unique(items: list[PairItem]) -> None:
    first: dict[str, PairItem] = {}
    twice = []
    for item in items:
        if first.setdefault(item.name, item) is not item:
            twice.append(f"{item.name} ({first[item.name].ir} and {item.ir})")
    if twice:
        raise ImageFileError(
            f"{len(twice)} names occur twice: {few(twice)}; give a part of the data set, "
            "or a manifest with a column name"
        )


def _require_equal_sizes(items: list[PairItem]) -> None:
    unequal = []
    for item in items:
        ir, vis = image_size(item.ir), image_size(item.vis)
        if ir and vis and ir != vis:
            unequal.append(f"{item.name} (ir {ir[0]}x{ir[1]}, vis {vis[0]}x{vis[1]})")
    if unequal:
        raise ImageFileError(
            f"{len(unequal)} of {len(items)} pairs have sources of different height x width: "
            f"{few(unequal)}; register and resize them first"
        )
