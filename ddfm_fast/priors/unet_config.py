"""The keywords that shape an ADM UNet, checked; the names are guided-diffusion's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

from ..images.integers import as_count, as_int

GROUPS = 32
"""groups of every GroupNorm"""
MOST = 8192
"""most channels and heads: no network has more, and a wrong number must not fill memory"""
MOST_BLOCKS = 64
"""most blocks per level"""
MOST_LEVELS = 16
_IGNORED_KEYWORDS = ("image_size", "dropout", "use_checkpoint", "use_fp16")
_COUNTS = (
    "model_channels",
    "num_res_blocks",
    "in_channels",
    "out_channels",
    "num_heads",
    "pixel_unshuffle",
)
_FLAGS = (
    "conv_resample",
    "use_scale_shift_norm",
    "resblock_updown",
    "use_new_attention_order",
    "middle_attention",
)


@dataclass(frozen=True)
class UNetConfig:
    """What shapes the network; the names are ``UNetModel``'s, the last three are extensions.

    ``attention_resolutions`` holds downsampling rates (4 means: attention where the feature map
    is 4 times smaller than the input). ``num_head_channels`` above 0 overrides ``num_heads``.
    ``pixel_unshuffle`` = u folds u x u pixels into channels before the first convolution and
    unfolds them after the last; ``in_channels`` and ``out_channels`` count image channels.
    ``sigma_data`` above 0 preconditions as Karras et al. 2022, see :func:`mix_at`: at high noise
    eps is almost x_t, and a small network spends its capacity on that identity unless it is
    given. 0: the last convolution gives eps, as in the published networks; 1: it gives v.
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
        """Take ``UNetModel`` keywords, checked.

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
        self._check_types()
        self._check_preconditioning()
        self._check_levels()

    def _check_types(self) -> None:
        for key in _COUNTS:
            value = getattr(self, key)
            most = MOST_BLOCKS if key == "num_res_blocks" else MOST
            if (number := as_count(value, 1, most)) is None:
                raise ValueError(f"config: {key}={value!r}, expected an integer, 1 to {most}")
            object.__setattr__(self, key, number)
        for key in _FLAGS:
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"config: {key}={getattr(self, key)!r}, expected True or False")
        for key in ("num_head_channels", "num_heads_upsample"):
            if (number := as_int(getattr(self, key))) is None:
                raise ValueError(f"config: {key}={getattr(self, key)!r}, expected an integer")
            object.__setattr__(self, key, number)

    def _check_preconditioning(self) -> None:
        sigma = self.sigma_data
        if not _is_number(sigma) or not 0 <= sigma < 1e6:
            raise ValueError(f"config: sigma_data={sigma!r}, expected a number from 0")
        number = as_int(sigma)
        object.__setattr__(self, "sigma_data", float(sigma) if number is None else number)
        if sigma and self.out_channels != self.in_channels:
            raise ValueError(
                f"config: sigma_data={sigma} with {self.out_channels} channels out of "
                f"{self.in_channels}, expected as many; a learned variance needs sigma_data=0"
            )

    def _check_levels(self) -> None:
        if not 1 <= len(self.channel_mult) <= MOST_LEVELS or max(self.channel_mult) > MOST_LEVELS:
            raise ValueError(
                f"config: channel_mult={self.channel_mult}, expected one multiplier per level, "
                f"1 to {MOST_LEVELS} of them, up to {MOST_LEVELS}"
            )
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
        """Number of resolutions, each half of the one before."""
        return len(self.channel_mult)

    @property
    def level_channels(self) -> list[int]:
        """Channels of each level."""
        return [int(mult * self.model_channels) for mult in self.channel_mult]

    @property
    def multiple(self) -> int:
        """Height and width of an input must be multiples of this many pixels."""
        return self.pixel_unshuffle * 2 ** (self.levels - 1)

    def heads(self, channels: int, *, up: bool) -> int:
        """Return the attention heads of a block of that many channels, down or up the path."""
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
        """Return plain JSON types; ``from_dict`` gives the same configuration back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _number_tuple(key: str, value: Any) -> tuple:
    if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
        raise TypeError(f"config: {key}={value!r}, expected a list of numbers")
    if not all(_is_number(v) and 0 < v < MOST for v in value):
        raise ValueError(f"config: {key}={value!r}, expected positive numbers")
    numbers = [int(v) if float(v).is_integer() else float(v) for v in value]
    return tuple(sorted(numbers) if key == "attention_resolutions" else numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
