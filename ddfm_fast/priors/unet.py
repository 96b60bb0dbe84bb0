"""The ADM UNet of "Diffusion Models Beat GANs" (arXiv 2105.05233), written for inference first.

Options and state-dict keys are those of guided-diffusion's ``UNetModel``, so published checkpoints
load as they are. What differs is how it runs: everything that depends on the timestep alone is
computed once for all steps (:meth:`UNet.conditioning`) and folded into the affine part of the
norms or the bias of the convolutions, activations stay in channels_last, and attention goes
through ``scaled_dot_product_attention``.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditioning import Conditioning
from .timesteps import BlockCondition, StepCondition, mix_at, mixed, timestep_embedding
from .unet_config import GROUPS, UNetConfig

NORM_EPS = 1e-5
# wider layers work on small maps, where laying out a 4x4 kernel costs more than it saves
FOLD_UP_TO_CHANNELS = 512

Layer = TypeVar("Layer", bound=nn.Module)


def _bias32(conv: nn.Conv2d) -> Tensor:
    return cast(Tensor, conv.bias).float()


def _linear32(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.float(), layer.bias.float())


def _silu(x: Tensor) -> Tensor:
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    bias = bias.to(x.dtype)
    if bias.ndim == 1:
        return F.conv2d(x, weight, bias, padding=1)
    return F.conv2d(x, weight, padding=1).add_(bias[:, :, None, None])


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if weight.ndim == 1:
        return F.group_norm(x, GROUPS, weight, bias, NORM_EPS)
    x = F.group_norm(x, GROUPS, eps=NORM_EPS)
    return torch.addcmul(bias[:, :, None, None], x, weight[:, :, None, None])


def _zeroed(layer: Layer) -> Layer:
    """Zero a layer: training needs residual branches that start at zero; loading overwrites it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def upsampling_kernel(weight: Tensor) -> Tensor:
    """Make the kernel [I, O, 4, 4] that upsamples and convolves in one go.

    Nearest-neighbor doubling followed by a 3x3 convolution with ``weight`` [O, I, 3, 3] equals a
    transposed convolution of stride 2 and padding 1 with this kernel: doubling is a transposed
    convolution with 2x2 ones, so the kernel is the flipped weight summed over a 2x2 window. It
    takes 4 multiplications per output value instead of 9.
    """
    k = F.pad(weight.float(), (1, 1, 1, 1))
    k = k[..., :-1, :] + k[..., 1:, :]
    k = k[..., :-1] + k[..., 1:]
    return k.flip(-1, -2).transpose(0, 1).to(weight.dtype).contiguous()


class ResBlock(nn.Module):
    """Norm, SiLU, [resample], conv, norm with the timestep, SiLU, conv; plus the skip."""

    up_kernel: Tensor | None

    def __init__(self, channels: int, out_channels: int, config: UNetConfig, resample: str = ""):
        super().__init__()
        self.resample = resample
        self.scale_shift = config.use_scale_shift_norm
        self.index = -1  # place in a StepCondition, set by UNet
        self.register_buffer("up_kernel", None, persistent=False)  # see UNet.fold_upsampling
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels, NORM_EPS),
            nn.SiLU(),
            nn.Conv2d(channels, out_channels, 3, padding=1),
        )
        emb_out = 2 * out_channels if self.scale_shift else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.model_channels, emb_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out_channels, NORM_EPS),
            nn.SiLU(),
            nn.Identity(),  # the place of dropout in the official numbering
            _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = out_channels == channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    @property
    def in_norm(self) -> nn.GroupNorm:
        """The first norm."""
        return cast(nn.GroupNorm, self.in_layers[0])

    @property
    def in_conv(self) -> nn.Conv2d:
        """The first convolution."""
        return cast(nn.Conv2d, self.in_layers[2])

    @property
    def out_norm(self) -> nn.GroupNorm:
        """The norm that the timestep scales and shifts."""
        return cast(nn.GroupNorm, self.out_layers[0])

    @property
    def out_conv(self) -> nn.Conv2d:
        """The last convolution."""
        return cast(nn.Conv2d, self.out_layers[3])

    @property
    def skip_conv(self) -> nn.Conv2d | None:
        """The 1x1 convolution of the skip, where channels change."""
        skip = self.skip_connection
        return skip if isinstance(skip, nn.Conv2d) else None

    def condition(self, emb: Tensor) -> BlockCondition:
        """Fold activated embeddings [S, 4 * model_channels] (float32) into per-step parameters."""
        emb = _linear32(cast(nn.Linear, self.emb_layers[1]), emb)
        conv_bias, norm = _bias32(self.in_conv), self.out_norm
        weight, bias = norm.weight.float(), norm.bias.float()
        if not self.scale_shift:
            return BlockCondition(conv_bias + emb, weight, bias)
        scale, shift = emb.chunk(2, dim=1)
        return BlockCondition(conv_bias, weight * (1 + scale), bias * (1 + scale) + shift)

    def forward(self, x: Tensor, step: StepCondition) -> Tensor:
        condition = step.blocks[self.index]
        h = _silu(_norm(x, self.in_norm.weight, self.in_norm.bias))
        if self.up_kernel is not None and condition.conv_bias.ndim == 1:
            bias = condition.conv_bias.to(h.dtype)
            h = F.conv_transpose2d(h, self.up_kernel, bias, stride=2, padding=1)
        else:
            h = _conv(_resample(h, self.resample), self.in_conv.weight, condition.conv_bias)
        h = _silu(_norm(h, condition.norm_weight, condition.norm_bias))
        x = self.skip_connection(_resample(x, self.resample))
        return self.out_conv(h).add_(x)


def _resample(x: Tensor, direction: str) -> Tensor:
    if direction == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if direction == "down" else x


class Upsample(nn.Module):
    """Nearest-neighbor doubling, then a 3x3 convolution if ``conv_resample``."""

    conv: nn.Conv2d | nn.Identity
    up_kernel: Tensor | None

    def __init__(self, channels: int, use_conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else nn.Identity()
        self.register_buffer("up_kernel", None, persistent=False)  # see UNet.fold_upsampling

    def forward(self, x: Tensor) -> Tensor:
        if self.up_kernel is not None and isinstance(self.conv, nn.Conv2d):
            return F.conv_transpose2d(x, self.up_kernel, self.conv.bias, stride=2, padding=1)
        return self.conv(_resample(x, "up"))


class Downsample(nn.Module):
    """A strided 3x3 convolution, or 2x2 means without ``conv_resample``."""

    op: nn.Conv2d | nn.AvgPool2d

    def __init__(self, channels: int, use_conv: bool):
        super().__init__()
        if use_conv:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        else:
            self.op = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class AttentionBlock(nn.Module):
    """Self-attention over all positions; ``new_order`` says how the rows of qkv split.

    The default order keeps q, k, v of one head together, the new order keeps all heads' q
    together, then k, then v. The official scale, 1/ch^(1/4) on q and on k, is the usual 1/sqrt(ch).
    """

    def __init__(self, channels: int, heads: int, new_order: bool):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(GROUPS, channels, NORM_EPS)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zeroed(nn.Conv1d(channels, channels, 1))

    @torch.no_grad()
    def reorder(self) -> None:
        """Turn the default order into the new one; ``state_dict`` keeps giving the default."""
        if self.new_order:
            return
        for name in ("weight", "bias"):
            rows = _swapped(getattr(self.qkv, name), self.heads, 3)
            setattr(self.qkv, name, nn.Parameter(rows, requires_grad=False))
        self.new_order = True
        self.register_state_dict_post_hook(_in_default_order)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        tokens = _norm(x, self.norm.weight, self.norm.bias)
        tokens = tokens.permute(0, 2, 3, 1).reshape(n, height * width, c)
        qkv = F.linear(tokens, self.qkv.weight[:, :, 0], self.qkv.bias)
        split = (3, self.heads) if self.new_order else (self.heads, 3)
        qkv = qkv.view(n, height * width, *split, c // self.heads)
        q, k, v = (a.transpose(1, 2) for a in qkv.unbind(2 if self.new_order else 3))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, height * width, c)
        h = F.linear(h, self.proj_out.weight[:, :, 0], self.proj_out.bias)
        return h.view(n, height, width, c).permute(0, 3, 1, 2).add_(x)


def _swapped(rows: Tensor, outer: int, inner: int) -> Tensor:
    """Put rows in order (outer, inner, channel) into order (inner, outer, channel)."""
    parts = rows.view(outer, inner, -1, *rows.shape[1:])
    return parts.transpose(0, 1).reshape(rows.shape)


def _in_default_order(block: AttentionBlock, state: dict, prefix: str, _metadata: dict) -> None:
    for key in (f"{prefix}qkv.weight", f"{prefix}qkv.bias"):
        state[key] = _swapped(state[key], 3, block.heads)


class Stage(nn.ModuleList):
    """Layers of one entry of input_blocks or output_blocks, run in order with the condition."""

    def forward(self, x: Tensor, step: StepCondition) -> Tensor:
        for layer in self:
            x = _evaluate(layer, x, step)
        return x


def _evaluate(layer: nn.Module, x: Tensor, step: StepCondition) -> Tensor:
    return layer(x, step) if isinstance(layer, ResBlock) else layer(x)


class UNet(nn.Module):
    """Unconditional ADM UNet: eps(x, t), with a variance half if ``out_channels`` is twice 3.

    A fresh network has zero residual branches and a zero output, the start of training. Input
    [N, in_channels, H, W] with H and W multiples of ``config.multiple``, output
    [N, out_channels, H, W] in the dtype of the weights, with ``sigma_data`` in that of x.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        width = config.model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)
        )
        self.input_blocks, skips = self._down_path(config)
        deepest = config.level_channels[-1]
        self.middle_block = nn.ModuleDict({"0": ResBlock(deepest, deepest, config)})
        if config.middle_attention:
            self.middle_block["1"] = _attention(deepest, config, up=False)
        self.middle_block["2"] = ResBlock(deepest, deepest, config)
        self.output_blocks = self._up_path(config, skips)
        first, area = config.level_channels[0], config.pixel_unshuffle**2
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, first, NORM_EPS),
            nn.SiLU(),
            _zeroed(nn.Conv2d(first, config.out_channels * area, 3, padding=1)),
        )
        self._residual = [m for m in self.modules() if isinstance(m, ResBlock)]
        for index, block in enumerate(self._residual):
            block.index = index

    @staticmethod
    def _down_path(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
        channels = config.level_channels[0]
        inputs = config.in_channels * config.pixel_unshuffle**2
        stages = [Stage([nn.Conv2d(inputs, channels, 3, padding=1)])]
        skips = [channels]
        for level, out in enumerate(config.level_channels):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(channels, out, config)]
                if 2**level in config.attention_resolutions:
                    layers.append(_attention(out, config, up=False))
                stages.append(Stage(layers))
                channels = out
                skips.append(out)
            if level < config.levels - 1:
                if config.resblock_updown:
                    stages.append(Stage([ResBlock(out, out, config, "down")]))
                else:
                    stages.append(Stage([Downsample(out, config.conv_resample)]))
                skips.append(out)
        return nn.ModuleList(stages), skips

    @staticmethod
    def _up_path(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
        channels, skips = skips[-1], list(skips)
        stages: list[Stage] = []
        for level in reversed(range(config.levels)):
            out = config.level_channels[level]
            for i in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [ResBlock(channels + skips.pop(), out, config)]
                if 2**level in config.attention_resolutions:
                    layers.append(_attention(out, config, up=True))
                if level and i == config.num_res_blocks:
                    if config.resblock_updown:
                        layers.append(ResBlock(out, out, config, "up"))
                    else:
                        layers.append(Upsample(out, config.conv_resample))
                stages.append(Stage(layers))
                channels = out
        return nn.ModuleList(stages)

    @property
    def input_conv(self) -> nn.Conv2d:
        """The first convolution."""
        return cast(nn.Conv2d, cast(Stage, self.input_blocks[0])[0])

    @property
    def output_norm(self) -> nn.GroupNorm:
        """The norm before the last convolution."""
        return cast(nn.GroupNorm, self.out[0])

    @property
    def output_conv(self) -> nn.Conv2d:
        """The last convolution."""
        return cast(nn.Conv2d, self.out[2])

    @property
    def device(self) -> torch.device:
        """That of the weights."""
        return self.output_conv.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return self.output_conv.weight.dtype

    def fold(self, timesteps: Tensor) -> StepCondition:
        """Fold timesteps [S] into rows [S, C] for each residual block: a condition for ``run``."""
        first, _, last = (cast(nn.Linear, layer) for layer in self.time_embed)
        emb = timestep_embedding(timesteps, self.config.model_channels)
        emb = F.silu(_linear32(last, F.silu(_linear32(first, emb))))
        sigma = self.config.sigma_data
        return StepCondition(
            [block.condition(emb) for block in self._residual],
            mix_at(timesteps, sigma) if sigma else None,
        )

    @torch.no_grad()
    def fold_upsampling(self) -> UNet:
        """Merge each doubling with the convolution after it; call again if weights change.

        The function is the same up to rounding, and about twice as fast in those layers on a CPU.
        """
        for module in self.modules():
            if isinstance(module, ResBlock) and module.resample == "up":
                weight = module.in_conv.weight
            elif isinstance(module, Upsample) and isinstance(module.conv, nn.Conv2d):
                weight = module.conv.weight
            else:
                continue
            if len(weight) <= FOLD_UP_TO_CHANNELS:
                module.up_kernel = upsampling_kernel(weight)
        return self

    def reorder_attention(self) -> UNet:
        """Keep all heads' q together, then k, then v, so that attention reads them in place.

        This is for inference: ``state_dict`` still gives the official order, but must not be loaded
        again.
        """
        for module in self.modules():
            if isinstance(module, AttentionBlock):
                module.reorder()
        return self

    def conditioning(self, timesteps: Tensor) -> Conditioning:
        """Compute all that depends on t alone, for timesteps [S]: one item per step for ``run``."""
        folded = self.fold(timesteps)
        by_step = folded.rows()
        widths = [p.shape[1] for p in by_step]

        def unpack(row: Tensor) -> StepCondition:
            return folded.with_rows(iter(row.split(widths)))

        return Conditioning(torch.cat(by_step, dim=1), unpack)

    def run(self, x: Tensor, step: StepCondition, out_channels: int | None = None) -> Tensor:
        """Evaluate with an item of ``conditioning``; only the first ``out_channels`` if given."""
        unshuffle = self.config.pixel_unshuffle
        h = x.to(self.dtype)
        if unshuffle > 1:
            h = F.pixel_unshuffle(h, unshuffle)
        h = h.contiguous(memory_format=torch.channels_last)
        skips = []
        for stage in self.input_blocks:
            h = stage(h, step)
            skips.append(h)
        for layer in self.middle_block.values():
            h = _evaluate(layer, h, step)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), step)
        h = _silu(_norm(h, self.output_norm.weight, self.output_norm.bias))
        rows = None if out_channels is None else out_channels * unshuffle**2
        weight, bias = self.output_conv.weight, cast(Tensor, self.output_conv.bias)
        h = F.conv2d(h, weight[:rows], bias[:rows], padding=1)
        h = F.pixel_shuffle(h, unshuffle) if unshuffle > 1 else h
        return h if step.mix is None else mixed(x, h, step.mix)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Evaluate with one timestep per sample: x [N, C, H, W], timesteps [N], fractional too."""
        step = self.fold(timesteps)
        if len(timesteps) == 1:
            step = step.with_rows(rows[0] for rows in step.rows())
        return self.run(x, step)


def _attention(channels: int, config: UNetConfig, *, up: bool) -> AttentionBlock:
    return AttentionBlock(channels, config.heads(channels, up=up), config.use_new_attention_order)
