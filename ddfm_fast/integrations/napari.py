"""A widget for napari: two image layers in, a fused layer out.

In napari's menu *Plugins > ddfm_fast*, by the manifest ``napari.yaml``; or
``viewer.window.add_dock_widget(make_widget())``. Needs napari and a Qt, ``pip install
"napari[pyqt6]"``. Stacks are fused image by image, in a thread of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import PRESETS
from ..images.steady import SteadyRanges
from .frames import COLORS

if TYPE_CHECKING:
    from ..api import Fuser

Array = np.ndarray[Any, np.dtype[Any]]
DENOISE = ("preset", "auto", "off")
"""choices for the noise of the sources; the first leaves it to the preset"""


def fused_frames(
    fuser: Fuser, infrared: Any, visible: Any
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Fuse two layers image by image; yield the place in the stack, and the result.

    Ranges that are not given follow the images slowly, as in a video.

    Args:
        fuser: A ``Fuser``.
        infrared: A layer with ``data`` [..., H, W], or [..., H, W, 3 or 4] if it is ``rgb``.
        visible: Likewise, with the same leading axes, or none in one of the two.

    Raises:
        ValueError: The stacks do not fit, or have no image.
    """
    ranges = SteadyRanges()
    leads, sources = [], []
    for layer in (infrared, visible):
        leads.append(tuple(layer.data.shape[: -3 if layer.rgb else -2]))
        sources.append(layer.data[..., :3] if layer.rgb else layer.data)
    lead = max(leads, key=len)
    if any(own not in ((), lead) for own in leads):
        raise ValueError(
            f"infrared is a stack of {leads[0]} and visible of {leads[1]}; expected the same, or "
            "one picture and a stack"
        )
    if 0 in lead:
        raise ValueError(f"the layers are stacks of {lead}, which have no image; choose others")
    for place in product(*map(range, lead)):
        ir, vis = (
            np.asarray(data[place] if own else data)
            for data, own in zip(sources, leads, strict=True)
        )
        fused = fuser(ir, vis, value_range=ranges(ir, vis))
        yield place, fused[..., 0] if fused.ndim == 3 and fused.shape[-1] == 1 else fused


def fused_layer(infrared: Any, visible: Any, preset: str, denoise: str, color: str) -> Any:
    """Fuse two layers into data for a napari layer, with the place of the visible one.

    Args:
        infrared: As in :func:`fused_frames`.
        visible: As in :func:`fused_frames`.
        preset: A name of ``PRESETS``.
        denoise: One of ``DENOISE``.
        color: A name of ``frames.COLORS``.

    Raises:
        ValueError: ``Fuser`` refuses something, or the stacks do not fit.
    """
    from ..api import Fuser

    fuser = Fuser(
        preset=preset, denoise=None if denoise == "preset" else denoise, color=COLORS[color]
    )
    frames = dict(fused_frames(fuser, infrared, visible))
    first = next(iter(frames.values()))
    places = list(frames)
    lead = tuple(n + 1 for n in places[-1])
    data = np.stack(list(frames.values())).reshape(*lead, *first.shape)
    like = visible if len(visible.scale) == len(lead) + 2 else infrared
    more = {
        "name": f"fused ({preset})",
        "rgb": first.ndim == 3,
        "scale": tuple(like.scale),
        "translate": tuple(like.translate),
    }
    return data, more, "image"


def make_widget() -> Any:
    """Return the widget: layers, preset, noise, color and a button; ImportError without napari."""
    from magicgui import magic_factory
    from napari.layers import Image
    from napari.qt.threading import FunctionWorker, thread_worker
    from napari.types import LayerDataTuple

    def fuse(infrared, visible, preset="balanced", denoise="preset", color="auto"):
        work = thread_worker(fused_layer, start_thread=False)
        worker = work(infrared, visible, preset, denoise, color)
        worker.start()
        return worker

    fuse.__annotations__ = {
        "infrared": Image,
        "visible": Image,
        "return": FunctionWorker[LayerDataTuple],
    }
    choices = {"preset": PRESETS, "denoise": DENOISE, "color": COLORS}
    factory: Any = magic_factory(
        fuse,
        call_button="Fuse",
        **{name: {"choices": list(values)} for name, values in choices.items()},
    )
    return factory()
