"""What torch.compile must not look into; imported only while it traces, since it loads Dynamo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .fusers import InGraphs

torch.compiler.assume_constant_result(InGraphs.digest)  # marks it


@torch.compiler.disable(
    reason="a Fuser is a node of a graph for tensors only, without callback and report"
)
def outside(run: Callable[..., Any], self: Any, ir: Any, vis: Any, given: dict[str, Any]) -> Any:
    """Call a fuser outside of the graph, which breaks there."""
    return run(self, ir, vis, **given)
