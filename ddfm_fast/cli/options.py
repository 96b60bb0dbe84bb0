"""Options that several commands share, each said once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class ColorFrom(str, Enum):
    auto = "auto"
    ir = "ir"
    vis = "vis"


class Precision(str, Enum):
    auto = "auto"
    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Stretch(str, Enum):
    none = "none"
    minmax = "minmax"
    percentile = "percentile"


Root = Annotated[
    Path,
    typer.Argument(
        metavar="ROOT", help="Data set, infrared folder (then VIS), or CSV/JSON list of pairs."
    ),
]
Vis = Annotated[
    Path | None, typer.Argument(metavar="VIS", help="Visible folder, for two plain folders.")
]
Layout = Annotated[
    str | None,
    typer.Option(help="msrs, roadscene, llvip, …, or two folder names such as lwir,rgb."),
]
Manifest = Annotated[
    Path | None, typer.Option(help="CSV or JSON with ir, vis (and name), relative to ROOT.")
]
Preset = Annotated[
    str, typer.Option(help="A row of `ddfm-fast presets`; the options below override it.")
]
Variant = Annotated[
    str | None, typer.Option(help="Rectification: official, paper, printed or gradient.")
]
Sampler = Annotated[str | None, typer.Option(help="ddim or ddpm.")]
Steps = Annotated[
    str | None, typer.Option(help="Steps (1 to 1000), ddimN, or sections such as 10,20,30.")
]
Psi = Annotated[float | None, typer.Option(help="The method's ψ, weight of the total variation.")]
Eta = Annotated[float | None, typer.Option(help="The method's η, coupling of the split variables.")]
StretchChoice = Annotated[
    Stretch | None, typer.Option(help="Stretch the result's luma to the full range, or not.")
]
Seed = Annotated[int, typer.Option(help="Seed of the first noise.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; CUDA where there is one by default.")
]
Backend = Annotated[
    str | None, typer.Option(help="auto, triton or torch: what runs a step ($DDFM_FAST_BACKEND).")
]
Graph = Annotated[
    str | None,
    typer.Option(help="CUDA graphs: auto, loop, step or off ($DDFM_FAST_GRAPH)."),
]
DType = Annotated[
    Precision,
    typer.Option(help="Arithmetic of the prior; auto: float32 on a CPU, float16 on a GPU."),
]
Prior = Annotated[
    str, typer.Option(help="embedded, a .pt or .safetensors file, or a diffusers folder.")
]
PriorConfig = Annotated[
    str | None, typer.Option(help="JSON (or a file of it) with what the prior's file lacks.")
]
Gray = Annotated[bool, typer.Option("--gray", help="Write grey images.")]
ColorSource = Annotated[ColorFrom, typer.Option(help="Which source gives the colour.")]
MaxPixels = Annotated[
    int | None, typer.Option(min=1, help="Refuse larger input files (default 2^28 pixels).")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Errors (and warnings) only.")]
