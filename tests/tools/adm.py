"""The networks of guided-diffusion's family, written from their state dict's keys alone.

Slow and plain, and nothing of it comes from ``ddfm_fast``: the network that a file is loaded as is
compared with it. For networks of two levels with one residual block, and attention at the second.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Adm:
    """F(x, t) of a state dict; t is any number, as the family's own code takes it."""

    def __init__(self, state: dict, *, head: int, three_first: bool, updown: bool):
        self.state = {k: v.double() for k, v in state.items()}
        self.head, self.three_first, self.updown = head, three_first, updown

    def __call__(self, x: Tensor, t: float) -> Tensor:
        width = self.state["time_embed.0.weight"].shape[1]
        angles = t * torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2)).double()
        emb = torch.cat([angles.cos(), angles.sin()])[None]
        emb = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", emb)))
        h, kept = x.double(), []
        for i in range(4):
            down = self.updown and i == 2
            h = self.stage(
                f"input_blocks.{i}", h, emb, lambda a: F.avg_pool2d(a, 2), {0} if down else ()
            )
            kept.append(h)
        h = self.stage("middle_block", h, emb)
        for i in range(4):
            h = torch.cat([h, kept.pop()], dim=1)
            up = (2,) if self.updown and i == 1 else ()
            h = self.stage(f"output_blocks.{i}", h, emb, doubled, up)
        return self.conv("out.2", F.silu(self.norm("out.0", h)))

    def stage(self, name, h, emb, resample=None, resampling=()):
        for j in range(3):
            own = f"{name}.{j}"
            if own + ".in_layers.2.weight" in self.state:
                h = self.residual(own, h, emb, resample if j in resampling else None)
            elif own + ".qkv.weight" in self.state:
                h = self.attention(own, h)
            elif own + ".op.weight" in self.state:
                h = self.conv(own + ".op", h, stride=2)
            elif own + ".conv.weight" in self.state:
                h = self.conv(own + ".conv", doubled(h))
            elif own + ".weight" in self.state:
                h = self.conv(own, h)
        return h

    def residual(self, name, x, emb, resample):
        h = F.silu(self.norm(name + ".in_layers.0", x))
        h, x = (resample(h), resample(x)) if resample else (h, x)
        h = self.conv(name + ".in_layers.2", h)
        told = self.linear(name + ".emb_layers.1", F.silu(emb))[..., None, None]
        if told.shape[1] == 2 * h.shape[1]:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm(name + ".out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.norm(name + ".out_layers.0", h + told)
        h = self.conv(name + ".out_layers.3", F.silu(h))
        skip = name + ".skip_connection"
        return h + (self.conv(skip, x) if skip + ".weight" in self.state else x)

    def attention(self, name, x):
        n, c, height, width = x.shape
        heads = c // self.head
        qkv = self.conv1d(name + ".qkv", self.norm(name + ".norm", x).flatten(2))
        if self.three_first:
            q, k, v = qkv.reshape(n, 3, heads, self.head, -1).unbind(1)
        else:
            q, k, v = qkv.reshape(n, heads, 3, self.head, -1).unbind(2)
        weight = (q.transpose(-1, -2) @ k / math.sqrt(self.head)).softmax(-1)
        out = (v @ weight.transpose(-1, -2)).reshape(n, c, -1)
        return x + self.conv1d(name + ".proj_out", out).reshape(n, c, height, width)

    def conv1d(self, name, x):
        return F.conv1d(x, self.state[name + ".weight"], self.state[name + ".bias"])

    def norm(self, name, x):
        return F.group_norm(x, 32, self.state[name + ".weight"], self.state[name + ".bias"], 1e-5)

    def linear(self, name, x):
        return F.linear(x, self.state[name + ".weight"], self.state[name + ".bias"])

    def conv(self, name, x, stride=1):
        weight = self.state[name + ".weight"]
        return F.conv2d(x, weight, self.state[name + ".bias"], stride, weight.shape[-1] // 2)


def halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
