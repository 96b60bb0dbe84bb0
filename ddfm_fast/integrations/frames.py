"""Frames of a host whose settings are text: GStreamer's properties, ROS's parameters.

``SETTINGS`` lists them once, ``FrameFusion`` is made of them and called with arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..runtime.words import parse_denoise, parse_range, parse_steps

if TYPE_CHECKING:
    import numpy as np

    Frame = np.ndarray[Any, np.dtype[Any]]

ALONE = "none"
"""the video preset that fuses each frame by itself"""
COLORS: dict[str, bool | str] = {"auto": True, "ir": "ir", "vis": "vis", "none": False}


class Setting(NamedTuple):
    """A setting of a host: its default and a sentence; "" leaves it to the preset."""

    default: str
    help: str


SETTINGS = {
    "preset": Setting("balanced", "How a frame is fused: a name from `ddfm-fast presets`"),
    "video_preset": Setting(
        ALONE,
        "exact, balanced or realtime: as one video without flicker; none: each frame by itself",
    ),
    "denoise": Setting("", "Noise of the sources: auto, off, a level of 255, or ir=12,vis=off"),
    "steps": Setting("", "Evaluations of the prior, with presets that have them"),
    "color": Setting("auto", "Source of the color: auto, vis, ir, or none for gray"),
    "ir_range": Setting("auto", "Infrared values of black and white: LO,HI, auto, dtype or data"),
    "vis_range": Setting("auto", "The same for the visible frames"),
    "align": Setting("off", "off, shift, affine, homography, or a file of `ddfm-fast align`"),
    "prior": Setting("embedded", "embedded, or a file or folder of a prior"),
    "device": Setting("", "cpu, cuda or cuda:N; by default CUDA if available"),
}


class FrameFusion:
    """Fuses the frames of one stream, in order; made of settings as text.

    Ranges that are not given follow the frames slowly, as in a video, so that brightness jumps only
    where the camera's does.

    Args:
        given: Names of ``SETTINGS`` and their text; what is missing has its default.

    Raises:
        ValueError: A setting is out of range, or unknown.
        ImportError: A library that an option needs is missing.
    """

    def __init__(self, given: Mapping[str, str]):
        if unknown := [name for name in given if name not in SETTINGS]:
            raise ValueError(
                f"{unknown[0]!r} is not a setting; expected one of {', '.join(SETTINGS)}"
            )
        words = {name: given.get(name, one.default) for name, one in SETTINGS.items()}
        if words["color"] not in COLORS:
            raise ValueError(f"color is {words['color']!r}; expected one of {', '.join(COLORS)}")
        self.color = COLORS[words["color"]]
        self._wanted = {
            source: parse_range(words[f"{source}_range"] or None, f"{source}_range")
            for source in ("ir", "vis")
        }
        from ..api import Fuser

        self.fuser = Fuser(
            preset=words["preset"],
            denoise=parse_denoise(words["denoise"] or None),
            steps=parse_steps(words["steps"] or None),
            color=self.color,
            align=words["align"],
            prior=words["prior"],
            device=words["device"] or None,
        )
        self._temporal = self._made_temporal(words["video_preset"])
        self.restart()

    def _made_temporal(self, preset: str) -> Any:
        if preset == ALONE:
            return None
        from ..video.temporal import VIDEO_PRESETS, TemporalFuser

        if preset not in VIDEO_PRESETS:
            expected = ", ".join((ALONE, *VIDEO_PRESETS))
            raise ValueError(f"video_preset is {preset!r}; expected one of {expected}")
        return TemporalFuser(self.fuser, preset)

    def restart(self) -> None:
        """Forget previous frames: the stream is new, or has moved to another position."""
        from ..images.steady import SteadyRanges

        self._ranges = SteadyRanges()
        if self._temporal is not None:
            from ..video.motion import MotionFinder

            self._stream = self._temporal.open()
            self._motion = MotionFinder(value_range=self._wanted)

    def __call__(self, ir: Frame, vis: Frame) -> Frame:
        """Fuse a frame of both sources.

        Args:
            ir: uint8 or uint16, [H, W] or [H, W, 3].
            vis: Likewise, of the same size unless it is aligned.

        Returns:
            uint8 or uint16, [H, W] or [H, W, 3], as :func:`result_kind` says.

        Raises:
            ValueError: Names the source and what is wrong with it.
        """
        if self._temporal is None:
            ranges = self._ranges(ir, vis, self._wanted)
            fused = self.fuser(ir, vis, value_range=ranges)
        else:
            motion = self._motion(ir, vis)
            fused = self._temporal.fuse(self._stream, ir, vis, motion, value_range=self._wanted)
        return fused[..., 0] if fused.ndim == 3 and fused.shape[-1] == 1 else fused


def result_kind(ir: tuple[bool, int], vis: tuple[bool, int], color: bool | str) -> tuple[bool, int]:
    """Return (whether a fused frame is in color, bits per value), given the same of the sources.

    The rule of ``ddfm_fast.fuse``: the source that gives the color decides the depth, which is the
    visible one unless only the infrared one has color, or it is named.

    >>> result_kind((False, 16), (True, 8), True), result_kind((False, 16), (True, 8), False)
    ((True, 8), (False, 8))
    """
    from_ir = color == "ir" or (color is True and ir[0] and not vis[0])
    colored, bits = ir if from_ir else vis
    return colored and color is not False, bits
