"""The options that only the command ``bench`` has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..options import INPUT_OPTIONS, METHOD, OUTPUT, RUNTIME
from .options import argument, option

Sections = Annotated[
    list[str] | None,
    argument(
        "[SECTION]...",
        "kernels, step, prior, official, loop, waterfall, throughput, video, host, scaling, "
        "startup, metrics; all by default. `--list` describes each.",
    ),
]
Quick = Annotated[
    bool, option(METHOD, "Use tiny sizes, to check in a minute that all works.", "--quick")
]
Size = Annotated[
    str | None,
    option(METHOD, "Size for kernels, step and prior, such as 512x640.", metavar="HxW"),
]
Repeats = Annotated[int, option(METHOD, "Most rounds per measurement.", min=1)]
Seconds = Annotated[
    float | None,
    option(METHOD, "Seconds after which a measurement starts no round beyond the third.", min=0),
]
Rehearse = Annotated[
    bool,
    option(METHOD, "Run the GPU's sections on the CPU, interpreted; no figures.", "--rehearse"),
]
ForProfiler = Annotated[
    bool, option(METHOD, "Run eight steps with each solver, for Nsight Compute.", "--for-profiler")
]
Compare = Annotated[
    tuple[Path, Path] | None,
    option(
        INPUT_OPTIONS,
        "Run nothing; compare two results. Exit code 1 if a path is slower beyond the noise "
        "of both.",
        metavar="OLD NEW",
    ),
]
Threshold = Annotated[
    float | None,
    option(
        INPUT_OPTIONS,
        "With --compare: largest rise that is not a regression (0.1; 0.5 for quick runs).",
        min=0,
    ),
]
FromResult = Annotated[
    Path | None,
    option(INPUT_OPTIONS, "With --report: run nothing; show this result.", "--from"),
]
Save = Annotated[bool, option(OUTPUT, "Write DEVICE-DATE.json with every sample.", "--save")]
WriteReport = Annotated[
    bool,
    option(
        OUTPUT,
        "Write the page DEVICE-DATE.html and its plots as PNG; in a checkout also the "
        "README's figures.",
        "--report",
    ),
]
OutResults = Annotated[
    Path | None,
    option(
        OUTPUT,
        "Folder for the files (bench/results in a checkout, else ddfm_fast_bench).",
        "-o",
        "--out",
    ),
]
ListSections = Annotated[
    bool, option(OUTPUT, "Describe what each section measures and exit.", "--list")
]
NoBar = Annotated[bool, option(OUTPUT, "Show no progress bar.", "-q", "--quiet")]
Threads = Annotated[int | None, option(RUNTIME, "CPU threads for PyTorch.", min=1)]
