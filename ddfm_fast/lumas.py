"""The reverse loop from the images' lumas to the fused luma: what ``Fuser`` runs on sources.

Crop, rounding, order of the sources, margin, x_T, the way back to [0, 1] and the check for NaN are
the loop's own work, so that a CUDA graph of it holds them too: the host copies two lumas in and one
out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config import FuseConfig
from .images.planes import crop, padded_size, reflected
from .priors.prior import Prior
from .runtime.memory import pages_kept
from .runtime.profiling import span
from .runtime.transfer import Answer, copy_each_
from .sampler import Callback, Loop, LoopSource, progress_of, require_finite


class FusedLumas(NamedTuple):
    """What a :class:`LumaLoop` returns."""

    luma: Tensor
    """[N, 1, H, W], about [0, 1], cropped like the sources"""
    finite: Any
    """true if all of it is finite"""

    def kept(self) -> FusedLumas:
        """Return a copy that stays valid when the loop runs again, without waiting for it."""
        return FusedLumas(self.luma.clone(), Answer.of(self.finite))


class LumaLoop(Loop):
    """A loop on lumas [N, 1, H, W] in [0, 1] of any size that pads to its shape (N, H, W).

    A graph of it serves all of these sizes and any seed: what depends on them lies in buffers,
    which ``load`` writes only when they change.
    """

    def __init__(self, prior: Prior, config: FuseConfig, shape: tuple[int, int, int], *args, **run):
        super().__init__(prior, config, shape, *args, **run)
        count, height, width = shape
        self.sources = torch.zeros(
            2, count, 1, height, width, dtype=torch.float32, device=self.device
        )
        self.fused = torch.zeros_like(self.luma)
        self.finite = torch.zeros((), dtype=torch.bool, device=self.device)
        self._down, self._across = (torch.arange(n, device=self.device) for n in (height, width))
        self._size = height, width

    def load(self, i: Tensor, v: Tensor, seed: int, x_start: Tensor | None = None) -> None:
        """Take the lumas of the sources, and the seed; x_T is always the loop's own."""
        if x_start is not None:
            raise ValueError("x_start is given to a loop on lumas; expected Loop, on planes")
        with span("load"):
            multiple = self.config.crop_multiple
            height, width = (n - n % multiple for n in i.shape[-2:])
            copy_each_(
                crop(self.sources, height, width).unbind(),
                (crop(i, height, width), crop(v, height, width)),
            )
            if (height, width) != self._size:
                self._down.copy_(reflected(height, len(self._down), self.device))
                self._across.copy_(reflected(width, len(self._across), self.device))
                self._size = height, width
            self.seed_(seed)
            self.draw_(seed)

    def begin(self) -> None:
        """Prepare for the first step: set the planes i and v, x_T, and the state of EM."""
        planes = self.sources.index_select(-2, self._down).index_select(-1, self._across)
        if self.config.round_luma:
            planes = torch.round(planes * 255) / 255
        i, v = planes * 2 - 1
        if self.config.swap_sources:
            i, v = v, i
        self.i.copy_(i)
        self.v.copy_(v)
        self.x.copy_(self.start())
        super().begin()

    def finish(self) -> None:
        """Compute, after the last step, the luma in [0, 1] and whether it is finite."""
        super().finish()
        torch.add(self.luma, 1, out=self.fused).div_(2)
        torch.all(torch.isfinite(self.luma), out=self.finite)

    def take(self) -> FusedLumas:  # type: ignore[override]
        """Return the result of ``run``."""
        return FusedLumas(crop(self.fused, *self._size).contiguous(), self.finite)


def fuse_lumas(
    prior: Prior,
    ir: Tensor,
    vis: Tensor,
    config: FuseConfig,
    *,
    loops: LoopSource,
    seed: int,
    progress: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Sample as :func:`ddfm_fast.sampler.sample` does, from lumas to a luma.

    Args:
        prior: The noise predictor.
        ir: Luma planes [N, 1, H, W] float32 in [0, 1] of any size, on the prior's device.
        vis: The other source's.
        config: The settings.
        loops: Where the loop comes from.
        seed: The seed of x_T and of all other noise.
        progress: Whether a bar follows the steps.
        callback: Sees each step; may raise to stop.

    Returns:
        The fused luma [N, 1, H, W], about [0, 1], cropped where the configuration crops.

    Raises:
        ValueError: The prior yields NaN or inf.
    """
    shape = (len(ir), *padded_size(ir.shape[-2:], config.crop_multiple, prior.multiple))
    with torch.inference_mode():
        loop = loops(prior, config, shape, progress or callback is not None, LumaLoop)
        with loop.lock, pages_kept(prior.device):
            loop.load(ir, vis, seed)
            loop.run(progress_of(loop, progress), callback)
            result = loop.take()
    require_finite(result.finite, prior)
    return result.luma
