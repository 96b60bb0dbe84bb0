"""Methods side by side: who is best, how surely, and by how much a mean may be off."""

from __future__ import annotations

import math
from string import ascii_lowercase
from typing import NamedTuple

import numpy as np
import torch

from .conventions import lower
from .evaluation import Evaluation, MethodScores

BOOTSTRAPS = 2000
_SEED = 20
CRITICAL = {
    2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164,
    11: 3.219, 12: 3.268, 13: 3.313, 14: 3.354, 15: 3.391, 16: 3.426, 17: 3.458, 18: 3.489,
    19: 3.517, 20: 3.544,
}  # fmt: skip
"""q at .05 of Nemenyi's test by the number of methods (to 10 Demšar 2006, table 5a; then SciPy's
``studentized_range`` over the root of 2)"""


class Marks(NamedTuple):
    """Names of the methods with the best mean of a column, and of those with the second best."""

    best: tuple[str, ...]
    second: tuple[str, ...]


class Ranks(NamedTuple):
    """Ranks of the methods in a column, over the pairs; 1 is best, ties share their mean."""

    mean: list[float]
    """of each method"""
    p: float
    """of Friedman's test: the chance of such ranks if the methods are equally good"""


def marked(evaluation: Evaluation) -> dict[str, Marks]:
    """Name the best and the second best mean of each column; equal means share a mark.

    A method most of whose results are near copies of a source does not compete. Nothing is marked
    for a single method, nor if all are equal.
    """
    fair = [m for m in evaluation.methods if not _copies(m, len(evaluation.pairs))]
    found: dict[str, Marks] = {}
    for column in evaluation.columns:
        means = {m.name: x for m in fair if math.isfinite(x := m.mean(column))}
        groups: list[list[str]] = []
        for name in sorted(means, key=lambda n: means[n] if lower(column) else -means[n]):
            if groups and math.isclose(means[groups[-1][0]], means[name], rel_tol=1e-9):
                groups[-1].append(name)
            else:
                groups.append([name])
        first, second, *_ = (*map(tuple, groups), (), ())
        found[column] = Marks(first, second) if len(groups) > 1 else Marks((), ())
    return found


def _copies(method: MethodScores, pairs: int) -> bool:
    return 2 * len(method.near_copies) > pairs


def ranks(evaluation: Evaluation, column: str) -> Ranks | None:
    """Rank the methods by a column, pair by pair; None for a single method or pair.

    Friedman's chi-square with the correction for ties, as ``scipy.stats.friedmanchisquare`` has it.
    """
    scores = np.array([m.values[column] for m in evaluation.methods])
    methods, pairs = scores.shape
    if methods < 2 or pairs < 2 or not np.isfinite(scores).all():
        return None
    sign = 1 if lower(column) else -1
    ranked = np.array([_ranked(sign * scores[:, n]) for n in range(pairs)])
    mean = ranked.mean(0)
    ties = sum(float((c**3 - c).sum()) for row in ranked for c in [_counts(row)])
    spread = 1 - ties / (methods * (methods**2 - 1) * pairs)
    if spread <= 0:  # all are equal everywhere
        return Ranks(mean.tolist(), 1.0)
    square = 12 * pairs / (methods * (methods + 1)) * (mean**2).sum() - 3 * pairs * (methods + 1)
    half = torch.tensor([(methods - 1) / 2, max(0.0, square / spread) / 2], dtype=torch.float64)
    return Ranks(mean.tolist(), float(torch.special.gammaincc(half[0], half[1])))


def _ranked(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1; ties share their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def _counts(row: np.ndarray) -> np.ndarray:
    return np.unique(row, return_counts=True)[1].astype(float)


def critical_difference(methods: int, pairs: int) -> float | None:
    """Return the difference of mean ranks from which two methods differ (Nemenyi, .05).

    None for numbers of methods that the table of the test lacks.
    """
    if methods not in CRITICAL or pairs < 2:
        return None
    return CRITICAL[methods] * math.sqrt(methods * (methods + 1) / (6 * pairs))


def groups(evaluation: Evaluation, found: Ranks) -> list[list[str]]:
    """Group the methods that Nemenyi's test does not tell apart, best mean rank first.

    Each group is as large as possible, so a method may be in several; two methods differ if no
    group has both. All are one group if Friedman's test finds no difference; the list is empty if
    there is no critical difference.
    """
    names = [m.name for m in evaluation.methods]
    far = critical_difference(len(names), len(evaluation.pairs))
    if far is None:
        return []
    order = sorted(range(len(names)), key=lambda n: found.mean[n])
    if found.p >= 0.05:
        return [[names[n] for n in order]]
    whole: list[list[int]] = []
    for place, first in enumerate(order):
        near = [n for n in order[place:] if found.mean[n] - found.mean[first] < far]
        if not whole or near[-1] not in whole[-1]:
            whole.append(near)
    return [[names[n] for n in group] for group in whole]


def letters(evaluation: Evaluation, column: str) -> list[str]:
    """Give each method the letters of its groups, "a" the best: those that share none differ.

    Letters are empty if Friedman's test finds no difference, or if Nemenyi's cannot be done.
    """
    none = ["" for _ in evaluation.methods]
    if (found := ranks(evaluation, column)) is None or found.p >= 0.05:
        return none
    named = list(zip(ascii_lowercase, groups(evaluation, found), strict=False))
    return ["".join(a for a, group in named if m.name in group) for m in evaluation.methods]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Find the 95 % confidence interval of a mean over pairs, by 2000 bootstraps of one seed."""
    values = np.asarray(values, np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan, math.nan
    rng = np.random.default_rng(_SEED)
    means = values[rng.integers(0, len(values), (BOOTSTRAPS, len(values)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def verdict(evaluation: Evaluation) -> list[str]:
    """Say in sentences how surely the methods differ; nothing for one method or one pair."""
    found = {c: r for c in evaluation.columns if (r := ranks(evaluation, c)) is not None}
    if not found:
        return []
    differ = [c for c, r in found.items() if r.p < 0.05]
    rows = [
        f"mean ranks over {len(evaluation.pairs)} pairs (1 is best); Friedman's test at .05: "
        + (f"the methods differ in {', '.join(differ)}" if differ else "no column tells them apart")
    ]
    far = critical_difference(len(evaluation.methods), len(evaluation.pairs))
    if far is not None and differ:
        rows.append(
            f"two methods differ if their mean ranks differ by {far:.2f} (Nemenyi, .05): those "
            "that share no letter"
        )
    return rows
