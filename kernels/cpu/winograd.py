"""Winograd's filtering F(4x4, 3x3) of ``winograd.h``: the transform of weights, and its rounding.

The result of a tile is A^T [(G g G^T) * (B^T d B)] A. If the products' factors are rounded to
bfloat16 one by one, the error is five times that of a direct convolution: A^T and B^T enlarge some
errors. But errors of neighboring points cancel if they are chosen together. So each value is
rounded with the errors of those before it in mind (successive rounding by a Cholesky factor, which
is Babai's nearest plane), for inputs distributed like those of SiLU: independent, around a mean.
The inputs are rounded in the same way, but with fewer terms, since that costs time in each forward
pass (``winograd.h``).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from . import memory

POINTS = 0.0, 0.75, -0.75, 1.5, -1.5
"""the finite points; infinity follows; as in winograd.h"""
ORDER = 1, 3, 5, 4, 2, 0
"""order in which the points are rounded; as in winograd.h"""
TILE = 4
MEAN = 0.14
"""squared mean of the inputs over their variance, as for SiLU of a normal variable"""


def weights_transform() -> Tensor:
    """Make G of F(4x4, 3x3) [6, 3]: a filter's values at the points; its last tap at infinity."""
    rows = []
    for p in POINTS:
        scale = 1.0
        for q in POINTS:
            scale *= 1.0 if p == q else p - q
        rows.append([1 / scale, p / scale, p * p / scale])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64, device=memory.CPU)


def inputs_transform() -> np.ndarray:
    """Make B^T [6, 6]: coefficients, lowest first, of the product of x - q over other points."""
    found = np.zeros((6, 6))
    for i in range(6):
        others = [q for j, q in enumerate(POINTS) if j != i]
        found[i, : len(others) + 1] = np.poly(others)[::-1]
    return found


def outputs_transform() -> np.ndarray:
    """Make A^T [4, 6]: powers of the points."""
    last = np.eye(TILE)[:, -1:]
    return np.hstack([np.vander(POINTS, TILE, increasing=True).T, last])


@lru_cache(maxsize=1)
def _shares() -> tuple[Tensor, list[int]]:
    """Return how much of each earlier error a point takes on [36, 36], in the order that follows.

    The error of a tile's outputs is, on average over inputs, e^T M e of the errors e of a filter.
    """
    outputs, inputs = outputs_transform(), inputs_transform()
    outputs, inputs = np.kron(outputs, outputs), np.kron(inputs, inputs)
    seen = inputs @ (np.eye(36) + MEAN) @ inputs.T
    order = [6 * i + j for i in ORDER for j in ORDER]
    form = ((outputs.T @ outputs) * seen)[np.ix_(order, order)]
    upper = np.linalg.cholesky(form[::-1, ::-1])[::-1, ::-1]
    return torch.from_numpy((upper / np.diag(upper)).T.copy()), order


def rounded(values: Tensor) -> Tensor:
    """Round transformed weights, float64 [36, N], to bfloat16 with the least error of outputs."""
    shares, order = _shares()
    result = torch.empty_like(values, dtype=torch.bfloat16)
    errors = torch.empty_like(values)
    for k, point in enumerate(order):
        wanted = values[point] - shares[k, :k] @ errors[:k]
        result[point] = wanted.to(torch.bfloat16)
        torch.sub(result[point].double(), values[point], out=errors[k])
    return result
