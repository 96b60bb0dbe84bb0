"""The options that only the command ``serve`` has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..options import INPUT_OPTIONS, RUNTIME
from .options import option

TlsCert = Annotated[
    Path | None, option(RUNTIME, "PEM certificate, to serve HTTPS; needs --tls-key.")
]
TlsKey = Annotated[Path | None, option(RUNTIME, "The certificate's PEM key, without a password.")]
Formats = Annotated[
    str,
    option(
        INPUT_OPTIONS,
        "Kinds of pictures to decode; also bmp, webp, avif, heic, jxl, exr, npz, mat, raw; or all.",
    ),
]
