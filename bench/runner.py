"""A run: choose, check, measure, print, save."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ddfm_fast.runtime import environment

from . import machine
from .place import ParityError, Place, Task
from .results import Measurement, Report, free_path
from .sections import SECTIONS

QUICK_S, FULL_S = 0.7, 20.0


@dataclass(frozen=True)
class Options:
    """What to run. ``seconds``: after this time, a measurement starts no round beyond the third."""

    sections: tuple[str, ...] = ()
    quick: bool = False
    rehearse: bool = False
    device: str | None = None
    size: tuple[int, int] | None = None
    repeats: int = 40
    seconds: float | None = None
    threads: int | None = None

    def __post_init__(self):
        if unknown := [name for name in self.sections if name not in SECTIONS]:
            raise ValueError(
                f"section is {unknown[0]!r}; expected some of {', '.join(SECTIONS)}, "
                "or none for all"
            )
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if self.rehearse and not interpreted and not (self.device or "").startswith("cuda"):
            raise ValueError(
                "--rehearse runs the GPU's sections in Triton's interpreter; "
                "start it with TRITON_INTERPRET=1 in the environment"
            )
        if self.size and min(self.size) < 16:
            raise ValueError(f"--size is {self.size[0]}x{self.size[1]}; expected at least 16x16")


def make_place(options: Options) -> Place:
    """Return the device and its time limits; ValueError if there is no such device."""
    from ddfm_fast.runtime.dispatch import resolve_backend, resolve_device

    device = resolve_device(options.device or ("cpu" if options.rehearse else None))
    if device.type == "cuda":
        resolve_backend(device, "triton")  # says what is missing before anything is timed
    limit = options.seconds or (QUICK_S if options.quick else FULL_S)
    return Place(device, options.quick, options.rehearse, options.repeats, limit, options.size)


def tasks(options: Options, place: Place) -> list[Task]:
    names = options.sections or tuple(SECTIONS)
    return [task for name in names for task in SECTIONS[name].tasks(place)]


def run(
    options: Options,
    *,
    progress: bool = True,
    keep: Callable[[Report], object] = lambda _: None,
    order: Callable[[list[Task]], list[Task]] = list,
    within: float = math.inf,
) -> Report:
    """Measure everything chosen. What is red or fails is noted; the rest is still measured.

    ``keep`` is called with the report after each measurement. ``order`` chooses from the tasks and
    puts them in order; none starts after ``within`` seconds. ``settings["left_out"]`` lists what a
    stopped run did not reach.
    """
    from tqdm.auto import tqdm

    if options.threads:
        torch.set_num_threads(options.threads)
    started, place = time.monotonic(), make_place(options)
    place.measure_ceilings()
    settings = asdict(options) | {"device": str(place.device)}
    report = Report(machine.machine(place.device), place.ceilings, settings)
    todo = order(tasks(options, place))
    left = [f"{task.section}: {task.name}, {task.size}" for task in todo]
    report.settings["left_out"] = left
    with tqdm(todo, unit="measurement", disable=not progress, file=sys.stderr, leave=False) as bar:
        place.tick = bar.refresh
        for task in bar:
            if time.monotonic() - started > within:
                break
            bar.set_description(f"{task.section}: {task.name}"[:60])
            report.measurements.append(measure(task, place))
            report.settings["left_out"] = left[len(report.measurements) :]
            keep(report)
            if place.device.type == "cuda":
                torch.cuda.empty_cache()
    return report


def measure(task: Task, place: Place) -> Measurement:
    """Return the task's measurement; with red checks or a failure, it has no times."""
    place.yardstick = []
    where = {"section": task.section, "name": task.name, "size": task.size}
    where["command"] = place.command(task.section, task.size)
    try:
        found = task.work()
        return replace(found, **where, yardstick=place.yardstick)
    except ParityError as error:
        return Measurement(**where, parity=error.parity)
    except Exception as error:  # a failing section must not cost the others' results
        if environment.is_on("DDFM_FAST_DEBUG"):
            raise
        first = str(error).strip().split("\n")[0]
        return Measurement(**where, failed=f"{type(error).__name__}: {first}")


def path_for(report: Report, folder: Path) -> Path:
    """Return where to save a report: the device's name and the date, never an existing file."""
    name = machine.device_name(report.machine)
    if report.settings.get("rehearse"):
        name = "rehearsal"
    elif report.settings.get("quick"):
        name += "-quick"
    return free_path(folder, name, report.date[:10])


def red(measurements: Sequence[Measurement]) -> list[str]:
    """Return a line for every check or measurement that failed."""
    broken = [f"{', '.join(m.key)}: {m.failed}" for m in measurements if m.failed]
    return broken + [
        f"{', '.join(m.key)}: {p.what} differs by {p.difference:.1e}, more than {p.limit:.0e}"
        for m in measurements
        for p in m.parity
        if not p.green
    ]
