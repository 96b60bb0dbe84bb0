"""Fusion of a frame with what is known from the previous frame: fast, steady and without ghosts.

With i, v the sources' luma, f the fused luma and ←· the previous frame moved along the sources'
flow, a frame of a stream is

    trust   m = exp(−d / s),  d = mean over 3×3 pixels of max(|i − ←i|, |v − ←v|) in gray levels
    keep    i ← i + m (←i − i), v ← v + m (←v − v)
    fuse    f = the closed form of the variant "saliency" of these, denoised before by a running
            estimate, except where the previous frame can be reused (``video.reuse``)

and, with a preset that has reverse steps,

    start   x_t = √ᾱ · (mean + m (←f − mean)) + √(1 − ᾱ) · z,  mean = (i + v) / 2, t small
    sample  f = the few reverse steps below t, then EM iterations without the prior ("polish")
    keep    f ← f + m (←f − f),  and likewise i ← i + m (←i − i), v ← v + m (←v − v)
    scale   output = (f − low) / (high − low), low and high running means of the percentiles

z is the same for every frame of every stream. The trust decides everything: what the sources show
unchanged keeps its value, bit for bit where d = 0; what moved, appeared or was uncovered starts
from the sources' mean, independent of the past, so nothing ghosts. The sources with which d
compares are kept by the same rule as f, so they are as old as the picture: a slow change adds up in
d until the picture follows it, and a picture that repeated moving has blurred is no longer trusted.
The flow is used only where it explains the sources better than standing still by ``FLOW_MARGIN``,
because the jitter of a flow makes still areas swim.

γ and ρ are not carried over: warm presets keep them at 1, and "exact" is the image preset, which
estimates them for each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..align.call import Aligner, Setting
from ..align.streams import StreamAligner
from ..config import PRESETS, FuseConfig
from ..images.integers import as_count
from ..images.pair import Pair
from ..images.pixels import Given, Pixels
from ..images.planes import crop, pad_to_multiple
from ..images.stretch import Fused, joined
from ..method import Diffusion, Method
from ..options import ReadingOptions
from ..priors.prior import Prior
from ..restore.sources import SOURCES, Remover, SourceModel, SourceTotals
from ..runtime import threads
from ..runtime.apart import apart, refuse_where_impossible
from ..sampler import noised
from ..schedule import StepRow
from ..step import ReverseStep, plain_em
from .motion import Motion
from .running import Stream
from .trust import Kept, carry, trusted


@dataclass(frozen=True)
class VideoPreset:
    """How a frame of a stream is fused. ValueError or TypeError on anything out of range."""

    summary: str
    config: FuseConfig | None
    """settings of a frame's reverse steps; None: every frame by itself with the fuser's own"""
    polish: int = 0
    """EM iterations without the prior after the reverse steps"""
    trust: float = 2.0
    """s, the gray levels of source change at which trust in the previous frame falls to 1/e"""
    settle: int = 2
    """extra passes over the first frame of a scene, each from its own result"""

    def __post_init__(self):
        for name, least in (("polish", 0), ("settle", 0)):
            value = getattr(self, name)
            if (number := as_count(value, least)) is None:
                raise ValueError(f"{name} is {value!r}; expected an int of at least {least}")
            object.__setattr__(self, name, number)
        if not 0 < self.trust <= 255:
            raise ValueError(f"trust is {self.trust!r}; expected gray levels above 0, up to 255")
        if self.config is not None and self.config.steps != 0 and self.config.start is None:
            raise ValueError("config has start None; expected the timestep of a warm start")


VIDEO_PRESETS = {
    "exact": VideoPreset(
        "every frame by itself with the image preset; only the output scale and the estimate of "
        "noise are shared",
        None,
    ),
    "balanced": VideoPreset(
        "the image preset fast: 1 prior evaluation per noisy source and frame, none for clean ones "
        "(default)",
        PRESETS["fast"],
        trust=1.5,
        settle=0,
    ),
    "realtime": VideoPreset(
        "the image preset instant: the closed form, no prior evaluation and no denoising",
        PRESETS["instant"],
        settle=0,
    ),
}


def get_video_preset(preset: str | VideoPreset) -> VideoPreset:
    """Return the preset of that name, or the one given; ValueError lists the names."""
    if isinstance(preset, VideoPreset):
        return preset
    if not isinstance(preset, str) or preset not in VIDEO_PRESETS:
        raise ValueError(f"preset is {preset!r}; expected one of {', '.join(VIDEO_PRESETS)}")
    return VIDEO_PRESETS[preset]


class FrameFuser(Protocol):
    """What the fusion of frames needs from a ``Fuser``: settings, reading, and its method."""

    config: FuseConfig
    device: torch.device
    pixels: Pixels
    seed: int
    color: bool | str
    align: Setting
    align_field: str
    batch_size: int
    prior: Prior
    method: Method
    sources: SourceModel

    @property
    def source_options(self) -> dict[str, Any]:
        """``denoise`` and ``images`` in place of a preset's; None for its own."""
        ...

    def read(
        self,
        ir: Any,
        vis: Any,
        *,
        color: bool | str | None = None,
        index: str = "",
        aligner: Aligner | None = None,
        **reading: Unpack[ReadingOptions],
    ) -> Pair:
        """Read a frame of both streams."""
        ...


class TemporalFuser:
    """A :class:`Fuser` for the frames of streams, one or several at a time.

    ``preset``: a name of ``VIDEO_PRESETS`` or a :class:`VideoPreset`. The prior, the seed, the
    device and the color are the fuser's, and so are ``denoise`` and ``images`` if it was given any.
    "exact" also takes its configuration; the other presets bring their own. ``evaluations`` counts
    the evaluations of the prior, image by image, and ``found`` adds up the reports on sources.
    """

    def __init__(self, fuser: FrameFuser, preset: str | VideoPreset = "balanced"):
        self.fuser = fuser
        self.preset = get_video_preset(preset)
        self.config = fuser.config
        self.evaluations = 0
        self.found = {name: SourceTotals() for name in SOURCES}
        self._warm: Diffusion | None = None
        self._sources = fuser.sources
        if self.preset.config is not None:
            self.config = self.preset.config.with_overrides(**fuser.source_options)
            self._warm = _diffusion(fuser.method).with_config(self.config)
            sources = fuser.sources
            self._sources = SourceModel(
                sources.prior, self.config, sources.evaluate, sources.pixels
            )
        self.rows: list[StepRow] = getattr(self._warm or fuser.method, "rows", [])

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("evaluations", "found")}
        return {"fuser": self.fuser, "preset": self.preset, "own": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        TemporalFuser.__init__(self, state["fuser"], state["preset"])
        self.__dict__.update(state["own"])

    def open(self) -> Stream:
        """Return the state of a new stream."""
        return Stream()

    def aligner(self) -> StreamAligner:
        """Make the aligner of a new stream's frames; ValueError for a crop that would change."""
        return StreamAligner(self.fuser.align, field=self.fuser.align_field)

    def fuse(self, stream: Stream, ir, vis, motion: Motion, **reading):
        """Return one frame of one stream: two images in, the fused image out.

        ``reading``: ``color``, ``value_range`` and ``layout`` as in the call of :class:`Fuser`,
        with the same rules for containers, dtypes and the result.
        """
        return self.fuse_many([stream], [(ir, vis)], [motion], **reading)[0]

    def begin(self, stream: Stream, ir, vis, motion: Motion, **reading) -> Given:
        """Do what :meth:`fuse` does, without waiting for a device."""
        return self.begin_many([stream], [(ir, vis)], [motion], **reading)[0]

    def fuse_many(
        self,
        streams: Sequence[Stream],
        pairs: Sequence[tuple],
        motions: Sequence[Motion],
        *,
        aligners: Sequence[Aligner] | None = None,
        color: bool | str | None = None,
        **reading: Unpack[ReadingOptions],
    ) -> list:
        """Return one frame of each stream; frames of one size go through the prior in batches.

        ``aligners``: the aligner of each pair; None for pairs that are already aligned.
        Raises ValueError or TypeError, naming what is wrong with an image; ValueError also if the
        prior yields NaN.
        """
        given = self.begin_many(streams, pairs, motions, aligners=aligners, color=color, **reading)
        return [one.image() for one in given]

    def begin_many(
        self,
        streams: Sequence[Stream],
        pairs: Sequence[tuple],
        motions: Sequence[Motion],
        *,
        aligners: Sequence[Aligner] | None = None,
        color: bool | str | None = None,
        **reading: Unpack[ReadingOptions],
    ) -> list[Given]:
        """Do what :meth:`fuse_many` does, without waiting for a device."""
        refuse_where_impossible(self.fuser.device)
        read = [
            self.fuser.read(
                ir,
                vis,
                color=color,
                index=f"[{n}]" * (len(pairs) > 1),
                aligner=None if aligners is None else aligners[n],
                **streams[n].reading(ir, vis, reading, cut=motions[n].cut),
            )
            for n, (ir, vis) in enumerate(pairs)
        ]
        for stream in streams:
            stream.settle(self.fuser.device)
        for pair in read:
            if len(pair.ir) != 1:
                raise ValueError(f"ir has {len(pair.ir)} images; expected one frame at a time")
        results: list = [None] * len(read)
        groups: dict[tuple, list[int]] = {}
        for n, pair in enumerate(read):
            groups.setdefault(pair.size, []).append(n)
        size = self.fuser.batch_size
        batches = [m[n : n + size] for m in groups.values() for n in range(0, len(m), size)]
        quiet = threads.where_busy(self.fuser.prior.reproducible)
        with apart(self.fuser.device), quiet, torch.inference_mode():
            for members in batches:
                for n in members:
                    if motions[n].cut:
                        streams[n].new_scene()
                restored = [self._restored(streams[n], read[n], motions[n]) for n in members]
                ir, vis = (joined(planes) for planes in zip(*restored, strict=True))
                lumas = self._lumas(
                    [streams[n] for n in members],
                    ir,
                    vis,
                    [motions[n] for n in members],
                    [read[n].are_functional(self.config.images)[0] for n in members],
                )
                planes = zip(members, lumas.split(1), ir.split(1), vis.split(1), strict=True)
                for n, y, a, b in planes:
                    limits = self.fuser.pixels.limits(self.config.stretch, y, a, b)
                    fused = Fused(y, streams[n].scale(limits))
                    colored = self._colored(streams[n], read[n], fused)
                    results[n] = colored.give_back(fused, dims=self.config.dims_chroma)
        return results

    def _restored(self, stream: Stream, pair: Pair, motion: Motion) -> tuple[Tensor, Tensor]:
        """Return the sources of a frame, denoised by the stream's running estimates."""
        removers: dict[str, Remover] | None = None
        if self._warm is not None:
            removers = {name: partial(stream.clean[name], motion) for name in SOURCES}
        restored = self._sources(
            pair.ir, pair.vis, seed=self.fuser.seed, estimators=stream.noise, removers=removers
        )
        for name, found in restored.reports[0].items():
            self.evaluations += found.evaluations
            self.found[name].add(found)
        return restored.ir, restored.vis

    def _colored(self, stream: Stream, pair: Pair, fused: Fused) -> Pair:
        """Remove the noise from the pair's chroma, by the stream's running estimates."""
        if pair.chroma is None:
            return pair
        rgb = pair.chroma_of(fused.luma)
        chroma, (found,) = self._sources.color(rgb, fused, pair.color_from, stream.chroma_noise)
        self.found[pair.color_from[0]].add_chroma(found)
        return pair._replace(chroma=chroma)

    def _lumas(
        self,
        streams: list[Stream],
        ir: Tensor,
        vis: Tensor,
        motions: list[Motion],
        functional: list[bool],
    ) -> Tensor:
        """Fuse the sources' luma [N, 1, H, W] in [0, 1]; return luma in that range, not scaled."""
        if self._warm is None:
            self.evaluations += len(ir) * len(self.rows)
            pairs = zip(ir.split(1), vis.split(1), functional, strict=True)
            return torch.cat(
                [
                    self.fuser.method(a, b, seed=self.fuser.seed, functional=[is_map])
                    for a, b, is_map in pairs
                ]
            )
        if not self.rows:
            return self._closed(streams, ir, vis, motions, functional)
        before = [self._before(*args) for args in zip(streams, ir, vis, motions, strict=True)]
        kept, trust = (torch.stack(planes) for planes in zip(*before, strict=True))
        f = self._sample(ir, vis, torch.lerp((ir + vis) / 2, kept[:, 2:], trust))
        cold = [n for n, motion in enumerate(motions) if motion.cut or streams[n].kept is None]
        for _ in range(self.preset.settle if cold else 0):
            f[cold] = self._sample(ir[cold], vis[cold], f[cold])
        kept = torch.lerp(torch.cat([ir, vis, f], 1), kept, trust)
        for stream, planes in zip(streams, kept, strict=True):
            stream.kept = Kept(*planes)
        return kept[:, 2:]

    def _closed(
        self,
        streams: list[Stream],
        ir: Tensor,
        vis: Tensor,
        motions: list[Motion],
        functional: list[bool],
    ) -> Tensor:
        """Return the closed form of the sources, kept where they show the same as before."""
        assert self._warm is not None
        found = []
        for stream, i, v, motion, is_map in zip(
            streams, ir.split(1), vis.split(1), motions, functional, strict=True
        ):
            now = i[0, 0].contiguous(), v[0, 0].contiguous()
            if (kept := _known(stream, now[0], motion)) is not None:
                now = carry(now, kept, _flow(motion, i), self.preset.trust)
            a, b = (plane[None, None] for plane in now)
            f = self._warm(a, b, seed=self.fuser.seed, functional=[is_map])
            stream.kept = Kept(*now, f[0, 0])
            found.append(f)
        return joined(found)

    def _before(self, stream: Stream, i: Tensor, v: Tensor, motion: Motion):
        """Return the previous frame's i, v and f, moved [3, H, W], and their trust [1, H, W]."""
        now = torch.cat([i, v])
        if (kept := _known(stream, i[0], motion)) is None:
            stream.kept = None
            return torch.cat([now, now[:1]]), torch.zeros_like(i)
        return trusted(now, torch.stack(kept), _flow(motion, i), self.preset.trust)

    def _sample(self, i: Tensor, v: Tensor, start: Tensor) -> Tensor:
        """Sample the fused luma of i, v from the luma ``start``; all [N, 1, H, W] in [0, 1]."""
        assert self._warm is not None
        prior, height, width = self.fuser.prior, *i.shape[-2:]
        i, v, start = (pad_to_multiple(p * 2 - 1, prior.multiple) for p in (i, v, start))
        em = plain_em(i, v, self.config)
        z = _noise(self.fuser.seed, *i.shape[-2:], i.device)
        x_start = noised(em.gray(start), z, self.rows[0])
        sampled = self._warm.sample(i, v, seed=self.fuser.seed, x_start=x_start)
        self.evaluations += len(i) * len(self.rows)
        polish = self.preset.polish
        luma = _polished(em, sampled.x0, polish) if polish else sampled.luma
        return (crop(luma, height, width) + 1) / 2  # a copy: the sampler may use its buffers again


def _polished(em: ReverseStep, x0: Tensor, iterations: int) -> Tensor:
    """Run EM iterations on the sample x0 [N, 3, H, W]; return its luma [N, 1, H, W]."""
    x0 = x0.clone()
    for _ in range(iterations):
        em.rectify_(x0.clamp_(-1, 1))
    return torch.stack([em.luma(image) for image in x0])[:, None]


def _diffusion(method: Method) -> Diffusion:
    """Return ``method`` if it can be sampled from, else raise ValueError."""
    if not isinstance(method, Diffusion):
        raise ValueError(
            f"fuser has the method {method.part!r}; expected the whole one for a video preset that "
            'starts from the frame before, or preset="exact"'
        )
    return method


@lru_cache(maxsize=4)
def _noise(seed: int, height: int, width: int, device: torch.device) -> Tensor:
    """Return the z of every frame: the noise that `sample` draws first for this seed and size."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn((1, 3, height, width), generator=generator, dtype=torch.float32, device="cpu")
    return z.to(device)


def _known(stream: Stream, now: Tensor, motion: Motion) -> Kept | None:
    """Return what a stream knows of the previous frame, if that had the same size."""
    kept = stream.kept
    known = kept is not None and not motion.cut and kept.ir.shape == now.shape
    return kept if known else None


def _flow(motion: Motion, like: Tensor) -> Tensor | None:
    """Return the flow of a frame, on the device of its planes."""
    if motion.flow is None:
        return None
    return torch.as_tensor(motion.flow).to(like.device, torch.float32).contiguous()
