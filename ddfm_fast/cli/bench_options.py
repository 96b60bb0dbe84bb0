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
        "startup, metrics; all by default. `--list` says what each is.",
    ),
]
Quick = Annotated[
    bool, option(METHOD, "Tiny sizes, under a minute: does it work, and how?", "--quick")
]
Size = Annotated[
    str | None,
    option(METHOD, "Of kernels, step and prior, such as 512x640.", metavar="HxW"),
]
Repeats = Annotated[int, option(METHOD, "Most rounds of a measurement.", min=1)]
Seconds = Annotated[
    float | None,
    option(METHOD, "A measurement starts no round beyond the third after so long.", min=0),
]
Rehearse = Annotated[
    bool,
    option(METHOD, "The GPU's sections on the CPU, interpreted: no figures.", "--rehearse"),
]
ForProfiler = Annotated[
    bool, option(METHOD, "Eight steps by each solver, for Nsight Compute.", "--for-profiler")
]
Compare = Annotated[
    tuple[Path, Path] | None,
    option(
        INPUT_OPTIONS,
        "Run nothing: compare two results. Exit code 1 where a path is slower beyond the noise "
        "of both.",
        metavar="OLD NEW",
    ),
]
Threshold = Annotated[
    float | None,
    option(
        INPUT_OPTIONS,
        "With --compare: the rise that is no regression yet (0.1; of quick runs 0.5).",
        min=0,
    ),
]
FromResult = Annotated[
    Path | None,
    option(INPUT_OPTIONS, "With --report: run nothing, show this result.", "--from"),
]
Save = Annotated[bool, option(OUTPUT, "Write DEVICE-DATE.json, with every sample.", "--save")]
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
    bool, option(OUTPUT, "Say what each section measures, and stop.", "--list")
]
NoBar = Annotated[bool, option(OUTPUT, "No progress bar.", "-q", "--quiet")]
Threads = Annotated[int | None, option(RUNTIME, "CPU threads for PyTorch.", min=1)]
