"""Many files by one name: ``@FILE``, a list, or a pattern, which Windows' shells do not expand."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from ..files.paths import ImageFileError, few, is_picture, look
from ..files.texts import decoded
from .names import pair_folders
from .pairs import refuse_lone


def means_many(name: Path | str) -> bool:
    """Return whether a name is ``@FILE`` or a pattern; an existing file's own name is neither."""
    text = str(name)
    return (text.startswith("@") or glob.has_magic(text)) and look(text) is None


def files_of(name: Path | str) -> list[Path]:
    """List the files that ``@FILE`` (one name per line) or a pattern means.

    Names in a list are relative to the current folder; empty lines and those that begin with ``#``
    do not count. A pattern gives its pictures sorted; ``**`` stands for any folders.

    Raises:
        ImageFileError: The list cannot be read, or there is no file.
    """
    text = str(name)
    if text.startswith("@"):
        lines = (line.strip() for line in re.split(r"[\r\n]+", _read(Path(text[1:]))))
        found = [Path(line) for line in lines if line and not line.startswith("#")]
        what = "the list is empty; write the name of a file on each line"
    else:
        matches = (Path(one) for one in glob.glob(text, recursive=True))
        found = sorted(one for one in matches if is_picture(one))
        what = "no picture has such a name; check the folder and the pattern"
    if not found:
        raise ImageFileError(f"{text}: {what}")
    return found


def _read(path: Path) -> str:
    try:
        text = decoded(path.read_bytes())
    except OSError as error:
        raise ImageFileError(
            f"@{path}: the list cannot be read ({error.strerror}); give a text file"
        ) from error
    except UnicodeDecodeError as error:
        raise ImageFileError(f"@{path}: is not text in UTF-8 or UTF-16 ({error})") from None
    if "\0" in text:  # a picture, or UTF-16 without its mark
        raise ImageFileError(
            f"@{path}: is not text in UTF-8: it contains zero bytes; save it as UTF-8"
        )
    return text


def by_stem(name: Path, files: list[Path]) -> dict[str, Path]:
    """Map stems to files; ImageFileError if two share a stem."""
    found = {file.stem: file for file in files}
    if len(found) < len(files):
        twice = sorted(str(file) for file in files if found[file.stem] != file)
        raise ImageFileError(
            f"{name}: {few(twice)} has the stem of another file in it; keep one, or use two "
            "@lists, which are paired line by line"
        )
    return found


def in_turn(names: Sequence[Path]) -> list[Path]:
    """Return pictures of both sources in turn, from a list as it is or two patterns in pairs."""
    if len(names) == 2 and (pairs := paired(*names)) is not None:
        return [file for pair in pairs for file in pair]
    return [file for one in names for file in (files_of(one) if means_many(one) else [one])]


def paired(ir: Path, vis: Path) -> list[tuple[Path, Path]] | None:
    """Pair the files of two patterns or lists; None if neither is one.

    Two lists are paired line by line, anything else as two folders are, by stem.

    Raises:
        ImageFileError: One of them alone is a pattern or list, or files lack a partner.
    """
    many = means_many(ir), means_many(vis)
    if not any(many):
        return None
    if not all(many):
        one, other = (ir, vis) if many[0] else (vis, ir)
        raise ImageFileError(
            f"{one} means many files and {other} does not; give two patterns or lists, or quote "
            "what a shell would expand"
        )
    first, second = files_of(ir), files_of(vis)
    if str(ir).startswith("@") and str(vis).startswith("@"):
        if len(first) != len(second):
            raise ImageFileError(
                f"{ir} has {len(first)} names and {vis} {len(second)}; line N of one is the "
                "partner of line N of the other"
            )
        return list(zip(first, second, strict=True))
    found = pair_folders(by_stem(ir, first), by_stem(vis, second))
    refuse_lone(found.alone)
    return [(first, second) for _, first, second in sorted(found.pairs)]
