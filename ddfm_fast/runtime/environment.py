"""The environment variables that the package reads, each with its meaning and its default.

No other module of ``ddfm_fast`` and ``ddfm_fast.kernels`` reads a variable of this name space.
"""

from __future__ import annotations

import os
from typing import NamedTuple

PREFIX = "DDFM_FAST_"
ELSEWHERE = ("DDFM_FAST_SHARED",)
"""read by the tests of a checkout alone"""


class Variable(NamedTuple):
    """An environment variable: what it decides, and its value where it is unset or empty."""

    meaning: str
    default: str


VARIABLES = {
    "DDFM_FAST_BACKEND": Variable("what runs a step: auto, triton or torch", "auto"),
    "DDFM_FAST_SOLVER": Variable("how the kernels get k: auto, local, torch or cupy", "auto"),
    "DDFM_FAST_GRAPH": Variable("CUDA graphs: auto, loop, step or off", "auto"),
    "DDFM_FAST_GRAPHS": Variable("how many CUDA graphs a Fuser keeps", "8"),
    "DDFM_FAST_GRAPHS_MIB": Variable(
        "GPU memory that they may hold, MiB; auto: a quarter of the GPU's", "auto"
    ),
    "DDFM_FAST_CPU_KERNELS": Variable("0 turns the prior's CPU kernels off", "1"),
    "DDFM_FAST_CPU_FLAGS": Variable("more flags for the compiler of the CPU kernels", "none"),
    "DDFM_FAST_PREBUILT": Variable(
        "0 compiles CPU kernels that a wheel brings; 1, as one is built, puts them in", "1"
    ),
    "DDFM_FAST_CACHE": Variable("folder of compiled CPU kernels", "~/.cache/ddfm_fast"),
    "DDFM_FAST_NVTX": Variable("1 marks ranges for Nsight", "0"),
    "DDFM_FAST_CONFIG": Variable("file of options for commands without --config", "none"),
    "DDFM_FAST_DEBUG": Variable("1 lets tracebacks out", "0"),
}


def get(name: str) -> str:
    """The value of a variable of `VARIABLES`, or its default where it is unset or empty."""
    return os.environ.get(name) or VARIABLES[name].default


def is_on(name: str) -> bool:
    """Whether a switch of `VARIABLES` is on: set, or on by default, and not "0"."""
    return get(name) != "0"


def set_values() -> dict[str, str]:
    """The variables of `VARIABLES` that are set to something, with their values."""
    return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def unknown() -> list[str]:
    """Variables of this name space that are set and that nothing reads: perhaps misspelled."""
    found = (name for name in os.environ if name.startswith(PREFIX))
    return sorted({*found} - {*VARIABLES, *ELSEWHERE})
