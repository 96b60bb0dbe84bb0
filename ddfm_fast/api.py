"""``fuse`` and ``Fuser``: images in, fused images out."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from .align.call import Aligner, checked_align, checked_field, setting_identity
from .config import IMAGE_KINDS, LOOP_OPTIONS, FuseConfig, default_preset, require_bool
from .graphs.cache import GraphCache, GraphSummary
from .images.pair import Pair, as_items, checked_color, read_pair
from .images.pixels import Given
from .images.planes import padded_size
from .images.stretch import Fused, joined, together
from .lumas import LumaLoop
from .method import Diffusion, MethodMaker, doubt_steps
from .options import (
    FuserOptions,
    ReadingOptions,
    as_shapes,
    check_names,
    check_reading,
    check_run,
    checked_batch_size,
    checked_seed,
    checked_shape,
    documented,
    with_defaults,
)
from .priors.load import identity_of, load_prior
from .priors.precision import chosen_precision, is_too_low
from .priors.prior import Prior
from .priors.tiled import tiled
from .restore.sources import FusionReport, SourceModel
from .runtime import environment, typed, waiting
from .runtime.apart import runs_apart
from .runtime.dispatch import resolve_backend, resolve_device, resolve_graph
from .runtime.fusers import InGraphs
from .runtime.locks import ForkLock
from .runtime.machine import one_thread_after_fork
from .runtime.memory import images_that_fit, in_batches
from .runtime.operators import traced
from .runtime.pixels import pixels_for
from .runtime.travel import Travels
from .sampler import Callback

one_thread_after_fork()

KEPT_FUSERS = 4
"""fusers that ``fuse`` keeps for later calls with the same settings"""


@documented
class Fuser(InGraphs, Travels, waiting.Awaited):
    """A prior and a configuration, built once and called for any number of images.

    Args:
        method: A function of (prior, config, loops) that returns what maps two lumas to one; by
            default the whole method. ``ddfm_fast.method`` has others.

    Options:
        OPTIONS

    Attributes ``config`` (a :class:`FuseConfig`), ``prior``, ``device``, ``seed``, ``color``,
    ``progress``, ``batch_size``, ``backend``, ``loops`` and ``method`` are the ones in use. Any
    number of threads may call one fuser: :mod:`ddfm_fast.runtime.waiting` has the rule.

    Raises:
        ValueError: An option is out of range, or not available on this machine.
        TypeError: An option has the wrong type or an unknown name.
        ImportError: A library that an option needs is missing.

    >>> [fused.shape for fused in Fuser(preset="instant")([infrared] * 2, [visible] * 2)]
    [(48, 64, 3), (48, 64, 3)]
    """

    def __init__(self, *, method: MethodMaker = Diffusion, **options: Unpack[FuserOptions]):
        given = with_defaults(options)
        if not callable(method):
            raise TypeError(f"method is {method!r}; expected what makes one, such as Diffusion")
        self._options, self._make_method, self._config = given, method, _config(given)
        self._named = None if isinstance(given["preset"], FuseConfig) else self._config
        self.device = resolve_device(given["device"])
        self.seed, self.color = checked_seed(given["seed"]), checked_color(given["color"])
        self.align = checked_align(given["align"])
        self.align_field = checked_field(given["align_field"], self.align)
        for name in ("progress", "compile"):
            require_bool(name, given[name])
        self.progress = given["progress"]
        self.batch_size = checked_batch_size(given["batch_size"], self.device)
        self.automatic_batch = given["batch_size"] is None
        self._wanted = {name: given[name] for name in ("prior", "dtype")}
        self.prior: Prior = self._loaded()
        self.backend = resolve_backend(self.device, given["backend"], given["solver"])
        mode = resolve_graph(given["graph"], self.device, self.backend)
        self.loops = GraphCache(mode, self.backend)
        self.pixels = pixels_for(self.device, self.backend.name)
        self._build()
        if (rows := getattr(self.method, "rows", None)) is not None:
            doubt_steps(given["steps"], self.config, len(rows))

    @property
    def reproducible(self) -> bool:
        """Whether results have the same bytes for any threads, batch and place in it."""
        evaluates = getattr(self.method, "rows", True) or self.config.denoise != "off"
        return self.device.type == "cpu" and (self.prior.reproducible or not evaluates)

    @property
    def config(self) -> FuseConfig:
        """The settings; another :class:`FuseConfig` may be assigned."""
        return self._config

    @config.setter
    def config(self, config: FuseConfig) -> None:
        if not isinstance(config, FuseConfig):
            raise TypeError(
                f"config is {config!r}; expected a FuseConfig, such as "
                'FuseConfig.from_preset("fast"), or another Fuser: fuser.with_options(preset=…)'
            )
        self._config = config
        if is_too_low(self.prior.precision, **self._wanted, exact=config.round_luma):
            self.prior = self._loaded()
        self._build()

    def _loaded(self) -> Prior:
        wanted, compiled = self._wanted, self._options["compile"]
        precision = chosen_precision(**wanted, device=self.device, exact=self.config.round_luma)
        return load_prior(wanted["prior"], device=self.device, dtype=precision, compile=compiled)

    def _build(self) -> None:
        keeps = self.config.reuse > 1
        self.tiled = tiled(self.prior, self._options["tile"], keeps)
        self.method = self._make_method(self.tiled, self.config, self.loops)
        self.sources = SourceModel(self.tiled, self.config, self.loops.evaluate, self.pixels)
        self.registered()

    @property
    def source_options(self) -> dict[str, Any]:
        """The options about sources, for streams: ``denoise`` and ``images``.

        None if only a preset was named: a stream does not take a preset's own settings.
        """
        if self._config is not self._named:
            return {name: getattr(self._config, name) for name in ("denoise", "images")}
        return {name: self._options[name] for name in ("denoise", "images")}

    def with_options(self, **options: Unpack[FuserOptions]) -> Fuser:
        """Make a second fuser on the same prior, which is not loaded again.

        Options that are not given stay the same. The prior changes only if ``prior``, ``dtype``,
        ``device`` or ``compile`` is given, or if a preset that is exact to the pixel needs float32
        and the precision is automatic. Graphs are shared if device and backend allow it.

        >>> quick = fuser.with_options(preset="fast")    # doctest: +SKIP
        """
        check_names(options, FuserOptions.__annotations__)
        given = {**self._options, **self._wanted, **options}
        wanted = {name: given[name] for name in self._wanted}
        low = is_too_low(self.prior.precision, **wanted, exact=_config(given).round_luma)
        if "prior" not in options and not low:  # "auto" leaves a prior as it is
            given.update(prior=self.prior, dtype=options.get("dtype", "auto"))
        other = type(self)(method=self._make_method, **given)
        other._wanted = wanted
        if (other.backend, other.loops.mode) == (self.backend, self.loops.mode):
            other.loops = self.loops
            other._build()
        return other

    @typed.typed_as(typed.call)
    @traced
    @documented
    def __call__(
        self,
        ir: Any,
        vis: Any,
        *,
        seed: int | None = None,
        color: bool | str | None = None,
        progress: bool | None = None,
        callback: Callback | None = None,
        report: list[FusionReport] | None = None,
        align: Any = None,
        **reading: Unpack[ReadingOptions],
    ) -> Any:
        """Fuse ``ir`` and ``vis``: two images, two batches, or two lists of images of any sizes.

        Args:
            ir: Containers, layouts, dtypes and ranges: :func:`ddfm_fast.images.to_planes`.
            vis: The other source, of the same size unless it is to be aligned.
            seed: Overrides the fuser's own, like ``color``, ``progress`` and ``align``.
            color: See ``seed``.
            progress: See ``seed``.
            callback: Called with a :class:`StepInfo` after every step; raising stops the fusion.
            report: A list to which a :class:`FusionReport` is appended for each image: what was
                found in its sources and done about it.
            align: See ``seed``.
            **reading: How the images are read:
                READING

        Returns:
            Each result has the container, dtype, device and layout of the source whose color it
            keeps (of ``vis`` if it is gray); gray results have one channel if that layout has
            a channel axis. Lists give a list.

        Raises:
            ValueError: Names the argument that is wrong, or the prior that yields NaN.
            TypeError: An argument is wrong; the message names it.
        """
        run = {
            "seed": self.seed if seed is None else checked_seed(seed),
            "progress": self.progress if progress is None else progress,
            "callback": callback,
        }
        check_run(run, report)
        many, items = as_items(ir, vis)
        setting = self.align if align is None else checked_align(align)
        aligner = Aligner(setting, field=self.align_field)
        pairs = [
            self.read(a, b, color=color, index=f"[{n}]" * many, aligner=aligner, **reading)
            for n, (a, b) in enumerate(items)
        ]
        given, reports = self._fuse_pairs(pairs, run)
        if report is not None:
            report += reports
        results = [one.image() for one in given]
        return results if many else results[0]

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
        """Read one item of a call as this fuser would: :func:`ddfm_fast.images.pair.read_pair`."""
        check_reading(reading, "call")
        color = self.color if color is None else checked_color(color)
        return read_pair(
            ir,
            vis,
            pixels=self.pixels,
            color=color if self.config.color else False,
            least=self.config.crop_multiple,
            index=index,
            align=None if aligner is None else aligner.raws,
            **reading,
        )

    @runs_apart
    def warmup(
        self, shapes: Iterable[tuple[int, ...]], *, progress: bool = False
    ) -> dict[tuple[int, ...], float]:
        """Do the first-call work for each (height, width) or (N, height, width); return seconds.

        On a GPU this captures the graph that calls of N images (1 if not given) of that size then
        replay; with ``progress``, the graph for calls with a bar or a callback. Elsewhere it runs
        one step. Raises ValueError for a shape that no image has.
        """
        seconds = {}
        for shape in as_shapes(shapes):
            count, height, width = checked_shape(shape, self.config.crop_multiple)
            start = time.perf_counter()
            height, width = (n - n % self.config.crop_multiple for n in (height, width))
            planes = torch.zeros((count, 1, height, width), dtype=torch.float32, device=self.device)
            self.sources.warm_up(planes[:1])
            if getattr(self.method, "rows", True):
                size = padded_size((height, width), self.config.crop_multiple, self.prior.multiple)
                self.loops.warm_up(self.tiled, self.config, (count, *size), progress, LumaLoop)
            else:
                for _ in range(2 if planes.is_cuda else 1):  # the second captures
                    self._fused(planes, planes, [False] * count, {"seed": self.seed})
            seconds[tuple(shape)] = time.perf_counter() - start
        return seconds

    def summary(self) -> list[GraphSummary]:
        """Describe the CUDA graphs that this fuser keeps, least recently used first."""
        return self.loops.summary()

    @typed.typed_as(typed.stream)
    def stream(
        self,
        pairs: Iterable[tuple],
        *,
        preset: Any = "balanced",
        color: bool | str | None = None,
        **reading: Unpack[ReadingOptions],
    ) -> Iterator[Any]:
        """Fuse (ir, vis) frames as one video: an iterator of results, in order, without flicker.

        ``preset``: "exact", "balanced" or "realtime", see ``ddfm_fast.video.VIDEO_PRESETS``.
        ``color`` and ``reading`` are as in a call, with one image per source; so are containers,
        results and errors. For files see ``ddfm_fast.video.fuse_video``.

        >>> for fused in fuser.stream(zip(thermal_frames, visible_frames)):    # doctest: +SKIP
        ...     show(fused)
        """
        from .video.stream import fuse_stream

        return fuse_stream(self, pairs, preset=preset, color=color, **reading)

    def _fuse_pairs(self, pairs: list[Pair], run: dict) -> tuple[list[Given], list[FusionReport]]:
        """Return the results of the pairs and the reports of all of their images, in order."""
        groups = defaultdict(list)
        for n, pair in enumerate(pairs):
            groups[pair.size].append(n)
        results: list = [None] * len(pairs)
        reports: dict[int, list[FusionReport]] = {}
        for (height, width), members in groups.items():
            ir, vis = (joined([getattr(pairs[n], name) for n in members]) for name in ("ir", "vis"))
            functional = [f for n in members for f in pairs[n].are_functional(self.config.images)]
            size = self.batch_size
            if self.automatic_batch:
                size = images_that_fit(self.tiled, height, width, size, keeps=self.config.reuse > 1)
            found: list[FusionReport] = []
            parts = in_batches(
                lambda a, b, f, found=found: self._fuse_lumas(a, b, f, run, found),
                (ir, vis, functional),
                size,
                fallback=self.automatic_batch,
            )
            fused, first = together(parts), 0
            for n in members:
                some, first = fused.images(first, len(pairs[n].ir)), first + len(pairs[n].ir)
                reports[n], found = found[: len(some.luma)], found[len(some.luma) :]
                colored = self._colored(pairs[n], some, reports[n])
                results[n] = colored.give_back(some, dims=self.config.dims_chroma)
        return results, [report for n in sorted(reports) for report in reports[n]]

    def _colored(self, pair: Pair, fused: Fused, reports: list[FusionReport]) -> Pair:
        """Return the pair without its chroma noise, and note the removal in its reports."""
        if pair.chroma is None:
            return pair
        chroma, found = self.sources.color(pair.chroma_of(fused.luma), fused, pair.color_from)
        for n, (sigma, name) in enumerate(zip(found, pair.color_from, strict=True)):
            source = getattr(reports[n], name)._replace(chroma=sigma)
            reports[n] = reports[n]._replace(**{name: source})
        return pair._replace(chroma=chroma)

    def _fuse_lumas(
        self,
        ir: Tensor,
        vis: Tensor,
        functional: list[bool],
        run: dict,
        reports: list[FusionReport],
    ) -> Fused:
        """Fuse luma planes [N, 1, H, W] in [0, 1]; return the luma, with the configured stretch."""
        sources = self.sources(ir, vis, seed=run["seed"])
        steps = len(getattr(self.method, "rows", ()))
        found = [
            self.sources.report(one, IMAGE_KINDS[1 + is_map], steps, ir.shape[-2:])
            for one, is_map in zip(sources.reports, functional, strict=True)
        ]
        if (tell := run["callback"]) is not None:
            run = {**run, "callback": lambda info: tell(info._replace(reports=found))}
        fused = self._fused(sources.ir, sources.vis, functional, run)
        reports += found
        return fused

    def _fused(self, ir: Tensor, vis: Tensor, functional: list[bool], run: dict) -> Fused:
        """Apply the method to two lumas and find its stretch, in a graph if it has no steps."""
        stretch = self.config.stretch

        def work(i: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            y = self.method(i, v, functional=functional, **run)
            limits = self.pixels.limits(stretch, y, i, v)
            return (y,) if limits is None else (y, limits)

        if self.backend.name != "triton" or getattr(self.method, "rows", True):
            return Fused(*work(ir, vis))
        return Fused(*self.loops.call(f"closed form {functional}, {stretch}", work, ir, vis))


def _config(given: Mapping[str, Any]) -> FuseConfig:
    """Return the preset of these options with what they override."""
    overrides = (*LOOP_OPTIONS, "reuse", "stretch", "denoise", "images")
    preset = default_preset(given) if given["preset"] is None else given["preset"]
    return FuseConfig.from_preset(preset).with_overrides(**{n: given[n] for n in overrides})


class _Key(NamedTuple):
    """What identifies a fuser that ``fuse`` keeps."""

    prior: tuple
    """what was loaded: its identity, device, precision, and whether it is compiled"""
    config: FuseConfig
    rest: tuple


@typed.typed_as(typed.fuse)
@documented
def fuse(
    ir: Any,
    vis: Any,
    *,
    callback: Callback | None = None,
    report: list[FusionReport] | None = None,
    value_range: Any = None,
    layout: str | None = None,
    nodata: Any = None,
    **options: Unpack[FuserOptions],
) -> Any:
    """Fuse an infrared and a visible image (or any two aligned modalities) by DDFM.

    The last few fusers are kept, so that a second call with the same settings loads nothing and can
    replay CUDA graphs; :func:`clear_cache` drops them. A prior that is a module or a callable is
    wrapped again at each call, since its weights may have changed.

    Args:
        ir: An image, a batch or a list of images: :func:`ddfm_fast.images.to_planes`.
        vis: The other source, of the same size unless it is to be aligned.
        callback: Called with a :class:`StepInfo` after every step; raising stops the fusion.
        report: As in the call of :class:`Fuser`.
        value_range: As in the call of :class:`Fuser`.
        layout: As in the call of :class:`Fuser`.
        nodata: As in the call of :class:`Fuser`.
        **options: The options of :class:`Fuser`:
            OPTIONS

    Returns:
        The container of the input: an array like ``vis``, or a list for lists.

    Raises:
        ValueError: An argument is wrong; the message names it.
        TypeError: An argument is wrong; the message names it.
        ImportError: A library that an option needs is missing.

    >>> fuse(infrared, visible, steps=3, color=False).shape    # sources: help(ddfm_fast)
    (48, 64, 1)
    """
    given = with_defaults(options)
    call = {name: given[name] for name in ("seed", "color", "progress")}
    reading: ReadingOptions = {"value_range": value_range, "layout": layout, "nodata": nodata}
    return _kept_fuser(options, given)(ir, vis, **call, callback=callback, report=report, **reading)


_fusers: OrderedDict[_Key, Fuser] = OrderedDict()
_fusers_lock = ForkLock()


def clear_cache() -> None:
    """Drop the fusers that :func:`fuse` keeps, with their priors and graphs.

    >>> fused = ddfm_fast.fuse(infrared, visible)
    >>> ddfm_fast.clear_cache()  # the next call makes a new fuser
    """
    with _fusers_lock:
        _fusers.clear()


def _kept_fuser(options: FuserOptions, given: dict[str, Any]) -> Fuser:
    """Return the fuser of these options: a kept one, or a new one that is kept if it can be."""
    key = _key(given)
    if key is None:
        return Fuser(**options)
    with _fusers_lock:
        if key in _fusers:
            _fusers.move_to_end(key)
            return _fusers[key]
        same = next((f.prior for k, f in _fusers.items() if k.prior == key.prior), None)
    # without the lock: loading takes seconds, and others may be kept meanwhile
    if same is not None:
        options = {**options, "prior": same, "dtype": "auto", "compile": False}
    fuser = Fuser(**options)
    with _fusers_lock:
        fuser = _fusers.setdefault(key, fuser)
        _fusers.move_to_end(key)
        while len(_fusers) > KEPT_FUSERS:
            _fusers.popitem(last=False)
    return fuser


def _key(given: dict[str, Any]) -> _Key | None:
    """Return what identifies a fuser, or None if that cannot be determined."""
    prior, device = given["prior"], resolve_device(given["device"])
    if (identity := identity_of(prior)) is None:
        return None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    config = _config(given)
    precision = chosen_precision(prior, given["dtype"], device, config.round_luma)
    ours = (identity, str(device), str(precision), given["compile"])
    rest = [given[n] for n in ("backend", "solver", "graph", "batch_size", "tile")]
    rest += [setting_identity(given["align"]), given["align_field"]]
    key = _Key(ours, config, (*rest, *sorted(environment.set_values().items())))
    try:
        hash(key)
    except TypeError:
        return None
    return key
