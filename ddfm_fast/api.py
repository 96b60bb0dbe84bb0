"""``fuse`` and ``Fuser``: images in, fused images out."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .config import FuseConfig, get_preset
from .graphs import GraphCache
from .images.color import has_chroma, luma, with_luma
from .images.planes import ImageSpec, crop, from_planes, pad_to_multiple, to_planes
from .images.stretch import stretch_minmax, stretch_percentile
from .priors.load import load_prior
from .priors.precision import default_precision
from .runtime.dispatch import resolve_backend, resolve_graph
from .runtime.memory import images_that_fit, in_batches
from .sampler import Sampled, StepInfo, prior_rows, sample

COLORS = (True, False, "ir", "vis")
STRETCH: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y.clamp(0, 1),
    "minmax": stretch_minmax,
    "percentile": stretch_percentile,
}


class _Pair(NamedTuple):
    """One call item: planes [N, C, H, W] of both sources and how to give the result back."""

    ir: Tensor
    vis: Tensor
    chroma: Tensor | None
    """RGB [N, 3, H, W] whose chroma the result takes, or None for grey"""
    channels: int
    spec: ImageSpec


class Fuser:
    """A prior and a configuration, built once and called for any number of images.

    ``prior``: see :func:`ddfm_fast.load_prior`. ``preset``: a name of
    :data:`ddfm_fast.PRESETS`, or a :class:`FuseConfig`; ``variant``, ``sampler``, ``steps``,
    ``psi``, ``eta`` and ``stretch`` override single settings of it. ``device``: where to compute
    (default: CUDA if there is one). ``dtype`` of the prior's arithmetic: "auto" (see
    :func:`ddfm_fast.priors.precision.default_precision`), "float32", "tf32", "bfloat16" or
    "float16"; with "auto" a :class:`Prior` or module stays as it is, and presets that round luma
    as the authors' script does take float32. ``compile``: run the prior through torch.compile.
    ``batch_size``: most images in one forward (default 1 on the CPU, where a batch saves nothing;
    on a GPU up to 8, fewer where its free memory holds fewer). ``color``: True keeps the chroma of
    the visible image, or of the infrared one where only that has any; "ir" or "vis" says which;
    False gives grey. ``seed``: of x_T and the sampler's noise, the same for every image.
    ``backend``, ``solver`` and ``graph``: which code runs a step and whether CUDA graphs replay
    it, see :mod:`ddfm_fast.runtime.dispatch`; None takes the environment's word, else chooses.
    """

    part = "all"
    """which parts of the method are at work; ``metrics.ablation`` has fusers with one"""

    def __init__(
        self,
        *,
        prior="embedded",
        preset: str | FuseConfig = "official",
        variant: str | None = None,
        sampler: str | None = None,
        steps: int | str | None = None,
        psi: float | None = None,
        eta: float | None = None,
        stretch: str | None = None,
        seed: int = 3407,
        device: str | torch.device | None = None,
        color: bool | str = True,
        progress: bool = False,
        batch_size: int | None = None,
        backend: str | None = None,
        solver: str | None = None,
        graph: str | None = None,
        dtype: str | torch.dtype = "auto",
        compile: bool = False,
    ):
        base = preset if isinstance(preset, FuseConfig) else get_preset(preset)
        self.config = base.with_overrides(
            variant=variant, sampler=sampler, steps=steps, psi=psi, eta=eta, stretch=stretch
        )
        self.device = resolve_device(device)
        self.seed = _checked_seed(seed)
        self.color = _checked_color(color)
        self.progress = progress
        self.batch_size = _checked_batch_size(batch_size, self.device)
        self.automatic_batch = batch_size is None
        if dtype == "auto":
            dtype = self._default_precision(prior)
        self.prior = load_prior(prior, device=self.device, dtype=dtype, compile=compile)
        self.backend = resolve_backend(self.device, backend, solver)
        self.loops = GraphCache(resolve_graph(graph, self.device, self.backend), self.backend)
        prior_rows(self.prior, self.config)  # an impossible number of steps fails here, not later

    def _default_precision(self, prior) -> str | None:
        """None, which leaves a prior as it is and means float32 for a name or a path."""
        exact = self.config.round_luma  # a preset that repeats the authors' script to the pixel
        if exact or not isinstance(prior, str | os.PathLike):
            return None
        return default_precision(self.device, self.config.start)

    def __call__(
        self,
        ir,
        vis,
        *,
        seed: int | None = None,
        color: bool | str | None = None,
        progress: bool | None = None,
        callback: Callable[[StepInfo], None] | None = None,
        value_range: tuple[float, float] | None = None,
        layout: str | None = None,
    ):
        """Fuse ``ir`` and ``vis``: two images, two batches, or two lists of images of any sizes.

        Containers, layouts, dtypes and ranges: :func:`ddfm_fast.to_planes`. Each result
        has the container, dtype, device and layout of the source whose colour it keeps (of
        ``vis`` where it is grey); grey results have one channel where that layout has a channel
        axis. ``callback`` gets a :class:`StepInfo` after every step. ValueError or TypeError
        names the argument that is wrong.
        """
        color = self.color if color is None else _checked_color(color)
        seed = self.seed if seed is None else _checked_seed(seed)
        many = isinstance(ir, (list, tuple))
        if many != isinstance(vis, (list, tuple)):
            raise TypeError(
                f"ir is a {type(ir).__name__} and vis a {type(vis).__name__}; "
                "expected two images, or two lists of images"
            )
        if many and len(ir) != len(vis):
            raise ValueError(
                f"ir has {len(ir)} images and vis {len(vis)}; expected as many of each"
            )
        if many and not ir:
            return []
        items = list(zip(ir, vis, strict=True)) if many else [(ir, vis)]
        pairs = [
            self._read(a, b, color, value_range, layout, f"[{n}]" if many else "")
            for n, (a, b) in enumerate(items)
        ]
        run = {
            "seed": seed,
            "progress": self.progress if progress is None else progress,
            "callback": callback,
        }
        results = self._fuse_pairs(pairs, run)
        return results if many else results[0]

    def warmup(
        self, shapes: Iterable[tuple[int, ...]], *, progress: bool = False
    ) -> dict[tuple[int, ...], float]:
        """Do the first-call work for each (height, width) or (N, height, width); seconds each.

        On a GPU that captures the graph which calls of N images (1 if not said) of that size then
        replay; ``progress``: the one for calls with a bar or a callback. Elsewhere it is one step.
        ValueError for a shape that no image has.
        """
        seconds = {}
        for shape in shapes:
            count, height, width = _checked_shape(shape)
            start = time.perf_counter()
            height, width = (n - n % self.config.crop_multiple for n in (height, width))
            plane = torch.zeros(1, 1, height, width, device=self.device)
            padded = pad_to_multiple(plane, self.prior.multiple).shape[-2:]
            self.loops.warm_up(self.prior, self.config, (count, *padded), progress)
            seconds[tuple(shape)] = time.perf_counter() - start
        return seconds

    def stream(self, pairs: Iterable[tuple], *, preset="balanced", **reading):
        """Fuse (ir, vis) frames as one video: an iterator of results, in order, without flicker.

        ``preset``: "exact", "balanced" or "realtime", see ``ddfm_fast.video.VIDEO_PRESETS``.
        ``reading``: ``color``, ``value_range`` and ``layout`` as in a call. One image a source;
        containers, results and errors as in a call. Files: ``ddfm_fast.video.fuse_video``.

        >>> for fused in fuser.stream(zip(thermal_frames, visible_frames)):
        ...     show(fused)
        """
        from .video import fuse_stream

        return fuse_stream(self, pairs, preset=preset, **reading)

    def _read(self, ir, vis, color, value_range, layout, index: str) -> _Pair:
        a, a_spec = to_planes(ir, f"ir{index}", value_range=value_range, layout=layout)
        b, b_spec = to_planes(vis, f"vis{index}", value_range=value_range, layout=layout)
        if len(a) != len(b) or a.shape[-2:] != b.shape[-2:]:
            raise ValueError(
                f"ir{index} has {_size(a)} and vis{index} {_size(b)}; "
                "expected aligned images of equal size: register and resize them first"
            )
        self._require_room(a, index)
        a, b = a.to(self.device), b.to(self.device)
        if not (color and self.config.color):
            return _Pair(a, b, None, 1, b_spec)
        from_ir = color == "ir" or (color is True and b.shape[1] == 1 and a.shape[1] == 3)
        spec, channels = (a_spec, a.shape[1]) if from_ir else (b_spec, b.shape[1])
        return _Pair(a, b, _chroma_source(a, b, color), channels, spec)

    def _require_room(self, plane: Tensor, index: str) -> None:
        least = self.config.crop_multiple
        if min(plane.shape[-2:]) < least:
            raise ValueError(
                f"ir{index} has {_size(plane)}, which cropping to multiples of {least} leaves "
                f"empty; expected at least {least}x{least}, or a preset that does not crop"
            )

    def _fuse_pairs(self, pairs: list[_Pair], run: dict) -> list:
        groups = defaultdict(list)
        for n, pair in enumerate(pairs):
            groups[pair.ir.shape[-2:]].append(n)
        results: list = [None] * len(pairs)
        for members in groups.values():
            ir = torch.cat([luma(pairs[n].ir) for n in members])
            vis = torch.cat([luma(pairs[n].vis) for n in members])
            size = self.batch_size
            if self.automatic_batch:
                size = images_that_fit(self.prior, *ir.shape[-2:], size)
            fused = torch.cat(
                in_batches(
                    lambda a, b: self._fuse_lumas(a, b, run),
                    (ir, vis),
                    size,
                    fallback=self.automatic_batch,
                )
            )
            for n, y in zip(members, fused.split([len(pairs[n].ir) for n in members]), strict=True):
                results[n] = _compose(y, pairs[n])
        return results

    def _fuse_lumas(self, ir: Tensor, vis: Tensor, run: dict) -> Tensor:
        """Luma planes [N, 1, H, W] in [0, 1] → the fused luma in [0, 1], cropped if so set."""
        return STRETCH[self.config.stretch](self._fuse_unscaled(ir, vis, run))

    def _fuse_unscaled(self, ir: Tensor, vis: Tensor, run: dict) -> Tensor:
        """As :meth:`_fuse_lumas`, before the stretch."""
        config = self.config
        height, width = (n - n % config.crop_multiple for n in ir.shape[-2:])
        planes = [crop(p, height, width) for p in (ir, vis)]
        if config.round_luma:
            planes = [torch.round(p * 255) / 255 for p in planes]
        i, v = (pad_to_multiple(p * 2 - 1, self.prior.multiple) for p in planes)
        if config.swap_sources:
            i, v = v, i
        return (crop(self._sample_luma(i, v, run), height, width) + 1) / 2

    def _sample_luma(self, i: Tensor, v: Tensor, run: dict) -> Tensor:
        """Padded planes in [−1, 1] as the method's i and v → the fused luma of that scale."""
        return self._sample(i, v, self.config, **run).luma

    def _sample(self, i: Tensor, v: Tensor, config: FuseConfig, **run) -> Sampled:
        """The sampler on this fuser's prior, with a configuration that may be another's."""
        return sample(self.prior, i, v, config, loops=self.loops.loop, **run)


def fuse(
    ir,
    vis,
    *,
    prior="embedded",
    preset: str | FuseConfig = "official",
    variant: str | None = None,
    sampler: str | None = None,
    steps: int | str | None = None,
    psi: float | None = None,
    eta: float | None = None,
    seed: int = 3407,
    device: str | torch.device | None = None,
    color: bool | str = True,
    stretch: str | None = None,
    progress: bool = False,
    callback: Callable[[StepInfo], None] | None = None,
    value_range: tuple[float, float] | None = None,
    layout: str | None = None,
    backend: str | None = None,
    solver: str | None = None,
    graph: str | None = "off",
    dtype: str | torch.dtype = "auto",
    compile: bool = False,
):
    """Fuse an infrared and a visible image (or any two aligned modalities) by DDFM.

    The arguments are those of :class:`Fuser` and of its call; build a ``Fuser`` for more than a
    few images, and to replay CUDA graphs (``graph="off"`` here: a capture pays from the second
    call on). Returns what came in: an array like ``vis``, or a list for lists.

    >>> fused = fuse(ir, vis)                        # uint8 HWC in, uint8 HWC out
    >>> grey = fuse(ir, vis, steps=25, color=False)
    """
    fuser = Fuser(
        prior=prior,
        preset=preset,
        variant=variant,
        sampler=sampler,
        steps=steps,
        psi=psi,
        eta=eta,
        stretch=stretch,
        seed=seed,
        device=device,
        color=color,
        progress=progress,
        backend=backend,
        solver=solver,
        graph=graph,
        dtype=dtype,
        compile=compile,
    )
    return fuser(ir, vis, callback=callback, value_range=value_range, layout=layout)


def _chroma_source(ir: Tensor, vis: Tensor, color: bool | str) -> Tensor:
    """RGB [N, 3, H, W] to take the chroma from, chosen image by image."""
    ir, vis = (p.expand(-1, 3, -1, -1) for p in (ir, vis))
    if color is True:
        return torch.where(has_chroma(vis)[:, None, None, None], vis, ir)
    return ir if color == "ir" else vis


def _compose(y: Tensor, pair: _Pair):
    """Fused luma [N, 1, H, W] in [0, 1] → the container that came in."""
    if pair.chroma is not None and pair.channels == 3:
        y = with_luma(y, crop(pair.chroma, *y.shape[-2:]))
    return from_planes(y, pair.spec)


def _size(planes: Tensor) -> str:
    n, _, height, width = planes.shape
    return f"{n} image{'s' * (n != 1)} of {height}x{width}"


def resolve_device(device) -> torch.device:
    """The device of a name, CUDA where there is one by default; ValueError for what is none."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device is {device!r}; expected "cpu", "cuda" or "cuda:0"') from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device is {device!r}, but this PyTorch sees no CUDA device; "
            'expected device="cpu", or a CUDA build of PyTorch and its driver'
        )
    return resolved


def _checked_seed(seed) -> int:
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed is a {type(seed).__name__}; expected an int")
    if not 0 <= int(seed) < 2**63:
        raise ValueError(f"seed is {seed}; expected 0 to 2**63 - 1")
    return int(seed)


def _checked_color(color):
    if not any(color is c or (isinstance(color, str) and color == c) for c in COLORS):
        raise ValueError(f'color is {color!r}; expected True, False, "ir" or "vis"')
    return color


def _checked_batch_size(batch_size, device: torch.device) -> int:
    if batch_size is None:
        return 1 if device.type == "cpu" else 8
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; expected a positive int, or None")
    return batch_size


def _checked_shape(shape) -> tuple[int, int, int]:
    try:
        *count, height, width = (int(n) for n in shape)
        (count,) = count or (1,)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"shapes has {shape!r}; expected (height, width) or (N, height, width)"
        ) from error
    if min(height, width) < 16 or count < 1:
        raise ValueError(f"shapes has {shape!r}; expected at least one image of at least 16x16")
    return count, height, width
