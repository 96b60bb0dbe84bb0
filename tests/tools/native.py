"""Test the CPU kernels for other processors of this kind, for ARM and under sanitizers.

    python tests/tools/native.py [--only TARGET] [arguments of pytest]

Prints a table and writes it, and what each run printed, to out/native/. `make test-native` is this.
TARGET is a name in its first column. "Compiling" is the processor's seconds for the
library that most tests load; "seconds" are of the tests, by the clock.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import emulated
import torch

from ddfm_fast.kernels.cpu import build

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out" / "native"
NAMES = ("cpu_kernels", "cpu_bfloat", "cpu_memory", "closed", "cpu_pixels", "carry", "edges",
         "team", "processor", "cache", "tiles")  # fmt: skip
FILES = [f"tests/kernels/test_{name}.py" for name in NAMES]
COMPILE = """
from ddfm_fast.kernels.cpu import build, cache
build.COMPILE_SECONDS = 3600
if folder := cache.usable_folder():
    build.build(folder)
"""
SANITIZE = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
FINDING = re.compile(r"ERROR: AddressSanitizer|: runtime error: |Sanitizer:DEADLYSIGNAL")


class Target(NamedTuple):
    """A way to compile them; ``missing`` says why it cannot be tried here, or is None."""

    name: str
    flags: str
    compiler: str
    pytest: tuple[str, ...] = ()
    sanitized: bool = False
    missing: str | None = None


def targets() -> list[Target]:
    compiler = os.environ.get("CXX") or "c++"
    made = []
    if platform.machine() == "x86_64":
        able = "avx2" in Path("/proc/cpuinfo").read_text()
        missing = None if able else "this processor has no AVX2"
        made.append(Target("x86-64", "-march=x86-64", compiler))
        made.append(Target("x86-64-v3 (AVX2)", "-march=x86-64-v3", compiler, missing=missing))
    made.append(Target("this processor", build.this_processor(), compiler))
    tools = emulated.COMPILER, emulated.EMULATOR
    absent = [tool for tool in tools if shutil.which(tool) is None]
    missing = f"{' and '.join(absent)} absent" if absent else None
    for name, flags in emulated.TARGETS.items():
        chosen = "aarch64 and not ubsan" if name == "aarch64" else name
        title = f"{name}, emulated"
        run = "-m", "emulated", "-k", chosen
        made.append(Target(title, " ".join(flags), tools[0], run, flags == emulated.TRAPS, missing))
    made.append(Target("address and undefined", SANITIZE, compiler, sanitized=True))
    return made


def environment(target: Target, *, running: bool = True) -> dict[str, str]:
    """Of the run; the sanitizers' libraries must be there before Python is, and in no compiler."""
    if target.compiler == emulated.COMPILER:
        return dict(os.environ)
    more = {build.MORE_FLAGS: target.flags}
    if target.sanitized:
        script = OUT / "compiler"
        script.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec {target.compiler} "$@"\n')
        script.chmod(0o755)
        more["CXX"] = str(script)
    if target.sanitized and running:
        names = ("libasan.so", "libubsan.so")
        found = [build.run([target.compiler, f"-print-file-name={n}"]).strip() for n in names]
        more |= {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"}
    return os.environ | more


def compile_for(target: Target) -> str:
    """Compile what the tests will load, however long other programs make it last; seconds, as text.

    They are of the processor: of the compiler and all it starts.
    """
    if target.compiler == emulated.COMPILER:
        return ""
    before = os.times()
    subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=ROOT, env=environment(target, running=False)
    )
    after = os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])
    return f"{seconds:.0f}"


def row_of(target: Target, arguments: list[str]) -> tuple[list[str], bool]:
    """Run the tests for a target; the cells of its row, and whether all is well."""
    if target.missing:
        print(f"native: {target.name}: skipped, {target.missing}", flush=True)
        return [target.name, f"`{target.flags}`", "", f"skipped: {target.missing}", *[""] * 3], True
    print(f"native: {target.name}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    compiling, begun = compile_for(target), time.monotonic()
    done = subprocess.run(
        [*command, *target.pytest, *FILES, *arguments],
        cwd=ROOT,
        env=environment(target),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = OUT / (re.sub(r"\W+", "-", target.name).strip("-") + ".log")
    log.write_text(done.stdout)
    last = done.stdout.strip().splitlines()[-1]
    counts = ", ".join(re.findall(r"\d+ (?:passed|failed|skipped|error)\w*", last)) or last
    print(f"native: {last}", flush=True)
    findings = str(len(FINDING.findall(done.stdout))) if target.sanitized else ""
    if target.compiler == emulated.COMPILER and target.sanitized:
        findings = "0" if done.returncode == 0 else "see the log"
    version = build.run([target.compiler, "--version"]).splitlines()[0]
    seconds = f"{time.monotonic() - begun:.0f}"
    flags = f"`{target.flags}`" if target.flags else ""
    return [target.name, flags, version, counts, findings, compiling, seconds], done.returncode == 0


def header() -> str:
    """What they ran on: one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    processor = names[0] if names else platform.machine()
    return (
        f"{os.cpu_count()} threads of {processor}, PyTorch {torch.__version__}, "
        f"{datetime.date.today()}, commit {commit or 'unknown'}."
    )


def main(arguments: list[str]) -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--only", default="")
    given, arguments = parser.parse_known_args(arguments)
    found = [row_of(target, arguments) for target in targets() if given.only in ("", target.name)]
    titles = ["target", "more flags", "compiler", "tests", "sanitizers' findings",
              "compiling", "seconds"]  # fmt: skip
    rows = [titles, ["---"] * len(titles), *(cells for cells, _ in found)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    command = "`python tests/tools/native.py`, which `make test-native` runs"
    text = f"{header()}\nPrinted by {command}.\n\n{table}\n"
    (OUT / "table.md").write_text(text)
    print(text)
    return 0 if all(well for _, well in found) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
