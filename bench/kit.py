"""What ``gpu_suite.sh`` needs on a CUDA machine without a network, in one folder: ``make gpu-kit``.

``out/gpu-kit`` holds the files of this checkout that the suite uses, wheels of what it imports, and
``install.sh``; ``out/gpu-kit.tar.gz`` is the same for copying. PyTorch and Triton, which such a
machine usually has, are left out unless requested.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import requires
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement

from . import machine
from .table import size

ROOT = machine.FOLDER.parent
WANTED = ("ddfm_fast", "kernels", "bench", "tests")
WANTED += ("setup.py", "pyproject.toml", "constraints.txt", "LICENSE", "NOTICE", "README.md")
RESULTS = ("bench/results/README.md", "bench/results/smoke.npz")
"""what the suite reads of the recorded results, which are megabytes"""
THEIRS = frozenset({"torch", "triton"})
TOOLS = frozenset({"mypy", "ruff", "setuptools", "wheel"})
"""packages of the extra "test" that no GPU test imports"""
CUDA = ("cuda12", "cuda13", "none")
INSTALL = """#!/usr/bin/env bash
# Installs what the GPU suite needs from wheels/, without a network, into the environment of $PYTHON
# (python3), which has PyTorch or gets it from here: bash install.sh [ARGUMENTS OF PIP...]
# What is there in a version that fits stays as it is. Afterwards: bash bench/gpu_suite.sh
set -euo pipefail
cd "$(dirname "$0")"
"${PYTHON:-python3}" -m pip install --no-index --find-links wheels -r requirements.txt "$@"
echo "installed; next: ${PYTHON:+PYTHON=$PYTHON }bash bench/gpu_suite.sh"
"""


def files(root: Path = ROOT) -> list[str]:
    """List tracked and new files of the checkout that the suite uses; OSError outside of one."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *WANTED]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        raise OSError(f"{str(root)!r} is no checkout of ddfm_fast ({done.stderr.strip()})")
    found = [name for name in done.stdout.splitlines() if (root / name).is_file()]
    return [name for name in found if name in RESULTS or not name.startswith("bench/results/")]


def requirements(cuda: str, with_torch: bool) -> list[str]:
    """Return what a machine needs for the package, CuPy, the benchmarks and the GPU tests."""
    extras, found = ["", "test", *([] if cuda == "none" else [cuda])], {}
    for requirement in map(Requirement, requires("ddfm_fast") or ()):
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        left_out = TOOLS if with_torch else TOOLS | THEIRS
        if requirement.name not in left_out:
            found[requirement.name] = f"{requirement.name}{requirement.specifier}"
    return sorted(found.values())


def download(wanted: list[str], folder: Path, arguments: list[str]) -> None:
    """Download wheels of ``wanted`` and what they need; RuntimeError with pip's message."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    command += ["--only-binary=:all:", "-c", str(ROOT / "constraints.txt"), "-d", str(folder)]
    done = subprocess.run([*command, *arguments, *wanted], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip download failed: {done.stderr.strip()[-1000:]}")


def pack(folder: Path, wanted: list[str]) -> None:
    """Write the folder without its wheels: files, requirements, commit, script."""
    for name in files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    (folder / "COMMIT").write_text(machine.commit() + "\n")
    (folder / "requirements.txt").write_text("\n".join(wanted) + "\n")
    (folder / "install.sh").write_text(INSTALL)
    (folder / "install.sh").chmod(0o755)


app = typer.Typer(add_completion=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def main(
    context: typer.Context,
    cuda: Annotated[
        str, typer.Option(help="The extra with CuPy: cuda12, cuda13 or none.")
    ] = "cuda13",
    with_torch: Annotated[
        bool, typer.Option("--with-torch", help="PyTorch and Triton too: gigabytes.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where the folder and the archive go.")] = ROOT / "out",
) -> None:
    """Pack the kit; further arguments are pip download's, such as --python-version 3.12."""
    if cuda not in CUDA:
        typer.echo(f"error: --cuda is {cuda!r}; expected one of {', '.join(CUDA)}", err=True)
        raise typer.Exit(2)
    folder, archive = out / "gpu-kit", out / "gpu-kit.tar.gz"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    wanted = requirements(cuda, with_torch)
    pack(folder, wanted)
    try:
        download(wanted, folder / "wheels", context.args)
    except RuntimeError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder, "gpu-kit")
    wheels = sorted((folder / "wheels").iterdir())
    for wheel in wheels:
        typer.echo(f"{size(wheel.stat().st_size):>10}  {wheel.name}")
    typer.echo(f"wrote {folder} and {archive}, {size(archive.stat().st_size)}")


if __name__ == "__main__":
    app(prog_name="python -m bench.kit")
