"""Four minutes of figures on a GPU, the most telling first: ``python -m bench.numbers``.

This is the benchmark (``python -m bench``) in another order and with a time limit. After each
measurement its rows are printed and the one JSON file is written, whole, in the format of
``results.py``; its setting "left_out" lists what there was no time for.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from . import machine, results, runner, table
from .place import Task
from .results import Report

FIRST: Sequence[tuple[str, str, str]] = (
    ("host", "preset fast", ""),
    ("step", "", "512x640"),
    ("prior", "embedded", "512x640"),
    ("host", "", ""),
    ("official", "forward, bfloat16, batch 1", "512x640"),
    ("loop", "", ""),
    ("official", "whole loop", ""),
    ("prior", "embedded by torch.compile", ""),
    ("waterfall", "", ""),
    ("step", "", "1088x1920"),
    ("prior", "", ""),
    ("step", "", ""),
    ("official", "layers", ""),
    ("kernels", "", "512x640"),
    ("startup", "", ""),
    ("throughput", "", ""),
    ("official", "forward by torch.compile", "512x640"),
)
"""sections, a word of the measurement's name, its size; "" stands for all"""
SECTIONS = tuple(dict.fromkeys(section for section, *_ in FIRST))


def most_telling(tasks: list[Task], sizes: bool = True) -> list[Task]:
    """Return the tasks that ``FIRST`` has, in its order; of any size without ``sizes``.

    "forward by torch.compile" compiles for minutes, and comes where it has a row of its own.
    """
    found: list[Task] = []
    for section, word, size in FIRST:
        for task in tasks:
            compiles = "torch.compile" in task.name and "torch.compile" not in word
            fits = task.section == section and word in task.name
            fits = fits and (size in task.size or not sizes)
            if fits and not compiles and task not in found:
                found.append(task)
    return found


class Told:
    """Prints the rows of the last measurement, and saves all of them."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, None

    def __call__(self, report: Report) -> None:
        self.path = self.path or runner.path_for(report, self.folder)
        results.save(report, self.path)
        last = report.measurements[-1]
        rows = [table.cells(last, name) for name in last.candidates]
        for row in rows if last.green else [table.red_cells(last)]:
            print(" | ".join(cell for cell in row if cell), flush=True)
        for name, value in last.facts.items():
            print(f"    {name}: {str(value)[:300]}", flush=True)


app = typer.Typer(add_completion=False)


@app.command()
def main(
    within: Annotated[float, typer.Option(help="No measurement starts after so many s.")] = 220,
    seconds: Annotated[float, typer.Option(help="Of a measurement: no round after so many.")] = 3,
    repeats: Annotated[int, typer.Option(help="Rounds of a measurement, at most.")] = 20,
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = machine.RESULTS,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Tiny sizes, a round each: no figure means anything.")
    ] = False,
) -> None:
    """Measure what matters on this GPU, within minutes."""
    device = "cuda" if torch.cuda.is_available() else None
    options = runner.Options(
        SECTIONS, rehearse=rehearse, device=device, repeats=repeats, seconds=seconds
    )
    tell = Told(out)
    warnings.simplefilter("ignore")  # torch.compile's warnings would come between the rows
    order = partial(most_telling, sizes=not rehearse)
    report = runner.run(options, progress=False, keep=tell, order=order, within=within)
    for line in runner.red(report.measurements):
        print(f"RED: {line}")
    for line in report.settings["left_out"]:
        print(f"left out: {line}")
    print(f"wrote {tell.path}" if tell.path else "nothing was measured in the time")
    sys.exit(not report.green)


if __name__ == "__main__":
    app(prog_name="python -m bench.numbers")
