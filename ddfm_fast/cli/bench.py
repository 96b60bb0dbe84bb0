"""The command ``bench``, and ``python -m bench``. Heavy imports happen inside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ddfm_fast.bench.results import Report

EPILOG = (
    "Examples:  `ddfm-fast bench --quick`  |  `ddfm-fast bench step prior`  |  "
    "`ddfm-fast bench --save --report`  |  `ddfm-fast bench --compare OLD.json NEW.json`"
)


def main(program: str) -> None:
    """Entry point of ``python -m bench``."""
    from ddfm_fast.cli.app import _friendly

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does: see cli.main
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown",
                      context_settings={"help_option_names": ["-h", "--help"]})  # fmt: skip
    register(app, _friendly)
    app(prog_name=program)


def register(app: typer.Typer, wrap: Callable) -> None:
    """Add the command to ``app``; ``wrap`` turns errors into messages and exit codes."""
    app.command(epilog=EPILOG)(wrap(bench))


def bench(
    sections: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION]...",
            help="kernels, step, prior, loop, throughput, scaling, startup, waterfall; "
            "all by default. `--list` says what each is.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes, under a minute: does it work, and how?")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Write <device>-<date>.json, with every sample.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Write the page <device>-<date>.html and its plots as PNG; in a checkout also "
            "the README's figures.",
        ),
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="OLD NEW",
            help="Run nothing: compare two results. Exit code 1 where a path is slower beyond "
            "the noise of both.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With --compare: the rise that is no regression yet (0.1; of quick runs 0.5).",
        ),
    ] = None,
    from_result: Annotated[
        Path | None, typer.Option("--from", help="With --report: run nothing, show this result.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out",
            help="Folder for the files (bench/results in a checkout, else ddfm_fast_bench).",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; CUDA where there is one by default.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Of kernels, step and prior, such as 512x640.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Most rounds of a measurement.")] = 40,
    seconds: Annotated[
        float | None,
        typer.Option(min=0, help="A measurement starts no round beyond the third after so long."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads for PyTorch.")] = None,
    list_sections: Annotated[
        bool, typer.Option("--list", help="Say what each section measures, and stop.")
    ] = False,
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="The GPU's sections on the CPU, interpreted: no figures."),
    ] = False,
    for_profiler: Annotated[
        bool, typer.Option("--for-profiler", help="Eight steps by each solver, for Nsight Compute.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar.")] = False,
) -> None:  # fmt: skip
    """Time this machine: how fast, against what, at what quality, how near to its limits.

    Every section first checks that ours and the authors' path (a transcription) agree, then times
    them in turn; where they do not agree no time is told and the exit code is 1. Limits (copy,
    matrix product) are measured in the same run. Medians, with 20th and 80th percentile.
    """
    _require_extra(report)
    if compare:
        raise typer.Exit(_compare(*compare, threshold))
    from ddfm_fast.bench import runner
    from ddfm_fast.bench.machine import RESULTS

    if list_sections:
        for name, module in runner.SECTIONS.items():
            typer.echo(f"{name:<11} {module.ABOUT}")
        return
    folder = out or RESULTS
    if from_result:
        from ddfm_fast.bench.results import load

        _write_report(load(from_result), from_result.with_suffix(".html"), folder)
        return
    options = runner.Options(
        tuple(sections or ()), quick, rehearse, device, _size(size), repeats, seconds, threads
    )
    if for_profiler:
        from ddfm_fast.bench.sections.step import eight_steps

        eight_steps(runner.make_place(options))
        return
    keep = _Keep(folder) if save or report else None
    progress = not quiet and sys.stderr.isatty()
    found = runner.run(options, progress=progress, keep=keep or (lambda report: None))
    _tell(found)
    if keep:
        typer.echo(f"wrote {keep.path}")
    if report:
        _write_report(found, keep.path.with_suffix(".html"), folder)
    if not found.green:
        raise typer.Exit(1)


class _Keep:
    """Writes the result after every measurement: a run that is stopped keeps what it has."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, None

    def __call__(self, report: Report) -> None:
        from ddfm_fast.bench import results, runner

        self.path = self.path or runner.path_for(report, self.folder)
        results.save(report, self.path)


def _require_extra(report: bool) -> None:
    """Before anything is measured: ImportError that says what to install."""
    try:
        import ddfm_fast.bench.sections  # noqa: F401

        if report:
            import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("matplotlib", "skimage", "scipy"):
            raise
        raise ImportError(
            f"the benchmarks need {error.name}, which is not installed: "
            'pip install "ddfm_fast[bench]"'
        ) from None


def _compare(old: Path, new: Path, threshold: float | None) -> int:
    from ddfm_fast.bench import compare, results

    reports = results.load(old), results.load(new)
    changes = compare.compare(*reports, threshold)
    if not changes:
        raise ValueError(f"{str(old)!r} and {str(new)!r} have no measurement in common")
    typer.echo(compare.text(*reports, changes))
    return int(any(change.verdict in ("slower", "red") for change in changes))


def _tell(report: Report) -> None:
    from ddfm_fast.bench import runner, table

    typer.echo(table.text(report))
    for line in runner.red(report.measurements):
        typer.echo(f"RED: {line}", err=True)


def _write_report(report: Report, page: Path, folder: Path) -> None:
    from ddfm_fast.bench.page import write_all

    for path in write_all(report, page, folder):
        typer.echo(f"wrote {path}")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--size is {text!r}; expected HEIGHTxWIDTH, such as 512x640")
    return int(height), int(width)
