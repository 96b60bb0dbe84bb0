"""The sampler's noise z: a function of (an image's seed, step, pixel, channel) and of nothing else.

Counter-based, so that no launch shape, batch or device changes it: Philox-4x32-10 (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011) with the seed as key and (pixel, step, 0,
0) as counter gives four words per pixel, of which the Box-Muller transform makes the three
channels' normal deviates. ``kernels/pixel.py`` computes the same in registers; what differs is
the rounding of log and sine. x_T does not come from here: it is ``torch.randn`` on the CPU, as in
the authors' script.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(counter: tuple, key: tuple) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute Philox-4x32-10: four words for each counter, int64 tensors that hold uint32 values.

    ``counter``: four, ``key``: two ints or int64 tensors in [0, 2³²), broadcast together.
    """
    c0, c1, c2, c3 = (torch.as_tensor(c) for c in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        # int64 products wrap around; their 64 bits are those of the unsigned product
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = ((second >> 32) & _WORD) ^ c1 ^ k0, ((first >> 32) & _WORD) ^ c3 ^ k1
        c1, c3 = second & _WORD, first & _WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & _WORD, (k1 + KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def box_muller(radial: Tensor, angular: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two independent standard normal deviates of two words (int64 holding uint32).

    r = √(−2 ln u), with u from the upper 23 bits, at the middle of its cell, so that r < 5.8. The
    angle's upper two bits are the quadrant, so that the angle itself is in (0, π/2).
    """
    r = torch.sqrt(-2 * torch.log(((radial >> 9).to(dtype) + 0.5) * 2**-23))
    phi = (((angular & 0x3FFFFFFF) >> 7).to(dtype) + 0.5) * (2**-23 * math.pi / 2)
    sine, cosine = torch.sin(phi), torch.cos(phi)
    quadrant = angular >> 30
    odd = (quadrant & 1).bool()
    sine, cosine = torch.where(odd, cosine, sine), torch.where(odd, -sine, cosine)
    r = torch.where(quadrant > 1, -r, r)
    return r * cosine, r * sine


def normals(
    seeds: Tensor, step: int, height: int, width: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return z [N, 3, H, W] of the step (0 is the first), one image per seed in int64 [N].

    Equal seeds give equal images. On the seeds' device, float32 or float64.
    """
    pixel = torch.arange(height * width, device=seeds.device)
    seeds = seeds[:, None]
    words = philox((pixel, step, 0, 0), (seeds & _WORD, (seeds >> 32) & _WORD))
    r, g = box_muller(words[0], words[1], dtype)
    b, _ = box_muller(words[2], words[3], dtype)
    return torch.stack([r, g, b], dim=1).view(len(seeds), 3, height, width)
