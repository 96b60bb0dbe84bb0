"""Images of any container as float planes and back, and the plane operations around the sampler.

`to_planes` turns what a caller holds into float32 planes [N, C, H, W] in [0, 1] plus an
`ImageSpec`; `from_planes` gives the result back in that container, dtype, device and layout.

Containers
    NumPy arrays, torch tensors and PIL images come back as what they were. An array of another
    library is taken through DLPack and goes back through the `from_dlpack` of its array namespace
    (`__array_namespace__`) or of the top module of its type (CuPy, JAX). Everything else that has
    `__dlpack__`, `__cuda_array_interface__`, `__array_interface__` or `__array__` comes back as a
    NumPy array when its data are on the CPU and as a torch tensor when they are not.

Layout
    Channels are 1 or 3 and both sizes are at least 16, so the axis of the channels can be found:

    ====  ==========================================  ==========================================
    rank  torch tensors                               every other container
    ====  ==========================================  ==========================================
    2     HW                                          HW
    3     CHW if axis 0 is 1 or 3, else HWC if the     HWC if the last axis is 1 or 3, else NHW
          last is 1 or 3, else NHW
    4     NCHW if axis 1 is 1 or 3, else NHWC          NHWC if the last axis is 1 or 3, else NCHW
    ====  ==========================================  ==========================================

    A 4 in the place of the channels is refused, since alpha cannot be told from a fourth image;
    `layout=` overrides the rule (a torch batch of 1, 3 or 4 gray images needs `layout="NHW"`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .containers import INTEGER_MAX, as_tensor, pack
from .integers import as_int
from .ranges import Ignored, Window, chosen, ignored, is_signed, nearest_valid

MIN_SIZE = 16
"""least height and width of an image, in pixels"""
LAYOUTS = ("HW", "HWC", "NHW", "NHWC", "CHW", "NCHW")

_CHANNELS = (1, 3)
_RANGE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ImageSpec:
    """What `from_planes` needs to return the container of the input.

    container: "numpy", "torch", "pil", or the name of the module whose `from_dlpack` makes one.
    dtype: the torch dtype of the same name (NumPy arrays come back in native byte order).
    device: where the image was.
    layout: one of `LAYOUTS`.
    value_range: (lo, hi) as given by the caller, or None for the natural range of the dtype.
    """

    container: str
    dtype: torch.dtype
    device: torch.device
    layout: str
    value_range: tuple[float, float] | None = None


class Raw(NamedTuple):
    """An image or a batch that was read and checked, with its integers not converted yet."""

    values: Tensor
    """[N, C, H, W] of any strides: uint8 or uint16, maybe the caller's own; or float32 in [0, 1]"""
    spec: ImageSpec
    sent: Callable[[], Tensor] | None = None
    """returns the values on the device that fuses them, if they were sent ahead"""
    holes: Tensor | None = None
    """bool [N, 1, H, W], where the source lacks data and ``values`` are filled in"""

    @property
    def is_integer(self) -> bool:
        """Whether ``values`` are integers as they came."""
        return self.values.dtype in INTEGER_MAX

    def planes(self) -> Tensor:
        """Contiguous float32 planes [N, C, H, W] in [0, 1] that share nobody's memory."""
        return self.unit(self.values).contiguous()

    def unit(self, values: Tensor) -> Tensor:
        """Convert some of ``values``, of any shape, to float32 in [0, 1]."""
        return _to_unit(values, self.spec.value_range) if self.is_integer else values


def to_planes(
    image: Any,
    name: str,
    *,
    value_range: Any = None,
    layout: str | None = None,
    nodata: Any = None,
) -> tuple[Tensor, ImageSpec]:
    """Turn an image or a batch of images into planes.

    Values beyond the range by at most 1e-4 of it are clamped. Float images and images with a
    value_range cost one host synchronization.

    Args:
        image: uint8 (0..255), uint16 (0..65535), float16, bfloat16, float32 or float64 (0..1), in
            any container and layout of the module's rules; H and W at least ``MIN_SIZE``, channels
            1 or 3.
        name: The argument's name, for errors.
        value_range: (lo, hi), the values that mean black and white, if they are not those above
            (12 bits in uint16: (0, 4095); a float image in 8-bit units: (0, 255)); or "auto",
            "data" or "dtype", see :mod:`.ranges`. With any of these, signed and 32-bit integers are
            also accepted, as float32.
        layout: One of ``LAYOUTS``, if the rule would read the image wrongly.
        nodata: The value of missing pixels, maybe NaN; they are filled from the nearest others.

    Returns:
        Contiguous float32 planes [N, C, H, W] in [0, 1] on the image's device, never sharing the
        caller's memory, and the ImageSpec.

    Raises:
        TypeError: The container or dtype is not supported.
        ValueError: The shape, layout or value_range does not fit, or values are out of range, NaN
            or infinite.
    """
    raw = read_raw(image, name, value_range=value_range, layout=layout, nodata=nodata)
    return raw.planes(), raw.spec


def read_raw(
    image: Any,
    name: str,
    *,
    value_range: Any = None,
    layout: str | None = None,
    nodata: Any = None,
) -> Raw:
    """Read and check an image as :func:`to_planes` does, and leave its integers as they are.

    What was already read is returned as it is.
    """
    if isinstance(image, Raw):
        return image
    setting = value_range if isinstance(value_range, str) else _check_value_range(value_range)
    nothing = ignored(nodata)
    counts = image if is_signed(image) and setting is not None else None
    tensor, container = as_tensor(image if counts is None else _as_floats(counts), name)
    layout = resolve_layout(tuple(tensor.shape), container, layout, name)
    if counts is not None and isinstance(setting, str):  # judged before float32 rounds them
        setting = chosen(_on_host(counts), setting, name, nothing)
    holes = None
    if nothing is not None:
        tensor, holes = _without_holes(tensor, layout, nothing, name)
    if isinstance(setting, str):
        setting = _found_range(tensor, setting, name, nothing)
    spec = ImageSpec(container, tensor.dtype, tensor.device, layout, setting)
    if tensor.dtype not in INTEGER_MAX:
        tensor = _checked_unit(tensor, setting, name)
    elif setting is not None and not isinstance(setting, Window):
        _check_values(tensor, *setting, name)
    return Raw(_as_nchw(tensor, layout), spec, holes=holes)


def _as_floats(counts: Any) -> Any:
    """Convert integers of dtypes that planes do not have to float32."""
    if isinstance(counts, Tensor):
        return counts.to(torch.float32)
    return np.asarray(counts).astype(np.float32)


def _on_host(counts: Any) -> Any:
    return counts.cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts)


def _found_range(
    tensor: Tensor, setting: str, name: str, nodata: Ignored | None
) -> tuple[float, float] | None:
    if setting == "dtype":
        return None
    if setting == "auto" and tensor.device.type != "cpu":
        if tensor.dtype == torch.uint8:  # its range is only checked for a warning
            return None
        if tensor.dtype not in INTEGER_MAX and all(0 <= n <= 1 for n in extremes(tensor)):
            return None
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.to(torch.float32)
    return chosen(tensor.cpu().numpy(), setting, name, nodata)


def _without_holes(
    tensor: Tensor, layout: str, nodata: Ignored, name: str
) -> tuple[Tensor, Tensor | None]:
    """Fill missing pixels from the nearest others; also return where they are."""
    images = _as_nchw(tensor, layout)
    holes = nodata.where(images).any(1, keepdim=True)
    if not bool(holes.any()):
        return tensor, None
    tensor = tensor.clone()
    for image, hole in zip(_as_nchw(tensor, layout), holes[:, 0].cpu().numpy(), strict=True):
        if hole.all():
            raise ValueError(
                f"{name}: every pixel is nodata={nodata.value:g}, expected a picture; check nodata"
            )
        # PyTorch cannot index uint16
        values = image.view(torch.int16) if image.dtype == torch.uint16 else image
        nearest = np.unravel_index(nearest_valid(hole)[hole], hole.shape)
        to, of = (
            [torch.from_numpy(axis).to(image.device) for axis in place]
            for place in (np.nonzero(hole), nearest)
        )
        values[:, to[0], to[1]] = values[:, of[0], of[1]]
    return tensor, holes


def from_planes(planes: Tensor, spec: ImageSpec) -> Any:
    """Return planes in the container, dtype, device, layout and value range of `spec`.

    Integers are rounded half up, so uint8 and uint16 images that went through `to_planes` come
    back exactly.

    Args:
        planes: Float [N, C, H, W]; clamped to [0, 1]. N must be 1 where the layout has no N, C
            must be 1 where it has no channels.
        spec: What `to_planes` returned with the planes.

    Raises:
        ValueError: N or C does not fit the layout.
    """
    return pack(as_values(planes, spec).to(spec.device).contiguous(), spec.container)


def as_values(planes: Tensor, spec: ImageSpec) -> Tensor:
    """Return what :func:`from_planes` puts in the container, on the planes' device, any strides."""
    check_fits(len(planes), check_planes(planes, "planes"), spec)
    return _as_layout(_from_unit(planes.detach(), spec), spec.layout)


def check_fits(images: int, channels: int, spec: ImageSpec) -> None:
    """Raise ValueError unless the layout of a spec holds so many images and channels."""
    if "N" not in spec.layout and images != 1:
        raise ValueError(f"planes: {images} images do not fit layout {spec.layout}, which holds 1")
    if "C" not in spec.layout and channels != 1:
        raise ValueError(
            f"planes: {channels} channels do not fit layout {spec.layout}, which holds 1; "
            "use the ImageSpec of an image with a channel axis"
        )


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad [N, C, H, W] at the bottom and right until H and W are multiples of `multiple`.

    Reflects without repeating the edge, again and again if the padding is longer than the image, as
    numpy.pad(mode="reflect") does. Returns x itself if nothing is missing.
    """
    if as_int(multiple) is None:
        raise TypeError(f"multiple: got {type(multiple).__name__}, expected an int of at least 1")
    if multiple < 1:
        raise ValueError(f"multiple: got {multiple}, expected at least 1")
    for axis in (-2, -1):
        size = x.shape[axis]
        target = -(-size // multiple) * multiple
        if target != size:
            x = x.index_select(x.ndim + axis, reflected(size, target, x.device))
    return x


def padded_size(size: Sequence[int], crop_multiple: int, multiple: int) -> tuple[int, int]:
    """Return the size that :func:`pad_to_multiple` gives, after cropping to a multiple."""
    height, width = (-(-(n - n % crop_multiple) // multiple) * multiple for n in size)
    return height, width


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Return the top left [..., height, width] of x as a view: undoes `pad_to_multiple`."""
    if not (0 < height <= x.shape[-2] and 0 < width <= x.shape[-1]):
        raise ValueError(
            f"crop: {height}x{width} does not fit in {x.shape[-2]}x{x.shape[-1]} (height x width)"
        )
    return x[..., :height, :width]


def reflected(size: int, target: int, device: torch.device) -> Tensor:
    """Return indices 0..size-1, size-2..0, 1.. and so on, `target` of them."""
    period = max(2 * (size - 1), 1)
    index = torch.arange(target, device=device) % period
    return torch.minimum(index, period - index)


def check_planes(planes: Tensor, name: str) -> int:
    """Return the channels of planes [N, C, H, W]; ValueError unless they are 1 or 3."""
    if planes.ndim != 4 or planes.shape[1] not in _CHANNELS:
        raise ValueError(
            f"{name}: got shape {tuple(planes.shape)}, expected [N, C, H, W] with C 1 or 3"
        )
    return planes.shape[1]


def _check_value_range(value_range: Any) -> tuple[float, float] | None:
    if value_range is None or isinstance(value_range, Window):
        return value_range
    try:
        low, high = (float(limit) for limit in value_range)
    except (TypeError, ValueError, OverflowError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"value_range: got {value_range!r}, expected two finite numbers (lo, hi) with lo < hi, "
            "such as (0, 255), one of auto, dtype, data, or a dict of these by source"
        )
    least, most = (float(n) for n in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
    if not least <= high - low <= most:
        raise ValueError(
            f"value_range: got {value_range!r}, a span of {high - low:g}, expected {least:.2g} to "
            f"{most:.2g}, which float32 holds; scale the image first"
        )
    return low, high


def resolve_layout(shape: tuple[int, ...], container: str, layout: str | None, name: str) -> str:
    """Return the layout of a shape, by the module's rule or as given, once checked."""
    if layout is None:
        layout = _guess_layout(shape, container, name)
    elif not isinstance(layout, str) or layout not in LAYOUTS:
        raise ValueError(f"layout: got {layout!r}, expected one of {', '.join(LAYOUTS)}")
    elif len(layout) != len(shape):
        raise ValueError(f"{name}: shape {shape} does not fit layout={layout!r}")
    sizes = dict(zip(layout, shape, strict=True))
    if 0 in shape:
        raise ValueError(f"{name}: the image is empty, shape {shape}")
    if sizes.get("C", 1) not in _CHANNELS:
        fix = "drop alpha: image[..., :3]" if sizes["C"] == 4 else "take 1 or 3 of them"
        raise ValueError(f"{name}: got {sizes['C']} channels, expected 1 or 3; {fix}")
    if sizes["H"] < MIN_SIZE or sizes["W"] < MIN_SIZE:
        raise ValueError(
            f"{name}: shape {shape}, read as {layout}, has H = {sizes['H']} and W = {sizes['W']}, "
            f"expected at least {MIN_SIZE}; if the layout is different, pass layout="
        )
    return layout


def _guess_layout(shape: tuple[int, ...], container: str, name: str) -> str:
    rank = len(shape)
    if rank == 2:
        return "HW"
    if rank not in (3, 4):
        raise ValueError(f"{name}: got {rank} dimensions, shape {shape}, expected 2, 3 or 4")
    first, last = ("CHW", "HWC") if rank == 3 else ("NCHW", "NHWC")
    choices = [(first, shape[-3]), (last, shape[-1])]
    if container != "torch":
        choices.reverse()
        if rank == 3:
            choices.pop()
    for layout, channels in choices:
        if channels in _CHANNELS:
            return layout
    if any(channels == 4 for _, channels in choices):
        four_gray = "; for four gray images pass layout='NHW'" if rank == 3 else ""
        alpha = "image[..., :3]" if shape[-1] == 4 else "image[..., :3, :, :]"
        raise ValueError(
            f"{name}: shape {shape} has 4 channels, expected 1 or 3; drop alpha: {alpha}{four_gray}"
        )
    return "NHW" if rank == 3 else choices[0][0]


def _as_nchw(x: Tensor, layout: str) -> Tensor:
    if layout.endswith("HWC"):
        x = x.movedim(-1, -3)
    elif "C" not in layout:
        x = x.unsqueeze(-3)
    return x if "N" in layout else x.unsqueeze(0)


def _as_layout(planes: Tensor, layout: str) -> Tensor:
    x = planes if "N" in layout else planes.squeeze(0)
    if layout.endswith("HWC"):
        return x.movedim(-3, -1)
    return x if "C" in layout else x.squeeze(-3)


def _to_unit(x: Tensor, limits: tuple[float, float] | None) -> Tensor:
    """Convert integers to a new float32 tensor in [0, 1]."""
    if limits is None:
        return x.to(torch.float32).div_(INTEGER_MAX[x.dtype])
    if x.device.type == "cpu" and x.numel() >= INTEGER_MAX[x.dtype]:
        return torch.from_numpy(_levels(x.dtype, limits)[x.numpy()])
    return _scaled(_exact(x), limits)


@lru_cache(maxsize=4)
def _levels(dtype: torch.dtype, limits: tuple[float, float]) -> np.ndarray:
    """Return what each integer becomes: a table is faster than float64 for each pixel."""
    return _scaled(torch.arange(INTEGER_MAX[dtype] + 1, dtype=torch.float64), limits).numpy()


def _scaled(values: Tensor, limits: tuple[float, float]) -> Tensor:
    low, high = limits
    return values.sub(low).div_(high - low).to(torch.float32).clamp_(0, 1)


def _checked_unit(x: Tensor, limits: tuple[float, float] | None, name: str) -> Tensor:
    """Convert floats to a new float32 tensor in [0, 1]; errors point into the image's own shape."""
    low, high = limits or (0.0, 1.0)
    values = x if x.dtype == torch.float64 else x.to(torch.float32) if limits is None else _exact(x)
    _check_values(values, low, high, name, clips=isinstance(limits, Window))
    if limits is not None:
        return _scaled(values, limits)
    return values.to(torch.float32).clamp(0, 1)


def _exact(x: Tensor) -> Tensor:
    """Convert to the precision of value ranges: float64, except on a device without it."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def extremes(values: Tensor) -> tuple[float, float]:
    """Return the extremes of values of any dtype, NaN if any value is. Waits for the device."""
    if values.dtype in INTEGER_MAX:
        if values.device.type == "cpu":
            array = values.numpy()  # PyTorch has no such operation for uint16
            return float(array.min()), float(array.max())
        values = values.to(torch.float32)
    low, high = torch.stack(torch.aminmax(values)).tolist()
    return low, high


def _check_values(
    values: Tensor, low: float, high: float, name: str, *, clips: bool = False
) -> None:
    least, most = extremes(values)
    if not (math.isfinite(least) and math.isfinite(most)):
        bad = (~torch.isfinite(values)).nonzero()
        first = tuple(bad[0].tolist())
        raise ValueError(
            f"{name}: {len(bad)} of {values.numel()} values are NaN or infinite, the first at "
            f"index {first}; replace them, for example with numpy.nan_to_num, or leave both "
            "out with nodata=nan"
        )
    slack = _RANGE_TOLERANCE * (high - low)
    if clips:
        return
    if least < low - slack or most > high + slack:
        raise ValueError(
            f"{name}: values from {least:g} to {most:g}, expected {low:g} to {high:g}; set the "
            f"values of black and white: value_range=, perhaps {_likely_range(least, most)}"
        )


def _likely_range(least: float, most: float) -> str:
    for low, high in ((-1, 1), (0, 255), (0, 4095), (0, 65535)):
        if low <= least and most <= high:
            return f"value_range=({low}, {high})"
    return f"value_range=({least:g}, {most if least < most else least + 1:g})"


def _from_unit(planes: Tensor, spec: ImageSpec) -> Tensor:
    if spec.dtype == torch.float64:
        # moved while still narrow, and because some devices have no float64
        values = planes.to(spec.device).to(torch.float64).clamp(0, 1)
    else:
        values = planes.to(torch.float32).clamp(0, 1)
    white = INTEGER_MAX.get(spec.dtype)
    low, high = spec.value_range or (0.0, float(white or 1))
    if (low, high) != (0.0, 1.0):
        values = values.mul_(high - low).add_(low).clamp_(low, high)
    if spec.dtype == torch.float16:
        values = values.clamp_(-65504, 65504)
    if white is not None:
        values = values.add_(0.5).floor_().clamp_(0, white)
    return values.to(spec.dtype)
