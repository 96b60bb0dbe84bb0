"""The options that ``fuse``, ``Fuser`` and the commands share, each listed once.

``OPTIONS`` has the group, default and help of every one; ``FuserOptions`` and ``ReadingOptions``
have their types, for type checkers and completion. Docstrings and the command line come from here.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from .config import DEFAULT_SEED, FuseConfig

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
    """Options of ``Fuser`` and of ``fuse``; defaults and meanings are in ``OPTIONS``."""

    prior: Any
    preset: str | FuseConfig | None
    variant: str | None
    sampler: str | None
    steps: int | str | None
    psi: float | None
    eta: float | None
    stretch: str | None
    denoise: Any
    images: str | None
    seed: int
    color: bool | str
    device: str | torch.device | None
    backend: str | None
    solver: str | None
    graph: str | None
    dtype: str | torch.dtype
    compile: bool
    batch_size: int | None
    progress: bool


class ReadingOptions(TypedDict, total=False):
    """How the images of a call are read."""

    value_range: tuple[float, float] | None
    layout: str | None


INPUT, METHOD, OUTPUT, RUNTIME = "Input", "Method", "Output", "Runtime"

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
    "steps": Option(METHOD, None, "Steps (1 to 1000), ddimN, or sections such as 10,20,30."),
    "stretch": Option(
        METHOD, None, "Stretch of luma: none, minmax, percentile or sources.",
        'To the full range, but for 0.01 % of the pixels with "percentile", or to the range of '
        'the sources with "sources".',
    ),
    "variant": Option(METHOD, None, "official, paper, printed, gradient or saliency."),
    "sampler": Option(METHOD, None, "ddim or ddpm."),
    "psi": Option(METHOD, None, "The method's ψ, weight of the total variation."),
    "eta": Option(METHOD, None, "The method's η, coupling of the split variables."),
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
        INPUT, None, "LO,HI: values that mean black and white.",
        "None takes the dtype's own range.",
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
        "Arithmetic of the prior; auto: float32 on a CPU, float16 on a GPU.",
        'With "auto" a `Prior` or module stays as it is, and presets that round luma as the '
        "authors' script does take float32; see `ddfm_fast.priors.precision.default_precision`.",
    ),
    "backend": Option(
        RUNTIME, None, "auto, triton or torch: what runs a step ($DDFM_FAST_BACKEND).",
        "None reads the environment variable, then chooses automatically.",
    ),
    "solver": Option(
        RUNTIME, None, "auto, torch, cupy or tile: how the kernels get k ($DDFM_FAST_SOLVER).",
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


def documented(function: Any) -> Any:
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
