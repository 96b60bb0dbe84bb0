"""Fuse infrared and visible (or two medical) images with a diffusion prior and no training.

Two aligned pictures of one place go in, and one comes out:

>>> import numpy as np
>>> import ddfm_fast
>>> rows, columns = np.mgrid[:48, :64]
>>> infrared = (4 * columns).astype(np.uint8)                               # (48, 64)
>>> visible = np.stack([5 * rows, 5 * rows, 200 - 3 * rows], -1).astype(np.uint8)
>>> fused = ddfm_fast.fuse(infrared, visible)
>>> fused.shape, fused.dtype
((48, 64, 3), dtype('uint8'))

Inputs are NumPy arrays (H, W), (H, W, C) or (N, H, W, C), torch tensors with the same axes or C
first, PIL images, CuPy and JAX arrays, or lists of any of these, with one channel or three. Black
to white is 0 to 255 in uint8, 0 to 65535 in uint16 and 0 to 1 in floats, unless ``value_range`` is
given. The result has the container, dtype, device and axes of the source that gives the color.

``fuse``         fuses with any options, and keeps the last few fusers
``Fuser``        the same, built once: also for streams of frames and, awaited, in a server
``clear_cache``  frees what ``fuse`` keeps
``load_prior``   loads another diffusion prior, from a file, a folder or a callable
``PRESETS``      the named settings, each a ``FuseConfig``
``FuserOptions`` the types of the options, for functions that pass them on
``StepInfo``     what a ``callback`` sees after each step
``FusionReport`` what ``report`` collects about each pair
``DDFMWarning``  every warning, for filters

>>> sorted(ddfm_fast.PRESETS)[:3]
['balanced', 'fast', 'instant']
>>> quick = ddfm_fast.Fuser(preset="instant", color=False)
>>> quick(infrared / 255, visible / 255).dtype
dtype('float64')
>>> [frame.shape for frame in quick.stream([(infrared, visible)] * 2)]
[(48, 64, 1), (48, 64, 1)]
>>> ddfm_fast.clear_cache()
>>> ddfm_fast.__version__ >= "0.3"
True

A wrong argument raises a ValueError or a TypeError that names it; legal input that is surely a
mistake gives a ``DDFMWarning``. Files are read by ``ddfm_fast.files``, videos fused by
``ddfm_fast.video``, volumes by ``ddfm_fast.medical``; ``ddfm_fast.integrations`` has modules,
pipelines and transforms for other libraries. The command is ``ddfm-fast``.

Names are loaded on first use, so importing the package costs milliseconds and needs no torch.
"""

from __future__ import annotations

from ddfm_fast.runtime.interrupts import OWN_PROCESS, end_at_once

if OWN_PROCESS:  # before loading anything else, which takes longer
    end_at_once()

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING

from ddfm_fast.runtime.collector import paused
from ddfm_fast.runtime.machine import quiet_openmp

if TYPE_CHECKING:
    from ddfm_fast.api import Fuser, clear_cache, fuse
    from ddfm_fast.config import PRESETS, FuseConfig
    from ddfm_fast.images.doubts import DDFMWarning
    from ddfm_fast.options import FuserOptions
    from ddfm_fast.priors.load import load_prior
    from ddfm_fast.restore.sources import FusionReport
    from ddfm_fast.sampler import StepInfo

__version__ = "0.3.0"

quiet_openmp()

__all__ = [
    "PRESETS",
    "DDFMWarning",
    "FuseConfig",
    "Fuser",
    "FuserOptions",
    "FusionReport",
    "StepInfo",
    "__version__",
    "clear_cache",
    "fuse",
    "load_prior",
]


class _FolderFinder:
    """Find ``ddfm_fast.kernels`` and ``ddfm_fast.bench`` in the checkout, next to this package.

    A wheel has the folders inside the package and never gets here. In a checkout, installed as
    editable or not, this answers before any other finder, so that they always come from the same
    checkout as the package itself.
    """

    root = Path(__file__).resolve().parent.parent
    names = ("kernels", "bench")

    @classmethod
    def find_spec(cls, name: str, _path=None, _target=None) -> ModuleSpec | None:
        parent, _, child = name.rpartition(".")
        if parent != __name__ or child not in cls.names:
            return None
        from importlib.util import spec_from_file_location

        folder = cls.root / child
        return spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


if (
    not (Path(__file__).resolve().parent / "kernels").is_dir()
    and (_FolderFinder.root / "kernels" / "__init__.py").is_file()
):
    sys.meta_path.insert(0, _FolderFinder)


_HOMES = {
    "PRESETS": "config",
    "DDFMWarning": "images.doubts",
    "FuseConfig": "config",
    "Fuser": "api",
    "FuserOptions": "options",
    "FusionReport": "restore.sources",
    "StepInfo": "sampler",
    "clear_cache": "api",
    "fuse": "api",
    "load_prior": "priors.load",
}


def __getattr__(name: str):  # as in faces.py; importing that would double the time of this import
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    with paused():
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
