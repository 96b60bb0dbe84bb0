"""A fused volume as a DICOM series: derived secondary captures, one per slice."""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..images.doubts import warn
from .needs import need
from .volume import Array, Volume

if TYPE_CHECKING:
    from .fuse import FusedVolume

NOTICE = "derived, not for diagnosis"
STORAGE = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary Capture Image Storage"""
EXPLICIT = "1.2.840.10008.1.2.1"
"""Explicit VR Little Endian"""
PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
PLACE = ("FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition")
REQUIRED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""attributes that must be there, even if empty"""
_SOURCE = ("121322", "DCM", "Source image for image processing operation")
_SHEAR = 1e-3
"""cosine between two axes from which DICOM cannot express a grid"""
_LPS = np.diag([-1.0, -1.0, 1.0])


def dicom_files(fused: FusedVolume, version: str) -> Iterator[tuple[str, bytes]]:
    """Encode a fused volume: name and bytes of a file for each slice.

    Patient, study and frame of reference are those of the source whose grid the result has, or of
    the other one if that is not DICOM. If both are DICOM of different patients, neither is named.
    Series and instances get new UIDs, and every slice names the instances from which it is made.

    Args:
        fused: The result.
        version: Of this package, for the description.

    Raises:
        ValueError: The grid is sheared, which DICOM cannot express.
        ImportError: pydicom is missing.
    """
    uid = need("pydicom.uid", "writing DICOM")
    _check_axes(fused.volume)
    common = _common(fused, version)
    count = fused.volume.shape[0]
    for z in range(count):
        dataset = _copied(common)
        dataset.SOPInstanceUID = uid.generate_uid(prefix=None)
        dataset.InstanceNumber = z + 1
        _add_place(dataset, fused.volume, z)
        _add_sources(dataset, fused, z)
        _add_pixels(dataset, fused.volume.array[z])
        yield f"{z + 1:04d}.dcm", _encoded(dataset)


def _check_axes(volume: Volume) -> None:
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    if abs(float(axes[:, 0] @ axes[:, 1])) > _SHEAR:
        raise ValueError(
            f"{volume.name}: rows and columns are not at right angles, which DICOM cannot hold; "
            "write NIfTI: -o NAME.nii.gz"
        )


def _common(fused: FusedVolume, version: str) -> Any:
    """Return the elements that all slices share."""
    pydicom = need("pydicom", "writing DICOM")
    uid = need("pydicom.uid", "writing DICOM")
    dataset = pydicom.Dataset()
    header = _header_of(fused)
    for word in (*PATIENT, *STUDY, *PLACE, "SpecificCharacterSet"):
        if header is not None and word in header:
            dataset[word] = header[word]
    for word in REQUIRED:
        if word not in dataset:
            setattr(dataset, word, "")
    if "StudyInstanceUID" not in dataset:
        dataset.StudyInstanceUID = uid.generate_uid(prefix=None)
    if "FrameOfReferenceUID" not in dataset and fused.volume.placed:
        dataset.FrameOfReferenceUID = uid.generate_uid(prefix=None)
    now = datetime.datetime.now()
    dataset.SOPClassUID = STORAGE
    dataset.SeriesInstanceUID = uid.generate_uid(prefix=None)
    dataset.SeriesNumber = 9000
    dataset.SeriesDescription = f"Fused, {NOTICE}"
    dataset.Modality = "OT"
    dataset.ConversionType = "WSD"
    dataset.Manufacturer = ""
    dataset.SoftwareVersions = f"ddfm_fast {version}"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = f"Two series fused by ddfm_fast {version}; {NOTICE}"
    dataset.ImageComments = NOTICE
    dataset.BurnedInAnnotation = "NO"
    dataset.InstanceCreationDate = dataset.ContentDate = dataset.SeriesDate = f"{now:%Y%m%d}"
    dataset.InstanceCreationTime = dataset.ContentTime = dataset.SeriesTime = f"{now:%H%M%S}"
    origins = [v.origin for v in fused.sources.values() if v.origin is not None]
    if any(str(origin.header.get("LossyImageCompression", "")) == "01" for origin in origins):
        dataset.LossyImageCompression = "01"
    return dataset


def _header_of(fused: FusedVolume) -> Any:
    """Return the header that identifies the result's patient; None if that is not known."""
    names = sorted(fused.sources, key=lambda name: name != fused.grid)
    origins = [fused.sources[name].origin for name in names]
    headers = [origin.header for origin in origins if origin is not None]
    patients = {str(header.get("PatientID", "") or "") for header in headers} - {""}
    if len(patients) > 1:
        warn("ir and vis are of different patients; the DICOM series names none of them")
        return None
    if not headers:
        return None
    if origins[0] is None:  # the place is the other file's, which has no frame of reference
        header = _copied(headers[0])
        for word in PLACE:
            if word in header:
                del header[word]
        return header
    return headers[0]


def _copied(dataset: Any) -> Any:
    """Return a dataset with the same elements, so that more can be added."""
    copy = need("pydicom", "writing DICOM").Dataset()
    copy.update(dataset)
    return copy


def _add_place(dataset: Any, volume: Volume, z: int) -> None:
    """Add position, orientation and spacing, by the affine."""
    slices, rows, columns = volume.spacing
    dataset.PixelSpacing = [_number(rows), _number(columns)]
    if not volume.placed:
        return
    axes = _LPS @ volume.affine[:3, :3]
    start = _LPS @ (volume.affine[:3, 3] + volume.affine[:3, 2] * z)
    dataset.ImagePositionPatient = [_number(value) for value in start]
    directions = (*(axes[:, 0] / columns), *(axes[:, 1] / rows))
    dataset.ImageOrientationPatient = [_number(value) for value in directions]
    dataset.SliceThickness = _number(slices)
    dataset.SpacingBetweenSlices = _number(slices)


def _number(value: float) -> str:
    """Return a decimal string of at most 16 characters."""
    value = float(value) + 0.0
    text = next(t for digits in range(14, 0, -1) if len(t := f"{value:.{digits}g}") <= 16)
    return "0" if text in ("-0", "0") else text


def _add_sources(dataset: Any, fused: FusedVolume, z: int) -> None:
    """Add the instances from which a slice is made."""
    pydicom = need("pydicom", "writing DICOM")
    items = []
    for volume in fused.sources.values():
        for pair in _instances(volume, fused.volume, z):
            item = pydicom.Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = pair
            code = pydicom.Dataset()
            code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = _SOURCE
            item.PurposeOfReferenceCodeSequence = pydicom.Sequence([code])
            items.append(item)
    if items:
        dataset.SourceImageSequence = pydicom.Sequence(items)


def _instances(source: Volume, grid: Volume, z: int) -> list[tuple[str, str]]:
    """Return the instances of a source between whose slices a slice of the grid lies, each once."""
    if source.origin is None:
        return []
    _, height, width = grid.shape
    corners = np.array([(x, y, z, 1) for x in (0, width - 1) for y in (0, height - 1)], float).T
    affine = source.affine if source.placed and grid.placed else grid.affine
    at = (np.linalg.inv(affine) @ grid.affine @ corners)[2]
    first, last = int(np.floor(at.min() + 1e-3)), int(np.ceil(at.max() - 1e-3))
    near = source.origin.instances[max(first, 0) : max(last + 1, 0)]
    return list(dict.fromkeys(pair for pair in near if pair is not None and pair[1]))


def _add_pixels(dataset: Any, pixels: Array) -> None:
    colored = pixels.ndim == 3
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if colored else 1
    dataset.PhotometricInterpretation = "RGB" if colored else "MONOCHROME2"
    if colored:
        dataset.PlanarConfiguration = 0
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    if not colored:
        dataset.WindowCenter, dataset.WindowWidth = 2 ** (bits - 1), 2**bits
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    data = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)


def _encoded(dataset: Any) -> bytes:
    pydicom = need("pydicom", "writing DICOM")
    meta = need("pydicom.dataset", "writing DICOM").FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = EXPLICIT
    dataset.file_meta = meta
    target = io.BytesIO()
    pydicom.dcmwrite(
        target, dataset, enforce_file_format=True, little_endian=True, implicit_vr=False
    )
    return target.getvalue()
