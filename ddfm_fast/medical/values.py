"""What the pixels of a DICOM frame mean: rescaled values, their window, or RGB."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..files.paths import ImageFileError
from .needs import need
from .views import View, by_table, chosen, views
from .volume import Array

GRAY = ("MONOCHROME1", "MONOCHROME2")


class Frame(NamedTuple):
    """A frame as read from the file."""

    values: Array
    """[H, W] float32, NaN where the file pads; or RGB [H, W, 3] in [0, 1]"""
    window: tuple[float, float] | None
    units: str


def frames_of(dataset: Any, name: str, window: str | int | None = None) -> list[Frame]:
    """Decode every frame of a dataset.

    Args:
        dataset: The dataset, with its pixels.
        name: The file, for errors.
        window: Which of its views, see :func:`.views.chosen`.

    Raises:
        ImageFileError: There are no pixels, or they cannot be decoded.
        ImportError: A library that decodes them is missing.
    """
    if not any(word in dataset for word in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageFileError(f"{name}: has no pixels; expected an image")
    if not getattr(dataset, "file_meta", {}).get("TransferSyntaxUID"):
        raise ImageFileError(
            f"{name}: does not name its transfer syntax, so its pixels cannot be decoded; repair "
            "the file"
        )
    pixels = need("pydicom.pixels", f"{name}: reading DICOM")
    try:
        raw = pixels.pixel_array(dataset)
    except (KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ) as error:  # of many types, by the damage; Rust's panics are not subclasses of Exception
        if not _can_decode(dataset.file_meta.TransferSyntaxUID, pixels):
            raise ImportError(
                f"{name}: {dataset.file_meta.TransferSyntaxUID.name} is decoded by pylibjpeg with "
                "its plug-ins, which cannot be imported; pip install 'ddfm_fast[medical]'"
            ) from error
        raise ImageFileError(
            f"{name}: its pixels cannot be decoded ({_reason(error)}); check the file"
        ) from error
    color = int(dataset.get("SamplesPerPixel", 1)) > 1
    frames = raw if raw.ndim == 3 + color else raw[None]
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if color:
        white = _stored_ends(dataset)[1] if raw.dtype.kind in "iu" else 1
        return [
            Frame((frame / np.float64(white)).clip(0, 1).astype(np.float32), None, "")
            for frame in frames
        ]
    if photometric == "PALETTE COLOR":
        return [_of_palette(frame, dataset, pixels) for frame in frames]
    if photometric not in GRAY:
        raise ImageFileError(
            f"{name}: PhotometricInterpretation is {photometric}; expected MONOCHROME1 or 2, "
            "PALETTE COLOR, RGB or YBR"
        )
    inverted = photometric == "MONOCHROME1"
    seen = [chosen(views(_holder(dataset, n)), window, name) for n in range(len(frames))]
    return [
        _gray(frame, dataset, n, inverted, pixels, seen[n], name) for n, frame in enumerate(frames)
    ]


def _can_decode(syntax: Any, pixels: Any) -> bool:
    """Return whether a decoder is there, or none exists, so that installing would not help."""
    if not syntax.is_compressed:
        return True
    try:
        return bool(pixels.get_decoder(syntax).is_available)
    except NotImplementedError:
        return True


def _reason(error: BaseException) -> str:
    """Return the last line of an error: decoders list all of their messages."""
    return ((str(error) or type(error).__name__).splitlines()[-1]).strip()


def _of_palette(frame: Array, dataset: Any, pixels: Any) -> Frame:
    rgb = pixels.apply_color_lut(frame, dataset)[..., :3]
    bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    return Frame(rgb.astype(np.float32) / np.float32(2**bits - 1), None, "")


def _holder(dataset: Any, number: int) -> Any:
    """Return the dataset that has the windows of a frame."""
    return _groups(dataset, number).get("FrameVOILUTSequence", dataset)


def _gray(
    frame: Array, dataset: Any, number: int, inverted: bool, pixels: Any, view: View | None,
    name: str,
) -> Frame:  # fmt: skip
    """Return a gray frame in the units of its modality or table, inverted if it is meant so."""
    groups = _groups(dataset, number)
    found = _transform(dataset, groups)
    if found is None:
        values = pixels.apply_modality_lut(frame, dataset)
        slope, intercept = _rescale(dataset)
    else:
        slope, intercept = found
        values = frame * np.float64(slope) + intercept
    values = np.asarray(values).astype(np.float32)
    padding = _padding(frame, dataset)
    window = None if view is None else view.window
    if view is not None and view.table is not None:
        signed = bool(values.min() < 0)
        values, white = by_table(values, view.table, signed=signed, name=name)
        values = np.float32(white) - values if inverted else values
        if padding is not None:
            values[padding] = np.nan
        return Frame(values, (0.0, white), "")
    if inverted and frame.dtype.kind in "iu":
        ends = _stored_ends(dataset)
        both = np.float32((ends[0] + ends[1]) * slope + 2 * intercept)
        values = both - values
        if window is not None:
            window = float(both) - window[1], float(both) - window[0]
    if padding is not None:
        values[padding] = np.nan
    return Frame(values, window, _units(dataset))


def _groups(dataset: Any, number: int) -> dict[str, Any]:
    """Return the functional groups of a frame by name, its own before shared ones."""
    found: dict[str, Any] = {}
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in (*shared[:1], *per_frame[number : number + 1]):
        for element in group:
            if element.VR == "SQ" and element.value:
                found[element.keyword] = element.value[0]
    return found


def _transform(dataset: Any, groups: dict[str, Any]) -> tuple[float, float] | None:
    """Return slope and intercept from places where ``apply_modality_lut`` does not look."""
    if (own := groups.get("PixelValueTransformationSequence")) is not None:
        return _rescale(own)
    if "DoseGridScaling" in dataset:
        return float(dataset.DoseGridScaling), 0.0
    return None


def _rescale(dataset: Any) -> tuple[float, float]:
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return float(1 if slope is None else slope), float(0 if intercept is None else intercept)


def _padding(frame: Array, dataset: Any) -> Array | None:
    """Return where the stored value means missing data."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    end = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, end if isinstance(end, int) else value))
    found = (frame >= low) & (frame <= high)
    return found if found.any() else None


def _stored_ends(dataset: Any) -> tuple[int, int]:
    bits = int(dataset.BitsStored)
    if int(dataset.get("PixelRepresentation", 0)):
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


def _units(dataset: Any) -> str:
    kind = str(dataset.get("RescaleType", "") or dataset.get("Units", "") or "")
    if not kind and dataset.get("Modality") == "CT":
        return "HU"
    return "" if kind == "US" else kind
