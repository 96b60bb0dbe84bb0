"""Libraries for processors that have more than this one: refused in one sentence, never run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import emulated
import pytest

from ddfm_fast.kernels.cpu import build, prebuilt

SOURCE = prebuilt.HERE / "processor.cpp"
MAIN = """
#include <cstdio>
extern "C" const char *ddfm_lacks();
int main() { const char *found = ddfm_lacks(); puts(found ? found : "nothing"); }
"""
LACKING = 'extern "C" const char *ddfm_lacks() { return "avx9"; }'
X86 = "qemu-x86_64-static"
CASES = [
    (X86, "-march=x86-64", "Nehalem", "nothing"),
    (X86, "-march=x86-64-v3", "Nehalem", "avx"),
    (X86, "-march=x86-64-v3", "max", "nothing"),
    (X86, "-march=x86-64-v4", "max", "avx512f"),
    (X86, "-march=x86-64 -mfma4", "max", "fma4"),
    (X86, "-march=x86-64 -mbmi2", "Nehalem", "bmi2"),
    (X86, "-march=x86-64 -DDDFM_AMX", "max", "amx"),
    (emulated.EMULATOR, "", "cortex-a53", "nothing"),
    (emulated.EMULATOR, "-march=armv8.2-a", "cortex-a53", "atomics"),
    (emulated.EMULATOR, "-march=armv8.2-a", "cortex-a76", "nothing"),
    (emulated.EMULATOR, "-march=armv8.2-a+bf16", "cortex-a76", "bf16"),
    (emulated.EMULATOR, "-march=armv8.2-a+sve", "cortex-a76", "sve"),
    (emulated.EMULATOR, "-march=armv8.6-a+bf16", "max", "nothing"),
]
needs_kernels = pytest.mark.skipif(build.status() is not None, reason=f"{build.status()}")


@pytest.mark.parametrize("emulator, flags, processor, lacks", CASES)
def test_what_a_processor_lacks_is_named(tmp_path, emulator, flags, processor, lacks):
    """On processors that are emulated, and run code for better ones up to their first lack."""
    compiler = emulated.COMPILER if emulator == emulated.EMULATOR else "x86_64-linux-gnu-g++"
    for tool in (compiler, emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is absent")
    main, program = tmp_path / "main.cpp", tmp_path / "program"
    main.write_text(MAIN)
    command = [compiler, "-O3", "-static", *flags.split(), str(SOURCE), "-c"]
    build.run([*command, "-o", str(tmp_path / "processor.o")])
    build.run([compiler, "-static", str(main), str(tmp_path / "processor.o"), "-o", str(program)])
    done = subprocess.run(
        [emulator, "-cpu", processor, str(program)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, lacks), done.stderr


@pytest.fixture
def lacking(tmp_path) -> Path:
    """A library that needs what no processor has, and has nothing else."""
    if build.status() is not None:
        pytest.skip(f"no CPU kernels here: {build.status()}")
    source, made = tmp_path / "lacking.cpp", tmp_path / "lacking.so"
    source.write_text(LACKING)
    build.run([prebuilt.compiler(), "-shared", "-fPIC", str(source), "-o", str(made)])
    return made


def test_flags_for_a_better_processor_are_refused_in_one_sentence(lacking, monkeypatch):
    monkeypatch.setenv(build.MORE_FLAGS, "-mavx9")
    monkeypatch.setattr(build, "build", lambda _folder, _flags=(): lacking)
    library, reason = build.load_again()
    assert library is None
    assert reason == (
        "compiled for avx9, which this processor or its system lacks; change or unset "
        "DDFM_FAST_CPU_FLAGS"
    )
    assert lacking.exists(), "another machine may share the cache"


def test_the_wheels_next_best_is_taken_where_the_best_needs_too_much(lacking, monkeypatch):
    """As under an emulator, where /proc/cpuinfo is that of the processor below it."""
    monkeypatch.delenv(build.MORE_FLAGS, raising=False)
    found = [("better", lacking), ("good", Path(build.library().shared._name))]
    monkeypatch.setattr(build.prebuilt, "find", lambda: (found, None))
    if not found[1][1].exists():
        pytest.skip("the library of this process was removed when it was loaded")
    library, reason = build.load_again()
    assert reason is None
    assert library is not None and library.made == "from the wheel, for good"


@needs_kernels
def test_the_library_of_this_process_lacks_nothing():
    shared = build.library().shared
    assert shared.ddfm_lacks() is None
