"""NIfTI files as volumes, and volumes as NIfTI files."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..files.paths import ImageFileError
from .needs import need
from .volume import Volume

SUFFIXES = (".nii", ".nii.gz")
_SCANNER, _UNKNOWN = 1, 0
"""codes of the space to which an affine leads"""
_WORDS = 79
"""most characters of a header's description"""
_DATA_AT = 352
"""bytes of a header without extensions"""


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Return whether a name is that of a NIfTI file."""
    return Path(path).name.lower().endswith(SUFFIXES)


def read_nifti(path: Path, frame: int | None = None) -> Volume:
    """Read a NIfTI file, its axes brought to the canonical order (right, anterior, superior).

    Args:
        path: The file.
        frame: Which volume of a file with four dimensions.

    Raises:
        ImageFileError: The file cannot be read, or is not a volume.
        ImportError: nibabel is missing.
    """
    nib = need("nibabel", f"{path}: reading NIfTI")
    try:
        image = nib.load(path)
        if not isinstance(image, nib.nifti1.Nifti1Pair):
            raise ImageFileError(
                f"{path}: is a {type(image).__name__} of surfaces, expected voxels in a NIfTI file"
            )
        header = image.header
        array = _values(image, frame, str(path))
        turned = nib.orientations.io_orientation(image.affine)
        unit = {1: 1e3, 3: 1e-3}.get(int(header["xyzt_units"]) & 7, 1.0)
        affine = image.affine @ nib.orientations.inv_ornt_aff(turned, array.shape[:3])
        array = nib.orientations.apply_orientation(array, turned)
    except ImageFileError:
        raise
    except Exception as error:  # nibabel's, zlib's and the system's, of many types
        raise ImageFileError(
            f"{path}: cannot be read as NIfTI ({error or type(error).__name__}); check the file"
        ) from error
    affine = np.asarray(affine, np.float64).copy()
    affine[:3] *= unit  # some files use meters or micrometers
    array = np.ascontiguousarray(array.transpose(2, 1, 0, *range(3, array.ndim)))
    low, high = float(header["cal_min"]), float(header["cal_max"])
    window = (low, high) if low < high and array.ndim == 3 else None
    placed = bool(int(header["sform_code"]) or int(header["qform_code"]))
    return Volume(array, affine, "", window, str(path), placed=placed)


def _values(image: Any, frame: int | None, name: str) -> np.ndarray[Any, Any]:
    """Read the values [X, Y, Z] float32, scaled by the header, or RGB [X, Y, Z, 3] in [0, 1]."""
    shape, kind = tuple(image.shape), image.get_data_dtype()
    many = [axis for axis in range(3, len(shape)) if shape[axis] > 1]
    if len(shape) < 2 or len(many) > 1:
        raise ImageFileError(f"{name}: has the dimensions {shape}; expected three")
    at: list[Any] = [slice(None)] * min(3, len(shape)) + [0] * (len(shape) - 3)
    if many:
        at[many[0]] = checked_frame(frame, shape[many[0]], name)
    elif frame is not None:
        checked_frame(frame, 1, name)
    if kind.names is None and kind.kind not in "iufb":
        raise ImageFileError(f"{name}: holds {kind}; expected real numbers or RGB")
    values = np.asanyarray(image.dataobj[tuple(at)])
    if values.ndim == 2:
        values = values[:, :, None]
    if kind.names is not None:
        rgb = np.stack([values[channel] for channel in kind.names[:3]], -1)
        return rgb.astype(np.float32) / 255
    values = values.astype(np.float32)
    values[~np.isfinite(values)] = np.nan
    return values


def checked_frame(frame: int | None, count: int, name: str) -> int:
    """Return the number of one of several volumes; ImageFileError if it is wrong or missing."""
    if frame is None:
        raise ImageFileError(
            f"{name}: holds {count} volumes (four dimensions), expected one; choose one with "
            f"frame= or --frame, 0 to {count - 1}"
        )
    if not 0 <= frame < count:
        only = "it holds one volume: a frame of the other source alone is " if count == 1 else ""
        raise ImageFileError(
            f"{name}: frame is {frame}; expected 0 to {count - 1}; {only or 'by source: '}"
            'frame={"vis": …} or --frame vis=…'
        )
    return frame


def nifti_bytes(volume: Volume, compress: bool, words: str) -> bytes:
    """Encode a fused volume: uint16 with a slope that gives [0, 1], or RGB of 8 bits.

    Args:
        volume: Its array [Z, H, W] uint16 or [Z, H, W, 3] uint8.
        compress: Whether as .nii.gz; the same volume gives the same bytes.
        words: The description in the header; it is cut at 79 bytes.
    """
    nib = need("nibabel", "writing NIfTI")
    data = volume.array.transpose(2, 1, 0, *range(3, volume.array.ndim))
    if volume.colored:
        rgb = np.dtype([(name, np.uint8) for name in "RGB"])
        data = np.ascontiguousarray(data).view(rgb)[..., 0]
    header = nib.Nifti1Header()
    header.set_data_shape(data.shape)
    header.set_data_dtype(data.dtype)
    code = _SCANNER if volume.placed else _UNKNOWN
    header.set_sform(volume.affine, code)
    header.set_qform(volume.affine, code)
    header.set_xyzt_units("mm")
    header["descrip"] = words.encode("ascii", "replace")[:_WORDS]
    header["vox_offset"] = _DATA_AT
    if not volume.colored:
        header["cal_min"], header["cal_max"] = 0, 1
        header.set_slope_inter(1 / 65535, 0)
    # by hand, since nibabel would compute a slope of its own from the values
    whole = header.binaryblock.ljust(_DATA_AT, b"\0") + data.tobytes(order="F")
    return gzip.compress(whole, 6, mtime=0) if compress else whole
