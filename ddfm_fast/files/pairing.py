"""Two folders of images paired by stem."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ..images.doubts import warn
from .paths import READ_SUFFIXES, ImageFileError, check_path, few, image_files, is_folder


def match_pairs(
    ir_dir: str | os.PathLike[str],
    vis_dir: str | os.PathLike[str],
    match: Callable[[dict[str, Path], dict[str, Path]], list[tuple[str, Path, Path]]] | None = None,
    *,
    otherwise: str = "",
) -> list[tuple[str, Path, Path]]:
    """Pair the images of two folders: (stem, infrared path, visible path), sorted by stem.

    Takes files with a suffix of ``READ_SUFFIXES``, in any case, not hidden and not in subfolders.
    ``match`` pairs the two {stem: path}; by default equal stems are a pair. If some files form
    pairs and others do not, the error ends with ``otherwise``.

    Raises:
        ImageFileError: A folder is missing, given twice or without images; two files in a folder
            have the same stem; or stems have no partner.
    """
    ir, vis = _images_by_stem(ir_dir), _images_by_stem(vis_dir)
    if os.path.samefile(ir_dir, vis_dir):
        raise ImageFileError(f"{ir_dir}: is given for infrared and for visible; give two folders")
    pairs = sorted(match(ir, vis) if match else ((s, ir[s], vis[s]) for s in ir if s in vis))
    only_ir = files_alone({*ir.values()} - {first for _, first, _ in pairs})
    only_vis = files_alone({*vis.values()} - {second for *_, second in pairs})
    if only_ir or only_vis:
        raise ImageFileError(
            "files without a partner of the same stem: "
            f"only in {ir_dir}: {few([path.stem for path in only_ir])}; "
            f"only in {vis_dir}: {few([path.stem for path in only_vis])}; rename or remove them"
            f"{otherwise if pairs else ''}"
        )
    return pairs


def files_alone(paths: Iterable[Path]) -> list[Path]:
    """Sort what has no partner, and leave out what is not a file, with one warning."""
    found = sorted(paths)
    files = [path for path in found if os.path.isfile(path)]
    if others := [str(path) for path in found if path not in files]:
        warn(f"left out, as they are not files and have no partner: {few(others)}")
    return files


def _images_by_stem(folder: str | os.PathLike[str]) -> dict[str, Path]:
    folder = check_path(folder)
    if not is_folder(folder):
        raise ImageFileError(f"{folder}: not a folder; check the name")
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise ImageFileError(f"{folder}: cannot be listed ({error.strerror})") from error
    found: dict[str, Path] = {}
    for file in image_files(files):
        if file.stem in found:
            raise ImageFileError(
                f"{folder}: {found[file.stem].name} and {file.name} have the same stem; keep one"
            )
        found[file.stem] = file
    if not found:
        raise ImageFileError(
            f"{folder}: has no images; expected files ending in {', '.join(READ_SUFFIXES)}"
        )
    return found
