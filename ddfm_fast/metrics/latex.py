"""The table of an evaluation for a paper."""

from __future__ import annotations

from .evaluation import Evaluation
from .ranking import letters, marked
from .task_tables import shown
from .tasks import TaskScores

_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}",
    "±": "$\\pm$", "∞": "$\\infty$", "–": "--", "↓": "$\\downarrow$",
}  # fmt: skip


def latex(
    evaluation: Evaluation, caption: str, headings: list[str], rows: list[tuple[str, list[str]]]
) -> str:
    """Write a table of ``booktabs``: the best mean of a column bold, the second underlined.

    Raised letters are Nemenyi's groups. What networks found is in a table of its own each.

    Args:
        evaluation: From :func:`.evaluation.evaluate`.
        caption: Under the table.
        headings: The columns' headings.
        rows: Label and formatted cells: the methods in their order, then others.
    """
    best, columns = marked(evaluation), evaluation.columns
    names = [m.name for m in evaluation.methods]
    grouped = {
        column: dict(zip(names, letters(evaluation, column), strict=True)) for column in columns
    }
    written = []
    for label, cells in rows:
        name = label if label in names else ""
        cells = [
            _marked(escaped(cell), name in best[c].best, name in best[c].second)
            + _raised(grouped[c].get(name, ""))
            for c, cell in zip(columns, cells, strict=True)
        ]
        written.append([label, *cells])
    lines = [
        "% needs \\usepackage{booktabs}",
        *(f"% note: {' '.join(warning.split())}" for warning in evaluation.warnings),
        *_table(headings, written, caption),
    ]
    for task in evaluation.tasks:
        lines += ["", *_task_table(task)]
    return "\n".join(lines) + "\n"


def _task_table(task: TaskScores) -> list[str]:
    rows = []
    for name, row in task.rows.items():
        marks = task.marks(name)
        cells = [
            _marked(escaped(shown(row[c])), marks.get(c) == "best", marks.get(c) == "second")
            for c in task.columns
        ]
        rows.append([name, *cells])
    return _table(list(task.columns), rows, task.caption)


def _table(headings: list[str], rows: list[list[str]], caption: str) -> list[str]:
    """Write one table; ``rows``: labels that must be escaped, and cells that are LaTeX."""
    return [
        "\\begin{table}",
        "\\centering",
        f"\\begin{{tabular}}{{l{'r' * len(headings)}}}",
        "\\toprule",
        " & ".join(["", *map(escaped, headings)]) + " \\\\",
        "\\midrule",
        *(" & ".join([escaped(label), *cells]) + " \\\\" for label, *cells in rows),
        "\\bottomrule",
        "\\end{tabular}",
        f"\\caption{{{escaped(caption)}.}}",
        "\\end{table}",
    ]


def escaped(text: str) -> str:
    """Write text so that LaTeX shows it as it is."""
    shown = "".join(_SPECIAL.get(c, c) for c in text)
    # at the start of a row these two would be arguments of the line break before it
    return f"{{{shown[0]}}}{shown[1:]}" if shown[:1] in ("[", "*") else shown


def _marked(cell: str, best: bool, second: bool) -> str:
    if best:
        return f"\\textbf{{{cell}}}"
    return f"\\underline{{{cell}}}" if second else cell


def _raised(groups: str) -> str:
    return f"$^{{{groups}}}$" if groups else ""
