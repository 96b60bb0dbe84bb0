"""Options that only the commands of ``ddfm-fast prior`` have."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

from ..options import METHOD, OUTPUT
from .options import INPUT_OPTIONS, argument, option


class WeightType(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


InfoFile = Annotated[
    str, argument("FILE", "A .pt or .safetensors file, a diffusers folder, or `embedded`.")
]

# convert

Source = Annotated[
    str,
    argument("SRC", "A .pt or .safetensors file, a diffusers folder, or a network's name."),
]
Destination = Annotated[
    Path, argument("DST", "The .safetensors file to write, or for a folder a new folder.")
]
Weights = Annotated[WeightType | None, option(OUTPUT, "Data type of the weights; kept by default.")]
ShapeConfig = Annotated[
    str | None, option(INPUT_OPTIONS, "JSON (or a JSON file) of settings that SRC lacks.")
]

# download

KnownName = Annotated[str, argument("NAME", "A name from `ddfm-fast prior list`.")]
Url = Annotated[
    str | None, option(INPUT_OPTIONS, "Another address for the file, such as a mirror's.")
]
Sha256 = Annotated[str | None, option(INPUT_OPTIONS, "Expected SHA-256 of the file.", "--sha256")]
Folder = Annotated[
    Path | None,
    option(OUTPUT, "Folder for the file (default: the cache, which is printed).", "-o", "--out"),
]

# train

Pictures = Annotated[Path, argument("FOLDER", "Folder with at least two pictures.")]
TrainedPrior = Annotated[
    Path,
    option(OUTPUT, "The .safetensors file to write; rerun to resume.", "-o", "--out"),
]
OneChannel = Annotated[
    bool,
    option(
        METHOD, "Train with one channel, for thermal, MRI or SAR.", "--gray", show_default=False
    ),
]
Minutes = Annotated[float, option(METHOD, "Approximate training time in minutes.")]
Updates = Annotated[int | None, option(METHOD, "Number of updates, instead of --minutes.", min=1)]
Start = Annotated[
    str | None,
    option(METHOD, "Prior to start from (default: the package's), or `none`."),
]
