"""Image files: careful reading, atomic writing, and pairing two folders by stem.

Reads PNG, JPEG, TIFF and BMP by content, whatever the suffix; writes them by suffix. Pillow
identifies and decodes. Color of more than 8 bits, which Pillow reduces to 8, is decoded by OpenCV
and held against Pillow's 8 bits.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from .doubts import warn

DEFAULT_MAX_PIXELS = 2**28
"""of an image file, before it is decoded"""
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""of image files, in lower case"""
DEEP_SUFFIXES = (".png", ".tif", ".tiff")
"""those that hold 16 bits"""
VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".m4v", ".ts")
"""of video files, which are not images"""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_WIDTH_TAG, _HEIGHT_TAG = 256, 257
_ORIENTATION_TAG, _BITS_TAG, _PHOTOMETRIC_TAG = 274, 258, 262
_TRANSPOSED = (5, 6, 7, 8)
_WHITE_IS_ZERO = 0
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


class ImageFileError(ValueError):
    """A file or folder that cannot be read, written or paired; the message names it and the fix."""


def read_image(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Read an image file as [H, W] (gray) or [H, W, 3] (RGB), upright by EXIF.

    uint8 or uint16, of a TIFF also int32 or float32, whose range :mod:`.ranges` finds.

    Alpha is dropped, with a warning where it is not fully opaque. Of several pictures in a file
    the first is read, with a warning. Palettes become RGB, or gray where they hold only gray;
    CMYK becomes RGB; 1-bit images become 0 and 255.

    Args:
        path: The file; its content decides the format, not its suffix.
        max_pixels: Refuse larger images (H * W) before decoding them.

    Raises:
        ImageFileError: Anything that is not a whole, readable image.
        TypeError: A path or max_pixels of the wrong type.
        ValueError: max_pixels below 1.
    """
    path = _check_path(path)
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int):
        raise TypeError(f"max_pixels: got {max_pixels!r}, expected an int of at least 1")
    if max_pixels < 1:
        raise ValueError(f"max_pixels: got {max_pixels}, expected at least 1")
    with _open(path) as file, pillow_limit_lifted():
        try:
            return _decode(file, path, max_pixels)
        except (ImageFileError, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise ImageFileError(
                f"{path}: not a PNG, JPEG, TIFF or BMP image that can be read; export it as PNG"
            ) from error
        except Exception as error:  # decoders fail on damaged files in every way there is
            raise ImageFileError(
                f"{path}: cannot be decoded ({error}); the file is damaged or cut short, or of a "
                "rare kind: copy it again or export it as PNG"
            ) from error


def write_image(path: str | os.PathLike[str], array: np.ndarray, *, quality: int = 95) -> Path:
    """Write [H, W], [H, W, 1] or RGB [H, W, 3] atomically, in the format that the suffix names.

    Args:
        path: The file to write; its folder is made where it is missing.
        array: uint8 for any of ``SUFFIXES``, or uint16 for one of ``DEEP_SUFFIXES``.
        quality: JPEG quality, 1 to 100; from 90 on chroma is not subsampled.

    Returns:
        The path.

    Raises:
        ImageFileError: The file or folder cannot be written, or its suffix does not fit.
        ValueError: An array of another shape, or a quality out of range.
        TypeError: Another container or dtype.
    """
    path = _check_path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageFileError(
            f"{path}: suffix {path.suffix!r} is not one of {', '.join(SUFFIXES)}; choose one"
        )
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise ValueError(f"quality: got {quality!r}, expected an int from 1 to 100")
    array = _check_array(array)
    if array.dtype == np.uint16 and suffix not in DEEP_SUFFIXES:
        raise ImageFileError(
            f"{path}: {suffix} holds 8 bits and the image is uint16; write .png or .tif, or "
            "convert it: (array // 257).astype('uint8')"
        )
    return atomic_write_bytes(path, _encode(array, suffix, quality, path))


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write data so that the path holds the old or the new file, never a part; return the path.

    Makes the folder where it is missing, follows symbolic links and refuses to replace anything
    but a regular file.

    Raises:
        ImageFileError: What could not be written.
    """
    path = _check_path(path)
    if (found := look(path)) is not None and not stat.S_ISREG(found.st_mode):
        raise ImageFileError(f"{path}: exists and is not a regular file; choose another name")
    target = Path(os.path.realpath(path))
    _make_dir(target.parent)
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise ImageFileError(
            f"{path}: cannot be written in {target.parent} ({error.strerror}); choose a folder "
            "that you may write to and that has room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_dir(target.parent)
    return path


def match_pairs(
    ir_dir: str | os.PathLike[str],
    vis_dir: str | os.PathLike[str],
    match: Callable[[dict[str, Path], dict[str, Path]], list[tuple[str, Path, Path]]] | None = None,
) -> list[tuple[str, Path, Path]]:
    """Pair the images of two folders: (stem, infrared path, visible path), sorted by stem.

    Takes files with a suffix of ``SUFFIXES``, in any case, not hidden and not in subfolders;
    ``match`` makes pairs of the two {stem: path}, without it equal stems do.

    Raises:
        ImageFileError: A folder that is missing, given twice or without images; two files of one
            stem in a folder; stems without a partner.
    """
    ir, vis = _images_by_stem(ir_dir), _images_by_stem(vis_dir)
    if os.path.samefile(ir_dir, vis_dir):
        raise ImageFileError(f"{ir_dir}: given for infrared and for visible; give two folders")
    pairs = sorted(match(ir, vis) if match else ((s, ir[s], vis[s]) for s in ir if s in vis))
    only_ir = files_alone({*ir.values()} - {first for _, first, _ in pairs})
    only_vis = files_alone({*vis.values()} - {second for *_, second in pairs})
    if only_ir or only_vis:
        raise ImageFileError(
            "files without a partner of the same stem: "
            f"only in {ir_dir}: {few([path.stem for path in only_ir])}; "
            f"only in {vis_dir}: {few([path.stem for path in only_vis])}; rename or remove them"
        )
    return pairs


def files_alone(paths: Iterable[Path]) -> list[Path]:
    """Sort what has no partner, and leave out what is no file, with a warning for all of that."""
    found = sorted(paths)
    files = [path for path in found if os.path.isfile(path)]
    if others := [str(path) for path in found if path not in files]:
        warn(f"left out, no files and without a partner: {few(others)}")
    return files


def ensure_writable_dir(path: str | os.PathLike[str]) -> Path:
    """Make the folder where it is missing and prove by a file that it can be written to.

    The file has no name where the system can do that, so that a kill leaves none behind.

    Raises:
        ImageFileError: The folder cannot be made or written to.
    """
    path = _check_path(path)
    _make_dir(path)
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ImageFileError(
            f"{path}: the folder cannot be written to ({error.strerror}); choose another"
        ) from error
    return path


def look(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Find out what a name leads to; None where nothing is there, or a link to nothing.

    Raises:
        ImageFileError: The name is none, is too long, leads in a circle or through a folder that
            may not be entered, or the disk fails.
    """
    path = _check_path(path)
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ImageFileError(
            f"{path}: cannot be reached ({error.strerror}); give another name"
        ) from error


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder of that name; ImageFileError as `look` raises it."""
    found = look(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a regular file of that name; ImageFileError as `look` raises it."""
    found = look(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_picture(path: Path) -> bool:
    """Whether a name from a folder is that of an image file: by its suffix, not hidden.

    A folder, a pipe or a link that leads nowhere under such a name counts: reading refuses it, and
    fails its own pair.
    """
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def image_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Read (height, width), upright by EXIF, from a file's header; None where that fails."""
    try:
        # a pipe would keep its reader waiting
        if not is_file(path):
            return None
        with pillow_limit_lifted(), Image.open(path) as image:
            width, height = image.size
            if isinstance(image, TiffImageFile):  # Pillow's versions differ in when they turn these
                width, height = image.tag_v2[_WIDTH_TAG], image.tag_v2[_HEIGHT_TAG]
            turned = image.getexif().get(_ORIENTATION_TAG, 1) in _TRANSPOSED
    except Exception:  # decoders fail on damaged files in every way there is
        return None
    return (width, height) if turned else (height, width)


def few(names: Sequence[str], limit: int = 5, separator: str = ", ") -> str:
    """Join the first names for an error message, with a count of the others; "none" for none."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (separator.join(names[:limit]) or "none") + more


def _check_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: got {type(path).__name__}, expected a str or pathlib.Path")
    if not os.fspath(path) or "\0" in str(path):
        raise ImageFileError(f"path: got {path!r}, expected the name of a file or folder")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ImageFileError(
            f"{str(path)!a}: has characters that no file name here can have; rename it"
        ) from None
    return Path(path)


def _open(path: Path) -> BinaryIO:
    try:
        if (found := look(path)) is None:
            raise ImageFileError(f"{path}: no such file; check the name")
        if stat.S_ISDIR(found.st_mode):
            raise ImageFileError(f"{path}: is a folder, expected an image file")
        if not stat.S_ISREG(found.st_mode):
            raise ImageFileError(f"{path}: not a regular file; save the image to one")
        if found.st_size == 0:
            raise ImageFileError(f"{path}: the file is empty; copy or export it again")
        return path.open("rb")
    except OSError as error:
        raise ImageFileError(
            f"{path}: cannot be opened ({error.strerror}); check its name and its permissions"
        ) from error


_limit_lock = threading.Lock()
_limit_users = 0
_limit_saved: int | None = None


@contextlib.contextmanager
def pillow_limit_lifted() -> Iterator[None]:
    """Lift Pillow's own pixel limit, which max_pixels replaces, until the last reader is done.

    The limit is a global of Pillow; counting readers restores it whatever order threads end in.
    """
    global _limit_users, _limit_saved
    with _limit_lock:
        if _limit_users == 0:
            _limit_saved, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _limit_users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limit_users -= 1
            if _limit_users == 0:
                Image.MAX_IMAGE_PIXELS = _limit_saved


def _decode(file: BinaryIO, path: Path, max_pixels: int) -> np.ndarray:
    image = Image.open(file, formats=_FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageFileError(
            f"{path}: {width}x{height} is {width * height} pixels, more than the limit of "
            f"{max_pixels}; if the file is to be trusted, raise it with max_pixels= "
            "(command line: --max-pixels)"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        warn(f"{path}: holds {frames} pictures; the first is used")
    raw_mode = str(image.tile[0].args) if image.tile else ""
    deep = _is_deep_color(image, raw_mode)
    inverted = _tiff_tag(image, _PHOTOMETRIC_TAG) == _WHITE_IS_ZERO
    image.load()
    # Pillow turns TIFFs upright as it loads them, and so does OpenCV; the tag is gone by here.
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    ImageOps.exif_transpose(image, in_place=True)
    if _is_transparent(image):
        warn(f"{path}: has transparent parts; alpha is dropped")
    if deep:
        rgb = _decode_deep(file, np.asarray(image.convert("RGB")), orientation, path)
        return np.ascontiguousarray(rgb[..., 0] if "LA;16" in raw_mode else rgb)
    array = _to_array(image)
    # Pillow inverts 8-bit TIFFs whose zero is white, but not those of 16 bits.
    return 65535 - array if inverted and array.dtype == np.uint16 else array


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    return image.tag_v2.get(tag) if isinstance(image, TiffImageFile) else None


def _is_deep_color(image: Image.Image, raw_mode: str) -> bool:
    if image.mode.startswith(("I", "F")):
        return False
    if isinstance(image, TiffImageFile):
        return max(_tiff_tag(image, _BITS_TAG) or (1,)) > 8
    return ";16" in raw_mode


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data or image.mode.startswith("I"):
        return False
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


def _decode_deep(file: BinaryIO, coarse: np.ndarray, orientation: int, path: Path) -> np.ndarray:
    """Decode all 16 bits of a color image; `coarse` is Pillow's upright 8-bit RGB of it."""
    file.seek(0)
    data = file.read()
    if data.startswith(_PNG_SIGNATURE):
        _check_png_chunks(data, path)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is not None and pixels.ndim == 3 and pixels.dtype == np.uint16:
        rgb = _UPRIGHT.get(orientation, np.asarray)(pixels[..., 2::-1])
        # OpenCV misreads some layouts of TIFF and fills up truncated files, both in silence.
        if rgb.shape == coarse.shape and np.array_equal(rgb >> 8, coarse):
            return rgb
    raise ImageFileError(
        f"{path}: colour of 16 bits in a layout that cannot be read safely (planar, CMYK or "
        "premultiplied); export it as 16-bit RGB PNG"
    )


def _check_png_chunks(data: bytes, path: Path) -> None:
    """Refuse chunks longer than the file: OpenCV allocates what they claim, up to 4 GiB."""
    start = len(_PNG_SIGNATURE)
    while start < len(data):
        kind = data[start + 4 : start + 8]
        start += 12 + int.from_bytes(data[start : start + 4], "big")
        if kind == b"IEND":  # what follows belongs to nobody, and decoders stop here
            return
    raise ImageFileError(f"{path}: the file is damaged or cut short; copy it again")


def _to_array(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I":
        array = np.asarray(image)
        deep = array.min() >= 0 and array.max() <= 65535
        return array.astype(np.uint16 if deep else np.int32)
    if image.mode == "F":
        return np.array(image, dtype=np.float32)
    if image.mode in ("1", "L", "LA", "La"):
        return np.array(image.convert("L"))
    array = np.array(image.convert("RGB"))
    is_palette = image.mode in ("P", "PA")
    is_gray = is_palette and (array == array[..., :1]).all()
    return np.ascontiguousarray(array[..., 0]) if is_gray else array


def _check_array(array: np.ndarray) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"array: got {type(array).__name__}, expected a NumPy array")
    if array.dtype.name not in ("uint8", "uint16"):
        raise TypeError(
            f"array: got dtype {array.dtype}, expected uint8 or uint16; for floats in 0..1: "
            "(array * 255 + 0.5).astype('uint8')"
        )
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))) or 0 in array.shape:
        raise ValueError(f"array: got shape {array.shape}, expected [H, W] or [H, W, 3], not empty")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _encode(array: np.ndarray, suffix: str, quality: int, path: Path) -> bytes:
    options = []
    if suffix in (".jpg", ".jpeg"):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        if quality >= 90:
            options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    bgr = np.ascontiguousarray(array[..., ::-1] if array.ndim == 3 else array)
    try:
        done, data = cv2.imencode(suffix, bgr, options)
    except cv2.error as error:
        raise ImageFileError(f"{path}: cannot be encoded ({error.err})") from error
    if not done:
        height, width = array.shape[:2]
        raise ImageFileError(f"{path}: {width}x{height} cannot be encoded as {suffix}; write .png")
    return data.tobytes()


def _make_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageFileError(
            f"{path}: the folder cannot be made ({error.strerror}); choose another"
        ) from error


def _sync_dir(path: Path) -> None:
    """Make the new name last through a crash, where the system can sync a folder at all."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _images_by_stem(folder: str | os.PathLike[str]) -> dict[str, Path]:
    folder = _check_path(folder)
    if not is_folder(folder):
        raise ImageFileError(f"{folder}: not a folder; check the name")
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise ImageFileError(f"{folder}: cannot be listed ({error.strerror})") from error
    found: dict[str, Path] = {}
    for file in filter(is_picture, files):
        if file.stem in found:
            raise ImageFileError(
                f"{folder}: {found[file.stem].name} and {file.name} have the same stem; keep one"
            )
        found[file.stem] = file
    if not found:
        raise ImageFileError(f"{folder}: no images in it ({', '.join(SUFFIXES)})")
    return found
