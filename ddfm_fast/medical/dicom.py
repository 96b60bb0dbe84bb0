"""DICOM files and series as volumes."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files.paths import ImageFileError, few
from ..images.doubts import warn
from .needs import need
from .nifti import checked_frame
from .values import Frame, frames_of
from .volume import Array, Origin, Volume

EVEN = 0.02
"""share of the spacing by which a slice may be off its place"""
MISSING = 1.5
"""multiple of the spacing between two slices from which slices between them are missing"""
_DIRECTION = 1e-3
"""most by which cosines of directions may differ"""
_LPS = np.diag([-1.0, -1.0, 1.0])
"""RAS from LPS, in which DICOM counts"""
_DIRECTORY = "1.2.840.10008.1.3.10"
"""Media Storage Directory: a DICOMDIR"""


class Series(NamedTuple):
    """The files of one series."""

    uid: str
    description: str
    modality: str
    number: str
    files: list[Path]

    def __str__(self) -> str:
        words = " ".join(word for word in (self.modality, self.description) if word)
        return f"{self.uid} ({words or 'no description'}, {len(self.files)} files)"


class Slice(NamedTuple):
    """A frame, and its place."""

    frame: Frame
    position: Any
    """center of the first pixel, mm in LPS; None if the file does not say"""
    directions: Any
    """[2, 3] likewise: unit vectors along which columns and rows are counted"""
    pixel: tuple[float, float]
    """distance of rows and of columns, mm"""
    thickness: float | None
    instance: tuple[str, str]
    """UIDs of its SOP class and of itself"""
    order: tuple[float, int]
    """instance number and frame, for files without places"""


def find_series(folder: Path) -> list[Series]:
    """List the series in a folder and those below, by UID; other files are left out.

    Raises:
        ImageFileError: There is no series.
        ImportError: pydicom is missing.
    """
    pydicom = need("pydicom", f"{folder}: reading DICOM")
    tags = ["SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "Modality", "Rows"]
    found: dict[str, list[Path]] = defaultdict(list)
    heads: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name[:1] != "."):
        try:
            head = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        except Exception:  # not a DICOM file, in any of many ways
            continue
        if head.file_meta.get("MediaStorageSOPClassUID") == _DIRECTORY or "Rows" not in head:
            continue
        uid = _text(head, "SeriesInstanceUID")
        found[uid].append(path)
        heads.setdefault(uid, head)
    if not found:
        raise ImageFileError(f"{folder}: holds no DICOM images; expected those of a series")
    return [
        Series(
            uid, _text(heads[uid], "SeriesDescription"), _text(heads[uid], "Modality"),
            _text(heads[uid], "SeriesNumber"), found[uid],
        )
        for uid in sorted(found)
    ]  # fmt: skip


def _text(dataset: Any, word: str) -> str:
    """Return an attribute as text; empty if it is missing or damaged."""
    try:
        return str(dataset.get(word, "") or "")
    except Exception:  # pydicom reads attributes when they are requested
        return ""


def choose_series(folder: Path, wanted: str | None) -> Series:
    """Choose the series of a folder.

    Args:
        folder: Where the files are.
        wanted: The end of its UID, its number, or a part of its description in any case; None if
            the folder holds only one.

    Raises:
        ImageFileError: None or several are meant; the message lists them.
    """
    series = find_series(folder)
    if wanted is None:
        chosen = series
    else:
        exact = [s for s in series if wanted in (s.uid, s.number, s.description)]
        loose = [
            s for s in series
            if s.uid.endswith(f".{wanted}") or wanted.lower() in s.description.lower()
        ]  # fmt: skip
        chosen = exact or loose
    if len(chosen) == 1:
        return chosen[0]
    meant = "several series" if wanted is None else f"series {wanted!r}, which means "
    if wanted is not None:
        meant += "several" if chosen else "none"
    raise ImageFileError(
        f"{folder}: holds {meant}; choose one with series= or --series, by its UID, number or "
        f"description: {few([str(s) for s in chosen or series], 12, '; ')}"
    )


def read_dicom(
    path: Path,
    series: str | None = None,
    frame: int | None = None,
    window: str | int | None = None,
) -> Volume:
    """Read a DICOM file, or the series of a folder, as a volume.

    Slices are sorted along their normal. A gap is left without data, and uneven slices are
    interpolated to even ones, each with a warning.

    Args:
        path: A file, or a folder.
        series: The series, if the folder has several, see :func:`choose_series`.
        frame: Which volume, if every place occurs several times.
        window: Which of the windows that the files name, see :func:`.views.chosen`.

    Raises:
        ImageFileError: Names the file or folder, and what to do.
        ImportError: pydicom, or what decodes the pixels, is missing.
    """
    files = choose_series(path, series).files if path.is_dir() else [path]
    slices: list[Slice] = []
    headers = []
    for file in files:
        dataset = _read(file)
        slices += _slices(dataset, file, window)
        for word in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
            if word in dataset:
                del dataset[word]
        headers.append(dataset)
    name = str(path)
    kinds = {(s.frame.values.shape, s.pixel) for s in slices}
    if len(kinds) > 1:
        sizes = few(sorted({"×".join(map(str, shape)) for shape, _ in kinds}))
        raise ImageFileError(f"{name}: slices differ in size or spacing ({sizes}); expected one")
    stacked = _stack(slices, frame, name)
    header = headers[len(headers) // 2]
    frames = [s.frame for s in slices]
    return Volume(
        stacked.array, stacked.affine, frames[0].units, _common_window(frames), name,
        _text(header, "Modality"), stacked.placed, Origin(header, stacked.instances),
    )  # fmt: skip


def _read(file: Path) -> Any:
    pydicom = need("pydicom", f"{file}: reading DICOM")
    try:
        return pydicom.dcmread(file)
    except OSError as error:
        raise ImageFileError(f"{file}: cannot be read ({error.strerror})") from error
    except pydicom.errors.InvalidDicomError as error:
        raise ImageFileError(
            f"{file}: is neither DICOM, by its first bytes, nor named .nii or .nii.gz; convert it "
            "to NIfTI. If it is DICOM without the first 132 bytes, rewrite it with pydicom "
            "(dcmread with force=True); `ddfm-fast fuse` takes pictures"
        ) from error
    except Exception as error:
        raise ImageFileError(
            f"{file}: cannot be read as DICOM ({str(error).splitlines()[0]}); check the file"
        ) from error


def _slices(dataset: Any, file: Path, window: str | int | None) -> list[Slice]:
    """Return every frame of a file with its place."""
    try:
        frames = frames_of(dataset, str(file), window)
        instance = str(dataset.get("SOPClassUID", "")), str(dataset.get("SOPInstanceUID", ""))
        number = float(dataset.get("InstanceNumber") or 0)
        places = [_place(dataset, n, len(frames)) for n in range(len(frames))]
    except (ImageFileError, ImportError):
        raise
    except Exception as error:  # pydicom reads attributes when they are requested
        raise ImageFileError(
            f"{file}: its attributes cannot be understood ({error}); check the file"
        ) from error
    return [
        Slice(frame, *place, instance, (number, n))
        for n, (frame, place) in enumerate(zip(frames, places, strict=True))
    ]


def _place(dataset: Any, number: int, count: int) -> tuple[Any, Any, tuple[float, float], Any]:
    """Return position, directions, pixel distances and thickness of a frame."""
    holders = [dataset]
    for word in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        groups = dataset.get(word) or []
        own = number if word.startswith("Per") else 0
        if own < len(groups):
            holders += [e.value[0] for e in groups[own] if e.VR == "SQ" and e.value]
    holders += list(dataset.get("DetectorInformationSequence") or [])[:1]

    def first(*words: str) -> Any:
        found = (h.get(word) for word in words for h in reversed(holders))
        return next((value for value in found if value is not None and value != ""), None)

    position, cosines = first("ImagePositionPatient"), first("ImageOrientationPatient")
    spacing = first("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
    pixel = (float(spacing[0]), float(spacing[1])) if spacing else (1.0, 1.0)
    thickness = first("SpacingBetweenSlices", "SliceThickness")
    thickness = abs(float(thickness)) or None if thickness is not None else None
    if position is None or cosines is None or len(position) != 3 or len(cosines) != 6:
        return None, None, pixel, thickness
    directions = np.array(cosines, np.float64).reshape(2, 3)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    at = np.array(position, np.float64)
    if count > 1 and "PerFrameFunctionalGroupsSequence" not in dataset:
        offsets = dataset.get("GridFrameOffsetVector")
        shift = float(offsets[number]) if offsets else number * (thickness or 1.0)
        at = at + shift * np.cross(*directions)
    return at, directions, pixel, thickness


class _Stack(NamedTuple):
    array: Array
    affine: Array
    placed: bool
    instances: tuple[tuple[str, str] | None, ...]


def _stack(slices: list[Slice], frame: int | None, name: str) -> _Stack:
    """Put slices into a volume, in the order of their places."""
    first = slices[0]
    if any(s.position is None for s in slices):
        if frame is not None:
            slices = [slices[checked_frame(frame, len(slices), name)]]
        ordered = sorted(slices, key=lambda s: s.order)
        affine = np.diag([-first.pixel[1], -first.pixel[0], first.thickness or 1.0, 1.0])
        values = np.stack([s.frame.values for s in ordered])
        return _Stack(values, affine, False, tuple(s.instance for s in ordered))
    for s in slices:
        if np.abs(s.directions - first.directions).max() > _DIRECTION:
            raise ImageFileError(
                f"{name}: slices lie in several directions, as those of a localizer do; expected "
                "parallel ones: keep those of one direction in a folder"
            )
    normal = np.cross(first.directions[0], first.directions[1])
    slices = _one_of_each(slices, normal, frame, name)
    along = np.array([s.position @ normal for s in slices])
    step = _step(along, first.thickness)
    places = np.arange(round((along[-1] - along[0]) / step) + 1) * step + along[0]
    array, used = _at_places(slices, along, places, step, name)
    start = slices[0].position
    axes = np.stack(
        (first.directions[0] * first.pixel[1], first.directions[1] * first.pixel[0], normal * step),
        axis=1,
    )
    if len(slices) > 1:  # a tilted gantry moves slices sideways, too
        axes[:, 2] = (slices[-1].position - start) * (step / (along[-1] - along[0]))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = _LPS @ axes, _LPS @ start
    return _Stack(array, affine, True, used)


def _one_of_each(slices: list[Slice], normal: Array, frame: int | None, name: str) -> list[Slice]:
    """Return the slices in order along the normal, one at each place."""
    places: dict[float, list[Slice]] = defaultdict(list)
    for s in sorted(slices, key=lambda s: s.order):
        places[round(float(s.position @ normal), 2)].append(s)
    counts = {len(same) for same in places.values()}
    if max(counts) == 1:
        if frame is not None:
            checked_frame(frame, 1, name)
    elif len(counts) > 1:
        raise ImageFileError(
            f"{name}: some places have {max(counts)} slices and others {min(counts)}; expected "
            "one volume: keep its files in a folder"
        )
    else:
        frame = checked_frame(frame, max(counts), name)
    return [places[at][frame or 0] for at in sorted(places)]


def _step(along: Array, thickness: float | None) -> float:
    """Return the distance of slices: the median of the actual ones."""
    if len(along) < 2:
        return thickness or 1.0
    return float(np.median(np.diff(along)))


def _at_places(
    slices: list[Slice], along: Array, places: Array, step: float, name: str
) -> tuple[Array, tuple[tuple[str, str] | None, ...]]:
    """Interpolate to even places, NaN where slices are missing; also return their files."""
    values = slices[0].frame.values
    array = np.full((len(places), *values.shape), np.nan, np.float32)
    used: list[tuple[str, str] | None] = []
    missing, uneven = [], False
    for n, at in enumerate(places):
        nearest = int(np.abs(along - at).argmin())
        used.append(None)
        if abs(along[nearest] - at) <= EVEN * step or len(along) == 1:
            array[n], used[n] = slices[nearest].frame.values, slices[nearest].instance
            continue
        after = min(max(int(np.searchsorted(along, at)), 1), len(along) - 1)
        gap = along[after] - along[after - 1]
        if gap >= MISSING * step:
            missing.append(at)
            continue
        share = np.float32(min(max((at - along[after - 1]) / gap, 0), 1))
        array[n] = slices[after - 1].frame.values * (1 - share)
        array[n] += slices[after].frame.values * share
        used[n], uneven = slices[nearest].instance, True
    if missing:
        text = few([f"{at - along[0]:g}" for at in missing])
        warn(
            f"{name}: {len(missing)} slices are missing, at {text} mm from the first; they are "
            "left without data"
        )
    if uneven:
        gaps = np.diff(along)
        warn(
            f"{name}: slices are {gaps.min():.3g} to {gaps.max():.3g} mm apart; they are "
            f"interpolated to every {step:.3g} mm"
        )
    return array, tuple(used)


def _common_window(frames: list[Frame]) -> tuple[float, float] | None:
    """Return the slices' common window: from the lowest to the highest value if they differ."""
    windows = [frame.window for frame in frames]
    if any(window is None for window in windows):
        return None
    low = min(window[0] for window in windows if window)
    high = max(window[1] for window in windows if window)
    return (low, high) if math.isfinite(low) and low < high else None
