"""Kernels compiled ahead of time, with no GPU, and what the CUDA tools say of them."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from shutil import which

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHS = (80, 90, 100, 120)
ONE_ARCH = [pytest.param(a, marks=pytest.mark.thorough if a != 90 else ()) for a in ARCHS]
"""sm_90 in `make test`, the others in `make test-thorough`: a compilation takes seconds"""
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def tool(name: str) -> str:
    """Find a CUDA binary tool in Triton's wheel or on the PATH; skip without one."""
    bundled = BIN / name
    found = str(bundled) if os.access(bundled, os.X_OK) else which(name)
    if not found:
        pytest.skip(f"{name} is neither in triton's wheel nor on the PATH")
    return found


@functools.cache
def cache() -> tempfile.TemporaryDirectory:
    """Make a folder of this process for Triton's cache, so that everything is compiled afresh."""
    return tempfile.TemporaryDirectory(prefix="triton-")


def compiled_for(
    kernel,
    constants: dict,
    target: GPUTarget,
    *,
    typed: Callable[[str], str],
    aligned: Collection[str],
    options: dict | None = None,
):
    """Compile a kernel for any target, with arguments as of :class:`Compiled`."""
    names = kernel.arg_names
    types = {name: "constexpr" if name in constants else typed(name) for name in names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name in aligned and name not in constants
    }
    source = ASTSource(kernel, types, constants, attributes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", cache().name)
        return triton.compile(source, target=target, options=options)


class Compiled:
    """A kernel's cubin for one architecture.

    Args:
        kernel: A ``triton.jit`` function.
        constants: Its constexpr arguments, and others with one value for all launches.
        arch: Compute capability, such as 90.
        folder: Where the cubin goes.
        typed: The type of any other argument by its name, such as "*fp32".
        aligned: The arguments that are divisible by 16.
        options: The compiler's options, such as num_warps.
    """

    def __init__(
        self,
        kernel,
        constants: dict,
        arch: int,
        folder: Path,
        *,
        typed: Callable[[str], str],
        aligned: Collection[str],
        options: dict | None = None,
    ):
        target = GPUTarget("cuda", arch, 32)
        compiled = compiled_for(
            kernel, constants, target, typed=typed, aligned=aligned, options=options
        )
        self.shared = compiled.metadata.shared
        self.cubin = folder / "kernel.cubin"
        self.cubin.write_bytes(compiled.asm["cubin"])

    def resources(self) -> dict[str, int]:
        """Return REG, STACK and LOCAL of the kernel."""
        command = [tool("cuobjdump"), "--dump-resource-usage", str(self.cubin)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", output)}

    @cached_property
    def opcodes(self) -> Counter:
        """The count of each opcode of the SASS, with its modifiers: {"LDG.E.128": 9, …}."""
        command = [tool("nvdisasm"), "-c", str(self.cubin)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        pattern = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]+)"
        return Counter(re.findall(pattern, output, re.MULTILINE))

    def assert_within(self, registers: int, shared: int) -> None:
        """Check for nothing in local memory, and for at most so many registers and shared bytes."""
        resources = self.resources()
        assert resources["STACK"] == 0 and resources["LOCAL"] == 0, resources
        assert 0 < resources["REG"] <= registers, resources
        assert self.opcodes["LDL"] == self.opcodes["STL"] == 0
        assert self.shared <= shared, self.shared

    def wide(self, opcode: str) -> int:
        """Count loads ("LDG") or stores ("STG") of 128 bits."""
        return sum(
            n for name, n in self.opcodes.items() if name.startswith(opcode) and "128" in name
        )

    def narrow(self, opcode: str) -> int:
        """Count loads or stores of 8 and 16 bits: activations that are moved one by one."""
        return sum(
            n
            for name, n in self.opcodes.items()
            if name.startswith(opcode) and any(w in name for w in (".U8", ".S8", ".U16", ".S16"))
        )
