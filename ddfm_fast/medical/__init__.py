"""Medical volumes: DICOM and NIfTI read, brought to one grid, fused slice by slice, and written.

needs     the libraries of the extra, with an error that names missing ones
volume    an array with its place in the patient; planes and slices of it
values    rescaling, windows and colors of DICOM pixels
dicom     DICOM files and series as a volume
nifti     NIfTI files as a volume
resample  a volume on the grid of another
fuse      two volumes with one range, one noise level and one scale for all slices
derived   the result as a DICOM secondary capture
files     files in, files out

Results are derived images and not for diagnosis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..faces import face

if TYPE_CHECKING:
    from .files import read_volume, write_volume
    from .fuse import fuse_volumes
    from .volume import Volume

__all__ = ["Volume", "fuse_volumes", "read_volume", "write_volume"]

__getattr__, __dir__ = face(
    __name__,
    {
        "Volume": "volume",
        "fuse_volumes": "fuse",
        "read_volume": "files",
        "write_volume": "files",
    },
)
