"""The options that ``fuse``, ``Fuser`` and the commands share, each listed once.

``OPTIONS`` has the group, default and help of every one; ``FuserOptions`` and ``ReadingOptions``
have their types, for type checkers and completion. Docstrings and the command line come from here.
"""

from __future__ import annotations

import difflib
import operator
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, TypeVar

from .config import DEFAULT_SEED, FuseConfig, require_bool
from .images.integers import as_count

if TYPE_CHECKING:
    import torch


class Option(NamedTuple):
    """An option: the panel that help shows it in, its default, and what it does."""

    group: str
    default: Any
    help: str
    """a sentence for the command line"""
    more: str = ""
    """what a Python user needs beyond it"""


class FuserOptions(TypedDict, total=False):
    """Options of ``Fuser`` and of ``fuse``; defaults and meanings are in ``OPTIONS``.

    A function that hands them on has ``**options: Unpack[FuserOptions]``.

    >>> options: FuserOptions = {"preset": "instant", "color": False}
    >>> ddfm_fast.Fuser(**options).config.summary
    'the closed form alone: no prior evaluation, no denoising'
    """

    prior: object  # not Any, with which a checker cannot tell overloads apart
    preset: str | FuseConfig | None
    variant: str | None
    sampler: str | None
    steps: int | str | None
    reuse: int | None
    psi: float | None
    eta: float | None
    stretch: str | None
    denoise: str | float | Mapping[str, str | float] | None
    images: str | None
    align: object
    align_field: str
    seed: int
    color: bool | str
    device: str | torch.device | None
    backend: str | None
    solver: str | None
    graph: str | None
    dtype: str | torch.dtype
    compile: bool
    batch_size: int | None
    tile: int | str
    progress: bool


class ReadingOptions(TypedDict, total=False):
    """How the images of a call are read."""

    value_range: str | Sequence[float] | Mapping[str, str | Sequence[float] | None] | None
    layout: str | None
    nodata: float | Mapping[str, float | None] | None


INPUT, METHOD, OUTPUT, RUNTIME = "Input", "Method", "Output", "Runtime"
INPUT_OPTIONS = f"{INPUT} options"
"""the panel below that of the arguments"""

OPTIONS: dict[str, Option] = {
    "preset": Option(
        METHOD, None, "A row of `ddfm-fast presets`; balanced, or official with --steps.",
        "A name of `ddfm_fast.PRESETS`, or a `FuseConfig`; other options override it. None: "
        '"balanced", or "official" where steps, sampler, variant, psi or eta is given.',
    ),
    "denoise": Option(
        METHOD, None, "Remove noise of the sources first: auto, off, σ, or ir=σ,vis=σ.",
        '"auto" estimates it and also removes stripes and dead pixels; σ is in gray levels of 255; '
        'a dict {"ir": …, "vis": …} for one source or both. None: as the preset has it.',
    ),
    "images": Option(
        METHOD, None, "functional (PET, SPECT), photographic, or auto.",
        "\"auto\" looks for false color on black. None: as the preset has it.",
    ),
    "steps": Option(METHOD, None, "1 to 1000 steps, ddimN, or 10,20,30."),
    "reuse": Option(
        METHOD, None, "Deep layers of the prior at every Nth step only.",
        "Of UNets whose layers are known; the steps between are cheaper, and a little other "
        "(`ddfm-fast help priors`). None: 1, all of it at every step.",
    ),
    "stretch": Option(
        METHOD, None, "none, minmax, percentile or sources.",
        'To the full range, but for 0.01 % of the pixels with "percentile", or to the range of '
        'the sources with "sources".',
    ),
    "variant": Option(METHOD, None, "official, paper, printed, gradient or saliency."),
    "sampler": Option(METHOD, None, "ddim or ddpm."),
    "psi": Option(METHOD, None, "ψ, weight of the total variation."),
    "eta": Option(METHOD, None, "η, coupling of the split variables."),
    "seed": Option(
        METHOD, DEFAULT_SEED, "Seed of the first noise.",
        "Of x_T and of the sampler's noise, the same for every image.",
    ),
    "prior": Option(
        METHOD, "embedded", "embedded, a .pt or .safetensors file, or a diffusers folder.",
        "Also a module, a callable eps(x, t) or a `Prior`: see `ddfm_fast.load_prior`.",
    ),
    "color": Option(
        OUTPUT, True, "Which source gives the color.",
        'True keeps the chroma of the visible image, or of the infrared one where only that has '
        'any; "ir" or "vis" says which; False gives gray.',
    ),
    "value_range": Option(
        INPUT, None, "LO,HI, auto, dtype or data: values that mean black and white.",
        '(lo, hi), "dtype", "data" or "auto", for both or by source: {"ir": …, "vis": …}. None is '
        '"auto": the dtype\'s own range where the picture plausibly uses it, else what it spans, '
        "with a warning; see `ddfm_fast.images.ranges`.",
    ),
    "nodata": Option(
        INPUT, None, "A value, or nan, that means nothing.",
        "For both or by source. It does not set the range, and there the result shows the other "
        "source.",
    ),
    "align": Option(
        INPUT_OPTIONS, "check", "check (default), off, shift, affine, homography or a file.",
        '"check" says by a sentence where the first pair of a call, folder or stream is surely '
        "shifted. The others bring the infrared picture to the visible one, of another size, too, "
        "where a map stands out; files are those of `ddfm-fast align`. See `ddfm_fast.align`.",
    ),
    "align_field": Option(
        INPUT_OPTIONS, "visible", "visible (default) or common: what an aligned result shows.",
        '"visible" keeps the visible frame, and shows that source where the infrared one does not '
        'reach; "common" crops both to a rectangle that both have, where a map was found. A '
        "stream is cropped by a calibration alone.",
    ),
    "layout": Option(
        INPUT, None, "Order of the axes, such as HWC, where the rule would read it wrongly.",
        "See `ddfm_fast.images.to_planes`.",
    ),
    "device": Option(
        RUNTIME, None, "cpu, cuda or cuda:N; CUDA where there is one by default."
    ),
    "dtype": Option(
        RUNTIME, "auto",
        "float32, tf32, bfloat16, float16, or auto: by device.",
        'Arithmetic of the prior. "auto": float32 on a CPU, float16 on a GPU. With it a `Prior` or '
        "module stays as it is, and presets that round luma as the authors' script does take "
        "float32; see `ddfm_fast.priors.precision.default_precision`.",
    ),
    "backend": Option(
        RUNTIME, None, "auto, triton or torch: what runs a step ($DDFM_FAST_BACKEND).",
        "None reads the environment variable, then chooses automatically.",
    ),
    "solver": Option(
        RUNTIME, None, "auto, local, torch or cupy: how the kernels get k ($DDFM_FAST_SOLVER).",
        "None as for backend.",
    ),
    "graph": Option(
        RUNTIME, None, "CUDA graphs: auto, loop, step or off ($DDFM_FAST_GRAPH).",
        "None as for backend.",
    ),
    "compile": Option(
        RUNTIME, False, "Run the prior through torch.compile.",
        "Costs a minute at each new size.",
    ),
    "batch_size": Option(
        RUNTIME, None, "Most pairs at once (a CPU: 1; a GPU: what fits).",
        "None: 1 on a CPU, where a batch saves nothing; on a GPU up to 8, fewer where its free "
        "memory holds fewer.",
    ),
    "tile": Option(
        RUNTIME, "auto", "Evaluate the prior in tiles: auto (by free memory), off, or their side.",
        "Tiles overlap by a quarter and are blended. Auto takes pictures whole that fit in half of "
        "the free memory, and with callables all; for the same bytes wherever it runs, say which.",
    ),
    "progress": Option(RUNTIME, False, "Show a bar over the steps."),
}  # fmt: skip


def check_names(options: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError, with the nearest name, for an option that there is not."""
    known = list(known)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise TypeError(f"{name!r} is no option; {hint}")


def with_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of ``FuserOptions``, as given or by its default; TypeError for other names."""
    names = FuserOptions.__annotations__
    check_names(options, names)
    return {name: options.get(name, OPTIONS[name].default) for name in names}


Documented = TypeVar("Documented")


def documented(function: Documented) -> Documented:
    """Put the list of options in place of the line ``OPTIONS`` in a docstring; a decorator."""
    if function.__doc__:
        for mark, names in (
            ("READING", ReadingOptions.__annotations__),
            ("OPTIONS", FuserOptions.__annotations__),
        ):
            function.__doc__ = _with_list(function.__doc__, mark, names)
    return function


def _with_list(text: str, mark: str, names: Iterable[str]) -> str:
    lines = []
    for line in text.split("\n"):
        if line.strip() == mark:
            lines += [_entry(name, line[: -len(mark)]) for name in names]
        else:
            lines.append(line)
    return "\n".join(lines)


def _entry(name: str, indent: str) -> str:
    option = OPTIONS[name]
    more = f" {option.more}" if option.more else ""
    text = f"{name}: {option.help}{more} Default: {option.default!r}."
    return textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=indent + "    ")


def check_reading(reading: Mapping[str, Any], where: str) -> None:
    """Raise TypeError for what is no option of reading, such as an option of ``Fuser``.

    ``where``: "call" or "stream", for the message.
    """
    for name in reading:
        if name in FuserOptions.__annotations__:
            raise TypeError(
                f"{name!r} is no option of a {where}; give it to the fuser: "
                f"fuser.with_options({name}=…)"
            )
    check_names(reading, ReadingOptions.__annotations__)


def check_run(run: dict[str, Any], report: Any) -> None:
    """Raise TypeError, naming the argument, for what a call cannot run with."""
    require_bool("progress", run["progress"])
    if run["callback"] is not None and not callable(run["callback"]):
        raise TypeError(f"callback is {run['callback']!r}; expected a function of a StepInfo")
    if report is not None and not isinstance(report, list):
        raise TypeError(f"report is a {type(report).__name__}; expected a list to add to")


def checked_seed(seed: Any) -> int:
    """Return the seed as an int of 63 bits; TypeError or ValueError otherwise."""
    try:
        if isinstance(seed, bool) or getattr(seed, "ndim", None):
            raise TypeError
        value = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed is a {type(seed).__name__}; expected an int") from None
    if not 0 <= value < 2**63:
        shown = value if value.bit_length() < 128 else f"an int of {value.bit_length()} bits"
        raise ValueError(f"seed is {shown}; expected 0 to 2**63 - 1")
    return value


def checked_batch_size(batch_size: Any, device: torch.device) -> int:
    """Return the most images at once, by default what suits the device; ValueError otherwise."""
    if batch_size is None:
        return 1 if device.type == "cpu" else 8
    if as_count(batch_size, 1) is None:
        raise ValueError(f"batch_size is {batch_size!r}; expected a positive int, or None")
    return int(batch_size)


def as_shapes(shapes: Any) -> list:
    """List the shapes; TypeError for what holds none."""
    try:
        return list(shapes)
    except TypeError:
        raise TypeError(
            f"shapes is a {type(shapes).__name__}; expected a list such as [(480, 640)]"
        ) from None


MOST_PIXELS = 2**31
"""of a call that is warmed up for: more is a mistake"""


def checked_shape(shape: Any, multiple: int) -> tuple[int, int, int]:
    """Return (N, height, width) of a shape; ValueError where cropping to multiples leaves none."""
    try:
        *counts, height, width = (operator.index(n) for n in shape)
        (count,) = counts or (1,)
    except (TypeError, ValueError):
        raise ValueError(
            f"shapes has {shape!r}; expected (height, width) or (N, height, width)"
        ) from None
    least = max(16, multiple)
    if min(height, width) < least or count < 1:
        raise ValueError(f"shapes has {shape!r}; expected at least one image of {least}x{least}")
    if height * width * count > MOST_PIXELS:
        raise ValueError(f"shapes has {shape!r}; expected at most {MOST_PIXELS:,} pixels together")
    return count, height, width
