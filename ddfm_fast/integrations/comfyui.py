"""A node for ComfyUI: two IMAGEs in, the fused one out.

``python -m ddfm_fast.integrations.comfyui > ComfyUI/custom_nodes/ddfm_fast_nodes.py`` adds it, with
ddfm_fast installed for ComfyUI's Python. It is a node of the V3 interface if ``comfy_api`` has it,
and otherwise of the first one, by ``NODE_CLASS_MAPPINGS``; ComfyUI takes the first interface if a
module has both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..api import Fuser
from ..config import PRESETS
from .frames import COLORS

NODE = "DDFMFuse"
TITLE = "Fuse infrared and visible (DDFM)"
CATEGORY = "image/fusion"
DENOISE = ("preset", "auto", "off")
"""choices for the noise of the sources; the first leaves it to the preset"""
FILE = "from ddfm_fast.integrations.comfyui import *  # noqa: F403\n"
"""the whole content of a file for ``custom_nodes``"""

_fusers: dict[tuple[Any, ...], Fuser] = {}


def fuse_images(
    infrared: Tensor,
    visible: Tensor,
    *,
    preset: str,
    denoise: str,
    color: str,
    seed: int,
    tell: Callable[[int, int], None],
) -> Tensor:
    """Fuse two IMAGEs.

    Args:
        infrared: Floats in [0, 1], [B, H, W, C]; one image goes with all of the other source.
        visible: Likewise.
        preset: A name of ``PRESETS``.
        denoise: One of ``DENOISE``.
        color: A name of ``frames.COLORS``.
        seed: As in ``Fuser``.
        tell: Called with (images done, total).

    Returns:
        Floats in [0, 1], [B, H, W, 3].

    Raises:
        ValueError: Numbers of images or sizes do not fit.
    """
    count = _checked(infrared, visible)
    sources = [x.expand(count, *x.shape[1:]).clamp(0, 1) for x in (infrared, visible)]
    key = (preset, denoise, color)
    if key not in _fusers:
        _fusers.clear()  # one prior in memory is enough
        level = None if denoise == "preset" else denoise
        _fusers[key] = Fuser(preset=preset, denoise=level, color=COLORS[color])
    fuser, done = _fusers[key], []
    tell(0, count)
    for first in range(0, count, fuser.batch_size):
        ir, vis = (x[first : first + fuser.batch_size] for x in sources)
        done += list(fuser(ir, vis, seed=seed, value_range=(0.0, 1.0), layout="NHWC"))
        tell(len(done), count)
    return _in_color(done)


def _checked(infrared: Tensor, visible: Tensor) -> int:
    """Return how many pairs there are; ValueError names the node that makes inputs fit."""
    count = max(len(infrared), len(visible))
    for name, images in (("infrared", infrared), ("visible", visible)):
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(
                f"{name} has the shape {tuple(images.shape)}; expected an IMAGE [B, H, W, C] of "
                "one channel or three: put Convert Mask to Image, or Split Image with Alpha, before"
            )
        if len(images) not in (1, count) or not count:
            raise ValueError(
                f"{name} has {len(images)} images and the other source {count}; expected as many, "
                "or one"
            )
    (ih, iw), (vh, vw) = infrared.shape[1:3], visible.shape[1:3]
    if (ih, iw) != (vh, vw):
        raise ValueError(
            f"infrared is {iw}x{ih} and visible {vw}x{vh}; expected equal sizes: put Upscale Image "
            "before one, or Image Crop where it shows more"
        )
    return count


def _in_color(images: list[Tensor]) -> Tensor:
    import torch

    stacked = torch.stack(images)
    return stacked.expand(*stacked.shape[:3], 3).contiguous()


def _v3() -> Any:
    """Return the entry point of the V3 interface; ImportError if this ComfyUI has none."""
    from comfy_api.latest import ComfyAPISync, ComfyExtension, io

    class Node(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> Any:
            return io.Schema(
                node_id=NODE,
                display_name=TITLE,
                category=CATEGORY,
                description="Fuses an infrared and a visible image with a diffusion prior.",
                inputs=[
                    io.Image.Input("infrared"),
                    io.Image.Input("visible"),
                    io.Combo.Input("preset", options=list(PRESETS), default="balanced"),
                    io.Combo.Input("denoise", options=list(DENOISE), default=DENOISE[0]),
                    io.Combo.Input("color", options=list(COLORS), default="auto"),
                    io.Int.Input("seed", default=0, min=0, max=2**63 - 1),
                ],
                outputs=[io.Image.Output(display_name="fused")],
            )

        @classmethod
        def execute(cls, infrared: Tensor, visible: Tensor, **options: Any) -> Any:
            api = ComfyAPISync()
            fused = fuse_images(
                infrared,
                visible,
                tell=lambda done, of: api.execution.set_progress(value=done, max_value=of),
                **options,
            )
            return io.NodeOutput(fused)

    class Extension(ComfyExtension):
        async def get_node_list(self) -> list[Any]:
            return [Node]

    async def comfy_entrypoint() -> Any:
        return Extension()

    return comfy_entrypoint


class FirstInterface:
    """The node of ComfyUI's first interface."""

    CATEGORY = CATEGORY
    FUNCTION = "execute"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("fused",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs, as ComfyUI shows them."""
        return {
            "required": {
                "infrared": ("IMAGE",),
                "visible": ("IMAGE",),
                "preset": (list(PRESETS), {"default": "balanced"}),
                "denoise": (list(DENOISE), {"default": DENOISE[0]}),
                "color": (list(COLORS), {"default": "auto"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
            }
        }

    def execute(self, infrared: Tensor, visible: Tensor, **options: Any) -> tuple[Tensor]:
        """Fuse, with ComfyUI's progress bar."""
        from comfy.utils import ProgressBar

        bar = ProgressBar(max(len(infrared), len(visible)))
        return (
            fuse_images(
                infrared, visible, tell=lambda done, of: bar.update_absolute(done, of), **options
            ),
        )


__all__: list[str]
try:
    comfy_entrypoint = _v3()
    __all__ = ["comfy_entrypoint"]
except ImportError:
    NODE_CLASS_MAPPINGS = {NODE: FirstInterface}
    NODE_DISPLAY_NAME_MAPPINGS = {NODE: TITLE}
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]


if __name__ == "__main__":
    print(FILE, end="")
