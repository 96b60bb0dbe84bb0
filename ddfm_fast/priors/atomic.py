"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary file in the target's folder, which replaces the target on success.

    Raises:
        ValueError: It cannot be written, whichever library found that out; the message names
            ``path`` and the reason, and what was there is untouched.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {str(path.parent)!r} to write {path.name!r} in")
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    # PyTorch's writer has a RuntimeError for a full disk, safetensors an error of its own
    except (OSError, RuntimeError, SafetensorError, UnicodeEncodeError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be written ({_reason(error)}); make room, or choose another "
            "folder or name"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """Return what the system said, if it said anything, in the error or in what led to it."""
    while True:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if (cause := error.__cause__ or error.__context__) is None:
            return (str(error) or type(error).__name__).splitlines()[0]
        error = cause


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
