"""A fuser and a reverse step as PyTorch operators: nodes of a user's graphs.

While torch.compile or torch.export traces a call of a ``Fuser`` with tensors, the call is one node,
``ddfm_fast::fuse``: a compiler could not improve what it does (estimates that decide, locks, CUDA
graphs of its own), and an opaque node gives the bytes of the eager call with every preset. Programs
that compile a loop of their own have finer nodes: ``ddfm_fast::step`` here, and the layers of the
prior, which ``Prior.eps`` puts into a graph by itself (``ddfm_fast.kernels.operators``,
``ddfm_fast.kernels.cpu.operators``).

An exported program holds the name of a fuser, not its weights: the process that runs it must first
build a fuser with the same prior, options and device, and keep it. Its name is a digest of
these, so that no other fuser is mistaken for it; if they are unknown (a callable as prior, a
method of the user's), the name is valid only in this process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..config import FuseConfig
from ..images.pair import result_like
from ..schedule import StepRow
from .apart import runs_apart
from .dispatch import resolve_backend
from .fusers import find

Call = TypeVar("Call", bound=Callable[..., Any])

TAGS = tuple(
    getattr(torch.Tag, name)
    for name in ("needs_exact_strides", "cudagraph_unsafe")
    if hasattr(torch.Tag, name)
)


def traced(call: Call) -> Call:
    """Make a call of a fuser one node of the graph that torch.compile or torch.export traces.

    Otherwise, and with a callback, a report or anything but tensors, it runs as it is, apart from
    the program; torch.compile then breaks its graph.
    """
    run = runs_apart(call)

    @functools.wraps(call)
    def wrapped(self: Any, ir: Any, vis: Any, **given: Any) -> Any:
        if not torch.compiler.is_compiling():
            return run(self, ir, vis, **given)
        from .breaks import outside

        many = isinstance(ir, (list, tuple))
        cropped = self.align_field == "common"  # to a size that the pictures decide
        if cropped or not _fits_graph(ir, vis, given):
            return outside(run, self, ir, vis, given)
        seed, color, progress = (
            getattr(self, name) if given.get(name) is None else given[name]
            for name in ("seed", "color", "progress")
        )
        name = self.digest() if torch.compiler.is_exporting() else self.key
        value_range = given.get("value_range")
        results = fuse(
            [x.detach() for x in (ir if many else [ir])],
            [x.detach() for x in (vis if many else [vis])],
            name, many, seed, str(color), progress,
            None if value_range is None else [float(n) for n in value_range],
            given.get("layout"),
        )  # fmt: skip
        return results if many else results[0]

    return wrapped  # type: ignore[return-value]


def _fits_graph(ir: Any, vis: Any, given: dict[str, Any]) -> bool:
    if any(given.get(name) is not None for name in ("callback", "report", "nodata")):
        return False
    if isinstance(given.get("value_range"), (str, Mapping)):
        return False
    known = {"seed", "color", "progress", "callback", "report", "value_range", "layout", "nodata"}
    if set(given) - known:
        return False
    if isinstance(ir, (list, tuple)) and isinstance(vis, (list, tuple)):
        return len(ir) == len(vis) > 0 and all(isinstance(x, Tensor) for x in (*ir, *vis))
    return isinstance(ir, Tensor) and isinstance(vis, Tensor)


@torch.library.custom_op(
    "ddfm_fast::fuse",
    mutates_args=(),
    schema=(
        "(Tensor[] ir, Tensor[] vis, str fuser, bool many, SymInt seed, str color, bool progress, "
        "float[]? value_range, str? layout) -> Tensor[]"
    ),
    tags=TAGS,
)
def fuse(
    ir: Sequence[Tensor],
    vis: Sequence[Tensor],
    fuser: str,
    many: bool,
    seed: int,
    color: str,
    progress: bool,
    value_range: Sequence[float] | None,
    layout: str | None,
) -> list[Tensor]:
    """Call a fuser of this process with lists of images, or with one pair unless ``many``.

    Args:
        ir: The first sources, as a call takes them.
        vis: The second ones.
        fuser: The key or the digest of the fuser.
        many: Whether the call had lists.
        seed: As in the call; so are the others.
        color: "True", "False", "ir" or "vis".
        progress: See ``seed``.
        value_range: See ``seed``.
        layout: See ``seed``.

    Returns:
        What the call returns, contiguous, sharing no memory.

    Raises:
        RuntimeError: There is no such fuser, or its method gives another size than its settings
            say.
        ValueError, TypeError: As in the call.
    """
    found = find(fuser)
    reading = {"value_range": value_range, "layout": layout}
    options: dict[str, Any] = {"seed": seed, "color": _color(color), "progress": progress}
    if many:
        results = found(list(ir), list(vis), **options, **reading)
    else:
        results = [found(ir[0], vis[0], **options, **reading)]
    for a, b, result in zip(ir, vis, results, strict=True):
        expected = _result_like(found, a, b, color, layout).shape
        if result.shape != expected:
            raise RuntimeError(
                f"the method of {fuser!r} gave {tuple(result.shape)}; expected {tuple(expected)}, "
                "which its settings say: call it outside of torch.compile and torch.export"
            )
    return [result.clone() if many else result for result in results]  # maybe of one batch


@fuse.register_fake
def _(ir, vis, fuser, many, seed, color, progress, value_range, layout):  # noqa: ARG001
    found = find(fuser)
    return [_result_like(found, a, b, color, layout) for a, b in zip(ir, vis, strict=True)]


def _color(name: str) -> bool | str:
    return {"True": True, "False": False}.get(name, name)


def _result_like(fuser: Any, ir: Tensor, vis: Tensor, color: str, layout: str | None) -> Tensor:
    crops = getattr(fuser.method, "rows", True)
    return result_like(
        ir,
        vis,
        color=_color(color) if fuser.config.color else False,
        layout=layout,
        multiple=fuser.config.crop_multiple if crops else 1,
    )


@torch.library.custom_op(
    "ddfm_fast::step",
    mutates_args=(),
    schema=(
        "(Tensor x_t, Tensor out, Tensor i, Tensor v, Tensor? x0, Tensor k, Tensor scales, "
        "Tensor seeds, float[] row, int index, str noise, str variant, float psi, float eta, "
        "bool update_scales) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    tags=TAGS[:1],
)
def step(
    x_t: Tensor,
    out: Tensor,
    i: Tensor,
    v: Tensor,
    x0: Tensor | None,
    k: Tensor,
    scales: Tensor,
    seeds: Tensor,
    row: Sequence[float],
    index: int,
    noise: str,
    variant: str,
    psi: float,
    eta: float,
    update_scales: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take a reverse step after the prior; state goes in and out, and no argument is changed.

    Before the first step k is 0, the scales are 1, and x0 is None.

    Args:
        x_t: [N, 3, H, W] float32 (on a CPU float64 too), contiguous.
        out: The prior's output, as :class:`ddfm_fast.step.Step` takes it.
        i: Luma of the first source [N, 1, H, W] in [−1, 1], likewise v.
        v: See ``i``.
        x0: f̂₀ of the previous step [N, 3, H, W], which rows with c ≠ 0 read.
        k: The previous step's, [N, H, W].
        scales: γ and ρ [N, 2].
        seeds: int64 [N], the seed of each image's noise.
        row: The fields of a :class:`ddfm_fast.schedule.StepRow` after ``timestep``.
        index: Number of the step from 0, for its noise.
        noise: The source of σ, one of ``ddfm_fast.step.NOISES``.
        variant: As in :class:`ddfm_fast.config.FuseConfig`; so are the others.
        psi: See ``variant``.
        eta: See ``variant``.
        update_scales: See ``variant``.

    Returns:
        x_{t−1}, f̂₀, k and the scales, each as it came in.

    Raises:
        TypeError, ValueError: As in the backend's step.
    """
    if len(row) != (count := len(fields(StepRow)) - 1):
        raise ValueError(f"row has {len(row)} numbers; expected the {count} of a StepRow")
    if index < 0:
        raise ValueError(f"index is {index}; expected the number of the step, from 0")
    rows = [StepRow(0, *row)] * (index + 1)
    if x0 is None and rows[0].c:
        raise ValueError("x0 is None and the row has c ≠ 0; expected f̂₀ of the step before")
    config = FuseConfig(variant=variant, psi=psi, eta=eta, update_scales=update_scales)
    made = resolve_backend(x_t.device).make_step(
        i, v, config, rows=rows, noise=noise, seeds=seeds, keep_x0=True
    )
    made.resume_(index, k, scales, x0)
    x = made.step_(x_t.clone(memory_format=torch.contiguous_format), out)
    assert made.x0 is not None  # it is kept
    return x, made.x0.clone(), made.k.clone(), made.scales.clone()


@step.register_fake
def _(
    x_t, out, i, v, x0, k, scales, seeds, row, index, noise, variant, psi, eta,  # noqa: ARG001
    update_scales,  # noqa: ARG001
):  # fmt: skip
    like = x_t.new_empty(x_t.shape)
    return like, torch.empty_like(like), k.new_empty(k.shape), scales.new_empty(scales.shape)
