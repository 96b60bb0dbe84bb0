"""The network of a checkpoint, from the shapes of its tensors and what is known besides."""

from __future__ import annotations

import math
from typing import Any

from .foreign import refusal_of_keys
from .state_dict import some
from .unet_config import UNetConfig

HEAD_KEYWORDS = ("num_heads", "num_head_channels")

# (model_channels, channel_mult, num_res_blocks) of published unconditional networks -> channels
# per head.
_KNOWN_HEAD_CHANNELS = {
    (256, (1, 1, 2, 2, 4, 4), 2): 64,
    (256, (0.5, 1, 1, 2, 2, 4, 4), 2): 64,
    (128, (1, 1, 2, 2, 4, 4), 1): 64,
}
_REQUIRED_KEYS = (
    "time_embed.0.weight",
    "input_blocks.0.0.weight",
    "input_blocks.1.0.in_layers.2.weight",
    "output_blocks.0.0.in_layers.2.weight",
    "out.2.weight",
)

_RANKS = {
    "time_embed.0.weight": 2,
    "input_blocks.0.0.weight": 4,
    "out.2.weight": 4,
    "input_blocks.1.0.emb_layers.1.weight": 2,
}

Shapes = dict[str, tuple[int, ...]]


def infer_config(shapes: Shapes, pixel_unshuffle: int | None = None) -> dict[str, Any]:
    """Infer the ``UNetModel`` keywords that the shapes of a state dict determine.

    Shapes do not determine these, so they are never in the result: ``num_heads``,
    ``num_head_channels``, ``num_heads_upsample`` and ``use_new_attention_order``; ``conv_resample``
    if residual blocks resample; both resampling keywords if there is a single level. Unless
    ``pixel_unshuffle`` is given, images are assumed to have three channels if that makes it an
    integer. Raises ValueError if the keys are not those of an unconditional guided-diffusion UNet.
    """
    if refusal := refusal_of_keys(shapes):
        raise ValueError(refusal)
    _check_shapes(shapes)
    if missing := [k for k in _REQUIRED_KEYS if k not in shapes]:
        raise ValueError(
            f"the tensors are not those of a guided-diffusion UNet: {', '.join(missing)} missing, "
            f"found {some(sorted(shapes))}; give a state dict of guided-diffusion's UNetModel"
        )
    width = shapes["time_embed.0.weight"][1]
    config: dict[str, Any] = {
        "model_channels": width,
        **_infer_image_channels(shapes, pixel_unshuffle),
    }
    stages = 1 + max(_index(k) for k in shapes if k.startswith("output_blocks."))
    if stages > len(shapes):  # checked before anything of that many is built
        raise ValueError(
            f"the checkpoint names {stages} output blocks and has {len(shapes)} tensors; is the "
            "file complete?"
        )
    resampling, levels = _infer_resampling(shapes, stages)
    if stages % levels or stages // levels < 2:
        raise ValueError(
            f"the checkpoint has {stages} output blocks and {levels} levels, which no "
            "num_res_blocks gives; is the file complete?"
        )
    config |= resampling
    config["num_res_blocks"] = stages // levels - 1
    firsts = [1 + level * (stages // levels) for level in range(levels)]
    outs = []
    for i in firsts:
        key = f"input_blocks.{i}.0.in_layers.2.weight"
        if key not in shapes:
            raise ValueError(f"the checkpoint lacks {key}; is the file complete?")
        outs.append(shapes[key][0])
    config["channel_mult"] = tuple(_multiplier(out, width) for out in outs)
    config["attention_resolutions"] = tuple(
        2**level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in shapes
    )
    config["middle_attention"] = "middle_block.1.qkv.weight" in shapes
    emb = shapes.get("input_blocks.1.0.emb_layers.1.weight", (0,))[0]
    config["use_scale_shift_norm"] = emb == 2 * outs[0]
    return config


def _check_shapes(shapes: Shapes) -> None:
    if empty := [key for key, shape in shapes.items() if 0 in shape]:
        raise ValueError(f"{some(empty)} have no elements; is the file complete?")
    for key, rank in _RANKS.items():
        if key in shapes and len(shapes[key]) != rank:
            raise ValueError(
                f"{key} has shape {shapes[key]}, expected {rank} dimensions; give a state dict of "
                "guided-diffusion's UNetModel"
            )
    for key, shape in shapes.items():
        if key.endswith(".in_layers.2.weight") and len(shape) != 4:
            raise ValueError(f"{key} has shape {shape}, expected 4 dimensions of a convolution")


def _index(key: str) -> int:
    part = key.split(".")[1]
    return int(part) if part.isdigit() and len(part) < 6 else 0


def _infer_image_channels(shapes: Shapes, unshuffle: int | None) -> dict[str, int]:
    inputs = shapes["input_blocks.0.0.weight"][1]
    outputs = shapes["out.2.weight"][0]
    if unshuffle is None:
        root = math.isqrt(inputs // 3)
        unshuffle = root if 3 * root**2 == inputs and outputs % root**2 == 0 else 1
    if inputs % unshuffle**2 or outputs % unshuffle**2:
        raise ValueError(
            f"config: pixel_unshuffle={unshuffle} contradicts the checkpoint, whose first "
            f"convolution has {inputs} inputs and whose last has {outputs} outputs; leave it out"
        )
    return {
        "in_channels": inputs // unshuffle**2,
        "out_channels": outputs // unshuffle**2,
        "pixel_unshuffle": unshuffle,
    }


def _infer_resampling(shapes: Shapes, stages: int) -> tuple[dict[str, bool], int]:
    """Find resampling keywords and the number of levels; all levels but one end in resampling."""
    blocks = range(stages)
    up_blocks = sum(
        any(f"output_blocks.{i}.{j}.in_layers.2.weight" in shapes for j in (1, 2)) for i in blocks
    )
    if up_blocks:
        return {"resblock_updown": True}, up_blocks + 1
    if convolutions := sum(f"input_blocks.{i}.0.op.weight" in shapes for i in blocks):
        return {"resblock_updown": False, "conv_resample": True}, convolutions + 1
    pools = sum(f"input_blocks.{i}.0.in_layers.2.weight" not in shapes for i in range(1, stages))
    return ({"resblock_updown": False, "conv_resample": False} if pools else {}), pools + 1


def _multiplier(channels: int, width: int) -> float:
    if channels % width == 0:
        return channels // width
    mult = channels / width
    return mult if int(mult * width) == channels else math.nextafter(mult, math.inf)


def complete_config(
    shapes: Shapes, given: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None
) -> UNetConfig:
    """Complete the configuration: caller's keywords, then metadata, shapes and known networks.

    Raises ValueError if a given value contradicts the shapes, or if a network with attention leaves
    the number of heads unknown.
    """
    found = None
    merged: dict[str, Any] = {}
    for source, values in (("metadata", metadata), ("config", given)):
        if not values:
            continue
        found = infer_config(shapes, values.get("pixel_unshuffle", merged.get("pixel_unshuffle")))
        _check_agreement(source, values, found)
        if source == "config" and any(k in values for k in HEAD_KEYWORDS):
            merged = {k: v for k, v in merged.items() if k not in HEAD_KEYWORDS}
        merged |= values
    merged = {**(found or infer_config(shapes)), **merged}
    if uses_attention(merged) and not any(k in merged for k in HEAD_KEYWORDS):
        if (channels := known_head_channels(merged)) is None:
            raise ValueError(
                "config: the number of attention heads cannot be told from the tensors; pass "
                "config={'num_head_channels': ...} or config={'num_heads': ...} as the network "
                "was trained with (and use_new_attention_order=True if it was)"
            )
        merged["num_head_channels"] = channels
    return UNetConfig.from_dict(merged)


def _check_agreement(source: str, values: dict[str, Any], found: dict[str, Any]) -> None:
    # through UNetConfig, so that lists, sets and unknown keywords are treated as everywhere else
    try:
        checked = UNetConfig.from_dict({**found, **values}).to_dict()
    except TypeError as error:
        if source == "metadata":  # the file is wrong, not the caller's argument
            raise ValueError(f"metadata: {error}") from None
        raise
    for key, value in found.items():
        expected = list(value) if isinstance(value, tuple) else value
        if key in values and checked[key] != expected:
            raise ValueError(
                f"{source}: {key}={values[key]!r} contradicts the checkpoint, whose tensors "
                f"have {key}={value!r}; leave it out or use the checkpoint that it belongs to"
            )


def known_head_channels(config: dict[str, Any]) -> int | None:
    """Look up the channels per head of a published network; None for others."""
    return _KNOWN_HEAD_CHANNELS.get(
        (config["model_channels"], tuple(config["channel_mult"]), config["num_res_blocks"])
    )


def like_consistency_models(config: UNetConfig) -> bool:
    """Return whether a network is shaped like consistency_models' own, which do not predict eps.

    In these, residual blocks resample, timesteps only shift, and no variance comes out; for the
    last two, guided-diffusion's published networks do the opposite.
    """
    return (
        config.resblock_updown
        and not config.use_scale_shift_norm
        and config.out_channels == config.in_channels
        and not config.sigma_data
        and uses_attention(config.to_dict())
    )


def uses_attention(config: dict[str, Any]) -> bool:
    """Return whether a network has attention anywhere."""
    return bool(config["attention_resolutions"]) or config["middle_attention"]
