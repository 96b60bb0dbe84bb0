"""Evaluate deep layers only at every N-th step, for ``reuse=N``.

Below its first downsampling a UNet sees the layout of a picture, which changes little from one step
to the next. What its deep layers pass up to the full resolution is kept for a few steps, while the
layers at full resolution run at every step. The idea is DeepCache's (Ma et al. 2024,
arXiv 2312.00858, with N equal intervals); what it costs is in
bench/results/reuse-loop-2026-11-29.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")
Evaluate = Callable[[Tensor, Tensor, "Kept"], Any]
"""F(x, t) with the kept results of its deep layers"""


class Kept:
    """Results of the deep layers at the last whole step; each loop has its own.

    A step may evaluate the prior several times, on tiles or on single images. These come in the
    same order at each step, and so do the kept results.
    """

    def __init__(self, every: int):
        self.every, self.whole = every, True
        self._given: list[Any] = []
        self._turn = 0

    def at(self, step: int) -> Kept:
        """Begin step 0, 1, …; it is whole if N divides it."""
        self._turn, self.whole = 0, step % self.every == 0
        if self.whole:
            self._given.clear()
        return self

    def of(self, deep: Callable[[], T]) -> T:
        """Return what ``deep`` computes; between whole steps, its last result at this place."""
        if self.whole:
            given = deep()
            self._given.append(given)
            return given
        given = self._given[self._turn]
        self._turn += 1
        return given

    def clear(self) -> None:
        """Drop all results and free their memory."""
        self._given.clear()


def passed(kept: Kept | None) -> dict[str, Kept]:
    """Return the keyword for ``Prior.eps``; none if nothing is kept, so that any prior takes it."""
    return {} if kept is None else {"kept": kept}


def evaluator_of(function: Any) -> Evaluate | None:
    """Return how to evaluate a callable with kept results; None if its layers are not known."""
    own = getattr(function, "with_kept", None)
    if own is not None:
        return own
    return partial(_unet_2d, function) if _is_unet_2d(function) else None


def _is_unet_2d(model: Any) -> bool:
    """Return whether this is an unmodified UNet2DModel of diffusers with two or more levels."""
    kind = type(model)
    if kind.__name__ != "UNet2DModel" or kind.__module__.partition(".")[0] != "diffusers":
        return False
    changed = any(map(vars(model).get, ("forward", "_forward_hooks", "_forward_pre_hooks")))
    blocks = [*model.down_blocks, *model.up_blocks]
    plain = model.class_embedding is None and not any(hasattr(b, "skip_conv") for b in blocks)
    return plain and not changed and len(model.down_blocks) > 1


def _unet_2d(model: Any, x: Tensor, t: Tensor, kept: Kept) -> Tensor:
    """Evaluate a UNet2DModel; everything between its first and its last block is deep.

    The first block halves the picture at its end, and the last but one doubles it.
    """
    h = model.conv_in(2 * x - 1 if model.config.center_input_sample else x)
    emb = model.time_embedding(model.time_proj(t).to(model.dtype))
    halved, skips = model.down_blocks[0](h, emb)
    skips, last = (h, *skips), model.up_blocks[-1]
    top = len(last.resnets)
    h = kept.of(partial(_below, model, halved, skips[top:], emb))
    h = model.conv_out(model.conv_act(model.conv_norm_out(last(h, skips[:top], emb))))
    if model.config.time_embedding_type == "fourier":
        h = h / t.reshape(-1, 1, 1, 1)
    return h


def _below(model: Any, h: Tensor, skips: tuple[Tensor, ...], emb: Tensor) -> Tensor:
    for block in model.down_blocks[1:]:
        h, more = block(h, emb)
        skips += tuple(more)
    if isinstance(model.mid_block, nn.Module):
        h = model.mid_block(h, emb)
    for block in model.up_blocks[:-1]:
        count = len(block.resnets)
        h, skips = block(h, skips[-count:], emb), skips[:-count]
    return h
