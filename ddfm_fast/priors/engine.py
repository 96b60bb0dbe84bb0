"""The ADM network as it runs at inference: a plan over a UNet's weights, and nothing else.

``unet.py`` is the network that is trained and the oracle; the engine computes the same function
for one timestep shared by the batch. It keeps no copy of a large weight. What it saves, exactly:

- time embedding, scales and shifts of all steps are one table (``UNet.conditioning``);
- the learned variance's half of the output convolution is not computed unless asked for;
- biases of a block's last convolution and of its skip are one vector;
- the rest is in the operations (``ops.py``): norms fused with what surrounds them, no
  concatenation, nearest upsampling and 2x2 means inside their neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import Conv, Feature, Norm, PlainOps, ops_for
from .unet import AttentionBlock, Downsample, ResBlock, StepCondition, UNet, Upsample, mixed


@dataclass(frozen=True)
class _Residual:
    """norm, SiLU, [resample], conv, norm with the timestep, SiLU, conv; plus the skip."""

    name: str
    index: int
    norm: Norm
    conv: Conv
    norm_name: str
    out: Conv
    skip: Conv | None
    resample: str

    def __call__(self, ops: PlainOps, parts: tuple[Feature, ...], step: StepCondition) -> Feature:
        condition = step[self.index]
        norm = Norm(self.norm_name, condition.norm_weight, condition.norm_bias)
        h, residual = ops.enter(parts, self.norm, self.resample, self.conv)
        h = ops.middle(h, self.conv, condition.conv_bias, norm)
        return ops.leave(h, self.out, residual, self.skip, self.resample == "up")


@dataclass(frozen=True)
class _Attention:
    """Self-attention over all positions; rows of qkv as in ``unet.AttentionBlock``."""

    name: str
    norm: Norm
    qkv: Conv
    out: Conv
    heads: int
    new_order: bool

    def __call__(self, ops: PlainOps, parts: tuple[Feature, ...], step: StepCondition) -> Feature:
        (x,) = parts
        n, c, height, width = x.data.shape
        split = (3, self.heads) if self.new_order else (self.heads, 3)
        qkv = ops.queries(x, self.norm, self.qkv)
        qkv = qkv.view(n, height * width, *split, c // self.heads)
        h = ops.attend(*qkv.unbind(2 if self.new_order else 3)).reshape(-1, c)
        return ops.project(h, self.out, x)


@dataclass(frozen=True)
class _Resize:
    """The layers that only resample, of networks without ``resblock_updown``."""

    name: str
    conv: Conv | None
    direction: str

    def __call__(self, ops: PlainOps, parts: tuple[Feature, ...], step: StepCondition) -> Feature:
        return ops.resize(parts[0], self.conv, self.direction)


class Engine:
    """A UNet's function of x and one shared timestep, by the operations ``ops``.

    Built from the network as it lies: its device, dtype, memory format and folded upsampling are
    the engine's. After weights are changed in place, build another.
    """

    def __init__(self, unet: UNet, ops: PlainOps | None = None):
        self.config = unet.config
        names = {module: name for name, module in unet.named_modules()}
        if ops is None:
            weights, like = sum(p.numel() for p in unet.parameters()), unet.out[2].weight
            ops = ops_for(like.device, weights, like.dtype)
        self.ops = ops
        self.first = _conv(names, unet.input_blocks[0][0])
        self.down = [self._stage(names, stage) for stage in unet.input_blocks[1:]]
        self.middle = self._stage(names, unet.middle_block.values())
        self.up = [self._stage(names, stage) for stage in unet.output_blocks]
        self.norm = _norm(names, unet.out[0])
        self.last = _conv(names, unet.out[2])

    @staticmethod
    def _stage(names: dict, stage) -> list:
        return [_LAYERS[type(layer)](names, layer) for layer in stage]

    def __call__(self, x: Tensor, step: StepCondition, out_channels: int | None = None) -> Tensor:
        """x [N, C, H, W] in any floating dtype, ``step`` an item of ``UNet.conditioning``.

        [N, out_channels or all, H, W] in the weights' dtype; with ``sigma_data`` in that of x, so
        that at high noise a float32 x_t passes into eps without a low-precision network's rounding.
        """
        unshuffle = self.config.pixel_unshuffle
        h = x.to(self.last.weight.dtype)
        if unshuffle > 1:
            h = F.pixel_unshuffle(h, unshuffle)
        h = self.ops.first(h.contiguous(memory_format=torch.channels_last), self.first)
        skips = [h]
        for stage in self.down:
            h = self._run(stage, (h,), step)
            skips.append(h)
        h = self._run(self.middle, (h,), step)
        for stage in self.up:
            h = self._run(stage, (h, skips.pop()), step)
        h = self.ops.last(h, self.norm, self._last(out_channels))
        h = F.pixel_shuffle(h, unshuffle) if unshuffle > 1 else h
        return mixed(x, h, step[-1]) if self.config.sigma_data else h

    def _run(self, stage: list, parts: tuple[Feature, ...], step: StepCondition) -> Feature:
        for layer in stage:
            parts = (layer(self.ops, parts, step),)
        return parts[0]

    def _last(self, out_channels: int | None) -> Conv:
        if out_channels is None:
            return self.last
        rows = out_channels * self.config.pixel_unshuffle**2
        return self.last._replace(weight=self.last.weight[:rows], bias=self.last.bias[:rows])


def _conv(names: dict, module, up_kernel: Tensor | None = None) -> Conv:
    return Conv(names[module], module.weight, module.bias.float(), up_kernel)


def _norm(names: dict, module) -> Norm:
    return Norm(names[module], module.weight.float(), module.bias.float())


def _residual(names: dict, block: ResBlock) -> _Residual:
    out, skip = _conv(names, block.out_layers[3]), None
    if block.skip_connection.__class__ is not torch.nn.Identity:
        skip = _conv(names, block.skip_connection)
        out, skip = out._replace(bias=out.bias + skip.bias), skip._replace(bias=None)
    return _Residual(
        names[block],
        block.index,
        _norm(names, block.in_layers[0]),
        _conv(names, block.in_layers[2], block.up_kernel),
        names[block.out_layers[0]],
        out,
        skip,
        block.resample,
    )


def _attention(names: dict, block: AttentionBlock) -> _Attention:
    qkv, out = (
        Conv(names[m], m.weight[:, :, 0], bias)
        for m, bias in ((block.qkv, block.qkv.bias), (block.proj_out, block.proj_out.bias.float()))
    )
    return _Attention(
        names[block], _norm(names, block.norm), qkv, out, block.heads, block.new_order
    )


def _upsample(names: dict, layer: Upsample) -> _Resize:
    conv = layer.conv if isinstance(layer.conv, torch.nn.Conv2d) else None
    conv = None if conv is None else _conv(names, conv, layer.up_kernel)
    return _Resize(names[layer], conv, "up")


def _downsample(names: dict, layer: Downsample) -> _Resize:
    conv = layer.op if isinstance(layer.op, torch.nn.Conv2d) else None
    return _Resize(names[layer], None if conv is None else _conv(names, conv), "down")


_LAYERS = {
    ResBlock: _residual,
    AttentionBlock: _attention,
    Upsample: _upsample,
    Downsample: _downsample,
}
