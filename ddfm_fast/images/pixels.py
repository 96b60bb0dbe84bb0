"""The work on every pixel of an image on its way to a device and back, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .color import chroma_planes, luma, with_luma
from .containers import pack
from .planes import ImageSpec, Raw, as_values
from .stretch import Fused, stretch_limits


class Planes(NamedTuple):
    """A source on the device that fuses it."""

    luma: Tensor
    """[N, 1, H, W] float32 in [0, 1]"""
    rgb: Tensor | None
    """[N, 3, H, W] if its chroma was requested; for a gray source its luma three times; in [0, 1],
    or in a form that :meth:`Pixels.unit` converts to it"""


class Given(Protocol):
    """A result that may still be on its way to its container."""

    def image(self) -> Any:
        """The container that came in, after waiting for what is in it."""
        ...


class Here(NamedTuple):
    """A result that has arrived."""

    value: Any

    def image(self) -> Any:
        """See :class:`Given`."""
        return self.value


class Pixels:
    """Reads sources onto ``device``, and gives fused lumas back; others do the same faster."""

    def __init__(self, device: torch.device):
        self.device = device

    def seen(self, ir: Raw, vis: Raw) -> tuple[Raw, Raw]:
        """Return the sources on the device where facts are read from them soonest."""
        return ir, vis

    def ahead(self, ir: Any, vis: Any) -> tuple[Any, Any]:
        """Send images to the device during its work; return what is to be fused in their place."""
        return ir, vis

    def array_ahead(self, array: np.ndarray) -> Callable[[], Tensor]:
        """Send an array of any shape; return a function that gives it as a tensor on the device."""
        return partial(torch.from_numpy, array)

    def read(self, ir: Raw, vis: Raw, chroma_of: set[str]) -> tuple[Planes, Planes]:
        """Convert both sources. ``chroma_of``: those of "ir" and "vis" whose chroma is needed."""
        planes = ir.planes().to(self.device), vis.planes().to(self.device)
        return self.split(planes[0], "ir" in chroma_of), self.split(planes[1], "vis" in chroma_of)

    def split(self, planes: Tensor, chroma: bool) -> Planes:
        """Compute luma, and RGB if wanted, of planes [N, C, H, W]."""
        return Planes(luma(planes), planes.expand(-1, 3, -1, -1) if chroma else None)

    def limits(self, stretch: str, y: Tensor, ir: Tensor, vis: Tensor) -> Tensor | None:
        """Find what ``FuseConfig.stretch`` maps to 0 and 1: as ``stretch_limits`` does."""
        return stretch_limits(stretch, y, ir, vis)

    def give_back(
        self,
        fused: Fused,
        spec: ImageSpec,
        *,
        chroma: Tensor | None = None,
        dims: bool = False,
    ) -> Given:
        """Turn a fused luma into the container that came in.

        Args:
            fused: Its lumas of any strides.
            spec: The container's.
            chroma: RGB [N, 3, H, W] whose chroma the result takes; None for gray.
            dims: As for ``with_luma``.
        """
        values = as_values(self.colored(fused, chroma, dims), spec)
        return Here(pack(values.to(spec.device).contiguous(), spec.container))

    def colored(self, fused: Fused, chroma: Tensor | None, dims: bool) -> Tensor:
        """Return the planes [N, C, H, W] in [0, 1] of a result."""
        y = fused.stretched()
        return y if chroma is None else with_luma(y, chroma, dims=dims)

    def unit(self, rgb: Tensor) -> Tensor:
        """Convert RGB, as it was read, to float32 in [0, 1]."""
        return rgb

    def chroma_planes(self, rgb: Tensor) -> Tensor:
        """Compute blue and red differences of RGB: ``ddfm_fast.images.color.chroma_planes``."""
        return chroma_planes(rgb)
