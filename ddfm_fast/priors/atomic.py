"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary file in the target's folder, which replaces the target on success.

    Raises:
        ValueError: It cannot be written, whichever library found that out; the message names
            ``path`` and the reason, and what was there is untouched.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        _require_parent(path)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except _UNWRITTEN as error:
        raise _refusal(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside the target, which becomes the target on success.

    Raises:
        ValueError: It cannot be written, or something of that name exists already, which stays as
            it is.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        _require_parent(path)
        temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=path.parent))
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        temporary.chmod(0o777 & ~_umask())
        os.rename(temporary, path)
    except _UNWRITTEN as error:
        raise _refusal(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


_UNWRITTEN = (OSError, RuntimeError, SafetensorError, UnicodeEncodeError)
"""PyTorch's writer raises RuntimeError for a full disk, and safetensors an error of its own"""


def _require_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {str(path.parent)!r} to write {path.name!r} in")


def _refusal(path: Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{str(path)!r} cannot be written ({_reason(error)}); make room, or choose another "
        "folder or name"
    )


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
