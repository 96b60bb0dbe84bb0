"""The options that ``fuse``, ``Fuser`` and the commands share, each listed once.

``OPTIONS`` has the group, default and help of every option; ``FuserOptions`` and ``ReadingOptions``
have the types, for type checkers and completion. Docstrings and the command line come from here.
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
    """what a Python user needs to know beyond that"""


class FuserOptions(TypedDict, total=False):
    """Options of ``Fuser`` and of ``fuse``; defaults and meanings are in ``OPTIONS``.

    A function that passes them on takes ``**options: Unpack[FuserOptions]``.

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
"""the panel below the one with the arguments"""

OPTIONS: dict[str, Option] = {
    "preset": Option(
        METHOD, None, "A name from `ddfm-fast presets`: balanced, or official with --steps.",
        "A name from `ddfm_fast.PRESETS` or a `FuseConfig`; other options override it. None: "
        '"balanced", or "official" if steps, sampler, variant, psi or eta is given.',
    ),
    "denoise": Option(
        METHOD, None, "Remove noise from the sources first: auto, off, σ, or ir=σ,vis=σ.",
        '"auto" estimates it and also removes stripes and dead pixels; σ is in gray levels of 255; '
        'a dict {"ir": …, "vis": …} sets one source or both. None: as the preset has it.',
    ),
    "images": Option(
        METHOD, None, "Kind of images: functional (PET, SPECT), photographic or auto.",
        "\"auto\" looks for false color on black. None: as the preset has it.",
    ),
    "steps": Option(METHOD, None, "Number of steps (1 to 1000), ddimN, or a list: 10,20,30."),
    "reuse": Option(
        METHOD, None, "Run the deep layers of the prior only at every Nth step.",
        "For UNets whose layers are known; the steps in between are cheaper and slightly "
        "different (`ddfm-fast help priors`). None: 1, all layers at every step.",
    ),
    "stretch": Option(
        METHOD, None, "Stretch the result: none, minmax, percentile or sources.",
        '"minmax" stretches to the full range, "percentile" to the full range for all but 0.01 % '
        'of the pixels, "sources" to the range of the sources.',
    ),
    "variant": Option(METHOD, None, "Variant: official, paper, printed, gradient or saliency."),
    "sampler": Option(METHOD, None, "Sampler: ddim or ddpm."),
    "psi": Option(METHOD, None, "ψ, weight of the total variation."),
    "eta": Option(METHOD, None, "η, coupling of the split variables."),
    "seed": Option(
        METHOD, DEFAULT_SEED, "Seed of the random noise.",
        "It draws x_T and the sampler's noise, the same for every image.",
    ),
    "prior": Option(
        METHOD, "embedded", "embedded, a .pt or .safetensors file, or a diffusers folder.",
        "Also a module, a callable eps(x, t) or a `Prior`: see `ddfm_fast.load_prior`.",
    ),
    "color": Option(
        OUTPUT, True, "Source of the color.",
        'True keeps the chroma of the visible image, or of the infrared one if only that has '
        'any; "ir" or "vis" chooses one; False gives a gray result.',
    ),
    "value_range": Option(
        INPUT, None, "Values of black and white: LO,HI, auto, dtype or data.",
        '(lo, hi), "dtype", "data" or "auto", for both or per source: {"ir": …, "vis": …}. None is '
        '"auto": the range of the dtype if the picture plausibly uses it, else the range of its '
        "values, with a warning; see `ddfm_fast.images.ranges`.",
    ),
    "nodata": Option(
        INPUT, None, "The value of missing pixels; may be nan.",
        "For both or per source. It does not affect the range, and where a pixel is missing the "
        "result shows the other source.",
    ),
    "align": Option(
        INPUT_OPTIONS, "check", "check (default), off, shift, affine, homography or a file.",
        '"check" only warns if the first pair of a call, folder or stream is clearly shifted. '
        "The others map the infrared picture onto the visible one, even from another size, if a "
        "clear map is found; files are those of `ddfm-fast align`. See `ddfm_fast.align`.",
    ),
    "align_field": Option(
        INPUT_OPTIONS, "visible", "visible (default) or common: what an aligned result shows.",
        '"visible" keeps the visible frame and shows only that source where the infrared one does '
        'not reach; "common" crops both to a rectangle that both cover, if a map was found. A '
        "stream is cropped only with a calibration.",
    ),
    "layout": Option(
        INPUT, None, "Order of the axes, such as HWC, if it would be guessed wrongly.",
        "See `ddfm_fast.images.to_planes`.",
    ),
    "device": Option(
        RUNTIME, None, "cpu, cuda or cuda:N; by default CUDA if available."
    ),
    "dtype": Option(
        RUNTIME, "auto",
        "float32, tf32, bfloat16, float16 or auto (by device).",
        'Arithmetic of the prior. "auto": float32 on a CPU, float16 on a GPU; it leaves a `Prior` '
        "or module as it is, and presets that round luma like the authors' script use "
        "float32; see `ddfm_fast.priors.precision.default_precision`.",
    ),
    "backend": Option(
        RUNTIME, None, "What runs a step: auto, triton or torch ($DDFM_FAST_BACKEND).",
        "None reads the environment variable, then chooses automatically.",
    ),
    "solver": Option(
        RUNTIME, None, "How the kernels get k: auto, local, torch or cupy ($DDFM_FAST_SOLVER).",
        "None: as for backend.",
    ),
    "graph": Option(
        RUNTIME, None, "CUDA graphs: auto, loop, step or off ($DDFM_FAST_GRAPH).",
        "None: as for backend.",
    ),
    "compile": Option(
        RUNTIME, False, "Run the prior through torch.compile.",
        "Compiling takes half a minute or more for each new size.",
    ),
    "batch_size": Option(
        RUNTIME, None, "Most pairs fused at once (CPU: 1; GPU: as many as fit).",
        "None: 1 on a CPU, where a batch saves nothing; up to 8 on a GPU, fewer if its free "
        "memory holds fewer.",
    ),
    "tile": Option(
        RUNTIME, "auto", "Evaluate the prior in tiles: auto (by free memory), off, or a side.",
        "Tiles overlap by a quarter and are blended. \"auto\" uses none if a picture fits in half "
        "of the free memory or the prior is a callable; name a side for equal bytes everywhere.",
    ),
    "progress": Option(RUNTIME, False, "Show a progress bar over the steps."),
}  # fmt: skip


def check_names(options: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError, with the nearest name, for an unknown option."""
    known = list(known)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise TypeError(f"{name!r} is not an option; {hint}")


def with_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of ``FuserOptions``, given or by default; TypeError for other names."""
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
    """Raise TypeError for any name but an option of reading, such as an option of ``Fuser``.

    ``where``: "call" or "stream", for the message.
    """
    for name in reading:
        if name in FuserOptions.__annotations__:
            raise TypeError(
                f"{name!r} is not an option of a {where}; give it to the fuser: "
                f"fuser.with_options({name}=…)"
            )
    check_names(reading, ReadingOptions.__annotations__)


def check_run(run: dict[str, Any], report: Any) -> None:
    """Raise TypeError, naming the argument, if a call cannot run with it."""
    require_bool("progress", run["progress"])
    if run["callback"] is not None and not callable(run["callback"]):
        raise TypeError(
            f"callback is {run['callback']!r}; expected a function that takes a StepInfo"
        )
    if report is not None and not isinstance(report, list):
        raise TypeError(f"report is a {type(report).__name__}; expected a list to append to")


def checked_seed(seed: Any) -> int:
    """Return the seed as an int of 63 bits; raise TypeError or ValueError otherwise."""
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
    """Return how many images to fuse at once, by default what suits the device."""
    if batch_size is None:
        return 1 if device.type == "cpu" else 8
    if as_count(batch_size, 1) is None:
        raise ValueError(f"batch_size is {batch_size!r}; expected a positive int, or None")
    return int(batch_size)


def as_shapes(shapes: Any) -> list:
    """List the shapes; raise TypeError for anything but an iterable."""
    try:
        return list(shapes)
    except TypeError:
        raise TypeError(
            f"shapes is a {type(shapes).__name__}; expected a list such as [(480, 640)]"
        ) from None


MOST_PIXELS = 2**31
"""most pixels that a call of ``warmup`` accepts: more is surely a mistake"""


def checked_shape(shape: Any, multiple: int) -> tuple[int, int, int]:
    """Return (N, height, width) of a shape; raise ValueError if cropping leaves nothing of it."""
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
