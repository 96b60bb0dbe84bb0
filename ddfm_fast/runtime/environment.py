"""The environment variables that the package reads, each with its meaning and its default.

No other module of ``ddfm_fast`` or ``ddfm_fast.kernels`` reads a variable with this prefix.
"""

from __future__ import annotations

import os
from typing import NamedTuple

PREFIX = "DDFM_FAST_"
ELSEWHERE = ("DDFM_FAST_SHARED",)
"""read only by the tests of a checkout"""


class Variable(NamedTuple):
    """An environment variable: what it decides, and its value if it is unset or empty."""

    meaning: str
    default: str


VARIABLES = {
    "DDFM_FAST_BACKEND": Variable("what runs a step: auto, triton or torch", "auto"),
    "DDFM_FAST_SOLVER": Variable("how the kernels get k: auto, local, torch or cupy", "auto"),
    "DDFM_FAST_GRAPH": Variable("CUDA graphs: auto, loop, step or off", "auto"),
    "DDFM_FAST_GRAPHS": Variable("how many CUDA graphs a Fuser keeps", "8"),
    "DDFM_FAST_GRAPHS_MIB": Variable(
        "GPU memory that CUDA graphs may hold, in MiB; auto: a quarter of the GPU's", "auto"
    ),
    "DDFM_FAST_CPU_KERNELS": Variable("0 turns the prior's CPU kernels off", "1"),
    "DDFM_FAST_CPU_FLAGS": Variable("extra flags for the compiler of the CPU kernels", "none"),
    "DDFM_FAST_PREBUILT": Variable(
        "0 compiles CPU kernels even if the wheel has them; 1 adds them to a wheel being built", "1"
    ),
    "DDFM_FAST_AMX": Variable(
        "1 compiles products in bfloat16 by AMX, which nobody has run yet", "0"
    ),
    "DDFM_FAST_CACHE": Variable("folder for compiled CPU kernels", "~/.cache/ddfm_fast"),
    "DDFM_FAST_NVTX": Variable("1 marks ranges for Nsight", "0"),
    "DDFM_FAST_CONFIG": Variable("options file for commands without --config", "none"),
    "DDFM_FAST_DEBUG": Variable("1 shows tracebacks", "0"),
}


def get(name: str) -> str:
    """Return the value of a variable of `VARIABLES`, or its default if it is unset or empty."""
    return os.environ.get(name) or VARIABLES[name].default


def is_on(name: str) -> bool:
    """Return whether a switch of `VARIABLES` is on: set, or on by default, and not "0"."""
    return get(name) != "0"


def set_values() -> dict[str, str]:
    """Return the variables of `VARIABLES` that are set, with their values."""
    return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def unknown() -> list[str]:
    """List variables with this prefix that are set but never read: perhaps misspelled."""
    found = (name for name in os.environ if name.startswith(PREFIX))
    return sorted({*found} - {*VARIABLES, *ELSEWHERE})
