"""The ADM network as it runs at inference: a plan over a UNet's weights, and nothing else.

``unet.py`` is the network that is trained and the oracle; the engine computes the same function
for one timestep shared by the batch. It keeps no copy of a large weight. It saves work exactly:

- time embedding, scales and shifts of all steps are one table (``UNet.conditioning``);
- the output convolution's half for the learned variance is not computed unless requested;
- biases of a block's last convolution and of its skip are one vector;
- the rest is in the operations (``ops``): norms fused with what surrounds them, no
  concatenation, nearest upsampling and 2x2 means inside their neighbors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from .ops.base import Conv, Feature, Norm, Ops
from .ops.choice import ops_for
from .reuse import Kept
from .timesteps import BlockCondition, StepCondition
from .unet import AttentionBlock, Downsample, ResBlock, Stage, UNet, Upsample

Blocks = Sequence[BlockCondition]
Names = dict[nn.Module, str]


class Layer(Protocol):
    """A layer of the plan."""

    @property
    def name(self) -> str:
        """Its key in the state dict, for reports."""

    def __call__(self, ops: Ops[Any], parts: tuple[Feature, ...], blocks: Blocks, /) -> Feature:
        """Return its result for the parts side by side."""


@dataclass(frozen=True)
class _Residual:
    """Norm, SiLU, [resample], conv, norm with the timestep, SiLU, conv; plus the skip."""

    name: str
    index: int
    norm: Norm
    conv: Conv
    norm_name: str
    out: Conv
    skip: Conv | None
    resample: str

    def __call__(self, ops: Ops[Any], parts: tuple[Feature, ...], blocks: Blocks) -> Feature:
        condition = blocks[self.index]
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

    def __call__(self, ops: Ops[Any], parts: tuple[Feature, ...], _blocks: Blocks) -> Feature:
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

    def __call__(self, ops: Ops[Any], parts: tuple[Feature, ...], _blocks: Blocks) -> Feature:
        return ops.resize(parts[0], self.conv, self.direction)


class Engine:
    """A UNet's function of x and one shared timestep, by the operations ``ops``.

    The engine takes over the network's device, dtype, memory format and folded upsampling. After
    weights are changed in place, build another engine.
    """

    def __init__(self, unet: UNet, ops: Ops[Any] | None = None):
        self.config = unet.config
        names = {module: name for name, module in unet.named_modules()}
        if ops is None:
            weights = sum(p.numel() for p in unet.parameters())
            ops = ops_for(unet.device, weights, unet.dtype, self.config)
        self.ops = ops
        self.first = _conv(names, unet.input_conv)
        self.down = [_stage(names, cast(Stage, stage)) for stage in unet.input_blocks[1:]]
        self.middle = _stage(names, unet.middle_block.values())
        self.up = [_stage(names, cast(Stage, stage)) for stage in unet.output_blocks]
        self.top = self.config.num_res_blocks
        """stages of the full resolution on the way down; one more on the way up"""
        self.norm = _norm(names, unet.output_norm)
        self.last = _conv(names, unet.output_conv)
        self.in_graphs: Engine | None = None
        """the same by operators that torch.compile and torch.export can trace, if they differ"""
        if (traced := ops.for_graphs()) is not ops:
            self.in_graphs = copy.copy(self)
            self.in_graphs.ops = traced

    def __call__(
        self,
        x: Tensor,
        step: StepCondition,
        out_channels: int | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        """Evaluate x [N, C, H, W] in any floating dtype at ``step``, an item of ``conditioning``.

        Returns [N, out_channels or all, H, W] in the weights' dtype; with ``sigma_data`` in that of
        x, so that at high noise a float32 x_t passes into eps without the rounding of a
        low-precision network. ``kept``: results of the deep layers, see :mod:`.reuse`.
        """
        if self.in_graphs is not None and torch.compiler.is_compiling():
            return self.in_graphs(x, step, out_channels, kept)
        unshuffle = self.config.pixel_unshuffle
        h = self.ops.first(self.ops.gathered(x, unshuffle, self.last.weight.dtype), self.first)
        blocks, skips = step.blocks, [h]
        for stage in self.down[: self.top]:
            h = self.run_stage(stage, (h,), blocks)
            skips.append(h)
        h = self._deep(h, blocks) if kept is None else kept.of(partial(self._deep, h, blocks))
        for stage in self.up[-self.top - 1 :]:
            h = self.run_stage(stage, (h, skips.pop()), blocks)
        out = self.ops.last(h, self.norm, self._last(out_channels))
        return self.ops.spread(out, unshuffle, x, step.mix)

    def _deep(self, h: Feature, blocks: Blocks) -> Feature:
        """Run all layers from the first downsampling to the last upsampling."""
        skips = []
        for stage in self.down[self.top :]:
            h = self.run_stage(stage, (h,), blocks)
            skips.append(h)
        h = self.run_stage(self.middle, (h,), blocks)
        for stage in self.up[: -self.top - 1]:
            h = self.run_stage(stage, (h, skips.pop()), blocks)
        return h

    def run_stage(self, stage: list[Layer], parts: tuple[Feature, ...], blocks: Blocks) -> Feature:
        """Run layers in order; the first of them reads all parts."""
        for layer in stage:
            parts = (layer(self.ops, parts, blocks),)
        return parts[0]

    def _last(self, out_channels: int | None) -> Conv:
        if out_channels is None:
            return self.last
        rows = out_channels * self.config.pixel_unshuffle**2
        return self.last._replace(weight=self.last.weight[:rows], bias=self.last.bias[:rows])


def _stage(names: Names, layers: Iterable[nn.Module]) -> list[Layer]:
    return [_layer(names, layer) for layer in layers]


def _layer(names: Names, layer: nn.Module) -> Layer:
    if isinstance(layer, ResBlock):
        return _residual(names, layer)
    if isinstance(layer, AttentionBlock):
        return _attention(names, layer)
    if isinstance(layer, Upsample):
        conv = layer.conv if isinstance(layer.conv, nn.Conv2d) else None
        return _resize(names, layer, conv, "up", layer.up_kernel)
    if isinstance(layer, Downsample):
        conv = layer.op if isinstance(layer.op, nn.Conv2d) else None
        return _resize(names, layer, conv, "down")
    raise TypeError(f"unet: the engine knows no layer of {type(layer).__name__}")


def _conv(names: Names, module: nn.Conv2d, up_kernel: Tensor | None = None) -> Conv:
    return Conv(names[module], module.weight, cast(Tensor, module.bias).float(), up_kernel)


def _norm(names: Names, module: nn.GroupNorm) -> Norm:
    return Norm(names[module], module.weight.float(), module.bias.float())


def _residual(names: Names, block: ResBlock) -> _Residual:
    out, skip = _conv(names, block.out_conv), None
    if block.skip_conv is not None:
        skip = _conv(names, block.skip_conv)
        out = out._replace(bias=out.bias + skip.bias)
    return _Residual(
        names[block],
        block.index,
        _norm(names, block.in_norm),
        _conv(names, block.in_conv, block.up_kernel),
        names[block.out_norm],
        out,
        skip,
        block.resample,
    )


def _attention(names: Names, block: AttentionBlock) -> _Attention:
    qkv, out = block.qkv, block.proj_out
    return _Attention(
        names[block],
        _norm(names, block.norm),
        Conv(names[qkv], qkv.weight[:, :, 0], cast(Tensor, qkv.bias).float()),
        Conv(names[out], out.weight[:, :, 0], cast(Tensor, out.bias).float()),
        block.heads,
        block.new_order,
    )


def _resize(
    names: Names,
    layer: nn.Module,
    conv: nn.Conv2d | None,
    direction: str,
    up_kernel: Tensor | None = None,
) -> _Resize:
    return _Resize(names[layer], None if conv is None else _conv(names, conv, up_kernel), direction)
