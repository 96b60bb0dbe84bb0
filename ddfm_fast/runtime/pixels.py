"""Which code moves images to a device and back: chosen once, by the device and the backend."""

from __future__ import annotations

import torch

from ..images.pixels import Pixels


def pixels_for(device: torch.device, backend: str) -> Pixels:
    """Make what reads and gives back the images of a fuser."""
    return Pixels(device)
