"""Options that only the commands of ``ddfm-fast prior`` have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from .options import INPUT_OPTIONS, OUTPUT, argument, option

InfoFile = Annotated[
    str, argument("FILE", "A .pt or .safetensors file, a folder of diffusers, or `embedded`.")
]

# download

KnownName = Annotated[str, argument("NAME", "A name of `ddfm-fast prior list`.")]
Url = Annotated[
    str | None, option(INPUT_OPTIONS, "Another address of the file, such as a mirror's.")
]
Sha256 = Annotated[
    str | None, option(INPUT_OPTIONS, "What the file's sha256 has to be.", "--sha256")
]
Folder = Annotated[
    Path | None,
    option(OUTPUT, "Folder for the file (default: the cache, which is printed).", "-o", "--out"),
]
