"""Settings of a fusion, and the named presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

STRETCHES = ("none", "minmax", "percentile")
VARIANT_NAMES = ("official", "paper", "printed", "gradient")
SAMPLER_NAMES = ("ddim", "ddpm")
DEFAULT_SEED = 3407
"""the seed of the authors' script"""
VARIANCES = ("auto", "fixed_small", "learned_range")


@dataclass(frozen=True)
class FuseConfig:
    """Everything that decides a fused picture, but for the images, the prior and the seed.

    Frozen and hashable; ``replace`` (or ``with_overrides``) makes a changed copy. Raises
    ValueError or TypeError, naming the field, on anything out of range.
    """

    variant: str = "official"
    """which reading of the method: one of VARIANT_NAMES, see ``ddfm_fast.rectify``"""
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
    """σ of "ddpm": "fixed_small", "learned_range", or "auto": learned where the prior has it"""
    psi: float = 0.5
    """ψ, weight of the total variation (the authors' ``lamb``)"""
    eta: float = 0.001
    """η, coupling of the split variables (the authors' ``rho``)"""
    update_scales: bool = True
    """re-estimate γ and ρ at every step; False keeps them at 1"""
    stretch: str = "minmax"
    """"minmax" stretches each fused luma to the full range, "percentile" all
    but the darkest and brightest 0.01 % of the pixels, "none" keeps its values"""
    color: bool = True
    """keep the colour source's chroma; False: the result is grey whatever the call asks for"""
    swap_sources: bool = False
    """hand the visible image to the method as i and the infrared one as v"""
    crop_multiple: int = 1
    """crop height and width down to a multiple of this, instead of padding"""
    round_luma: bool = False
    """round the sources' luma to whole 8-bit grey levels, as the authors' script does"""
    summary: str = field(default="", compare=False)

    def __post_init__(self):
        _require_choice("variant", self.variant, VARIANT_NAMES)
        _require_choice("sampler", self.sampler, SAMPLER_NAMES)
        _require_choice("variance", self.variance, VARIANCES)
        _require_choice("stretch", self.stretch, STRETCHES)
        _require_number("spacing", self.spacing, 0.1, 10)
        _require_number("ddim_eta", self.ddim_eta, 0, 1)
        _require_number("psi", self.psi, 0, 1e6)
        _require_number("eta", self.eta, 0, 1e6)
        if self.psi == 0 and self.eta == 0:
            raise ValueError("psi and eta are both 0; expected at least one of them above 0")
        if isinstance(self.steps, bool) or not isinstance(self.steps, (int, str)):
            raise TypeError(
                f"steps is a {type(self.steps).__name__}; expected an int such as 100, "
                'or a string such as "ddim50"'
            )
        if isinstance(self.steps, int) and self.steps < 1:
            raise ValueError(
                f"steps is {self.steps}; expected 1 to the prior's timesteps, mostly 1000"
            )
        if self.start is not None and (
            isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 1
        ):
            raise ValueError(f"start is {self.start!r}; expected a timestep from 1, or None")
        if self.start is not None and isinstance(self.steps, str):
            raise ValueError(
                f"steps is {self.steps!r} and start is {self.start}; expected a count with start"
            )
        if isinstance(self.crop_multiple, bool) or self.crop_multiple not in range(1, 1025):
            raise ValueError(f"crop_multiple is {self.crop_multiple!r}; expected an int, 1 to 1024")

    @staticmethod
    def from_preset(preset: str | FuseConfig) -> FuseConfig:
        """The preset of that name, or the configuration given; ValueError lists the names."""
        if isinstance(preset, FuseConfig):
            return preset
        _require_choice("preset", preset, tuple(PRESETS))
        return PRESETS[preset]

    def with_overrides(self, **overrides) -> FuseConfig:
        """A copy with the given fields changed; None leaves a field as it is."""
        known = {f.name for f in fields(self)}
        for name in overrides:
            if name not in known:
                raise TypeError(f"{name!r} is no setting; expected one of {', '.join(known)}")
        return replace(self, **{k: v for k, v in overrides.items() if v is not None})


def _require_choice(name: str, value, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")


def _require_number(name: str, value, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a number")
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} is {value}; expected {low} to {high:g}")


PRESETS: dict[str, FuseConfig] = {
    "official": FuseConfig(
        summary="the authors' mathematics, DDIM 100, any size, colour kept (default)",
    ),
    "official-script": FuseConfig(
        swap_sources=True,
        crop_multiple=32,
        round_luma=True,
        color=False,
        summary="their script to the pixel: visible as i, cropped to 32, 8-bit luma, grey result",
    ),
    "balanced": FuseConfig(
        variant="gradient",
        steps=10,
        start=100,
        spacing=1.5,
        psi=5.0,
        eta=10.0,
        stretch="percentile",
        summary="variant gradient, 10 prior evaluations from t = 100",
    ),
    "fast": FuseConfig(
        variant="gradient",
        steps=3,
        start=20,
        spacing=1.5,
        psi=5.0,
        eta=10.0,
        stretch="percentile",
        summary="variant gradient, 3 prior evaluations from t = 20",
    ),
    "paper": FuseConfig(
        variant="paper",
        sampler="ddpm",
        eta=0.1,
        summary="Algorithm 1 with DDPM, ψ 0.5, η 0.1: sharp, drifts towards one source",
    ),
}
