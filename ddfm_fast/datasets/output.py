"""How fused pictures become files: units, compression, and what is kept of the sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files.depth import Sources
from ..files.metadata import Geo, Metadata, read_metadata
from ..files.paths import DEEP_SUFFIXES, ImageFileError
from ..files.writing import JPEG_SUFFIXES, TIFF_SUFFIXES, SidePage, check_options, write_image
from ..images.doubts import warn
from ..images.panel import draw_panel
from ..images.ranges import SOURCES

RANGES = ("full", *SOURCES)
LEAST_VALUES = 100
"""least integers that a range must span for its result to be stored as integers"""

NOTHING_SAID = Metadata(), Metadata()

Array = np.ndarray[Any, np.dtype[Any]]


class Prepared(NamedTuple):
    """A result in the form that an encoder takes."""

    picture: Array
    limits: tuple[float, float]
    """the values of black and white"""
    how: dict[str, Any]
    """options of :func:`.files.writing.encode_image`"""


@dataclasses.dataclass(frozen=True)
class Output:
    """How results are written.

    Attributes:
        quality: JPEG quality, 1 to 100; None for 95.
        chroma: Resolution of color in JPEG, "444", "422" or "420"; None: "444" from quality 90 on.
        compression: For TIFF "none", "lzw", "deflate" or "zstd"; for PNG 0 to 9; None: the usual.
        metadata: Keep EXIF, GPS, XMP, the resolution, color profile and place on the earth of the
            source whose color the result has, else of the other, and name this program.
        out_range: The values of black and white: "full" for all of the result's dtype, "ir" or
            "vis" for those of a source as it was read, or (low, high). Whole numbers stay integers,
            others are float32, for TIFF only.
        keep_thermal: Write the infrared values as they were read as a second page, for TIFF only.
        panel: Also write a labeled picture of sources and result beside each file, NAME.panel.png.

    Raises:
        ValueError: An attribute has another value.
        TypeError: A switch is not a bool.
    """

    quality: int | None = None
    chroma: str | None = None
    compression: str | int | None = None
    metadata: bool = True
    out_range: str | tuple[float, float] = "full"
    keep_thermal: bool = False
    panel: bool = False

    def __post_init__(self) -> None:
        check_options(95 if self.quality is None else self.quality, self.chroma, self.compression)
        for name in ("metadata", "keep_thermal", "panel"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, expected True or False")
        given = self.out_range
        if not (given in RANGES if isinstance(given, str) else _is_range(given)):
            raise ValueError(
                f"out_range: got {self.out_range!r}, expected (low, high) with low below high, or "
                f"one of {', '.join(RANGES)}"
            )

    def check(self, suffixes: Iterable[str]) -> None:
        """Refuse files that cannot hold this, and warn of options that none of them uses.

        Args:
            suffixes: The suffixes of all files to be written.

        Raises:
            ValueError: A suffix does not fit.
        """
        found = {suffix.lower() for suffix in suffixes}
        if not found:
            return
        for suffix in sorted(found):
            check_options(compression=self.compression, suffix=suffix)
            if self.keep_thermal and suffix not in TIFF_SUFFIXES:
                raise ValueError(
                    f"keep_thermal: {suffix} holds one picture and two are to be written; expected "
                    ".tif (--keep-thermal with --format tif, or an output that ends in .tif)"
                )
            if not isinstance(self.out_range, str):
                _check_holds(suffix, _dtype_of(*self.out_range), self.out_range)
        if self.compression is not None and not found & {".png", *TIFF_SUFFIXES}:
            warn(f"compression={self.compression} has no effect on {_names(found)} (--compression)")
        for name in ("quality", "chroma"):
            if getattr(self, name) is not None and not found & set(JPEG_SUFFIXES):
                warn(f"{name}={getattr(self, name)} has no effect on {_names(found)} (--{name})")

    def to_dict(self) -> dict[str, Any]:
        """Return the changed settings of the files, for a record; empty if there are none."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default and field.name != "panel"
        }

    def lacks_panel(self, path: Path) -> bool:
        """Return whether a result should have a panel but has none."""
        return self.panel and not panel_of(path).is_file()

    def write(
        self,
        path: Path,
        fused: Array,
        sources: Sources,
        files: tuple[Path, Path],
        *,
        color: Any = True,
        final: Path | None = None,
    ) -> dict[str, Any]:
        """Write a fused picture.

        Args:
            path: The file.
            fused: uint8 or uint16, maybe cropped.
            sources: The sources from which it is made.
            files: The infrared and the visible file.
            color: The fuser's: with "ir", the infrared source's metadata come first.
            final: The name that the file gets later, for errors.

        Returns:
            ``height``, ``width``, ``dtype`` and ``range``, the values of black and white.

        Raises:
            ValueError: The file cannot be written, or cannot hold such values.
        """
        said = (read_metadata(files[0]), read_metadata(files[1])) if self.metadata else NOTHING_SAID
        picture, limits, how = self.prepared(fused, sources, said, path.suffix.lower(), color=color)
        height, width = picture.shape[:2]
        try:
            write_image(path, picture, **how)
            if self.panel:
                shown = [("infrared", sources.ir), ("visible", sources.vis), ("fused", fused)]
                write_image(panel_of(final or path), draw_panel([shown]))
        except ImageFileError as error:
            if final is None or not isinstance(error.__cause__, OSError):
                raise
            raise ImageFileError(
                f"{final}: cannot be written ({error.__cause__.strerror}); choose a folder that "
                "you may write to and that has room"
            ) from error.__cause__
        return {"height": height, "width": width, "dtype": str(picture.dtype), "range": [*limits]}

    def encoding(self) -> dict[str, Any]:
        """Return the options of an encoder, of :func:`.files.writing.encode_image`."""
        quality = 95 if self.quality is None else self.quality
        return {"quality": quality, "chroma": self.chroma, "compression": self.compression}

    def prepared(
        self,
        fused: Array,
        sources: Sources,
        said: tuple[Metadata, Metadata],
        suffix: str,
        *,
        color: Any = True,
    ) -> Prepared:
        """Return what an encoder writes for a result, and how.

        Args:
            fused: uint8 or uint16, maybe cropped.
            sources: The sources from which it is made.
            said: The metadata of the infrared and the visible file.
            suffix: The file's, such as ".png".
            color: The fuser's.

        Raises:
            ValueError: Files with that suffix cannot hold such values.
        """
        picture, limits = self._in_range(fused, sources, suffix)
        height, width = picture.shape[:2]
        how = {
            **self.encoding(),
            "metadata": None,
            "value_range": None if self.out_range == "full" else limits,
            "pages": None,
        }
        if self.metadata:
            how["metadata"] = kept_metadata(said, sources, color, limits, picture.dtype)
        if self.keep_thermal:
            how["pages"] = {"infrared": _thermal_page(sources, height, width)}
        return Prepared(picture, limits, how)

    def _in_range(
        self, fused: Array, sources: Sources, suffix: str
    ) -> tuple[Array, tuple[float, float]]:
        """Return the picture as it is written, and the values of its black and white."""
        white = np.iinfo(fused.dtype).max
        if self.out_range == "full":
            if fused.dtype == np.uint16 and suffix not in DEEP_SUFFIXES:
                warn(
                    f"the 16 bits of the result become the 8 that {suffix} holds; .png and .tif "
                    "(--format) keep them",
                    "8 bits",
                )
                return ((fused.astype(np.uint32) + 128) // 257).astype(np.uint8), (0, 255)
            return fused, (0, int(white))
        if isinstance(self.out_range, str):
            unit = sources.units[SOURCES.index(self.out_range)]
            low, high, dtype = unit.low, unit.high, _dtype_like(unit.values, unit.low, unit.high)
        else:
            (low, high), dtype = self.out_range, _dtype_of(*self.out_range)
        _check_holds(suffix, dtype, (low, high))
        if dtype == fused.dtype and (low, high) == (0, white):
            return fused, (0, int(white))
        values = fused.astype(np.float64) * ((high - low) / white) + low
        if dtype == np.float32:
            return values.astype(np.float32), (float(low), float(high))
        return np.rint(values).astype(dtype), (round(low), round(high))


def panel_of(path: Path) -> Path:
    """Return where the panel of a result goes."""
    return path.with_name(f"{path.stem}.panel.png")


def _thermal_page(sources: Sources, height: int, width: int) -> SidePage:
    unit = sources.units[0]
    return SidePage(unit.values[:height, :width], unit.nothing)


def kept_metadata(
    said: tuple[Metadata, Metadata],
    sources: Sources,
    color: Any,
    limits: tuple[float, float],
    dtype: np.dtype[Any],
) -> Metadata:
    """Return what a result says besides its pixels.

    Args:
        said: The metadata of the infrared and the visible file.
        sources: Their pictures.
        color: The fuser's.
        limits: The values of the result's black and white.
        dtype: The result's.
    """
    only_ir = color is True and sources.ir.ndim == 3 and sources.vis.ndim == 2
    first, second = said if color == "ir" or only_ir else said[::-1]
    found = first.or_else(second)
    if found.geo is not None:
        size, cut = sources.vis.shape[:2], sources.cut
        whole = (size[0], size[1]) if cut is None else (cut.size[0], cut.size[1])
        geo = Geo(found.geo.for_size(*whole), whole)
        if cut is not None:
            geo = geo.cut(cut.top, cut.left, (size[0], size[1]))
        found = dataclasses.replace(found, geo=geo)
    if found.nodata is not None and not _is_free(found.nodata.text, limits, dtype):
        found = dataclasses.replace(found, nodata=None)
    return found


def _is_free(text: str, limits: tuple[float, float], dtype: np.dtype[Any]) -> bool:
    """Return whether no pixel of a result can have the value, which readers take for missing."""
    try:
        value = float(text)
    except ValueError:
        return False
    if limits[0] <= value <= limits[1]:
        return False
    if dtype == np.float32:
        return True
    return value.is_integer() and 0 <= value <= np.iinfo(dtype).max


def _is_range(value: Any) -> bool:
    try:
        low, high = (float(one) for one in value)
    except (TypeError, ValueError):
        return False
    return low < high and bool(np.isfinite([low, high]).all())


def _dtype_like(values: Array, low: float, high: float) -> np.dtype[Any]:
    """Return a dtype that holds a source's values and that files support."""
    if values.dtype == np.uint8:
        return values.dtype
    whole = values.dtype.kind in "iu" and low >= 0 and high <= 65535
    return np.dtype(np.uint16 if whole else np.float32)


def _dtype_of(low: float, high: float) -> np.dtype[Any]:
    whole = float(low).is_integer() and float(high).is_integer() and high - low >= LEAST_VALUES
    if not whole or low < 0 or high > 65535:
        return np.dtype(np.float32)
    return np.dtype(np.uint8 if high <= 255 else np.uint16)


def _check_holds(suffix: str, dtype: np.dtype[Any], limits: tuple[float, float]) -> None:
    held = TIFF_SUFFIXES if dtype == np.float32 else DEEP_SUFFIXES
    if dtype != np.uint8 and suffix not in held:
        raise ValueError(
            f"out_range: values from {limits[0]:g} to {limits[1]:g} are {dtype}, which {suffix} "
            f"does not hold; expected {' or '.join(held)} (--format tif), or --out-range full"
        )


def _names(suffixes: set[str]) -> str:
    return ", ".join(sorted(suffixes))
