"""Settings of a fusion, and the named presets."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any

from .images.integers import as_count, as_int

STRETCHES = ("none", "minmax", "percentile", "sources")
VARIANT_NAMES = ("official", "paper", "printed", "gradient", "saliency")
IMAGE_KINDS = ("auto", "photographic", "functional")
MAX_SIGMA = 100.0
"""gray levels: with more noise, nothing is left to denoise"""
MAX_DRAWS = 4
MAX_REUSE = 1000
SAMPLER_NAMES = ("ddim", "ddpm")
DEFAULT_SEED = 3407
"""the seed of the authors' script"""
VARIANCES = ("auto", "fixed_small", "learned_range")


@dataclass(frozen=True)
class FuseConfig:
    """Everything that determines a fused picture, except the images, the prior and the seed.

    Frozen and hashable; ``replace`` (or ``with_overrides``) makes a changed copy. Raises
    ValueError or TypeError, naming the field, on anything out of range.

    >>> config = FuseConfig.from_preset("balanced").with_overrides(denoise=4.0)
    >>> config.variant, config.steps, config.noise_levels
    ('saliency', 3, {'ir': 4.0, 'vis': 4.0})
    >>> FuseConfig(steps=0)
    Traceback (most recent call last):
    ValueError: steps is 0; expected 1 to the prior's timesteps, usually 1000
    """

    variant: str = "official"
    """interpretation of the method: one of VARIANT_NAMES, see ``ddfm_fast.rectify``"""
    sampler: str = "ddim"
    """"ddim" or "ddpm" (Algorithm 1 of the paper)"""
    steps: int | str = 100
    """prior evaluations: a count, or a respacing such as "ddim50" or "10,20,30" """
    start: int | None = None
    """first timestep: the loop starts from the mean of the sources noised to it, and ``steps`` is
    a count of timesteps from there to 0; None starts from pure noise at the last timestep"""
    spacing: float = 1.0
    """with ``start``: timestep j of n is start · (j / (n − 1))^spacing; above 1 for low noise"""
    ddim_eta: float = 0.0
    """η of DDIM, 0 (deterministic) to 1; other samplers ignore it"""
    variance: str = "auto"
    """σ of "ddpm": "fixed_small", "learned_range", or "auto": learned if the prior has it"""
    reuse: int = 1
    """evaluate the deep layers of a UNet at the first step and every N-th after it, see
    ``ddfm_fast.priors.reuse``; 1: at every step"""
    psi: float = 0.5
    """ψ, weight of the total variation (the authors' ``lamb``)"""
    eta: float = 0.001
    """η, coupling of the split variables (the authors' ``rho``)"""
    update_scales: bool = True
    """re-estimate γ and ρ at every step; False keeps them at 1"""
    stretch: str = "minmax"
    """"minmax" stretches each fused luma to the full range, "percentile" all
    but the darkest and brightest 0.01 % of the pixels, "sources" the same to the range that the
    sources have, "none" keeps its values"""
    denoise: Any = "off"
    """noise of the sources to remove first: "auto" estimates it, "off", σ in gray levels of 255
    for both, or a dict {"ir": …, "vis": …} of these (kept as a tuple of pairs)"""
    draws: int = 1
    """prior evaluations per noisy source, 1 to 4; several are averaged"""
    images: str = "auto"
    """"photographic", "functional" (PET, SPECT: gray levels mean something) or "auto", which looks;
    for the variant "saliency" """
    color: bool = True
    """keep the color source's chroma; False: the result is gray whatever the call asks for"""
    swap_sources: bool = False
    """hand the visible image to the method as i and the infrared one as v"""
    crop_multiple: int = 1
    """crop height and width down to a multiple of this, instead of padding"""
    round_luma: bool = False
    """round the sources' luma to whole 8-bit gray levels, as the authors' script does"""
    summary: str = field(default="", compare=False)

    def __post_init__(self):
        object.__setattr__(self, "denoise", _checked_denoise(self.denoise))
        for name in ("update_scales", "color", "swap_sources", "round_luma"):
            require_bool(name, getattr(self, name))
        for name, most in (("reuse", MAX_REUSE), ("draws", MAX_DRAWS), ("crop_multiple", 1024)):
            object.__setattr__(self, name, require_int(name, getattr(self, name), 1, most))
        for name in ("steps", "start"):
            if (number := as_int(getattr(self, name))) is not None:
                object.__setattr__(self, name, number)
        require_choice("images", self.images, IMAGE_KINDS)
        require_choice("variant", self.variant, VARIANT_NAMES)
        require_choice("sampler", self.sampler, SAMPLER_NAMES)
        require_choice("variance", self.variance, VARIANCES)
        require_choice("stretch", self.stretch, STRETCHES)
        require_number("spacing", self.spacing, 0.1, 10)
        require_number("ddim_eta", self.ddim_eta, 0, 1)
        require_number("psi", self.psi, 0, 1e6)
        require_number("eta", self.eta, 0, 1e6)
        if self.psi == 0 and self.eta == 0:
            raise ValueError("psi and eta are both 0; expected at least one of them above 0")
        if isinstance(self.steps, bool) or not isinstance(self.steps, (int, str)):
            raise TypeError(
                f"steps is a {type(self.steps).__name__}; expected an int such as 100, "
                'or a string such as "ddim50"'
            )
        least = 0 if self.variant == "saliency" else 1
        if isinstance(self.steps, int) and self.steps < least:
            raise ValueError(
                f"steps is {self.steps}; expected {least} to the prior's timesteps, usually 1000"
            )
        if self.start is not None and as_count(self.start, 1) is None:
            raise ValueError(f"start is {self.start!r}; expected a timestep from 1, or None")
        if self.start is not None and isinstance(self.steps, str):
            raise ValueError(
                f"steps is {self.steps!r}; expected a whole number of steps, since this preset "
                f"starts at timestep {self.start}, and words such as ddim50 choose from all"
            )

    @property
    def noise_levels(self) -> dict[str, Any]:
        """``denoise`` of each source, "ir" and "vis": "auto", "off" or σ in gray levels."""
        if isinstance(self.denoise, tuple):
            return {"ir": "off", "vis": "off", **dict(self.denoise)}
        return {"ir": self.denoise, "vis": self.denoise}

    @property
    def dims_chroma(self) -> bool:
        """Whether color gets darker with luma; the authors' presets keep the chroma as it was."""
        return self.variant == "saliency"

    @staticmethod
    def from_preset(preset: str | FuseConfig) -> FuseConfig:
        """Return the preset of that name, or a given configuration; ValueError lists the names."""
        if isinstance(preset, FuseConfig):
            return preset
        require_choice("preset", preset, tuple(PRESETS))
        return PRESETS[preset]

    def with_overrides(self, **overrides) -> FuseConfig:
        """Return a copy with the given fields changed; None leaves a field as it is."""
        known = {f.name for f in fields(self)}
        for name in overrides:
            if name not in known:
                raise TypeError(f"{name!r} is not a setting; expected one of {', '.join(known)}")
        return replace(self, **{k: v for k, v in overrides.items() if v is not None})


def _checked_denoise(value: Any) -> Any:
    """Return ``FuseConfig.denoise`` in the form that is kept: hashable, and 0 as "off"."""
    if isinstance(value, dict | tuple):
        try:
            levels = dict(value)
        except (TypeError, ValueError):
            levels = {None: None}
        if not levels or not set(levels) <= {"ir", "vis"}:
            raise ValueError(
                f"denoise is {value!r}; expected the keys 'ir', 'vis' or both, in lowercase"
            )
        return tuple(
            sorted((n, _checked_level(level, f"denoise[{n!r}]")) for n, level in levels.items())
        )
    return _checked_level(value, "denoise")


def _checked_level(value: Any, name: str) -> Any:
    if isinstance(value, str) and value in ("auto", "off"):
        return value
    expected = f'expected "auto", "off", or σ from 0 to {MAX_SIGMA:g} gray levels of 255'
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}; {expected}")
    sigma = as_float(value)
    if not 0 <= sigma <= MAX_SIGMA:
        raise ValueError(f"{name} is {sigma:g}; {expected}")
    return sigma or "off"


def require_bool(name: str, value: Any) -> None:
    """Raise TypeError, naming the argument, unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; expected True or False")


def require_int(name: str, value: Any, low: int, high: int) -> int:
    """Return an integer in that range, NumPy's as an int; else ValueError naming the argument."""
    if (number := as_count(value, low, high)) is None:
        raise ValueError(f"{name} is {value!r}; expected an int, {low} to {high}")
    return number


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError, naming the argument, unless it is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}{hint}")


def require_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise TypeError or ValueError, naming the argument, unless it is a number in that range."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a number")
    if not (math.isfinite(as_float(value)) and low <= as_float(value) <= high):
        raise ValueError(f"{name} is {as_float(value)}; expected {low:g} to {high:g}")


def as_float(value: Any) -> float:
    """Convert a number; an int beyond what a float holds is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


_SALIENCY: dict[str, Any] = {
    "variant": "saliency",
    "spacing": 1.5,
    "psi": 5.0,
    "eta": 10.0,
    "update_scales": False,
    "stretch": "sources",
}

DEFAULT_PRESET, LOOP_PRESET = "balanced", "official"
"""of ``fuse``, ``Fuser`` and the commands: the second where an option of the loop is given"""
LOOP_OPTIONS = ("variant", "sampler", "steps", "psi", "eta")


def default_preset(options: Mapping[str, Any]) -> str:
    """Return the preset of a call without one: "balanced", or "official" if it shapes the loop."""
    shaped = any(options.get(name) is not None for name in LOOP_OPTIONS)
    return LOOP_PRESET if shaped else DEFAULT_PRESET


PRESETS: dict[str, FuseConfig] = {
    "official": FuseConfig(
        summary="the authors' mathematics with 100 DDIM steps, at any size and in color",
    ),
    "official-script": FuseConfig(
        swap_sources=True,
        crop_multiple=32,
        round_luma=True,
        color=False,
        summary="the authors' script, pixel for pixel: i is the visible image, sizes are cropped "
        "to multiples of 32, luma has 8 bits, the result is gray",
    ),
    "balanced": FuseConfig(
        **_SALIENCY,
        steps=3,
        start=20,
        denoise="auto",
        draws=2,
        summary="a closed form weighs the sources; 2 prior evaluations denoise each noisy source",
    ),
    "fast": FuseConfig(
        **_SALIENCY,
        steps=0,
        denoise="auto",
        summary="like balanced, with 1 evaluation per noisy source",
    ),
    "robust": FuseConfig(
        **_SALIENCY,
        steps=0,
        denoise="auto",
        draws=4,
        summary="like balanced, with 4 evaluations per noisy source: for noisy, difficult scenes",
    ),
    "instant": FuseConfig(
        **_SALIENCY,
        steps=0,
        summary="the closed form alone: no prior evaluation, no denoising",
    ),
    "paper": FuseConfig(
        variant="paper",
        sampler="ddpm",
        eta=0.1,
        summary="Algorithm 1 with DDPM, ψ 0.5, η 0.1: sharp, but drifts toward one source",
    ),
}
