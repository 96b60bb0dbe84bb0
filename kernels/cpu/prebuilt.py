"""Compile the C++ of this folder ahead of time, for a wheel, and find what a wheel brought.

A wheel made with ``DDFM_FAST_PREBUILT=1`` (``make wheel``) holds one library for each instruction
level of a kind of processor, in :data:`FOLDER`; the best one that the processor can run is loaded.
setup.py runs this file by itself, without PyTorch, so it imports only the standard library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SOURCES = tuple(
    HERE / f"{name}.cpp"
    for name in ("layer", "attention", "choose", "pixels", "carry", "edges", "team", "processor")
)
HEADERS = tuple(
    HERE / f"{name}.h"
    for name in ("vectors", "bfloat", "tiles", "rows", "levels", "layer", "winograd", "worth")
)
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
         "-fPIC", "-shared")  # fmt: skip
FOLDER = "compiled"
"""beside the sources, in a wheel"""
GLIBC = 28
"""minor version that the wheels are for: glibc 2.28, which PyTorch's wheels need as well"""
CEILINGS = {"GLIBC_2": (GLIBC,), "GLIBCXX_3": (4, 24), "CXXABI_1": (3, 11)}
"""newest symbol versions of manylinux_2_28"""
COMPILE_SECONDS = 300


class Level(NamedTuple):
    """Instructions that a library is compiled for."""

    name: str
    """up to a "+", also its name for -march; what follows has a flag of its own"""
    machine: str
    needs: frozenset[str]
    """flags of /proc/cpuinfo that a processor has to have"""


V3 = frozenset(["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"])
V4 = V3 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])
BFLOAT = V4 | {"avx512_bf16"}
"""with products of pairs in bfloat16, which no level of -march has"""
LEVELS = (
    Level("x86-64-v4+avx512bf16", "x86_64", BFLOAT),
    Level("x86-64-v4", "x86_64", V4),
    Level("x86-64-v3", "x86_64", V3),
    Level("x86-64", "x86_64", frozenset()),
    Level("armv8.2-a", "aarch64", frozenset(["asimd", "crc32", "atomics", "asimdrdm"])),
    Level("armv8-a", "aarch64", frozenset(["asimd"])),
)
"""the best first for each machine"""


def compiler() -> str:
    """Find the C++ compiler: $CXX, else c++, g++ or clang++; RuntimeError if there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for name in names:
        if found := shutil.which(name):
            return found
    raise RuntimeError(f"no C++ compiler ({', '.join(names)}); install g++")


def architecture(level: Level) -> list[str]:
    """Return the flags that ask the compiler for a level."""
    march, _, more = level.name.partition("+")
    return [f"-march={march}", *([f"-m{more}"] if more else [])]


def file_name(level: Level) -> str:
    """Name the library of a level; the name changes with its sources and flags."""
    key = hashlib.sha256("\0".join([*FLAGS, level.name]).encode())
    for file in (*SOURCES, *HEADERS):
        key.update(file.read_bytes())
    return f"{level.name}-{key.hexdigest()[:24]}.so"


def features(text: str) -> frozenset[str]:
    """Read the flags of the first processor from the text of /proc/cpuinfo."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def find(folder: Path | None = None) -> tuple[list[tuple[str, Path]], str | None]:
    """Find the libraries that came with the wheel and that this processor can run.

    Args:
        folder: Where they lie; default: beside this file.

    Returns:
        The level and the path of each, the best first; and why there is none, or None if there
        is one or if the installation brought none at all, as in a checkout.
    """
    folder = HERE / FOLDER if folder is None else folder
    if not folder.is_dir():
        return [], None
    able = features(Path("/proc/cpuinfo").read_text(errors="surrogateescape"))
    fitting = [
        (level.name, folder / file_name(level))
        for level in LEVELS
        if level.machine == platform.machine() and level.needs <= able
    ]
    found = [(name, path) for name, path in fitting if path.is_file()]
    if found:
        return found, None
    brought = ", ".join(sorted(path.name for path in folder.glob("*.so"))) or "nothing"
    return [], f"the wheel brought {brought}, for other sources or another processor"


def target() -> str:
    """Name the machine that the compiler compiles for; RuntimeError if it has no level."""
    triple = _run([compiler(), "-dumpmachine"]).strip()
    machine = triple.partition("-")[0]
    if "linux" not in triple or machine not in {level.machine for level in LEVELS}:
        raise RuntimeError(
            f"DDFM_FAST_PREBUILT=1: the compiler makes code for {triple}; expected Linux on x86_64 "
            "or aarch64: name another by CXX, or unset DDFM_FAST_PREBUILT"
        )
    return machine


def platform_tag() -> str:
    """Return the platform tag of the wheel."""
    return f"manylinux_2_{GLIBC}_{target()}"


def compile_all(folder: Path) -> list[Path]:
    """Compile every level of the machine that the compiler targets into a folder.

    Args:
        folder: Made if it is missing.

    Returns:
        The libraries.

    Raises:
        RuntimeError: There is no compiler, it fails, or a library needs a newer system than
            :data:`CEILINGS` states.
    """
    machine = target()
    return [compile_level(level, folder) for level in LEVELS if level.machine == machine]


def compile_level(level: Level, folder: Path) -> Path:
    """Compile one level; see :func:`compile_all`."""
    path = folder.resolve() / file_name(level)  # the compiler runs beside the sources
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [file.name for file in SOURCES]
    _run([compiler(), *FLAGS, *architecture(level), "-s", *names, "-o", str(path)])
    if too_new := newer(path.read_bytes()):
        raise RuntimeError(
            f"{path.name} needs {', '.join(too_new)}, which systems of glibc 2.{GLIBC} do not "
            "have; compile on an older one"
        )
    return path


def newer(library: bytes) -> list[str]:
    """List the symbol versions in a library that are newer than :data:`CEILINGS`."""
    found = re.findall(rb"\b(GLIBC_2|GLIBCXX_3|CXXABI_1)((?:\.\d+)+)", library)
    versions = {(p.decode(), tuple(map(int, n.decode()[1:].split(".")))) for p, n in found}
    return [
        ".".join([prefix, *map(str, numbers)])
        for prefix, numbers in sorted(versions)
        if numbers > CEILINGS[prefix]
    ]


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, cwd=HERE, capture_output=True, text=True, timeout=COMPILE_SECONDS
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
    return done.stdout
