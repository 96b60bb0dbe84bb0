"""What a stream carries from frame to frame: scale, noise, ranges, and the previous frame."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..images.steady import SteadyRanges
from ..restore.noise_level import CLEAN, Estimator, NoiseLevel, estimate
from ..restore.sources import SOURCES
from .reuse import KeptClean
from .trust import Kept

_SCALE_FRAMES = 50
_NOISE_FRAMES = 8
_CONTRADICTIONS = 4
_FAR_OFF = 1.4
"""ratio of noise levels beyond which an estimate contradicts the running one"""


class RunningScale:
    """The output scale of a scene: low and high luma as running means over about 50 frames.

    They stay on the device.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.limits: Tensor | None = None

    def __call__(self, found: Tensor | None) -> Tensor | None:
        """Include one frame's limits [2, 1, 1, 1, 1], and return the limits to scale it by.

        Args:
            found: The frame's limits by ``FuseConfig.stretch``; None if nothing is stretched.
        """
        if found is None:
            return None
        self.frames += 1
        if self.limits is None:
            self.limits = found
        else:
            self.limits = self.limits.lerp(found, 1 / min(self.frames, _SCALE_FRAMES))
        return self.limits


class Stream:
    """What one stream carries from frame to frame: see the module."""

    def __init__(self) -> None:
        self.kept: Kept | None = None
        """of the previous frame; None before the first"""
        self.ranges = SteadyRanges()
        self.settled = True
        """whether the tensors are on the device of the frames"""
        self.new_scene()

    def reading(
        self, ir: Any, vis: Any, given: Mapping[str, Any], *, cut: bool = False
    ) -> dict[str, Any]:
        """Return how a frame is read: as requested, with ranges that follow the frames."""
        found = self.ranges(ir, vis, given.get("value_range"), given.get("nodata"), cut=cut)
        return {**given, "value_range": found}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle with tensors on the CPU, whatever device they were on."""
        scale = copy.copy(self.scale)
        moved = {**self.__dict__, "scale": scale, "settled": False}
        if scale.limits is not None:
            scale.limits = scale.limits.cpu()
        if self.kept is not None:
            moved["kept"] = Kept(*(plane.cpu() for plane in self.kept))
        return moved

    def settle(self, device: torch.device) -> None:
        """Move the tensors to a device after unpickling."""
        if self.settled:
            return
        if self.scale.limits is not None:
            self.scale.limits = self.scale.limits.to(device)
        if self.kept is not None:
            self.kept = Kept(*(plane.to(device) for plane in self.kept))
        self.settled = True

    def new_scene(self) -> None:
        """Restart the running scale and the running estimates of noise."""
        self.scale = RunningScale()
        self.noise: dict[str, Estimator] = {name: RunningNoise() for name in SOURCES}
        self.clean = {name: KeptClean() for name in SOURCES}
        self.chroma_noise = RunningNoise(), RunningNoise()


class RunningNoise:
    """The noise of a source over the frames of a scene: steady, so that denoising does not flicker.

    It is estimated in the first ``_NOISE_FRAMES`` frames, and afterwards once in as many frames. A
    source counts as noisy when most estimates say so, and as clean again when few do. After an
    estimate that is far off, every following frame is estimated, too; if ``_CONTRADICTIONS`` in a
    row agree on another noise, such as after a change of the camera's gain, it restarts from them.
    """

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.frames = self.estimates = 0
        self.noisy_share = 0.0
        self.is_noisy = False
        self.level = CLEAN
        self.contradictions: list[NoiseLevel] = []

    def __call__(self, plane: Tensor) -> NoiseLevel:
        """Include one frame's luma [1, 1, H, W], and return the level to denoise it by."""
        due = self.frames < _NOISE_FRAMES or self.frames % _NOISE_FRAMES == 0
        self.frames += 1
        if due or self.contradictions:
            found = estimate(plane)
            if self.estimates >= _CONTRADICTIONS and self._contradicts(found):
                self.contradictions.append(found)
            else:
                self.contradictions.clear()
                self._count(found)
        if len(self.contradictions) == _CONTRADICTIONS:
            found_since = self.contradictions
            self._restart()
            for found in found_since:
                self._count(found)
            self.frames = len(found_since)
        return self.level if self.is_noisy else CLEAN

    def _contradicts(self, found: NoiseLevel) -> bool:
        if bool(found.sigma) != self.is_noisy:
            return True
        return self.is_noisy and not 1 / _FAR_OFF < found.sigma / self.level.sigma < _FAR_OFF

    def _count(self, found: NoiseLevel) -> None:
        self.estimates += 1
        weight = 1 / min(self.estimates, _NOISE_FRAMES)
        self.noisy_share += weight * (bool(found.sigma) - self.noisy_share)
        self.is_noisy = self.noisy_share > (0.3 if self.is_noisy else 0.5)
        if found.sigma and not self.level.sigma:
            self.level = found
        elif found.sigma:
            pairs = zip(self.level, found, strict=True)
            self.level = NoiseLevel(*(old + weight * (new - old) for old, new in pairs))
