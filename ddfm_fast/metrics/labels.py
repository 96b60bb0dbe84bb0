"""What people marked in the pictures of a data set: boxes of objects, classes of pixels."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from ..datasets.items import PairItem
from ..files.guards import check_pixels
from ..files.paths import few, image_files
from ..files.reading import DEFAULT_MAX_PIXELS, pillow_limit_lifted

CLASSES = "classes.txt"
"""the file beside labels that names their classes, one per line"""
IGNORED = 255
"""the value of a mask's pixel that does not count"""
_MOST_BYTES = 1 << 28
_EXPECTED = (
    "expected a JSON file of COCO's form, or a folder of .xml files (VOC) or of .txt files (YOLO, "
    f"with a {CLASSES})"
)
Found = TypeVar("Found")


class Objects(NamedTuple):
    """What is marked in a picture."""

    names: list[str]
    """the class of each"""
    boxes: np.ndarray
    """float64 [N, 4]: left, top, right, bottom, in pixels from the picture's corner"""
    ignored: list[bool]
    """objects that count neither as hit nor as miss: crowds, and difficult ones"""


class Marked(NamedTuple):
    """An entry of the labels."""

    objects: Objects
    size: tuple[float, float] | None
    """(width, height) of the labeled picture; if None, boxes are in fractions of it"""

    def within(self, width: int, height: int) -> Objects:
        """Return the objects in a picture of this size; ValueError if another size was labeled."""
        if self.size is None:
            return self.objects._replace(boxes=self.objects.boxes * [width, height, width, height])
        if self.size != (width, height):
            raise ValueError(
                f"its labels are of a picture of {self.size[0]:g}x{self.size[1]:g} and it has "
                f"{width}x{height}; expected labels of this size"
            )
        return self.objects


class Labels(NamedTuple):
    """Boxes of a data set."""

    classes: tuple[str, ...]
    ordered: bool
    """whether the order of the classes is the labels' own, not alphabetical"""
    pairs: dict[str, Marked]
    """by the name of the pair; those without labels are left out"""


class Masks(NamedTuple):
    """Pictures of classes of a data set."""

    classes: tuple[str, ...]
    """of the values from 0; empty if nothing names them"""
    files: dict[str, Path]
    """by the name of the pair"""

    def read(self, pair: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
        """Read the classes of a pair's pixels, uint8 [H, W]; ValueError for another picture.

        The indices of a palette are the classes, not its colors.
        """
        path = self.files[pair]
        with pillow_limit_lifted():
            try:
                with Image.open(path) as image:
                    check_pixels(path, *image.size, max_pixels)
                    mode, values = image.mode, np.array(image)
            except (OSError, SyntaxError) as error:
                raise ValueError(f"{path} is no whole picture ({error})") from error
        if mode not in ("L", "P"):
            raise ValueError(f"{path} has colors ({mode}); expected 8-bit indices of classes")
        return values


def read_boxes(place: Path, items: Sequence[PairItem]) -> Labels:
    """Read the labels of COCO's JSON, VOC's XML files or YOLO's text files.

    Files, or COCO's ``file_name``, are called after the pair, or after its infrared file's stem
    where stems are unique. A picture that COCO lists without annotations, and an empty file of
    YOLO, show nothing; a pair without an entry has no labels.

    Raises:
        ValueError: There are none, or they are damaged; names the file.
    """
    read, files = _kind_of(place)
    classes, ordered, found = read(files, _class_names(place))
    pairs = _by_pair(found, items)
    if not pairs:
        raise ValueError(
            f"{place} has no labels of any of the {len(items)} pairs; expected such as "
            f"{items[0].name}, and it has {few(sorted(found), 2)}"
        )
    return Labels(classes, ordered, pairs)


def read_masks(folder: Path, items: Sequence[PairItem]) -> Masks:
    """Find the pictures of classes, named like boxes' files; ValueError if there are none."""
    if not folder.is_dir():
        raise ValueError(f"masks are {folder}; expected a folder of pictures of classes")
    files: dict[str, Path] = {}
    for path in image_files(sorted(folder.rglob("*"))):
        _add(files, _key(path, folder), path, path)
    pairs = _by_pair(files, items)
    if not pairs:
        raise ValueError(
            f"{folder} has no mask of any of the {len(items)} pairs; expected files such as "
            f"{items[0].name}.png"
        )
    return Masks(_class_names(folder) or (), pairs)


_Read = Callable[
    [Sequence[Path], "tuple[str, ...] | None"],
    "tuple[tuple[str, ...], bool, dict[str, Marked]]",
]


def _kind_of(place: Path) -> tuple[_Read, list[Path]]:
    """Return how to read labels, and which files, by the suffixes found."""
    if place.is_file() and place.suffix.lower() == ".json":
        return _coco, [place]
    if not place.is_dir():
        raise ValueError(f"boxes are {place}; {_EXPECTED}")
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and path.name != CLASSES]
    by_suffix = {s: [f for f in files if f.suffix.lower() == s] for s in (".xml", ".txt", ".json")}
    kinds = [suffix for suffix, some in by_suffix.items() if some]
    if len(kinds) != 1 or (kinds == [".json"] and len(by_suffix[".json"]) > 1):
        held = f"{' and '.join(kinds)} files" if kinds else "none of these"
        raise ValueError(f"boxes are {place}, which has {held}; {_EXPECTED}")
    if kinds == [".json"]:
        return _coco, by_suffix[".json"]
    read = _voc if kinds == [".xml"] else _yolo

    def of_folder(files: Sequence[Path], classes: tuple[str, ...] | None) -> Any:
        return read(place, files, classes)

    return of_folder, by_suffix[kinds[0]]


def _class_names(place: Path) -> tuple[str, ...] | None:
    path = (place if place.is_dir() else place.parent) / CLASSES
    if not path.is_file():
        return None
    return tuple(line.strip() for line in _text(path).splitlines() if line.strip())


def _text(path: Path) -> str:
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; expected at most {_MOST_BYTES:,} of labels")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as that") from error


def _key(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _add(found: dict[str, Found], key: str, value: Found, path: Path) -> None:
    if key in found:
        raise ValueError(f"{path}: {key} is there twice; keep one")
    found[key] = value


def _by_pair(found: Mapping[str, Found], items: Sequence[PairItem]) -> dict[str, Found]:
    """Give each pair the entry of its name, else of its stem if that is unique on both sides."""
    stems = Counter(item.name.rpartition("/")[2] for item in items)
    ends = Counter(key.rpartition("/")[2] for key in found)
    by_stem = {s: v for k, v in found.items() if ends[s := k.rpartition("/")[2]] == 1}
    pairs: dict[str, Found] = {}
    for item in items:
        stem = item.name.rpartition("/")[2]
        if item.name in found:
            pairs[item.name] = found[item.name]
        elif stems[stem] == 1 and stem in by_stem:
            pairs[item.name] = by_stem[stem]
    return pairs


def _coco(files: Sequence[Path], classes: Any) -> tuple[tuple[str, ...], bool, dict[str, Marked]]:
    del classes  # the file has its own
    path = files[0]
    try:
        content = json.loads(_text(path))
        names = {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=_number)}
        keys: dict[Any, str] = {}
        objects: dict[str, list[tuple[str, list[float], bool]]] = {}
        sizes: dict[str, tuple[float, float]] = {}
        for image in content["images"]:
            key = Path(str(image["file_name"]).replace("\\", "/")).with_suffix("").as_posix()
            _add(sizes, key, (float(image["width"]), float(image["height"])), path)
            keys[image["id"]], objects[key] = key, []
        for one in content["annotations"]:
            left, top, width, height = map(float, one["bbox"])
            box = [left, top, left + width, top + height]
            crowd = bool(one.get("iscrowd", 0))
            objects[keys[one["image_id"]]].append((names[one["category_id"]], box, crowd))
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not of COCO's form ({type(error).__name__}: {error}); expected images, "
            "annotations and categories"
        ) from error
    marked = {key: Marked(_objects(some, path), sizes[key]) for key, some in objects.items()}
    return tuple(names.values()), True, marked


def _number(category: dict[str, Any]) -> int:
    return int(category["id"])


def _voc(
    folder: Path, files: Sequence[Path], classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], bool, dict[str, Marked]]:
    found: dict[str, Marked] = {}
    for path in files:
        text = _text(path)
        if "<!ENTITY" in text:
            raise ValueError(f"{path} defines entities; expected plain XML of VOC's form")
        try:
            root = ET.fromstring(text)
            size = [float(_of(root, f"size/{side}")) for side in ("width", "height")]
            objects = [
                (
                    _of(one, "name").strip(),
                    [float(_of(one, f"bndbox/{s}")) for s in ("xmin", "ymin", "xmax", "ymax")],
                    (one.findtext("difficult") or "0").strip() == "1",
                )
                for one in root.iter("object")
            ]
        except (ET.ParseError, ValueError) as error:
            raise ValueError(f"{path} is not of VOC's form ({error})") from error
        entry = Marked(_objects(objects, path), (size[0], size[1]))
        _add(found, _key(path, folder), entry, path)
    seen = sorted({name for entry in found.values() for name in entry.objects.names})
    return classes or tuple(seen), classes is not None, found


def _of(element: ET.Element, path: str) -> str:
    if (text := element.findtext(path)) is None:
        raise ValueError(f"{path} is missing")
    return text


def _yolo(
    folder: Path, files: Sequence[Path], classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], bool, dict[str, Marked]]:
    if not classes:
        raise ValueError(f"{folder} has no {CLASSES}, which names YOLO's classes, one a line")
    found: dict[str, Marked] = {}
    for path in files:
        objects = []
        for n, line in enumerate(_text(path).splitlines(), 1):
            if not line.strip():
                continue
            try:
                number, x, y, width, height = line.split()[:5]
                left, top = float(x) - float(width) / 2, float(y) - float(height) / 2
                box = [left, top, left + float(width), top + float(height)]
                if not 0 <= int(number) < len(classes):
                    raise ValueError(f"{CLASSES} names {len(classes)} classes")
                objects.append((classes[int(number)], box, False))
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {n} is {line[:80]!r} ({error}); expected the number of a class "
                    "and the center, width and height as parts of the picture"
                ) from error
        _add(found, _key(path, folder), Marked(_objects(objects, path), None), path)
    return classes, True, found


def _objects(marked: Sequence[tuple[str, list[float], bool]], path: Path) -> Objects:
    boxes = np.array([box for _, box, _ in marked], np.float64).reshape(-1, 4)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise ValueError(f"{path} has a box without area, or that is not finite; mend or remove it")
    return Objects([name for name, _, _ in marked], boxes, [ignored for _, _, ignored in marked])
