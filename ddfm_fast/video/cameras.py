"""Cameras of this machine, such as `0` or `/dev/video0`, through FFmpeg's V4L2 or AVFoundation."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from .frames import VideoError

_DEVICE = re.compile(r"/dev/video\d+")
_FOLDER = Path("/dev")
_DEEP = {"input_format": "gray16le"}
"""what a thermal camera calls Y16"""


def camera(spec: str | os.PathLike[str]) -> str | None:
    """Return the device that a stream's name means; None for a file or an address.

    A number is a camera unless a file has that name.
    """
    text = os.fspath(spec)
    if _DEVICE.fullmatch(text):
        return text
    if text.isascii() and text.isdecimal() and not os.path.lexists(text):
        return text if sys.platform == "darwin" else f"{_FOLDER}/video{int(text)}"
    return None


def open_camera(av: Any, device: str, name: str) -> Any:
    """Open a camera with PyAV; an infrared one with 16 bits (Y16) if it has them.

    Raises:
        VideoError: There is none, or it cannot be read; the message says why.
    """
    system = {"linux": "v4l2", "darwin": "avfoundation"}.get(sys.platform)
    if system is None:
        raise VideoError(
            f"{name} is {device}: cameras are opened on Linux and macOS; elsewhere let FFmpeg read "
            "it and give its pipe or its address"
        )
    if system == "v4l2" and not os.path.exists(device):
        here = ", ".join(sorted(str(p) for p in _FOLDER.glob("video*"))) or "none"
        raise VideoError(
            f"{name} is the camera {device}: no such device (there are: {here}); plug it "
            "in, or see `v4l2-ctl --list-devices`; a file called so is ./NAME"
        )
    error: Exception | None = None
    for options in ([_DEEP] if name == "ir" and system == "v4l2" else []) + [{}]:
        try:
            return av.open(device, format=system, options=options)
        except (av.error.FFmpegError, OSError, ValueError) as failed:
            error = failed
    why = getattr(error, "strerror", None) or error
    raise VideoError(
        f"{name} is the camera {device}: cannot be opened ({why}); check that no other program has "
        "it and that you may read it (on Linux: be in the group video)"
    ) from error
