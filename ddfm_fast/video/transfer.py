"""Frames to the device and back beside the computation, by pinned memory and copy streams.

On the CPU both are no work at all. The CUDA branches have not run on a GPU yet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Uploader:
    """Copies NumPy images to ``device`` on a stream of its own; used by one thread."""

    def __init__(self, device: torch.device):
        self.device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, *images: np.ndarray) -> Upload:
        if self._copies is None:
            return Upload(images, None)
        with torch.cuda.stream(self._copies):
            tensors = tuple(
                torch.from_numpy(image).pin_memory().to(self.device, non_blocking=True)
                for image in images
            )
            return Upload(tensors, self._copies.record_event())


class Upload:
    """Images on their way to the device."""

    def __init__(self, images: tuple, event: Any):
        self._images, self._event = images, event

    def images(self) -> tuple:
        """The images, for work queued on the current stream from now on."""
        if self._event is not None:
            stream = torch.cuda.current_stream(self._images[0].device)
            stream.wait_event(self._event)
            for image in self._images:
                image.record_stream(stream)  # its memory is not reused before that work is done
        return self._images


class Downloader:
    """Copies fused images back to the host on a stream of its own; used by one thread."""

    def __init__(self, device: torch.device):
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, image: np.ndarray | Tensor) -> Download:
        if self._copies is None or not isinstance(image, Tensor):
            return Download(image, None)
        self._copies.wait_stream(torch.cuda.current_stream(image.device))
        with torch.cuda.stream(self._copies):
            host = torch.empty(image.shape, dtype=image.dtype, pin_memory=True)
            host.copy_(image, non_blocking=True)
            image.record_stream(self._copies)
            return Download(host, self._copies.record_event())


class Download:
    """An image on its way to the host."""

    def __init__(self, image: np.ndarray | Tensor, event: Any):
        self._image, self._event = image, event

    def image(self) -> np.ndarray:
        """The image, after waiting for it."""
        if self._event is not None:
            self._event.synchronize()
        return self._image.numpy() if isinstance(self._image, Tensor) else self._image
