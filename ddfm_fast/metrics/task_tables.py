"""The scores of networks as text and as rows of files, beside the tables of metrics."""

from __future__ import annotations

import math
from typing import Any

from .evaluation import Evaluation
from .tasks import TaskScores


def text_rows(task: TaskScores) -> list[list[str]]:
    """Give the heading and a row for each method and source, formatted."""
    rows = [[name, *(shown(row[c]) for c in task.columns)] for name, row in task.rows.items()]
    return [["", *task.columns], *rows]


def shown(value: float) -> str:
    """Format with three digits, a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def csv_columns(evaluation: Evaluation) -> tuple[str, ...]:
    """Name the columns of all tasks."""
    return tuple(column for task in evaluation.tasks for column in task.columns)


def csv_cells(evaluation: Evaluation, row: str) -> list[float | str]:
    """Give the scores of a method or a source under `csv_columns`; empty if it has none."""
    return [
        task.rows.get(row, {}).get(column, "")
        for task in evaluation.tasks
        for column in task.columns
    ]


def sources(evaluation: Evaluation) -> list[str]:
    """Name the rows of tasks that are not methods: the sources alone."""
    methods = {m.name for m in evaluation.methods}
    return list(dict.fromkeys(r for t in evaluation.tasks for r in t.rows if r not in methods))


def as_dicts(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Collect everything for JSON, with None for values that are not finite."""

    def finite(row: dict[str, float]) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in row.items()}

    return [
        {
            "task": task.task,
            "network": task.network,
            "scored": task.scored,
            "rows": {name: finite(row) for name, row in task.rows.items()},
            "classes": {name: finite(row) for name, row in task.classes.items()},
            "notes": task.notes,
        }
        for task in evaluation.tasks
    ]
