"""Move images onto the device that fuses them, and back; chosen by device and backend.

On a CUDA device integers travel as they are, in one copy for both sources. With Triton, one kernel
turns each into planes, another turns luma, limits and chroma into a result, and the limits are
found without waiting. On a CPU, compiled C++ does the same. Elsewhere, and for floats,
:class:`ddfm_fast.images.pixels.Pixels` does the work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..images.containers import INTEGER_MAX, pack
from ..images.pixels import Given, Here, Pixels, Planes
from ..images.planes import ImageSpec, Raw, as_values, read_raw
from ..images.stretch import Fused
from .transfer import Download, Transfer, Upload


def pixels_for(device: torch.device, backend: str) -> Pixels:
    """Make what reads and gives back the images of a fuser."""
    if device.type == "cpu":
        return NativePixels(device)
    if device.type != "cuda":
        return Pixels(device)
    return CudaPixels(device) if backend == "torch" else TritonPixels(device)


class NativePixels(Pixels):
    """Works on integers by ``kernels.cpu.pixels``, if that can be compiled.

    The RGB that it reads stays integers until the result is made.
    """

    def read(self, ir: Raw, vis: Raw, chroma_of: set[str]) -> tuple[Planes, Planes]:
        """See :class:`Pixels`; the RGB of both is of one dtype."""
        if not _compiled():
            return super().read(ir, vis, chroma_of)
        raws = {"ir": ir, "vis": vis}
        whole = len({_kept_as(raws[name]) for name in chroma_of}) == 1
        a, b = (self._source(raws[name], name in chroma_of, whole) for name in raws)
        return a, b

    def limits(self, stretch: str, y: Tensor, ir: Tensor, vis: Tensor) -> Tensor | None:
        """See :class:`Pixels`."""
        planes = y, ir, vis
        fits = all(p.dtype == torch.float32 and p.is_contiguous() and p.is_cpu for p in planes)
        if stretch == "none" or not fits or ir.shape != y.shape or not _compiled():
            return super().limits(stretch, y, ir, vis)
        from ..kernels.cpu import pixels

        return pixels.limits(y, ir, vis, stretch)

    def give_back(
        self, fused: Fused, spec: ImageSpec, *, chroma: Tensor | None = None, dims: bool = False
    ) -> Given:
        """See :class:`Pixels`."""
        if not _in_whole_numbers(spec) or fused.luma.dtype != torch.float32 or not _compiled():
            chroma = None if chroma is None else self.unit(chroma)
            return super().give_back(fused, spec, chroma=chroma, dims=dims)
        from ..kernels.cpu import pixels

        values = pixels.give_back(fused, spec, chroma=chroma, dims=dims)
        return Here(pack(values.to(spec.device), spec.container))

    def unit(self, rgb: Tensor) -> Tensor:
        """See :class:`Pixels`."""
        return (
            rgb.to(torch.float32).div_(INTEGER_MAX[rgb.dtype]) if rgb.dtype in INTEGER_MAX else rgb
        )

    def _source(self, raw: Raw, chroma: bool, whole: bool) -> Planes:
        """Return one source; ``whole``: whether its RGB may stay integers."""
        if _kept_as(raw) is None:
            return self.split(raw.planes().to(self.device), chroma)
        from ..kernels.cpu import pixels

        rgb = raw.values.expand(-1, 3, -1, -1) if chroma else None
        rgb = rgb if rgb is None or whole else self.unit(rgb)
        return Planes(pixels.read_luma(raw.values), rgb)


def _compiled() -> bool:
    from ..kernels.cpu import pixels

    return pixels.status() is None


def _kept_as(raw: Raw) -> torch.dtype | None:
    """Return the dtype of integers that the C++ reads, else None."""
    return raw.values.dtype if _in_whole_numbers(raw.spec) and raw.values.is_cpu else None


def _in_whole_numbers(spec: ImageSpec) -> bool:
    return spec.dtype in INTEGER_MAX and spec.value_range is None


class OnItsWay(NamedTuple):
    """A result on its way to the host."""

    download: Download
    container: str

    def image(self) -> Any:
        """See :class:`Given`."""
        return pack(self.download.tensor(), self.container)


class CudaPixels(Pixels):
    """Sends images through page-locked memory, and works on the device in plain PyTorch."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.transfer = Transfer(device)

    def seen(self, ir: Raw, vis: Raw) -> tuple[Raw, Raw]:
        """See :class:`Pixels`: integers are fetched, both at once, floats read where they are."""
        fetched = [
            self.transfer.download(raw.values.contiguous())
            if raw.is_integer and raw.values.device == self.device
            else None
            for raw in (ir, vis)
        ]
        a, b = (
            raw if coming is None else raw._replace(values=coming.tensor())
            for raw, coming in zip((ir, vis), fetched, strict=True)
        )
        return a, b

    def ahead(self, ir: Any, vis: Any) -> tuple[Any, Any]:
        """See :class:`Pixels`."""
        raws = read_raw(ir, "ir"), read_raw(vis, "vis")
        if any(raw.values.device.type != "cpu" for raw in raws):
            return ir, vis
        try:
            upload = self.transfer.upload(*(raw.values for raw in raws), aside=True)
        except torch.OutOfMemoryError:  # the current fusion may need all of the memory
            return ir, vis
        a, b = (raw._replace(sent=partial(_nth, upload, n)) for n, raw in enumerate(raws))
        return a, b

    def array_ahead(self, array: np.ndarray) -> Callable[[], Tensor]:
        """See :class:`Pixels`."""
        return partial(_nth, self.transfer.upload(torch.from_numpy(array), aside=True), 0)

    def read(self, ir: Raw, vis: Raw, chroma_of: set[str]) -> tuple[Planes, Planes]:
        """See :class:`Pixels`."""
        raws = self._there(ir, vis)
        return self._planes(raws[0], "ir" in chroma_of), self._planes(raws[1], "vis" in chroma_of)

    def give_back(
        self, fused: Fused, spec: ImageSpec, *, chroma: Tensor | None = None, dims: bool = False
    ) -> Given:
        """See :class:`Pixels`."""
        values = self._values(fused, spec, chroma, dims)
        if values.is_cuda and spec.device.type == "cpu":
            return OnItsWay(self.transfer.download(values), spec.container)
        return Here(pack(values.to(spec.device), spec.container))

    def _there(self, *raws: Raw) -> list[Raw]:
        """Return the sources with their values on the device, sent together if need be."""
        here = [raw for raw in raws if raw.sent is None and raw.values.device.type == "cpu"]
        values = iter(self.transfer.upload(*(raw.values for raw in here)).tensors() if here else ())
        there = []
        for raw in raws:
            if raw.sent is not None:
                moved = raw.sent()
            elif raw.values.device.type == "cpu":
                moved = next(values)
            else:
                moved = raw.values.to(self.device)
            there.append(raw._replace(values=moved))
        return there

    def _planes(self, raw: Raw, chroma: bool) -> Planes:
        return self.split(raw.planes(), chroma)

    def _values(self, fused: Fused, spec: ImageSpec, chroma: Tensor | None, dims: bool) -> Tensor:
        """Return a result's values, contiguous."""
        return as_values(self.colored(fused, chroma, dims), spec).contiguous()


class TritonPixels(CudaPixels):
    """Works on the device by the kernels, for dtypes that they take."""

    def limits(self, stretch: str, y: Tensor, ir: Tensor, vis: Tensor) -> Tensor | None:
        """See :class:`Pixels`."""
        from ..kernels import limits

        return limits.stretch_limits(stretch, y, ir, vis)

    def chroma_planes(self, rgb: Tensor) -> Tensor:
        """See :class:`Pixels`."""
        from ..kernels import images

        return images.chroma_planes(rgb)

    def read(self, ir: Raw, vis: Raw, chroma_of: set[str]) -> tuple[Planes, Planes]:
        """See :class:`Pixels`; both lumas lie in one tensor, so that one copy suffices."""
        a, b = self._there(ir, vis)
        count, _, height, width = a.values.shape
        lumas = torch.empty((2, count, 1, height, width), dtype=torch.float32, device=self.device)
        return (
            self._read(a, "ir" in chroma_of, lumas[0]),
            self._read(b, "vis" in chroma_of, lumas[1]),
        )

    def _read(self, raw: Raw, chroma: bool, out: Tensor) -> Planes:
        from ..kernels import images

        if raw.is_integer and images.reads(raw.spec.value_range):
            return Planes(*images.read(raw.values, raw.spec.value_range, rgb=chroma, out=out))
        return self._planes(raw, chroma)

    def _values(self, fused: Fused, spec: ImageSpec, chroma: Tensor | None, dims: bool) -> Tensor:
        from ..kernels import images

        if spec.dtype in images.GIVEN:
            return images.give_back(fused, spec, chroma=chroma, dims=dims)
        return super()._values(fused, spec, chroma, dims)


def _nth(upload: Upload, n: int) -> Tensor:
    return upload.tensors()[n]
