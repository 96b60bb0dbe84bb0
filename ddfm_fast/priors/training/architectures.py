"""The networks that the training knows by name, and changes to them."""

from __future__ import annotations

from typing import Any

from ..unet_config import UNetConfig

_SHARED = {
    "out_channels": 3,
    "use_scale_shift_norm": True,
    "num_head_channels": 32,
    "sigma_data": 3.0,
}
ARCHITECTURES = {
    "embedded": UNetConfig.from_dict(
        {
            **_SHARED,
            "model_channels": 32,
            "num_res_blocks": 2,
            "channel_mult": (1, 1, 2, 2),
            "resblock_updown": False,
            "pixel_unshuffle": 2,
            "middle_attention": False,
        }
    ),
    "gray": UNetConfig.from_dict(
        {
            **_SHARED,
            "in_channels": 1,
            "out_channels": 1,
            "model_channels": 64,
            "num_res_blocks": 1,
            "channel_mult": (1, 1, 1),
            "resblock_updown": False,
            "pixel_unshuffle": 2,
            "middle_attention": False,
        }
    ),
    "embedded-large": UNetConfig.from_dict(
        {
            **_SHARED,
            "model_channels": 96,
            "num_res_blocks": 2,
            "channel_mult": (1, 2, 2, 2),
            "resblock_updown": False,
            "pixel_unshuffle": 2,
            "middle_attention": True,
        }
    ),
}


def architecture(name: str, **changes: Any) -> UNetConfig:
    """Return the network of a name in ``ARCHITECTURES`` with changes to its keywords.

    Args:
        name: Where to start from.
        changes: Keywords of ``UNetConfig``; None leaves one as it is.

    Raises:
        ValueError: There is no such name, or no network has these keywords.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"--arch is {name!r}; expected one of {', '.join(ARCHITECTURES)}")
    changes = {key: value for key, value in changes.items() if value is not None}
    return UNetConfig.from_dict({**ARCHITECTURES[name].to_dict(), **changes})


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Parse "1,2,2", or "none" for (); None stays None. ValueError for anything else."""
    if text is None or text == "none":
        return None if text is None else ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{option} is {text!r}; expected numbers such as 1,2,2") from error
