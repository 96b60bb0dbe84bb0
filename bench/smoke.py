"""A minute on a GPU: does it give the CPU's pictures, for every solver, precision, graph, preset?

Each case fuses picture A (eagerly), then B (captured, if graphs are on), then A again (replayed
on what the capture has not seen), and compares each with a CPU's float32 result, which is in
``results/smoke.npz``; ``python -m bench.smoke --record`` makes that file again, on any machine.
Every line is written as it comes; a fault is a block of text to paste into a report.
"""

from __future__ import annotations

import io
import logging
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer

from ddfm_fast.files.paths import atomic_write_bytes
from ddfm_fast.runtime.dispatch import resolve_device

from . import machine
from .smoke_cases import LEVELS, SCENES, Case, Scene, Way, cases, fused, fuser_of

RECORDED = machine.FOLDER / "results" / "smoke.npz"
EXACT = (0.003, 0.03)
"""gray levels, mean and largest, by which a float32 picture may be off: 50 times what one unit in
the last place of the sources changes (.00006 and .0006), and less than half of the least that
float16 changes (.008 in the mean), so that TF32, which rounds as much, shows. A picture recorded in
16 bits is itself off by .001 in the mean"""
LOW = 3
"""in float16 and bfloat16: multiple of what that precision changes on a CPU, which is recorded
beside each picture; rounding is of the same size, in another order"""
FINER = 0.01
"""in float32: share of what float16 changes on a CPU, if that is more than ``EXACT``; its rounding
is 8192 times finer, and a network with random weights amplifies it"""
PRECISIONS = ("float16", "bfloat16")
PICTURES = ("A", "B")


class Wrong(RuntimeError):
    """A picture, or the way it was made, is not as it should be."""


class Tally(NamedTuple):
    """How a run went: names of the cases."""

    right: list[str]
    wrong: list[str]
    left_out: list[str]


def limits(case: Case, recorded: dict[str, np.ndarray]) -> tuple[float, float]:
    """Return by how much a case may be off, in gray levels: mean and largest."""
    mean, largest = EXACT
    if case.scene.prior != "waves":
        low = case.way.precision in PRECISIONS
        lost = recorded[f"{case.scene.name}/lost"]
        lost = LOW * lost[PRECISIONS.index(case.way.precision)] if low else FINER * lost[0]
        mean, largest = max(mean, float(lost[0])), max(largest, float(lost[1]))
    return mean, largest + case.scene.color  # rounding to uint8 may go the other way


def attempt(
    case: Case, device: torch.device, recorded: dict[str, np.ndarray], judge: bool = True
) -> Iterator[tuple[float, float]]:
    """Fuse three times; yield the mean and largest difference of each call.

    Raises Wrong if a picture is off by more than ``limits`` (with ``judge``) or nothing was
    captured, and whatever the fuser raises.
    """
    most, fuser = limits(case, recorded), fuser_of(case.scene, case.way, device)
    for call, picture in (("first", "A"), ("second", "B"), ("third", "A")):
        got = fused(fuser, case.scene, picture)
        expected = levels_of(recorded[f"{case.scene.name}/{picture}"])
        if got.shape != expected.shape:
            raise Wrong(f"expected: shape {expected.shape}\ngot:      shape {got.shape}")
        apart = np.abs(got - expected)
        found = float(apart.mean()), float(apart.max())
        yield found
        if judge and not (found[0] <= most[0] and found[1] <= most[1]):  # NaN too
            raise Wrong(
                f"call:     the {call}, picture {picture}\n" + difference(got, expected, most)
            )
    if case.way.backend == "auto" and fuser.backend.name != "triton":
        raise Wrong(f"expected: the backend 'triton'\ngot:      {fuser.backend}")
    if not judge and case.scene.prior == "waves":
        return  # a callable is captured only if its replay gives the right numbers
    modes = {graph["mode"] for graph in fuser.loops.summary()}
    wanted = case.way.graph if case.scene.graph == "loop" else case.scene.graph
    if case.way.graph in ("loop", "step") and wanted and wanted not in modes:
        raise Wrong(f"expected: a captured graph {wanted!r}\ngot:      {sorted(modes) or 'none'}")


def levels_of(kept: np.ndarray) -> np.ndarray:
    """Return the gray levels of a recorded picture."""
    return kept.astype(np.float32) * (LEVELS / np.iinfo(kept.dtype).max)


def difference(got: np.ndarray, expected: np.ndarray, most: tuple[float, float]) -> str:
    """Describe how far, where and how much of a picture is off."""
    apart = np.abs(got - expected)
    worst = np.unravel_index(int(np.argmax(np.nan_to_num(apart, nan=np.inf))), apart.shape)
    beyond = 100 * np.mean(~(apart <= most[1]))
    return (
        f"expected: the CPU's picture, off by at most {most[0]:.4f} gray levels in the mean, "
        f"{most[1]:.3f} anywhere\n"
        f"got:      {apart.mean():.4f} in the mean, {apart.max():.3f} anywhere; at [image, row, "
        f"column] {[int(n) for n in worst]} {got[worst]:.3f} in place of {expected[worst]:.3f}\n"
        f"          {beyond:.1f} % of the pixels beyond, {int(np.isnan(got).sum())} NaN"
    )


def fault(case: Case, error: Exception, device: torch.device, notes: list[str]) -> str:
    """Return the block of text that goes into a report."""
    card = machine.machine(device)
    lines = ["==== smoke: a fault, to be pasted whole ====", f"case:     {case}"]
    lines += [str(error)] if isinstance(error, Wrong) else [f"raised:   {type(error).__name__}"]
    lines += [
        f"scene:    {case.scene}",
        "machine:  " + ", ".join(f"{k} {v}" for k, v in card.items()),
    ]
    lines += [f"said:     {note}" for note in dict.fromkeys(notes)]
    if not isinstance(error, Wrong):
        lines.append("".join(traceback.format_exception(error)).rstrip())
    before = "CUDA_LAUNCH_BLOCKING=1 " if "CUDA" in str(error) else ""
    lines.append(f"repeat:   {before}python -m bench.smoke --only {shlex.quote(str(case))}")
    return "\n".join([*lines, "==== end of the fault ===="])


class _Notes(logging.Handler):
    """Keeps what the package logs and warns about."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def run(
    chosen: list[Case], device: torch.device, *, seconds: float, judge: bool, go_on: bool
) -> Tally:
    """Try the cases in order, one line each; no case starts after ``seconds``."""
    recorded = load()
    started, tally = time.monotonic(), Tally([], [], [])
    for n, case in enumerate(chosen):
        if time.monotonic() - started > seconds or (tally.wrong and not go_on):
            tally.left_out.extend(map(str, chosen[n:]))
            break
        print(f"{n + 1:3d}/{len(chosen)} {case} ", end="", flush=True)  # names a case that hangs
        at = time.monotonic()
        offs, block = _try(case, device, recorded, judge)
        (tally.wrong if block else tally.right).append(str(case))
        numbers = " ".join(f"{mean:.4f}/{largest:.3f}" for mean, largest in offs)
        verdict = "WRONG" if block else "ok"
        print(f"| {verdict} | off {numbers} | {time.monotonic() - at:.1f} s", flush=True)
        if block:
            print(block, flush=True)
            if not _alive(device):
                print("the device does not answer any more; nothing else can be tried")
                tally.left_out.extend(map(str, chosen[n + 1 :]))
                break
    return tally


def _try(case: Case, device: torch.device, recorded, judge: bool) -> tuple[list, str]:
    """Return how far off each call is, and the block of text of a fault, if any."""
    offs: list[tuple[float, float]] = []
    notes, log = _Notes(), logging.getLogger("ddfm_fast")
    log.addHandler(notes)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            offs.extend(attempt(case, device, recorded, judge))
        return offs, ""
    except Exception as error:  # whatever it is belongs in the report
        return offs, fault(case, error, device, notes.lines + [str(w.message) for w in said])
    finally:
        log.removeHandler(notes)


def _alive(device: torch.device) -> bool:
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return True
    except RuntimeError:
        return False


def load(path: Path = RECORDED) -> dict[str, np.ndarray]:
    """Return the recorded pictures, by scene and picture; FileNotFoundError if they are not."""
    if not path.is_file():
        raise FileNotFoundError(
            f"there are no recorded pictures {path.name!r}; expected a checkout that has them, or "
            "make them: python -m bench.smoke --record"
        )
    with np.load(path) as archive:
        return dict(archive)


def record(names: list[str]) -> dict[str, np.ndarray]:
    """Return a CPU's pictures in float32 with 16 bits, and what the low precisions change there.

    The changes are mean and largest over both pictures, on a corner of a large scene: a CPU without
    such arithmetic takes minutes for the whole.
    """
    found: dict[str, np.ndarray] = {}
    for scene in (SCENES[name] for name in names):
        for picture, levels in _on_cpu(scene).items():
            depth = np.uint8 if scene.color else np.uint16
            whole = np.round(levels * (np.iinfo(depth).max / LEVELS))
            found[f"{scene.name}/{picture}"] = whole.astype(depth)
        print(f"recorded {scene.name}", flush=True)
        if scene.prior == "waves":
            continue
        corner = scene if scene.every == 1 else scene._replace(size=(64, 80), every=1)
        exact, lost = _on_cpu(corner), []
        for precision in PRECISIONS:
            low = _on_cpu(corner, precision)
            apart = [np.abs(low[picture] - exact[picture]) for picture in PICTURES]
            lost.append([max(a.mean() for a in apart), max(a.max() for a in apart)])
        found[f"{scene.name}/lost"] = np.array(lost, np.float32)
    return found


def _on_cpu(scene: Scene, precision: str = "float32") -> dict[str, np.ndarray]:
    way = Way(precision, "torch", "torch", "off")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CPU that converts to a low precision says so
        fuser = fuser_of(scene, way, torch.device("cpu"))
        return {picture: fused(fuser, scene, picture) for picture in PICTURES}


app = typer.Typer(add_completion=False)


@app.command()
def main(
    device: Annotated[str | None, typer.Option(help="cuda, cuda:N or cpu.")] = None,
    only: Annotated[str, typer.Option(help="Cases whose name has this in it.")] = "",
    seconds: Annotated[float, typer.Option(help="No case starts after so long.")] = 55,
    small: Annotated[bool, typer.Option("--small", help="Few cases, for a slow device.")] = False,
    go_on: Annotated[bool, typer.Option("--go-on", help="Do not stop at a fault.")] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="The device computes nothing: all but the pixels.")
    ] = False,
    list_cases: Annotated[bool, typer.Option("--list", help="Print the cases and leave.")] = False,
    make: Annotated[bool, typer.Option("--record", help="Record the CPU's pictures.")] = False,
) -> None:
    """Compare this device's pictures with the recorded ones of a CPU."""
    if make:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **record(list(SCENES)))
        typer.echo(f"wrote {atomic_write_bytes(RECORDED, buffer.getvalue())}")
        return
    where = resolve_device(device)
    chosen = [case for case in cases(where, small) if only in str(case)]
    if list_cases:
        return typer.echo("\n".join(map(str, chosen)))
    if not chosen:
        typer.echo(f"error: --only is {only!r}; expected a part of a line of --list", err=True)
        raise typer.Exit(2)
    tally = run(chosen, where, seconds=seconds, judge=not rehearse, go_on=go_on)
    counts = zip(("right", "wrong", "not tried"), map(len, tally), strict=True)
    note = " (a rehearsal: no pixel was looked at)" if rehearse else ""
    print("smoke: " + ", ".join(f"{count} {what}" for what, count in counts) + note)
    for name in tally.left_out[:20]:
        print(f"  not tried: {name}")
    sys.exit(bool(tally.wrong))


if __name__ == "__main__":
    app(prog_name="python -m bench.smoke")
