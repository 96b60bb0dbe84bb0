"""What a training run leaves to look at: its log of losses and the curve drawn from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..atomic import atomic_path


def log_path(out: Path) -> Path:
    """Return where the losses of the run that makes ``out`` are logged."""
    return out.with_suffix(".log.jsonl")


def curve_path(out: Path) -> Path:
    """Return where the curve of the run that makes ``out`` is drawn."""
    return out.with_suffix(".curve.png")


def draw_curve(log: Path, target: Path) -> bool:
    """Draw the held-out losses of a log by step; False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines = _entries(log)
    if not lines:
        return False
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.add_subplot(
        xlabel="updates", ylabel="mean squared error of eps", title="held-out loss by range of t"
    )
    steps = [line["step"] for line in lines]
    for key in lines[0]["heldout"]:
        losses = [line["heldout"][key] for line in lines]
        style = {"color": "black", "linewidth": 2} if key == "all" else {}
        axis.loglog(steps, losses, label="all t" if key == "all" else f"t {key}", **style)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    return True


def append_line(path: Path, line: str) -> None:
    """Add a line to the log, whole or not at all.

    Raises:
        ValueError: It cannot be written.
    """
    try:
        with path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            left = memoryview(line.encode() + b"\n")
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} cannot be written ({error.strerror}); make room, and resume"
        ) from error


def trim_log(path: Path, step: int) -> None:
    """Drop the log lines past a step, which a resumed run writes again, and what a kill cut off."""
    kept = [entry for entry in _entries(path) if entry["step"] <= step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept))


def _entries(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a log; none if there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # after the last line end: a torn line
