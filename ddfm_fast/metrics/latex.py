"""The table of an evaluation for a paper."""

from __future__ import annotations

from .evaluation import Evaluation
from .ranking import Marks, marked

_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}",
    "±": "$\\pm$", "∞": "$\\infty$", "–": "--", "↓": "$\\downarrow$",
}  # fmt: skip


def latex(
    evaluation: Evaluation, caption: str, headings: list[str], rows: list[tuple[str, list[str]]]
) -> str:
    """Write a table of ``booktabs``: the best mean of a column bold, the second underlined.

    Args:
        evaluation: From :func:`.evaluation.evaluate`.
        caption: Under the table.
        headings: Of the columns.
        rows: Label and cells, formatted: of the methods in their order, then others.
    """
    best, columns = marked(evaluation), evaluation.columns
    names = {m.name for m in evaluation.methods}
    lines = [
        "% needs \\usepackage{booktabs}",
        *(f"% note: {' '.join(warning.split())}" for warning in evaluation.warnings),
        "\\begin{table}",
        "\\centering",
        f"\\begin{{tabular}}{{l{'r' * len(columns)}}}",
        "\\toprule",
        " & ".join(["", *map(escaped, headings)]) + " \\\\",
        "\\midrule",
    ]
    for label, cells in rows:
        shown = [
            _marked(escaped(cell), label if label in names else "", best[column])
            for column, cell in zip(columns, cells, strict=True)
        ]
        lines.append(" & ".join([escaped(label), *shown]) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}", f"\\caption{{{escaped(caption)}.}}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Write text so that LaTeX shows it as it is."""
    shown = "".join(_SPECIAL.get(c, c) for c in text)
    # at the start of a row these two would be arguments of the line break before it
    return f"{{{shown[0]}}}{shown[1:]}" if shown[:1] in ("[", "*") else shown


def _marked(cell: str, method: str, best: Marks) -> str:
    if method in best.best:
        return f"\\textbf{{{cell}}}"
    return f"\\underline{{{cell}}}" if method in best.second else cell
