"""Files that only this program writes, such as locks and histories."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_own(path: Path, flags: int = 0) -> int:
    """Open a file for reading and writing, or make it; never follow a link to another one.

    Args:
        path: The file, which may be overwritten.
        flags: Further flags of ``os.open``, such as O_APPEND.

    Returns:
        Its descriptor.

    Raises:
        OSError: It cannot be opened; or the name is a link, one of several names of a file, or no
            regular file.
    """
    link = OSError(errno.EEXIST, f"{path.name} is a link or not a file: remove it")
    only = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    only |= getattr(os, "O_BINARY", 0)  # else Windows changes line endings
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | only | flags, 0o666)
    except OSError as error:
        raise link if error.errno == errno.ELOOP else error from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise link
    return handle
