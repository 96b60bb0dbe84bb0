"""Medical phantoms: ellipsoids of known values at known places, as volumes and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

CENTER, RADII = np.array([6.0, -4.0, 3.0]), np.array([34.0, 26.0, 22.0])
"""the center and radii of the ellipsoid, in mm, RAS"""
EDGE = 2.0
"""mm over which the ellipsoid's edge fades"""


def affine(spacing: tuple[float, float, float], start: tuple[float, float, float]) -> np.ndarray:
    """Return axes along R, A and S, each of which a negative spacing turns."""
    found = np.diag([*spacing, 1.0])
    found[:3, 3] = start
    return found


def inside(world: np.ndarray, center: np.ndarray = CENTER) -> np.ndarray:
    """Return how much of points [..., 3] in mm is in the ellipsoid, 0 to 1; smooth at its edge."""
    away = (np.linalg.norm((world - center) / RADII, axis=-1) - 1) * RADII.min()
    return 1 / (1 + np.exp(4 * away / EDGE))


def ellipsoid(
    shape: tuple[int, int, int], at: np.ndarray, low: float = 0, high: float = 1000
) -> np.ndarray:
    """Draw the phantom [Z, H, W] float32 on a grid of so many slices, rows and columns."""
    z, y, x = np.indices(shape)
    world = np.stack([x, y, z], -1) @ at[:3, :3].T + at[:3, 3]
    return (low + (high - low) * inside(world)).astype(np.float32)


def dataset(pixels: np.ndarray, **attributes: Any) -> Any:
    """Make a DICOM image of integers [H, W], [F, H, W] or RGB [H, W, 3], with what it needs."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    color = pixels.ndim == 3 and pixels.shape[2] == 3
    made = pydicom.Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.SeriesInstanceUID, made.StudyInstanceUID = "1.2.3.4", "1.2.3"
    made.Modality, made.PatientID, made.PatientName = "CT", "P1", "Phantom^One"
    made.Rows, made.Columns = pixels.shape[-2 - color : pixels.ndim - color]
    if pixels.ndim == 3 and not color:
        made.NumberOfFrames = len(pixels)
    made.SamplesPerPixel = 3 if color else 1
    made.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def save(made: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def save_series(
    folder: Path, values: np.ndarray, at: np.ndarray, *, skip: tuple[int, ...] = (), **more: Any
) -> Path:
    """Write Hounsfield units [Z, H, W] as CT slices, in files whose names are in no order."""
    flip = np.diag([-1.0, -1.0, 1.0])  # LPS from RAS
    axes = flip @ at[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    for z in range(len(values)):
        if z in skip:
            continue
        stored = np.rint(values[z] + 1024).clip(0).astype(np.uint16)
        where = flip @ (at[:3, 3] + at[:3, 2] * z)
        made = dataset(
            stored,
            RescaleSlope="1", RescaleIntercept="-1024", InstanceNumber=z + 1,
            PixelSpacing=[float(sizes[1]), float(sizes[0])],
            ImagePositionPatient=[float(v) for v in where],
            ImageOrientationPatient=[*(axes[:, 0] / sizes[0]), *(axes[:, 1] / sizes[1])],
            SliceThickness=float(sizes[2]), FrameOfReferenceUID="1.2.9",
        )  # fmt: skip
        for name, value in more.items():
            setattr(made, name, value)
        save(made, folder / f"{(z * 7) % 101:03d}-{z}.dcm")
    return folder


def center_of(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the center of mass of values above half of their greatest, mm in RAS; NaN is none."""
    values = np.nan_to_num(values)
    z, y, x = np.nonzero(values > values.max() / 2)
    return at[:3, :3] @ np.array([x.mean(), y.mean(), z.mean()]) + at[:3, 3]
