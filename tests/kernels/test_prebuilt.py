"""The C++ compiled ahead of time: which library a processor gets, and why none where none fits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import emulated
import pytest
from conftest import ROOT

from ddfm_fast.kernels.cpu import build, prebuilt

ZEN4 = (
    "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave avx512f "
    "avx512dq avx512cd avx512bw avx512vl avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n"
)
SKYLAKE = ZEN4.replace(" avx512_bf16", "")
HASWELL = "flags\t\t: fpu sse2 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave\n"
NEHALEM = "flags\t\t: fpu sse2 sse4_2 popcnt\n"
KNL = HASWELL.strip() + " avx512f avx512cd avx512er\n"  # AVX-512 without the parts of level 4
GRAVITON2 = "processor\t: 0\nFeatures\t: fp asimd crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop\n"
PI4 = "Features\t: fp asimd evtstrm crc32 cpuid\n"


@pytest.fixture
def brought(tmp_path) -> Path:
    """A folder as a wheel has it, with files that are no libraries."""
    for level in prebuilt.LEVELS:
        (tmp_path / prebuilt.file_name(level)).write_bytes(b"no library")
    return tmp_path


@pytest.fixture
def processor(monkeypatch):
    def set_to(machine: str, cpuinfo: str) -> None:
        monkeypatch.setattr(prebuilt.platform, "machine", lambda: machine)
        monkeypatch.setattr(prebuilt.Path, "read_text", lambda *_args, **_options: cpuinfo)

    return set_to


@pytest.mark.parametrize(
    "machine, cpuinfo, levels",
    [
        ("x86_64", ZEN4, ["x86-64-v4+avx512bf16", "x86-64-v4", "x86-64-v3", "x86-64"]),
        ("x86_64", SKYLAKE, ["x86-64-v4", "x86-64-v3", "x86-64"]),
        ("x86_64", HASWELL, ["x86-64-v3", "x86-64"]),
        ("x86_64", KNL, ["x86-64-v3", "x86-64"]),
        ("x86_64", NEHALEM, ["x86-64"]),
        ("aarch64", GRAVITON2, ["armv8.2-a", "armv8-a"]),
        ("aarch64", PI4, ["armv8-a"]),
        ("riscv64", "isa\t: rv64imafdc\n", []),
    ],
)
def test_the_best_that_a_processor_has(brought, processor, machine, cpuinfo, levels):
    processor(machine, cpuinfo)
    found, reason = prebuilt.find(brought)
    assert [name for name, _ in found] == levels
    assert (reason is None) == bool(levels)


def test_the_next_best_is_taken_where_one_is_missing(brought, processor):
    processor("x86_64", ZEN4)
    next(brought.glob("x86-64-v4-*")).unlink()
    assert [name for name, _ in prebuilt.find(brought)[0]] == [
        "x86-64-v4+avx512bf16",
        "x86-64-v3",
        "x86-64",
    ]


def test_a_checkout_brings_nothing_and_says_nothing(tmp_path):
    assert prebuilt.find(tmp_path / "absent") == ([], None)


def test_libraries_of_other_sources_are_not_taken(brought, processor, monkeypatch, tmp_path):
    processor("x86_64", ZEN4)
    changed = tmp_path / "changed.cpp"
    changed.write_bytes(b"int ddfm_new;")
    monkeypatch.setattr(prebuilt, "SOURCES", (*prebuilt.SOURCES, changed))
    found, reason = prebuilt.find(brought)
    assert not found and "for other sources or another processor" in reason


def test_damaged_libraries_are_passed_over(brought, monkeypatch):
    """Then it is compiled; and where that fails too, both reasons are given."""
    find = prebuilt.find
    monkeypatch.setattr(build.prebuilt, "find", lambda: find(brought))
    monkeypatch.delenv(build.MORE_FLAGS, raising=False)
    monkeypatch.setattr(build.cache, "usable_folder", lambda: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    library, reason = build.load_again()
    assert library is None
    assert "no C++ compiler (no-such-compiler)" in reason
    assert "the wheel's library for" in reason
    monkeypatch.setenv(build.PREBUILT, "0")
    assert "wheel" not in build.load_again()[1]


def test_flags_of_the_user_are_for_a_compiler(monkeypatch):
    monkeypatch.setattr(build.prebuilt, "find", lambda: 1 / 0)
    monkeypatch.setenv(build.MORE_FLAGS, "-DVL=4")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(build.cache, "usable_folder", lambda: None)
    assert "no C++ compiler" in build.load_again()[1]


def test_versions_beyond_the_wheels_are_named():
    old = b"\0GLIBC_2.27\0GLIBC_2.2.5\0CXXABI_1.3.7\0GLIBCXX_3.4.24\0"
    assert prebuilt.newer(old) == []
    assert prebuilt.newer(old + b"GLIBC_2.38\0GLIBCXX_3.4.30\0CXXABI_1.3.13\0") == [
        "CXXABI_1.3.13", "GLIBCXX_3.4.30", "GLIBC_2.38",
    ]  # fmt: skip


def test_it_needs_the_standard_library_alone():
    """It runs by itself, as setup.py runs it, without the package and PyTorch."""
    code = (
        "import runpy, sys; names = runpy.run_path(sys.argv[1]); "
        "assert names['LEVELS'] and not {'torch', 'ddfm_fast'} & set(sys.modules)"
    )
    path = ROOT / "kernels" / "cpu" / "prebuilt.py"
    subprocess.run([sys.executable, "-I", "-S", "-c", code, path], check=True)


def test_a_compiler_for_another_system_is_refused(tmp_path, monkeypatch):
    windows = tmp_path / "x86_64-w64-mingw32-g++"
    windows.write_text("#!/bin/sh\necho x86_64-w64-mingw32\n")
    windows.chmod(0o755)
    monkeypatch.setenv("CXX", str(windows))
    with pytest.raises(RuntimeError, match="code for x86_64-w64-mingw32; expected Linux on"):
        prebuilt.compile_all(tmp_path / "made")


@pytest.mark.slow
def test_all_levels_of_another_machine_compile(tmp_path, monkeypatch):
    """tests/house/test_wheel.py tests the levels of this machine."""
    if shutil.which(emulated.COMPILER) is None:
        pytest.skip(f"{emulated.COMPILER} is absent")
    monkeypatch.setenv("CXX", emulated.COMPILER)
    made = prebuilt.compile_all(tmp_path / "made")
    assert [path.name.rsplit("-", 1)[0] for path in made] == ["armv8.2-a", "armv8-a"]
    assert prebuilt.platform_tag() == "manylinux_2_28_aarch64"
