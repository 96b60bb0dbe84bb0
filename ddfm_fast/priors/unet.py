"""The ADM UNet of "Diffusion Models Beat GANs" (arXiv 2105.05233), written for inference first.

Options and state-dict keys are those of guided-diffusion's ``UNetModel``, so published checkpoints
load as they are. What differs is how it runs: everything that depends on the timestep alone is
computed once for all steps (:meth:`UNet.conditioning`) and folded into the affine part of the
norms or the bias of the convolutions, activations stay in channels_last, and attention goes
through ``scaled_dot_product_attention``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..schedule import trained_alphas
from .conditioning import Conditioning

GROUPS = 32
NORM_EPS = 1e-5
# Wider layers work on small maps, where laying out a 4x4 kernel costs more than it saves.
FOLD_UP_TO_CHANNELS = 512

_IGNORED_KEYWORDS = ("image_size", "dropout", "use_checkpoint", "use_fp16")


@dataclass(frozen=True)
class UNetConfig:
    """What shapes the network; the names are ``UNetModel``'s, the last three are extensions.

    ``attention_resolutions`` holds downsampling rates (4 means: attention where the feature map
    is 4 times smaller than the input). ``num_head_channels`` above 0 overrides ``num_heads``.
    ``pixel_unshuffle`` = u folds u x u pixels into channels before the first convolution and
    unfolds them after the last; ``in_channels`` and ``out_channels`` count image channels.
    ``sigma_data`` above 0 preconditions as Karras et al. 2022, see :func:`mix_at`: at high noise
    eps is x_t but for a little, and a small network spends itself on that identity unless it is
    given. 0: the last convolution answers eps, as in the published networks; 1: it answers v.
    """

    model_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...] = ()
    in_channels: int = 3
    out_channels: int = 6
    channel_mult: tuple[float, ...] = (1, 2, 4, 8)
    conv_resample: bool = True
    num_heads: int = 1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    pixel_unshuffle: int = 1
    middle_attention: bool = True
    sigma_data: float = 0.0

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> UNetConfig:
        """Check and take ``UNetModel`` keywords.

        Keywords without effect on inference (image_size, dropout, use_checkpoint, use_fp16) are
        accepted and dropped. ValueError for unknown keywords, ``dims`` other than 2,
        class-conditional networks and values that no network can have.
        """
        values = {k: v for k, v in config.items() if k not in _IGNORED_KEYWORDS}
        if (dims := values.pop("dims", 2)) != 2:
            raise ValueError(f"config: dims={dims!r}, but only two-dimensional priors work")
        if (classes := values.pop("num_classes", None)) is not None:
            raise ValueError(
                f"config: num_classes={classes!r} makes the prior class-conditional, but DDFM "
                "needs an unconditional one; use an unconditional checkpoint"
            )
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(
                f"config: unknown keyword {', '.join(map(repr, unknown))}; expected keywords of "
                f"guided-diffusion's UNetModel: {', '.join(known)}"
            )
        if missing := [k for k in ("model_channels", "num_res_blocks") if k not in values]:
            raise ValueError(f"config: {' and '.join(missing)} missing; add them to config")
        for key in ("attention_resolutions", "channel_mult"):
            if key in values:
                values[key] = _number_tuple(key, values[key])
        return cls(**values)

    def __post_init__(self) -> None:
        for key in (
            "model_channels",
            "num_res_blocks",
            "in_channels",
            "out_channels",
            "num_heads",
            "pixel_unshuffle",
        ):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"config: {key}={value!r}, expected an integer of at least 1")
        for key in (
            "conv_resample",
            "use_scale_shift_norm",
            "resblock_updown",
            "use_new_attention_order",
            "middle_attention",
        ):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"config: {key}={getattr(self, key)!r}, expected True or False")
        for key in ("num_head_channels", "num_heads_upsample"):
            if not isinstance(getattr(self, key), int):
                raise ValueError(f"config: {key}={getattr(self, key)!r}, expected an integer")
        sigma = self.sigma_data
        if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 <= sigma < 1e6:
            raise ValueError(f"config: sigma_data={sigma!r}, expected a number from 0")
        if sigma and self.out_channels != self.in_channels:
            raise ValueError(
                f"config: sigma_data={sigma} with {self.out_channels} channels out of "
                f"{self.in_channels}, expected as many; a learned variance needs sigma_data=0"
            )
        if not self.channel_mult:
            raise ValueError("config: channel_mult is empty, expected one multiplier a level")
        rates = {2**i for i in range(self.levels)}
        if bad := [r for r in self.attention_resolutions if r not in rates]:
            raise ValueError(
                f"config: attention_resolutions holds {bad}, expected downsampling rates out of "
                f"{sorted(rates)} (for a 256-pixel model, resolution 32 is rate 8)"
            )
        for channels in self.level_channels:
            if channels < GROUPS or channels % GROUPS:
                raise ValueError(
                    f"config: model_channels={self.model_channels} and channel_mult="
                    f"{self.channel_mult} give a level {channels} channels, expected multiples "
                    f"of {GROUPS} (GroupNorm has {GROUPS} groups)"
                )

    @property
    def levels(self) -> int:
        return len(self.channel_mult)

    @property
    def level_channels(self) -> list[int]:
        return [int(mult * self.model_channels) for mult in self.channel_mult]

    @property
    def multiple(self) -> int:
        """Height and width of an input must be multiples of this many pixels."""
        return self.pixel_unshuffle * 2 ** (self.levels - 1)

    def heads(self, channels: int, *, up: bool) -> int:
        """Attention heads of a block of that many channels in the down or the up path."""
        if self.num_head_channels > 0:
            heads, rest = divmod(channels, self.num_head_channels)
            source = f"num_head_channels={self.num_head_channels}"
        else:
            use_up = up and self.num_heads_upsample > 0
            heads = self.num_heads_upsample if use_up else self.num_heads
            rest, source = channels % heads, f"num_heads={heads}"
        if heads < 1 or rest:
            raise ValueError(
                f"config: {source} does not divide the {channels} channels of an attention block"
            )
        return heads

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``from_dict`` gives the same configuration back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _number_tuple(key: str, value: Any) -> tuple:
    if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
        raise TypeError(f"config: {key}={value!r}, expected a list of numbers")
    if not all(isinstance(v, int | float) and v > 0 for v in value):
        raise ValueError(f"config: {key}={value!r}, expected positive numbers")
    numbers = [int(v) if float(v).is_integer() else v for v in value]
    return tuple(sorted(numbers) if key == "attention_resolutions" else numbers)


class BlockCondition(NamedTuple):
    """What a timestep makes of one residual block: [C] for a shared t, [N, C] for one a sample.

    Float32, whatever the dtype of the weights.
    """

    conv_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor


class Mix(NamedTuple):
    """eps = skip · x_t + out · F of a preconditioned network F; [1] for a shared t, [N, 1] else.

    Float32, whatever the dtype of the weights.
    """

    skip: Tensor
    out: Tensor


StepCondition = Sequence[BlockCondition | Mix]
"""of each residual block by its ``index``; of preconditioned networks a ``Mix`` comes at the end"""


def mix_at(timesteps: Tensor, sigma_data: float) -> Mix:
    """The factors for timesteps [S] of 0 to 999; between whole ones ᾱ is interpolated.

    Karras et al. 2022, table 1, written for eps and x_t with s² = 1 − ᾱ and d = sigma_data:
    skip = s / (s² + ᾱ d²) and out = √ᾱ d / √(s² + ᾱ d²) (their F has the opposite sign). Then F has
    unit power to predict at every t if images have the standard deviation d.
    """
    alphas = torch.from_numpy(trained_alphas()).to(timesteps.device)
    t = timesteps.double().clamp(0, len(alphas) - 1)
    low = t.long().clamp(max=len(alphas) - 2)
    alpha_bar = torch.lerp(alphas[low], alphas[low + 1], t - low)[:, None]
    power = 1 - alpha_bar + alpha_bar * sigma_data**2
    skip, out = (1 - alpha_bar).sqrt() / power, sigma_data * (alpha_bar / power).sqrt()
    return Mix(skip.float(), out.float())


def mixed(x: Tensor, out: Tensor, mix: Mix) -> Tensor:
    """eps [N, C, H, W], in the dtype of x_t, of x_t and the network's answer of that shape."""
    of_x, of_out = (factor.to(x.dtype).view(-1, 1, 1, 1) for factor in mix)
    return torch.addcmul(out.to(x.dtype) * of_out, x, of_x)


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding [S, dim] in float32 of timesteps [S], cosines first, base 10000."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


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


def _zeroed(layer: nn.Module) -> nn.Module:
    """Residual branches start at zero, which training needs; loading overwrites it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def upsampling_kernel(weight: Tensor) -> Tensor:
    """Kernel [I, O, 4, 4] that upsamples and convolves in one go.

    Nearest-neighbour doubling followed by a 3x3 convolution with ``weight`` [O, I, 3, 3] equals a
    transposed convolution of stride 2 and padding 1 with this kernel: doubling is a transposed
    convolution with 2x2 ones, so the kernel is the flipped weight summed over a 2x2 window. It
    takes 4 multiplications an output value instead of 9.
    """
    k = F.pad(weight.float(), (1, 1, 1, 1))
    k = k[..., :-1, :] + k[..., 1:, :]
    k = k[..., :-1] + k[..., 1:]
    return k.flip(-1, -2).transpose(0, 1).to(weight.dtype).contiguous()


class ResBlock(nn.Module):
    """norm, SiLU, [resample], conv, norm with the timestep, SiLU, conv; plus the skip."""

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

    def condition(self, emb: Tensor) -> BlockCondition:
        """Fold activated embeddings [S, 4 * model_channels] (float32) into per-step parameters."""
        conv, norm = self.in_layers[2], self.out_layers[0]
        emb = _linear32(self.emb_layers[1], emb)
        weight, bias = norm.weight.float(), norm.bias.float()
        if not self.scale_shift:
            return BlockCondition(conv.bias.float() + emb, weight, bias)
        scale, shift = emb.chunk(2, dim=1)
        return BlockCondition(conv.bias.float(), weight * (1 + scale), bias * (1 + scale) + shift)

    def forward(self, x: Tensor, step: StepCondition) -> Tensor:
        condition = step[self.index]
        norm, _, conv = self.in_layers
        h = _silu(_norm(x, norm.weight, norm.bias))
        if self.up_kernel is not None and condition.conv_bias.ndim == 1:
            bias = condition.conv_bias.to(h.dtype)
            h = F.conv_transpose2d(h, self.up_kernel, bias, stride=2, padding=1)
        else:
            h = _conv(_resample(h, self.resample), conv.weight, condition.conv_bias)
        h = _silu(_norm(h, condition.norm_weight, condition.norm_bias))
        x = self.skip_connection(_resample(x, self.resample))
        return self.out_layers[3](h).add_(x)


def _resample(x: Tensor, direction: str) -> Tensor:
    if direction == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if direction == "down" else x


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution if ``conv_resample``."""

    def __init__(self, channels: int, use_conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else nn.Identity()
        self.register_buffer("up_kernel", None, persistent=False)  # see UNet.fold_upsampling

    def forward(self, x: Tensor, step: StepCondition) -> Tensor:
        if self.up_kernel is not None:
            return F.conv_transpose2d(x, self.up_kernel, self.conv.bias, stride=2, padding=1)
        return self.conv(_resample(x, "up"))


class Downsample(nn.Module):
    """A strided 3x3 convolution, or 2x2 means without ``conv_resample``."""

    def __init__(self, channels: int, use_conv: bool):
        super().__init__()
        if use_conv:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        else:
            self.op = nn.AvgPool2d(2)

    def forward(self, x: Tensor, step: StepCondition) -> Tensor:
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
        """Turn the default order into the new one; ``state_dict`` goes on giving the default."""
        if self.new_order:
            return
        for name in ("weight", "bias"):
            rows = _swapped(getattr(self.qkv, name), self.heads, 3)
            setattr(self.qkv, name, nn.Parameter(rows, requires_grad=False))
        self.new_order = True
        self.register_state_dict_post_hook(_in_default_order)

    def forward(self, x: Tensor, step: StepCondition) -> Tensor:
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
    """Rows in order (outer, inner, channel) put in order (inner, outer, channel)."""
    parts = rows.view(outer, inner, -1, *rows.shape[1:])
    return parts.transpose(0, 1).reshape(rows.shape)


def _in_default_order(block: AttentionBlock, state: dict, prefix: str, metadata: dict) -> None:
    for key in (f"{prefix}qkv.weight", f"{prefix}qkv.bias"):
        state[key] = _swapped(state[key], 3, block.heads)


class Stage(nn.Sequential):
    """Layers of one entry of input_blocks or output_blocks, run in order with the condition."""

    def forward(self, x: Tensor, step: StepCondition) -> Tensor:
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, step)
        return x


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
        stages = [Stage(nn.Conv2d(inputs, channels, 3, padding=1))]
        skips = [channels]
        for level, out in enumerate(config.level_channels):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(channels, out, config)]
                if 2**level in config.attention_resolutions:
                    layers.append(_attention(out, config, up=False))
                stages.append(Stage(*layers))
                channels = out
                skips.append(out)
            if level < config.levels - 1:
                if config.resblock_updown:
                    stages.append(Stage(ResBlock(out, out, config, "down")))
                else:
                    stages.append(Stage(Downsample(out, config.conv_resample)))
                skips.append(out)
        return nn.ModuleList(stages), skips

    @staticmethod
    def _up_path(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
        channels, stages, skips = skips[-1], [], list(skips)
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
                stages.append(Stage(*layers))
                channels = out
        return nn.ModuleList(stages)

    def fold(self, timesteps: Tensor) -> list[BlockCondition | Mix]:
        """What timesteps [S] make of each residual block, rows [S, C]: a condition for ``run``."""
        first, _, last = self.time_embed
        emb = timestep_embedding(timesteps, self.config.model_channels)
        emb = F.silu(_linear32(last, F.silu(_linear32(first, emb))))
        folded = [block.condition(emb) for block in self._residual]
        sigma = self.config.sigma_data
        return [*folded, mix_at(timesteps, sigma)] if sigma else folded

    @torch.no_grad()
    def fold_upsampling(self) -> UNet:
        """Merge each doubling with the convolution after it; call again if weights change.

        The same function to rounding; about twice as fast in those layers on a CPU.
        """
        for module in self.modules():
            if isinstance(module, ResBlock) and module.resample == "up":
                weight = module.in_layers[2].weight
            elif isinstance(module, Upsample) and isinstance(module.conv, nn.Conv2d):
                weight = module.conv.weight
            else:
                continue
            if len(weight) <= FOLD_UP_TO_CHANNELS:
                module.up_kernel = upsampling_kernel(weight)
        return self

    def reorder_attention(self) -> UNet:
        """Keep all heads' q together, then k, then v, so that attention reads them in place.

        For inference: ``state_dict`` gives the official order still, but must not be loaded again.
        """
        for module in self.modules():
            if isinstance(module, AttentionBlock):
                module.reorder()
        return self

    def conditioning(self, timesteps: Tensor) -> Conditioning:
        """Everything that depends on t alone, for timesteps [S]: one item a step for ``run``."""
        folded = self.fold(timesteps)
        by_step = [p for block in folded for p in block if p.ndim == 2]
        widths = [p.shape[1] for p in by_step]

        def unpack(row: Tensor) -> list[BlockCondition]:
            parts = iter(row.split(widths))
            return [
                type(block)(*(p if p.ndim == 1 else next(parts) for p in block)) for block in folded
            ]

        return Conditioning(torch.cat(by_step, dim=1), unpack)

    def run(self, x: Tensor, step: StepCondition, out_channels: int | None = None) -> Tensor:
        """Evaluate with an item of ``conditioning``; only the first ``out_channels`` if given."""
        unshuffle = self.config.pixel_unshuffle
        h = x.to(self.out[2].weight.dtype)
        if unshuffle > 1:
            h = F.pixel_unshuffle(h, unshuffle)
        h = h.contiguous(memory_format=torch.channels_last)
        skips = []
        for stage in self.input_blocks:
            h = stage(h, step)
            skips.append(h)
        for layer in self.middle_block.values():
            h = layer(h, step)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), step)
        norm, _, conv = self.out
        h = _silu(_norm(h, norm.weight, norm.bias))
        rows = None if out_channels is None else out_channels * unshuffle**2
        h = F.conv2d(h, conv.weight[:rows], conv.bias[:rows], padding=1)
        h = F.pixel_shuffle(h, unshuffle) if unshuffle > 1 else h
        return mixed(x, h, step[-1]) if self.config.sigma_data else h

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Evaluate with one timestep a sample: x [N, C, H, W], timesteps [N] (fractional too)."""
        step = self.fold(timesteps)
        if len(timesteps) == 1:
            step = [type(b)(*(p if p.ndim == 1 else p[0] for p in b)) for b in step]
        return self.run(x, step)


def _attention(channels: int, config: UNetConfig, *, up: bool) -> AttentionBlock:
    return AttentionBlock(channels, config.heads(channels, up=up), config.use_new_attention_order)
