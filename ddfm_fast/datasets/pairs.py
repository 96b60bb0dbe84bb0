"""Find the pairs of a data set: folder layouts and aliases; nothing is decoded here.

A tree is searched for folders that hold an infrared and a visible folder side by side; below the
two, files pair up by their path without suffix. That one rule covers the published layouts of
`LAYOUTS`. If there are no such folders, each folder may hold both sources, told apart by name
(:mod:`.names`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..files.packed import is_packed
from ..files.pairing import files_alone
from ..files.paths import (
    READ_SUFFIXES,
    VIDEO_SUFFIXES,
    ImageFileError,
    as_told_apart,
    few,
    is_folder,
)
from ..files.reading import image_size
from ..images.doubts import warn
from .items import BadItem, PairItem, are_unique
from .lists import read_list
from .names import Alone, Found, Match, pair_by_pattern, pair_folders, pair_mixed, pattern_pair
from .trees import Rest, equal_names, listing, walk

INFRARED = ("ir", "infrared", "cropinfrared", "t", "thermal", "lwir", "infrared_enhance")
VISIBLE = ("vi", "vis", "visible", "rgb", "crop_lr_visible", "visible_enhance")
MRI, WITH_MRI = ("mri",), ("ct", "pet", "spect")

Roles = tuple[tuple[str, ...], tuple[str, ...]]
"""lower-case folder names of the first and of the second source"""


class Layout(NamedTuple):
    """How a data set is laid out on disk."""

    tree: str
    """as published, below the data set's folder"""
    roles: tuple[Roles, ...]
    """the folders it accepts for the two sources"""
    kind: str = "folders"
    """"folders"; "mixed", both sources in one folder, told apart by name; "packed", in one file"""


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
    "ivif_zoo": Layout("SET/{ir,vis}/NAME", ((("ir", "infrared"), ("vi", "vis", "visible")),)),
    "vifb": Layout("{IR,VI}/NAME", ((("ir",), ("vi", "vis")),)),
    "kaist": Layout("{set00,…}/{V000,…}/{lwir,visible}/NAME", ((("lwir",), ("visible",)),)),
    "flir": Layout("JPEGImages/FLIR_NNNNN_{PreviewData,RGB}", (), "mixed"),
    "mfnet": Layout("images/NAME, PNG of RGB and thermal as alpha (MSRS, too)", (), "packed"),
}
"""the published data sets by name; "auto" accepts every alias, in any case"""
FOLDER = "folder"
"""the source of a whole folder (not a file) that lacks its other half"""


@dataclass
class Survey:
    """What a data set holds: its pairs, and what has no partner."""

    pairs: list[PairItem] = field(default_factory=list)
    """sorted by name; in the order of the list, for a manifest"""
    alone: list[Alone] = field(default_factory=list)
    """files without a partner, and folders without the other source's folder beside them"""

    @property
    def claims(self) -> list[Alone]:
        """Those in ``alone`` that belong to one of the sources, so that a partner is missing."""
        return [one for one in self.alone if one.source or one.candidates]

    def add(self, found: Found, prefix: str = "") -> None:
        self.pairs += (PairItem(prefix + name, ir, vis) for name, ir, vis in found.pairs)
        self.alone += found.alone


def find_pairs(
    root: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    *,
    layout: str | tuple[str, str] | None = None,
    manifest: str | os.PathLike[str] | None = None,
    pattern: str | tuple[str, str] | None = None,
    check_sizes: bool = True,
    strict: bool = True,
) -> list[PairItem]:
    """Find all pairs of a data set, sorted by name (in the order of the list, for a manifest).

    Args:
        root: The folder of the data set or of a part of it; or two folders (infrared, visible) of
            any name; or a manifest file.
        layout: A name of `LAYOUTS`, or two folder names such as ("lwir", "rgb") or "lwir,rgb";
            None for "auto".
        manifest: A list of the pairs. CSV (or TSV) with the columns ir, vis and perhaps name; JSON
            or JSON lines of {"ir": …, "vis": …, "name": …} or [ir, vis]. Paths are relative to
            ``root``, or to the list's folder if there is no root; names default to the infrared
            file's stem.
        pattern: The names of infrared and visible files, such as "{}_T.*,{}_V.*": ``{}`` is what
            a pair shares, ``*`` and ``?`` vary. With folders: "thermal/{}.tiff,rgb/{}.jpg".
        check_sizes: Read every header and compare the two sizes of a pair. Headers that cannot be
            read are left to the decoder of the file.
        strict: Raise if an entry of a list is bad or a file has no partner; else each is a pair
            with an ``error``, after the others, unless there are no others.

    Raises:
        ImageFileError: There are no pairs, files have no partner or two, sizes differ, names occur
            twice, or folders could be either; the message names the first few.
        ValueError: ``layout``, ``manifest`` and ``pattern`` exclude one another.
    """
    found = survey_pairs(root, layout=layout, manifest=manifest, pattern=pattern, strict=strict)
    if found.pairs and not strict:
        found = _with_lone(found, root)
    folders = [one.file for one in found.alone if one.source == FOLDER]
    if folders:
        raise _no_other_folder(Path(str(root)), folders)
    refuse_lone(found.alone)
    others = [str(one.file) for one in found.alone if not (one.source or one.candidates)]
    if pattern is None and others:
        warn(f"left out, neither infrared nor visible by name: {few(sorted(others))}")
    _require_unique(found.pairs)
    if check_sizes:
        _require_equal_sizes(found.pairs)
    return found.pairs


def survey_pairs(
    root: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    *,
    layout: str | tuple[str, str] | None = None,
    manifest: str | os.PathLike[str] | None = None,
    pattern: str | tuple[str, str] | None = None,
    strict: bool = True,
) -> Survey:
    """Find the pairs as `find_pairs` does, and say why the rest has none instead of raising.

    Args:
        root: As `find_pairs` takes it, like the others.
        layout: Names of folders.
        manifest: A list of pairs.
        pattern: Names of files.
        strict: As there.

    Raises:
        ImageFileError: There is nothing, or folders could be either.
        ValueError: ``layout``, ``manifest`` and ``pattern`` exclude one another.
    """
    if manifest is None and isinstance(root, (str, os.PathLike)) and os.path.isfile(root):
        root, manifest = None, root
    options = {"layout": layout, "manifest": manifest, "pattern": pattern}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other; leave out all but one")
    if manifest is not None:
        base = None if root is None else _require_folder(root)
        return Survey(read_list(Path(manifest), base, strict=strict))
    survey = _by_pattern(root, pattern) if pattern is not None else _from_folders(root, layout)
    if any(before.name > item.name for before, item in pairwise(survey.pairs)):
        survey.pairs.sort(key=lambda item: item.name)  # holds all of the names meanwhile
    survey.alone.sort(key=lambda one: str(one.file))
    return survey


def refuse_lone(alone: Sequence[Alone]) -> None:
    """Name the files that lack a partner, or fit several; do nothing if there are none.

    What is not a file (a dangling link, a folder called x.png) is left out with a warning.

    Raises:
        ImageFileError: There are such files.
    """
    ir = [str(f) for f in files_alone(o.file for o in alone if o.source == "infrared")]
    vis = [str(f) for f in files_alone(o.file for o in alone if o.source == "visible")]
    doubts = [f"{one.file} {one.why}" for one in alone if one.candidates]
    said = []
    if doubts:
        said.append(
            f"{len(doubts)} images with more than one possible partner: "
            f"{few(doubts, separator='; ')}; remove one of them, or say which to take with pattern "
            '(command line: --pattern "{}_T.*,{}_W.*") or a manifest'
        )
    if ir or vis:
        said.append(
            f"{len(ir) + len(vis)} images without a partner of the same stem: "
            f"infrared alone: {few(ir)}; visible alone: {few(vis)}; rename or remove them"
        )
    if said:
        raise ImageFileError(". ".join(said))


def _with_lone(survey: Survey, root) -> Survey:
    """Return a survey whose files without a partner are pairs with an ``error``."""
    lone = [
        one
        for one in survey.claims
        if one.source != FOLDER and (one.candidates or os.path.isfile(one.file))
    ]
    bad = [BadItem(_lone_name(one, root), one.file, one.file, _lone_error(one)) for one in lone]
    rest = {one.file for one in lone}
    return Survey([*survey.pairs, *bad], [one for one in survey.alone if one.file not in rest])


def _lone_name(one: Alone, root) -> str:
    """Name a file by its path; the suffix keeps it apart from the names of pairs."""
    folders = (
        {"": root}
        if isinstance(root, (str, os.PathLike))
        else {
            f"{source}/": folder
            for source, folder in zip(("infrared", "visible"), root, strict=True)
        }
    )
    above = [f for f in folders if one.file.is_relative_to(folders[f])]
    prefix = next((f for f in above if f == f"{one.source}/"), above[0])
    return prefix + one.file.relative_to(folders[prefix]).as_posix()


def _lone_error(one: Alone) -> str:
    if one.candidates:
        return (
            f"{one.file} {one.why}; remove one of them, or say which to take with pattern "
            '(command line: --pattern "{}_T.*,{}_W.*") or a manifest'
        )
    return f"{one.file} has no partner: {one.why}; rename or remove it"


# folders


def _from_folders(root, layout) -> Survey:
    survey = Survey()
    if isinstance(root, (tuple, list)):
        if layout is not None or len(root) != 2:
            raise ValueError(
                f"root has {len(root)} folders and layout is {layout!r}; "
                "expected (infrared folder, visible folder) and no layout"
            )
        found = [("", *_two_folders(root))]
    else:
        folder = _require_folder(root)
        kind = _kind(layout)
        if kind == "packed":
            return _packed(folder, survey)
        found = []
        halves: list[Path] = []
        _search(folder, "", _roles(layout), found, halves, ())
        if not found and kind == "mixed":
            for prefix, files in walk(folder):
                survey.add(pair_mixed(files, prefix))
            if survey.pairs or any(one.candidates for one in survey.alone):
                return survey
        if not (found or halves or survey.claims):
            raise _nothing_found(folder, layout, _roles(layout))
        survey.alone += [
            Alone(half, "no folder of the other source beside it", source=FOLDER) for half in halves
        ]
    for prefix, first, second in found:
        _add_two(survey, prefix, first, second)
    return survey


def _add_two(survey: Survey, prefix: str, first: Path, second: Path) -> None:
    """Add the pairs of two folders: equal names folder by folder, then the rest by the rules."""
    rest = Rest({}, {})
    before = len(survey.pairs)
    found = equal_names(first, second, rest, prefix)
    survey.pairs += (PairItem.within(*one) for one in found)
    equal = len(survey.pairs) > before
    if not (equal or rest.ir or rest.vis):
        raise ImageFileError(
            f"{first} and {second}: have no images; expected files ending in "
            f"{', '.join(READ_SUFFIXES)}"
        )
    survey.add(pair_folders(rest.ir, rest.vis, equal=equal), prefix)


def _kind(layout) -> str:
    """Return how to search a layout; "auto" pairs by name in one folder if it finds no folders."""
    name = "auto" if layout is None else str(layout).lower()
    return "mixed" if name == "auto" else LAYOUTS[name].kind if name in LAYOUTS else "folders"


def _packed(folder: Path, survey: Survey) -> Survey:
    for prefix, files in walk(folder):
        pairs = [Match(prefix + file.stem, file, file) for file in files if is_packed(file)]
        both = {match.ir for match in pairs}
        others = files if pairs else []  # labels are in folders of their own
        alone = [Alone(f, "has no fourth channel") for f in others if f not in both]
        survey.add(Found(pairs, alone))
    if not survey.pairs:
        raise ImageFileError(
            f"{folder}: no image of four channels (RGB, and infrared as alpha); give another layout"
        )
    return survey


def _by_pattern(root, pattern) -> Survey:
    pattern_pair(pattern)
    two = _two_folders(root) if isinstance(root, (tuple, list)) else (_require_folder(root),)
    files = [
        {prefix + file.name: file for prefix, found in walk(folder) for file in found}
        for folder in two
    ]
    survey = Survey()
    survey.add(pair_by_pattern(files[0], files[-1], pattern))
    if not survey.pairs and not survey.claims:
        raise ImageFileError(
            f"{two[0]}: no files fit the two names of pattern {pattern!r}; compare them with "
            f"{few([one.file.name for one in survey.alone])}"
        )
    return survey


def _two_folders(root) -> tuple[Path, Path]:
    if len(root) != 2:
        raise ValueError(f"root has {len(root)} folders; expected (infrared, visible)")
    ir, vis = (_require_folder(folder) for folder in root)
    if ir.samefile(vis):
        raise ImageFileError(f"{ir}: is given for infrared and for visible; give two folders")
    return ir, vis


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
    folders, files = listing(folder, above)
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


def _no_other_folder(root: Path, halves: Sequence[Path]) -> ImageFileError:
    return ImageFileError(
        f"{root}: images with no folder of the other source beside them in "
        f"{few([str(h.relative_to(root)) for h in halves])}; add or rename the other folder, "
        "give a folder further down, or name the two folders by layout"
    )


def _nothing_found(root, layout, roles) -> ImageFileError:
    folders, files = listing(root)
    names = "; or ".join(f"{' or '.join(a)} beside {' or '.join(b)}" for a, b in roles)
    seen = few([f"{f.name}/" for f in folders] + files)
    videos = (
        f" (for videos: ddfm-fast video {root} -o fused)"
        if any(_has_videos(f) for f in (root, *folders))
        else ""
    )
    return ImageFileError(
        f"{root}: no pairs found with layout {layout or 'auto'}, which means folders {names}; "
        f"the folder holds {seen}{videos}. Give two folders, a layout of two folder names, "
        'a pattern such as "{}_T.*,{}_V.*", a manifest, or for PNG of four channels layout mfnet'
    )


def _has_videos(folder: Path) -> bool:
    return any(path.suffix.lower() in VIDEO_SUFFIXES for path in folder.iterdir())


# checks on the whole


def _require_unique(items: list[PairItem]) -> None:
    if are_unique(items):
        return
    first: dict[str, PairItem] = {}
    twice = []
    for item in items:
        same = first.setdefault(as_told_apart(item.name), item)
        if same is not item:
            twice.append(f"{item.name} ({same.ir} and {item.ir})")
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
            f"{few(unequal)}; give --resize vis, or --align homography"
        )
