"""What a forward pass of the engine costs, found on the meta device, without computing anything.

The engine runs its own code on tensors without data. For each operator of PyTorch and each kernel
of ours, the floating-point operations, the bytes that it must read and write at least once, and a
launch are noted; the storages that are alive give the peak of memory.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .engine import Blocks, Engine, Layer
from .ops.base import Feature, Ops
from .ops.fused import FusedOps
from .ops.onepass import OnePassOps
from .ops.plain import PlainOps
from .reuse import Kept
from .unet import UNet
from .unet_config import UNetConfig

OFFICIAL = UNetConfig(
    model_channels=256,
    num_res_blocks=2,
    attention_resolutions=(8, 16, 32),
    channel_mult=(1, 1, 2, 2, 4, 4),
    num_head_channels=64,
    use_scale_shift_norm=True,
    resblock_updown=True,
)
"""guided-diffusion's 256x256 unconditional network, 552.8 M parameters"""
_FREE = ("empty", "empty_like", "empty_strided", "new_empty", "detach", "_unsafe_view", "alias")


@dataclass
class Launch:
    """One operator: its layer, its kind, its operations and least bytes."""

    layer: str
    kind: str
    flops: int
    bytes: int


@dataclass
class Cost:
    """The launches of one forward pass in order, and the most bytes of activations at once."""

    launches: list[Launch] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def flops(self) -> int:
        return sum(launch.flops for launch in self.launches)

    @property
    def bytes(self) -> int:
        return sum(launch.bytes for launch in self.launches)

    def by(self, key: str) -> dict[str, Cost]:
        """Split by "layer" or "kind", in order of first appearance."""
        groups: dict[str, Cost] = defaultdict(Cost)
        for launch in self.launches:
            groups[getattr(launch, key)].launches.append(launch)
        return dict(groups)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Estimate by a roofline: a launch takes the longer of its arithmetic and traffic."""
        return sum(
            max(launch.flops / flops_per_second, launch.bytes / bytes_per_second)
            for launch in self.launches
        )


def _nbytes(tensors: Iterable) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


class _Recorder(TorchDispatchMode):
    """Notes every operator that does work, and the peak of what is alive."""

    def __init__(self):
        super().__init__()
        self.cost, self.layer = Cost(), ""
        self._alive: list[tuple[StorageWeakRef, int]] = []

    def note(self, kind: str, flops: int, read: Iterable, written: Iterable) -> None:
        self.cost.launches.append(Launch(self.layer, kind, flops, _nbytes(read) + _nbytes(written)))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        outs = [o for o in (out if isinstance(out, (tuple, list)) else (out,)) if _is_meta(o)]
        name = function._schema.name.partition("::")[2]
        if outs and not function.is_view:
            self._track(outs, args)
            if name not in _FREE:
                read = [a for a in _flat(args) if _is_meta(a)]
                count = flop_registry.get(function.overloadpacket)
                flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
                if name == "addmm_":  # PyTorch's counter does not know it
                    flops = 2 * args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
                self.note(_kind(name, args), flops, read, outs)
        return out

    def _track(self, outs: list[Tensor], args) -> None:
        given = {a.untyped_storage()._cdata for a in _flat(args) if _is_meta(a)}
        for out in outs:
            storage = out.untyped_storage()
            if storage._cdata not in given:
                self._alive.append((StorageWeakRef(storage), storage.nbytes()))
        self._alive = [(ref, size) for ref, size in self._alive if not ref.expired()]
        self.cost.peak_bytes = max(self.cost.peak_bytes, sum(size for _, size in self._alive))


def _is_meta(value) -> bool:
    return isinstance(value, Tensor) and value.device.type == "meta"


def _flat(args) -> list:
    return [b for a in args for b in (a if isinstance(a, (tuple, list)) else (a,))]


def _kind(name: str, args) -> str:
    if name == "convolution":
        return "3x3 convolution" if args[1].shape[-1] > 1 else "1x1 convolution"
    return "matrix product" if name in ("mm", "addmm", "addmm_", "bmm", "baddbmm") else name


class _Attention(TorchFunctionMode):
    """Attention as one operator that keeps no T x T matrix, unlike its meta version."""

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        q, k, v = args[:3]
        n, heads, tokens, width = q.shape
        out = q.new_empty(n, tokens, heads, width).transpose(1, 2)
        self.recorder.note("attention", 4 * n * heads * tokens**2 * width, (q, k, v), (out,))
        return out


class _MetaKernels:
    """The launchers of ``kernels.group_norm`` without data: they only allocate and note."""

    def __init__(self, recorder: _Recorder):
        self.recorder = recorder

    def moments(self, x: Tensor) -> Tensor:
        return self._moments(x, "moments", (x,), ())

    def join_(self, h: Tensor, bias, residual=None, **_options) -> Tensor:
        return self._moments(h, "residual", (h, bias, residual), (h,))

    def suits_whole(self, x: Tensor) -> bool:
        return x.shape[2] * x.shape[3] <= 1536 and x.shape[1] in (256, 512, 768, 1024)

    def normalize_whole_(self, x: Tensor, weight, shift, bias=None) -> Tensor:
        self.recorder.note("norm", 0, (x, weight, shift, bias), (x,))
        return x

    def normalize(
        self, parts, weight, shift, *, bias=None, resample="", out=None, pool_input=False,
        **_options,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        (x, _), channels = parts[0], sum(part.shape[1] for part, _ in parts)
        n, _, height, width = x.shape
        if resample == "up":
            height, width = 2 * height, 2 * width
        elif resample == "down":
            height, width = height // 2, width // 2
        if out is None:
            out = _empty_map(x, (n, channels, height, width))
        pooled = torch.empty_like(out) if pool_input else None
        read = [tensor for part in parts for tensor in part]
        self.recorder.note("norm", 0, [*read, weight, shift, bias], (out, pooled))
        return out, pooled

    def _moments(self, x: Tensor, kind: str, read, written) -> Tensor:
        out = _empty_moments(x.shape)
        self.recorder.note(kind, 0, read, (*written, out))
        return out


def _empty_map(like: Tensor, shape) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta", memory_format=torch.channels_last)


def _empty_moments(shape) -> Tensor:
    n, channels, height, width = shape
    tiles = math.ceil(height * width / (62 if 32 < channels <= 128 else 126))
    sets = math.ceil(tiles / math.ceil(tiles / 128))
    return torch.empty(n, sets, 2, channels, device="meta")


class _MetaLayers:
    """The launcher of ``kernels.conv`` without data: one launch per layer."""

    def __init__(self, recorder: _Recorder):
        self.recorder = recorder

    @staticmethod
    def pack(weight: Tensor) -> Tensor:
        return weight

    def layer(
        self, parts, weight, *, norm=None, resample="", stride=1, bias=None, skip=None,
        residual=None, want_moments=True, **_options,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        x = parts[0].data
        height, width = (
            -(-(2 * side if resample == "up" else side // 2 if resample == "down" else side)
              // stride)
            for side in x.shape[2:]
        )  # fmt: skip
        shape = len(x), len(weight), height, width
        y = _empty_map(x, shape)
        moments = _empty_moments(shape) if want_moments else None
        skip_weights, skip_parts = ((), ()) if skip is None else ((skip[0],), skip[1])
        products = sum(w.numel() for w in (weight, *skip_weights))
        flops = 2 * shape[0] * height * width * products
        read = [p for part in parts for p in (part.data, part.moments if norm else None)]
        read += [weight, bias, *(norm or ()), *skip_weights, *skip_parts, residual]
        side = weight.shape[-1] if weight.ndim == 4 else 1
        self.recorder.note(f"{side}x{side} layer", flops, read, (y, moments))
        return y, moments


class _Noted(Engine):
    """An engine that says which of its layers runs."""

    recorder: _Recorder

    def run_stage(self, stage: list[Layer], parts: tuple[Feature, ...], blocks: Blocks) -> Feature:
        for layer in stage:
            self.recorder.layer = layer.name
            parts = (super().run_stage([layer], parts, blocks),)
        self.recorder.layer = "ends"
        return parts[0]


def engine_cost(
    config: UNetConfig,
    n: int,
    height: int,
    width: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    fused: bool = True,
    out_channels: int | None = 3,
    reused: bool = False,
) -> Cost:
    """Return the cost of one forward pass of a network on n images of height x width.

    ``fused``: with our kernels, as on CUDA; else with PyTorch's operators. Memory counts only
    activations: the weights, cuDNN's workspaces and the sampler's planes come on top. ``reused``:
    the cost of a pass whose deep layers are kept from the previous one, see :mod:`.reuse`.
    """
    unet = _meta_unet(config, dtype)
    recorder = _Recorder()
    ops: Ops = PlainOps()
    if fused and OnePassOps.suit(config, dtype):
        ops = OnePassOps(_MetaLayers(recorder))
    elif fused:
        ops = FusedOps(_MetaKernels(recorder), _MetaLayers(recorder))
    engine = _Noted(unet, ops)
    engine.recorder = recorder
    with torch.no_grad():
        step = unet.conditioning(torch.zeros(1, device="meta"))[0]
        x = torch.empty(n, config.in_channels, height, width, dtype=dtype, device="meta")
        recorder.layer = "ends"
        with recorded(recorder):
            outs = out_channels and min(out_channels, config.in_channels)
            kept = Kept(2) if reused else None
            engine(x, step, outs, kept)
            if kept is not None:
                recorder.cost = Cost()
                engine(x, step, outs, kept.at(1))
    return recorder.cost


def recorded(recorder: _Recorder) -> ExitStack:
    """Return a context in which everything on the meta device is noted by the recorder."""
    stack = ExitStack()
    stack.enter_context(_Attention(recorder))
    stack.enter_context(recorder)
    return stack


def cost_of(function, *args, attention: bool = False) -> Cost:
    """Return the cost of any function of meta tensors, operator by operator.

    ``attention``: count it as one operator that keeps no matrix of all pairs; else as written.
    """
    recorder = _Recorder()
    with torch.no_grad(), recorded(recorder) if attention else recorder:
        function(*args)
    return recorder.cost


def _meta_unet(config: UNetConfig, dtype: torch.dtype) -> UNet:
    with torch.device("meta"):
        unet = UNet(config).to(dtype)
    return unet.requires_grad_(False).reorder_attention()


def parameter_count(config: UNetConfig) -> int:
    """Count the parameters of a network."""
    return sum(p.numel() for p in _meta_unet(config, torch.float32).parameters())
