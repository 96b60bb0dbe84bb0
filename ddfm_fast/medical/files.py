"""Volumes from files, and fused ones to files."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..files.paths import (
    ImageFileError,
    atomic_write_bytes,
    check_path,
    ensure_writable_dir,
    is_file,
    is_folder,
    look,
)
from .derived import NOTICE, dicom_files
from .dicom import read_dicom
from .nifti import is_nifti, nifti_bytes, read_nifti
from .volume import Volume

if TYPE_CHECKING:
    from ..api import Fuser
    from .fuse import FusedVolume

WORDS = f"ddfm_fast {__version__}: {NOTICE}"


def read_volume(
    path: str | os.PathLike[str],
    series: str | None = None,
    frame: int | None = None,
    window: str | int | None = None,
) -> Volume:
    """Read a volume.

    Args:
        path: A NIfTI file (.nii, .nii.gz), a DICOM file, or a folder with a DICOM series.
        series: Which series of a folder: its UID or the end of it, its number or a part of its
            description.
        frame: Which volume of a file or series with four dimensions.
        window: Which of the views that DICOM files name: the number of a window from 0, its
            explanation, or "lut" for their table. None: the first window, else the table.

    Raises:
        ImageFileError: The file or folder cannot be read; the message names it and the fix.
        ImportError: A library of ``ddfm_fast[medical]`` is missing.
    """
    path = check_path(path)
    if look(path) is None:
        raise ImageFileError(f"{path}: no such file or folder")
    if is_folder(path):
        return read_dicom(path, series, frame, window)
    if not is_file(path):
        raise ImageFileError(f"{path}: is not a regular file; expected a NIfTI or DICOM file")
    if series is not None:
        raise ImageFileError(
            f"{path}: is a file, so series {series!r} chooses nothing; leave it out"
        )
    if not is_nifti(path):
        return read_dicom(path, None, frame, window)
    if window is not None:
        raise ImageFileError(
            f"{path}: NIfTI names no windows, so window {window!r} chooses nothing; leave it out"
        )
    return read_nifti(path, frame)


def write_volume(path: str | os.PathLike[str], fused: FusedVolume) -> Path:
    """Write a fused volume: all of it, or nothing.

    Args:
        path: NAME.nii or NAME.nii.gz; NAME.dcm for a single slice; or a folder, new or empty, for
            a DICOM series with a file per slice. Results are marked as derived and not for
            diagnosis.
        fused: The result of ``fuse_volumes``.

    Returns:
        The path.

    Raises:
        ImageFileError: It cannot be written, or would replace what must not be replaced.
        ValueError: The result does not fit the format.
        ImportError: A library of ``ddfm_fast[medical]`` is missing.
    """
    path = check_path(path)
    check_kind(path, fused.volume.shape[0])
    if is_nifti(path):
        compress = path.name.lower().endswith(".gz")
        return atomic_write_bytes(path, nifti_bytes(fused.volume, compress, WORDS))
    files = dicom_files(fused, __version__)
    if path.suffix.lower() == ".dcm":
        return atomic_write_bytes(path, next(files)[1])
    return _write_folder(path, files)


def check_kind(path: Path, slices: int | None = None) -> None:
    """Raise ImageFileError if this package writes no output of that name."""
    suffix = path.suffix.lower()
    if is_nifti(path):
        return
    if suffix == ".dcm":
        if slices is not None and slices > 1:
            raise ImageFileError(
                f"{path}: a .dcm file holds one slice and the result has {slices}; name a folder, "
                "or NAME.nii.gz"
            )
        return
    if suffix in (".gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".mha", ".nrrd"):
        raise ImageFileError(
            f"{path}: volumes are written as NAME.nii, NAME.nii.gz, NAME.dcm (one slice) or a "
            "folder (a DICOM series); choose one"
        )
    found = look(path)
    if found is not None and not is_folder(path):
        raise ImageFileError(f"{path}: exists and is not a folder; choose another name")
    if found is not None and any(path.iterdir()):
        raise ImageFileError(
            f"{path}: the folder is not empty, and series would get mixed; choose a new one"
        )


def check_apart(out: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ImageFileError if an output is an input, by whatever name, or lies in one."""
    target = Path(os.path.realpath(check_path(out)))
    for given in inputs:
        source = Path(os.path.realpath(given))
        same = look(out) is not None and look(given) is not None and os.path.samefile(out, given)
        if same or target == source or (is_folder(source) and source in target.parents):
            raise ImageFileError(
                f"{out}: is the input {given}, or lies in it; choose another place"
            )


def fuse_files(
    ir: str | os.PathLike[str],
    vis: str | os.PathLike[str],
    out: str | os.PathLike[str],
    fuser: Fuser,
    *,
    series: Any = None,
    frame: Any = None,
    window: Any = None,
    **options: Any,
) -> FusedVolume:
    """Read two volumes, fuse them and write the result.

    Args:
        ir: The first volume, see :func:`read_volume`.
        vis: The second.
        out: What to write, see :func:`write_volume`; not an input, nor inside one.
        fuser: As for ``fuse_volumes``.
        series: Which series of a folder, for both sources or a dict by source.
        frame: Which volume of four dimensions, likewise.
        window: Which window that DICOM files name, likewise.
        **options: Options of ``fuse_volumes``.

    Raises:
        ValueError: See ``fuse_volumes``.
        ImageFileError: See :func:`read_volume` and :func:`write_volume`.
        ImportError: A library of ``ddfm_fast[medical]`` is missing.
    """
    from ..images.ranges import by_source
    from .fuse import fuse_volumes

    check_apart(out, (ir, vis))
    check_kind(check_path(out))
    chosen, number = by_source(series, "series"), by_source(frame, "frame")
    view = by_source(window, "window")
    volumes = {
        name: read_volume(path, _of_folder(chosen[name], path, series), number[name], view[name])
        for name, path in (("ir", ir), ("vis", vis))
    }
    fused = fuse_volumes(volumes["ir"], volumes["vis"], fuser, **options)
    write_volume(out, fused)
    return fused


def _of_folder(chosen: Any, path: str | os.PathLike[str], given: Any) -> Any:
    """Return the series of a source; one for both does not apply to a file."""
    return None if not isinstance(given, dict) and not is_folder(path) else chosen


def _write_folder(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """Write a folder beside its place and move it there when all is in it."""
    target = Path(os.path.realpath(path))
    parent = ensure_writable_dir(target.parent)
    scratch = parent / f".{secrets.token_hex(8)}.tmp"
    try:
        for name, data in files:
            atomic_write_bytes(scratch / name, data)
        if target.is_dir():
            target.rmdir()  # works only if it is empty
        os.replace(scratch, target)
    except OSError as error:
        raise ImageFileError(
            f"{path}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path
