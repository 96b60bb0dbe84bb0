"""The CPU kernels on a processor that is not this one: compiled for it and run by an emulator.

:class:`Emulated` stands in for the library that ctypes would load. A call hands the struct and all
memory that its pointers lead to over to ``tests/kernels/emulated.cpp``, which runs under QEMU and
sends the memory back, so the tests of the kernels are the same for every processor.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from ddfm_fast.kernels.cpu import build, prebuilt

SERVER = Path(__file__).resolve().parents[1] / "kernels" / "emulated.cpp"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
TRAPS = "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"
"""a fault ends the process; neither a library nor a report of it is needed"""
WHEEL = "armv8.2-a"
"""the target whose library is the one that a wheel brings for that level"""
SYSTEM = "/usr/aarch64-linux-gnu"
"""the C and C++ libraries of the emulated process"""
BFDOT = "bfdot"
"""the target that has products of pairs in bfloat16, which QEMU also has"""
TARGETS: dict[str, tuple[str, ...]] = {
    "aarch64": (), "aarch64-ubsan": TRAPS, WHEEL: (), BFDOT: ("-march=armv8.6-a+bf16",),
}  # fmt: skip
PARAMS = [pytest.param(n, marks=[pytest.mark.slow, pytest.mark.emulated]) for n in TARGETS]
POINTERS = {
    "ddfm_layer": 15, "ddfm_attention": 6, "ddfm_choose": 58, "ddfm_carry": 8,
    "ddfm_read": 3, "ddfm_order": 7, "ddfm_give": 4, "ddfm_gather": 6, "ddfm_spread": 6,
}  # fmt: skip
"""how many fields at the beginning of a function's struct are addresses"""
RESULTS = {2: "wrote beside its memory", 3: "was handed an address of no tensor"}


def compiled(folder: Path, target: str) -> Path:
    """Compile the server and the kernels; skip if a tool is absent."""
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is absent: the kernels are not tried on another processor")
    if target == WHEEL:
        return _compiled_with_the_wheels(folder)
    flags = [flag for flag in prebuilt.FLAGS if flag not in ("-fPIC", "-shared")]
    made = folder / target
    sources = map(str, (*prebuilt.SOURCES, SERVER))
    build.run([COMPILER, *flags, *TARGETS[target], "-static", *sources, "-o", str(made)])
    return made


def _compiled_with_the_wheels(folder: Path) -> Path:
    (level,) = (level for level in prebuilt.LEVELS if level.name == WHEEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", COMPILER)
        library = prebuilt.compile_level(level, folder)
    made = folder / WHEEL
    command = [COMPILER, "-std=c++17", "-O2", str(SERVER), str(library), "-o", str(made)]
    build.run([*command, f"-Wl,-rpath,{library.parent}"])
    return made


class Emulated:
    """Has the functions of the compiled library, as a library of ctypes does."""

    def __init__(self, server: Path):
        self.process = subprocess.Popen(
            [EMULATOR, "-L", SYSTEM, str(server)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.storages: dict[int, torch.UntypedStorage] = {}
        """storages whose address was taken, by address"""

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keep, until the test ends, the memory of every tensor whose address is taken."""
        self.storages.clear()
        original = torch.Tensor.data_ptr

        def data_ptr(x):
            storage = x.untyped_storage()
            self.storages[storage.data_ptr()] = storage
            return original(x)

        monkeypatch.setattr(torch.Tensor, "data_ptr", data_ptr)

    def __getattr__(self, name: str) -> Function:
        if not name.startswith("ddfm_"):
            raise AttributeError(name)
        found = self.__dict__[name] = Function(self, name)
        return found

    def send(self, name: str, *numbers: int, content: bytes = b"") -> None:
        message = name.encode().ljust(32, b"\0") + struct.pack(f"{len(numbers)}q", *numbers)
        self.process.stdin.write(message + content)
        self.process.stdin.flush()

    def read(self, size: int) -> bytes:
        found = self.process.stdout.read(size)
        assert len(found) == size, f"the emulated process ended: {self.process.wait(10)}"
        return found

    def number(self) -> int:
        return struct.unpack("q", self.read(8))[0]


class Function:
    """A function of the library; ``argtypes`` and ``restype`` may be set, as in ctypes."""

    def __init__(self, library: Emulated, name: str):
        self.library, self.name = library, name

    def __call__(self, *arguments):
        if self.name not in POINTERS:
            self.library.send(self.name, *arguments)
            return self.library.number()
        fields, threads = arguments
        count = POINTERS[self.name]
        regions = self._regions(struct.unpack_from(f"{count}Q", fields))
        content = fields + struct.pack("q", len(regions))
        for address, size in regions.items():
            content += struct.pack("2q", address, size) + ctypes.string_at(address, size)
        self.library.send(self.name, threads, count, len(fields), content=content)
        result = self.library.number()
        for address, size in regions.items():
            ctypes.memmove(address, self.library.read(size), size)
        assert result not in RESULTS, f"{self.name} {RESULTS[result]}"
        return result

    def _regions(self, pointers: tuple[int, ...]) -> dict[int, int]:
        """Return the address and size of every storage that a pointer leads into."""
        return {
            address: storage.nbytes()
            for address, storage in self.library.storages.items()
            if any(address <= pointer < address + storage.nbytes() for pointer in pointers)
        }
