"""Load the C++ of this folder, and compile it where no library came with the wheel.

A wheel may bring libraries (``prebuilt``). Without one that fits, the C++ is compiled on first use,
by the machine's C++ compiler and for its processor, as Triton compiles its launchers. The library
is kept in the user's cache (``cache``) and found there afterwards. If there is no such folder, it
is compiled into a private one that is then removed. AMX is only used if the user asks for it, in a
library that no wheel brings.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch

from ddfm_fast.runtime import environment, threads
from ddfm_fast.runtime.locks import ForkLock

from . import cache, prebuilt
from .prebuilt import COMPILE_SECONDS, FLAGS, HEADERS, SOURCES

SWITCH = "DDFM_FAST_CPU_KERNELS"
"""environment variable; "0" turns these kernels off"""
MORE_FLAGS = "DDFM_FAST_CPU_FLAGS"
"""environment variable with flags to add after FLAGS, such as another -march or sanitizers"""
PREBUILT = "DDFM_FAST_PREBUILT"
"""environment variable; "0" compiles even where the wheel brought a library"""
AMX = "DDFM_FAST_AMX"
"""environment variable; "1" compiles products in bfloat16 by AMX, on processors that have it"""
AMX_FLAG = "-DDDFM_AMX"
"""compilers do not use AMX by themselves"""
AMX_NEEDS = frozenset(["amx_tile", "amx_bf16", "avx512_bf16"])
"""flags of /proc/cpuinfo"""
COMPILED, ONCE = "compiled here", "compiled for this process alone: the cache cannot be used"
# struct Layer, what changes from call to call and what a prepared layer fixes; struct Attention
LAYER_CALL, LAYER_FIXED = struct.Struct("15P2q"), struct.Struct("d22q")
ATTENTION = struct.Struct("6P7q")


class Library:
    """The compiled functions, and what runs them on several threads."""

    def __init__(self, library: ctypes.CDLL, made: str = COMPILED):
        self.shared = library
        """also has what :func:`functions` finds"""
        self.made = made
        """where the library comes from"""
        self.layer, self.attention = library.ddfm_layer, library.ddfm_attention
        for function in (self.layer, self.attention):
            function.argtypes = [ctypes.c_char_p, ctypes.c_int64]
        self.attention_floats = library.ddfm_attention_floats
        self.attention_floats.argtypes = [ctypes.c_int64] * 2
        numbers = library.ddfm_group, library.ddfm_layer_bytes, library.ddfm_attention_bytes
        others = self.attention_floats, library.ddfm_pairs, library.ddfm_tiles
        for function in (*others, *numbers):
            function.restype = ctypes.c_int64
        self.pairs = bool(library.ddfm_pairs())
        """whether one instruction multiplies pairs in bfloat16"""
        tiles = library.ddfm_tiles()
        if tiles < 0:
            raise RuntimeError(f"AMX gave wrong products in a test on this processor; unset {AMX}")
        self.tiles = bool(tiles)
        """whether AMX does it instead"""
        self.amx = ""
        """a sentence on that, for ``ddfm-fast doctor``"""
        self.group, *sizes = (int(number()) for number in numbers)
        """output channels that are computed together"""
        if sizes != [LAYER_CALL.size + LAYER_FIXED.size, ATTENTION.size]:
            raise RuntimeError("structs of the compiled code have other sizes than here")
        self.team = _team(library) if isinstance(library, ctypes.CDLL) else 0


class Functions:
    """Functions of the library that take a struct each, and what runs them on several threads."""

    STRUCTS: dict[str, struct.Struct]
    """the functions' structs, by the functions' names without the prefix"""

    def __init__(self, shared: ctypes.CDLL, team: int):
        self.team = team
        for name, fields in self.STRUCTS.items():
            function, size = (getattr(shared, f"ddfm_{name}{end}") for end in ("", "_bytes"))
            function.argtypes, size.restype = [ctypes.c_char_p, ctypes.c_int64], ctypes.c_int64
            if size() != fields.size:
                raise RuntimeError("structs of the compiled code have other sizes than here")
            setattr(self, name, function)

    def run(self, name: str, *values: float) -> None:
        """Call a function with the fields of its struct; MemoryError if there is no scratch."""
        if getattr(self, name)(self.STRUCTS[name].pack(*values), threads.count()):
            raise MemoryError(f"not enough memory for {name}")


F = TypeVar("F", bound=Functions)


def functions(kind: type[F]) -> tuple[F | None, str | None]:
    """Find functions in the library that :func:`load` loads once, or None and the reason."""
    found, reason = load()
    if found is None:
        return None, reason
    try:
        return kind(found.shared, found.team), None
    except (AttributeError, RuntimeError) as error:
        return None, str(error)


def status() -> str | None:
    """Return why these kernels cannot be used here, or None if they can; compiles on first use."""
    return load()[1]


def library() -> Library:
    """Return the compiled kernels; RuntimeError with the reason if :func:`status` has one."""
    found, reason = load()
    if found is None:
        raise RuntimeError(f"the CPU kernels cannot be used: {reason}")
    return found


_lock = ForkLock()


def load() -> tuple[Library | None, str | None]:
    """Compile and load the kernels once; returns them, or None and the reason."""
    with _lock:
        return _load_cached()


@lru_cache(maxsize=1)
def _load_cached() -> tuple[Library | None, str | None]:
    return load_again()


def load_again() -> tuple[Library | None, str | None]:
    """Compile if need be and load, ignoring what this process has already loaded."""
    if not environment.is_on(SWITCH):
        return None, f"{SWITCH}=0"
    if not sys.platform.startswith("linux"):
        return None, f"built for Linux only, and this is {sys.platform}"
    found, amx = _with_amx()
    reason = None
    if found is None:
        found, reason = _without_amx()
    if found is not None:
        found.amx = amx
    return found, reason


def _with_amx() -> tuple[Library | None, str]:
    """Load a library that uses AMX if the user asks for it; or None; and a sentence either way."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="surrogateescape")
        if lacking := AMX_NEEDS - prebuilt.features(text):
            return None, f"not used: this processor lacks {', '.join(sorted(lacking))}"
        if not environment.is_on(AMX):
            return None, f"not used: nobody has run it yet; {AMX}=1 turns it on, for bfloat16"
        found = _compiled([AMX_FLAG])
        if not found.tiles:
            raise RuntimeError("the compiler does not know it, or was told not to use it")
    except Exception as error:  # as without AMX, which remains
        return None, f"not used: {_words(error).splitlines()[0]}"
    return found, f"used in bfloat16 ({AMX}=1), where nobody has run it yet"


def _without_amx() -> tuple[Library | None, str | None]:
    """Load what the wheel brought, or else compile; or None, and the reason."""
    found, reason = _brought()
    if found is not None:
        return found, None
    try:
        return _compiled(), None
    except Exception as error:  # a compiler can fail in any way, and PyTorch's path remains
        return None, f"{_words(error)}; {reason}" if reason else _words(error)


def _words(error: Exception) -> str:
    """Return what an error says; some, such as a MemoryError, say nothing."""
    return str(error) or type(error).__name__


def _compiled(flags: Sequence[str] = ()) -> Library:
    """Load what the cache has or is given; where it takes nothing, compile for this process."""
    folder = cache.usable_folder()
    if folder is not None:
        with contextlib.suppress(OSError):  # such as a full disk
            return _kept(build(folder, flags))
    with tempfile.TemporaryDirectory(prefix="ddfm_fast-") as once:  # not needed once loaded
        return _loaded(build(Path(once), flags), ONCE)


def _kept(path: Path) -> Library:
    """Load a library of the cache; one that the loader refuses is removed."""
    try:
        return _loaded(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _loaded(path: Path, made: str = COMPILED) -> Library:
    """Load a library; RuntimeError, before more of it runs, if the processor lacks instructions."""
    shared = ctypes.CDLL(str(path))
    shared.ddfm_lacks.restype = ctypes.c_char_p
    if lacks := shared.ddfm_lacks():
        fix = f"; change or unset {MORE_FLAGS}" if MORE_FLAGS in environment.set_values() else ""
        raise RuntimeError(
            f"compiled for {lacks.decode()}, which this processor or its system lacks{fix}"
        )
    return Library(shared, made)


def _brought() -> tuple[Library | None, str | None]:
    """Load what the wheel brought; or None, and the reason if it brought something."""
    given = environment.set_values()
    if not environment.is_on(PREBUILT) or MORE_FLAGS in given:
        return None, None
    try:
        libraries, reason = prebuilt.find()
    except OSError as error:  # no /proc
        return None, str(error)
    for level, path in libraries:
        try:
            return _loaded(path, f"from the wheel, for {level}"), None
        except (OSError, AttributeError, RuntimeError) as error:  # such as another C library
            reason = f"the wheel's library for {level}: {error}"
    return None, reason


def build(folder: Path, flags: Sequence[str] = ()) -> Path:
    """Find the compiled library in ``folder``, or make it.

    Args:
        folder: Where the library lies. Its name holds a hash of sources, compiler, flags,
            processor and PyTorch, and one of its content.
        flags: For the compiler, after FLAGS and those for this processor.

    Returns:
        The library's path.

    Raises:
        RuntimeError: There is no compiler, or it fails.
        OSError: The folder has no room for it.
    """
    compiler, more = prebuilt.compiler(), environment.set_values().get(MORE_FLAGS, "")
    command = [compiler, *FLAGS, this_processor(), *more.split(), *flags]
    facts = _version(compiler), _processor(), torch.__version__
    key = hashlib.sha256("\0".join([*command, *facts]).encode())
    for file in (*SOURCES, *HEADERS):
        key.update(file.read_bytes())
    stem = f"cpu-{key.hexdigest()[:24]}"
    if (found := cache.find(folder, stem)) is not None:
        return found
    partial = folder / f"{stem}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        cache.need_room(partial)
        _compile(command, partial)
        return cache.keep(partial, stem)
    finally:
        partial.unlink(missing_ok=True)


def this_processor() -> str:
    """Return the flag that asks for everything this processor can do.

    On ARM -march names an architecture and -mcpu a processor: clang has "native" for the latter
    alone, GCC for both.
    """
    return "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def _compile(command: list[str], target: Path) -> None:
    """Compile the sources; for any processor of this kind where the compiler knows no "native"."""
    inputs = [*map(str, SOURCES), "-o", str(target)]
    try:
        run([*command, *inputs])
    except RuntimeError as error:
        try:
            run([*(flag for flag in command if flag != this_processor()), *inputs])
        except RuntimeError:
            raise error from None
    if not target.is_file():
        raise RuntimeError(f"{command[0]} succeeded, but made no library")


def run(command: list[str]) -> str:
    """Run a command; return its output, or raise RuntimeError with its complaint.

    The first line of the message stands by itself; the command and all of the complaint follow.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    if done.returncode:
        complaint = done.stderr.strip()
        errors = [line for line in complaint.splitlines() if "error" in line]
        first = (errors or complaint.splitlines() or ["it printed no reason"])[0]
        raise RuntimeError(
            f"{command[0]} failed with exit code {done.returncode}: {first}\n"
            f"{' '.join(command)}\n{complaint[-2000:]}"
        )
    return done.stdout


def _team(library: ctypes.CDLL) -> int:
    """Return the address of what runs a function on several threads; 0 if there are no threads."""
    start = getattr(ctypes.CDLL(None), "pthread_create", None)
    library.ddfm_team_starts(ctypes.cast(start, ctypes.c_void_p) if start else None)
    return ctypes.cast(library.ddfm_team, ctypes.c_void_p).value or 0


def _version(compiler: str) -> str:
    return run([compiler, "--version"])


def _processor() -> str:
    """Read what -march=native looks at, since machines may share a cache."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    wanted = "vendor_id", "cpu family", "model", "flags", "Features", "CPU part"
    return "\n".join(line for line in lines if line.split("\t")[0].split(":")[0] in wanted)
