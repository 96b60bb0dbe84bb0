"""A dictionary transform for MONAI: two images of a sample, fused.

>>> from ddfm_fast.integrations.monai import FuseDDFMd                      # doctest: +SKIP
>>> load = LoadImaged(("mr", "ct"), ensure_channel_first=True)              # doctest: +SKIP
>>> Compose([load, FuseDDFMd(("mr", "ct"), output="fused")])                # doctest: +SKIP

The module imports without MONAI; making a transform then raises an error that says what to install.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..medical.fuse import fuse_volumes
from ..medical.volume import Volume
from ..options import FuserOptions
from .samples import SampleFusion

if TYPE_CHECKING:
    from ..api import Fuser


def _map_transform() -> Any:
    try:
        return import_module("monai.transforms").MapTransform
    except ImportError:
        return object


_MapTransform: Any = _map_transform()


class FuseDDFMd(SampleFusion, _MapTransform):
    """Fuse the images under two keys, slices along the last axis with one range, noise and scale.

    Images are [C, X, Y] or [C, X, Y, Z], NumPy, torch or MetaTensor, with one channel or three
    (RGB: integers of their dtype's range, floats in 0 to 1 or up to 255). Two MetaTensors are
    brought to one grid by their affines; without these, sizes must be equal.

    The result has the container, device and metadata of the source whose grid it is on: float32 in
    [0, 1], with three channels if a source has color.

    Args:
        keys: Keys of the first and the second image, such as MRI and CT or PET.
        output: Key of the result.
        fuser: A ``Fuser``; None for one made from ``options`` when it is first needed, in each
            worker.
        value_range: As in ``ddfm_fast.medical.fuse_volumes``, as are ``nodata``, ``colormap``
            and ``grid``.
        nodata: See ``value_range``.
        colormap: See ``value_range``.
        grid: See ``value_range``.
        allow_missing_keys: Leave samples that lack a key as they are.
        **options: Options of ``Fuser``, such as preset="instant".

    Raises:
        ImportError: MONAI is missing.
        ValueError: There are not two keys, or an entry is not an image.
    """

    def __init__(
        self,
        keys: Any,
        output: Hashable = "fused",
        fuser: Fuser | None = None,
        *,
        value_range: Any = None,
        nodata: Any = None,
        colormap: Any = None,
        grid: str = "ir",
        allow_missing_keys: bool = False,
        **options: Any,
    ):
        if _MapTransform is object:
            raise ImportError("FuseDDFMd needs MONAI, which is missing; pip install monai")
        super().__init__(keys, allow_missing_keys)
        given: FuserOptions = options  # type: ignore[assignment]
        self.prepare(self.keys, output, fuser, given, value_range)
        self.grid = grid
        self._how = {"value_range": value_range, "nodata": nodata, "colormap": colormap}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with the result added."""
        return self.added(data, self.key_iterator(dict(data)))

    def fused(self, sample: dict[Any, Any], ir: Hashable, vis: Hashable) -> Any:
        """Return the result of the images under two keys, like the one whose grid it is on."""
        volumes = [as_volume(sample[key], str(key)) for key in (ir, vis)]
        fused = fuse_volumes(volumes[0], volumes[1], self.fuser, grid=self.grid, **self._how)
        return given_back(fused.volume, sample[ir if self.grid == "ir" else vis])


def as_volume(image: Any, name: str) -> Volume:
    """Return an image [C, X, Y] or [C, X, Y, Z] as a volume; ValueError if it is not one."""
    affine = getattr(image, "affine", None)
    values = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if values.ndim not in (3, 4) or values.shape[0] not in (1, 3):
        raise ValueError(
            f"{name}: has shape {values.shape}; expected [C, X, Y] or [C, X, Y, Z] with one "
            "channel or three, as EnsureChannelFirstd makes it"
        )
    if values.ndim == 3:
        values = values[..., None]
    array = values.transpose(3, 2, 1, 0)
    if array.shape[3] == 1:
        array = array[..., 0].astype(np.float32)
        array = np.where(np.isfinite(array), array, np.float32(np.nan))
    else:
        array = _unit(array)
    placed = affine is not None
    where = np.asarray(affine, np.float64) if placed else np.eye(4)
    return Volume(np.ascontiguousarray(array), where, name=name, placed=placed)


def _unit(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if rgb.dtype.kind in "iu":
        white = int(np.iinfo(rgb.dtype).max)
    else:
        white = 255 if float(np.nanmax(rgb)) > 1 else 1
    return (rgb / np.float32(white)).clip(0, 1).astype(np.float32)


def given_back(volume: Volume, like: Any) -> Any:
    """Return a fused volume in the container of an image, float32 in [0, 1]."""
    white = np.float32(np.iinfo(volume.array.dtype).max)
    array = volume.array.astype(np.float32) / white
    array = array.transpose(3, 2, 1, 0) if volume.colored else array.transpose(2, 1, 0)[None]
    array = np.ascontiguousarray(array[..., 0] if like.ndim == 3 else array)
    if not isinstance(like, Tensor):
        return array
    tensor = torch.from_numpy(array).to(like.device)
    if not hasattr(like, "meta"):
        return tensor
    kind: Any = type(like)
    return kind(tensor, meta=copy.deepcopy(like.meta))
