"""``ddfm-fast bench``, and ``python -m bench`` in a checkout.

This module alone reaches ``ddfm_fast.bench``, which nothing else of the package knows: the
benchmarks stand above it, and their dependencies are an extra.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..runtime.streams import guarded
from . import bench_options as own
from . import options as opt
from .command import register
from .errors import SOME_FAILED
from .options import default
from .settings import show_progress

if TYPE_CHECKING:
    from ddfm_fast.bench.results import Report
    from ddfm_fast.bench.runner import Options

EPILOG = (
    "Examples:  `ddfm-fast bench --quick`  |  `ddfm-fast bench step prior`  |  "
    "`ddfm-fast bench --save --report`  |  `ddfm-fast bench --compare OLD.json NEW.json`"
)


def main(program: str) -> None:
    """Entry point of ``python -m bench``."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    register(app, bench, EPILOG)
    with guarded():
        app(prog_name=program)


def bench(
    sections: own.Sections = None,
    *,
    compare: own.Compare = None,
    threshold: own.Threshold = None,
    from_result: own.FromResult = None,
    quick: own.Quick = False,
    size: own.Size = None,
    repeats: own.Repeats = 40,
    seconds: own.Seconds = None,
    rehearse: own.Rehearse = False,
    for_profiler: own.ForProfiler = False,
    save: own.Save = False,
    report: own.WriteReport = False,
    out: own.OutResults = None,
    list_sections: own.ListSections = False,
    quiet: own.NoBar = False,
    device: opt.Device = default.device,
    threads: own.Threads = None,
) -> None:
    """Time this machine: how fast, against what, at what quality, how near to its limits.

    Every section first checks that our path and the authors' path (a reimplementation) agree,
    then times them in turn; if they disagree, no timing is reported and the exit code is 1. Limits
    (copy, matrix product) are measured in the same run. Times are medians, with percentiles 20, 80.
    """
    _require_extra(report)
    if compare:
        raise typer.Exit(_compare(*compare, threshold))
    from ddfm_fast.bench import runner
    from ddfm_fast.bench.machine import RESULTS

    folder = out or RESULTS
    if list_sections:
        return _list_sections()
    if from_result:
        return _show_result(from_result, folder)
    options = runner.Options(
        tuple(sections or ()), quick, rehearse, device, _size(size), repeats, seconds, threads
    )
    if for_profiler:
        from ddfm_fast.bench.sections.step import eight_steps

        return eight_steps(runner.make_place(options))
    keep = _Keep(folder) if save or report else None
    _measure(options, keep, quiet=quiet, report=report)


def _list_sections() -> None:
    from ddfm_fast.bench import runner

    for name, module in runner.SECTIONS.items():
        typer.echo(f"{name:<11} {module.ABOUT}")


def _show_result(path: Path, folder: Path) -> None:
    from ddfm_fast.bench.results import load

    _write_report(load(path), path.with_suffix(".html"), folder)


def _measure(options: Options, keep: _Keep | None, *, quiet: bool, report: bool) -> None:
    """Run what was chosen, print it, write what was requested; exit 1 if something is red."""
    from ddfm_fast.bench import runner, table

    found = runner.run(options, progress=show_progress(quiet), keep=keep or (lambda _report: None))
    typer.echo(table.text(found))
    for line in runner.red(found.measurements):
        typer.echo(f"RED: {line}", err=True)
    if keep is not None and keep.path is not None:
        typer.echo(f"wrote {keep.path}")
        if report:
            _write_report(found, keep.path.with_suffix(".html"), keep.folder)
    if not found.green:
        raise typer.Exit(SOME_FAILED)


class _Keep:
    """Writes the result after every measurement: a run that is stopped keeps what it has."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path: Path | None = None

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


if __name__ == "__main__":  # bench/__main__.py runs this module
    main("python -m bench")
