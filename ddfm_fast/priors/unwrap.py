"""The state dict inside whatever people's training code saved around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..images.doubts import warn

_AVERAGED = ("ema", "ema_params", "params_ema", "model_ema", "state_dict_ema")
_PLAIN = ("state_dict", "params", "model", "model_state_dict", "net")
_PREFIXES = (
    "module.", "_orig_mod.", "model.", "unet.", "network.", "ema_model.", "ema.", "denoise_fn.",
)  # fmt: skip
_AVERAGES = ("ema_model.", "ema.", "model_ema.")
"""prefixes of averaged weights that are stored beside the others"""
_KNOWN = ("input_blocks.", "time_embed.")
"""how keys begin once nothing is wrapped around them"""
_DEEPEST = 4


def unwrap(path: Path, content: Any) -> Any:
    """Return the state dict inside surrounding dictionaries; prefer averaged weights.

    ``ema``, ``ema_params`` and the like are the weights that samples are drawn with, so they are
    used if a file has both.

    Raises:
        ValueError: The file is an optimizer's state.
    """
    for _ in range(_DEEPEST):
        if not isinstance(content, dict):
            break
        if _is_optimizer(content):
            raise ValueError(
                f"prior: {str(path)!r} is the state of an optimizer (param_groups), not a network; "
                "give the weights that were saved beside it, ema_*.pt or model*.pt"
            )
        inner = [k for k in (*_AVERAGED, *_PLAIN) if isinstance(content.get(k), dict)]
        usable = [k for k in inner if _leads_to_tensors(content[k])]
        if not usable:
            content = content[inner[0]] if inner else content
            if not inner:
                break
            continue
        _doubt(path, content, usable[0])
        content = content[usable[0]]
    return content


def _doubt(path: Path, content: dict, taken: str) -> None:
    passed_over = [k for k in _AVERAGED if k in content and k != taken]
    if taken not in _AVERAGED and passed_over:
        warn(
            f"prior: {path.name!r} has averaged weights ({passed_over[0]!r}) without names of "
            f"layers, so those of {taken!r} were taken, which are noisier; save the averaged "
            "network's state_dict() alone"
        )


def _leads_to_tensors(content: dict, depth: int = 0) -> bool:
    if any(isinstance(k, str) and "." in k and isinstance(v, Tensor) for k, v in content.items()):
        return True
    return depth < _DEEPEST and any(
        _leads_to_tensors(content[k], depth + 1)
        for k in (*_AVERAGED, *_PLAIN)
        if isinstance(content.get(k), dict)
    )


def _is_optimizer(content: dict) -> bool:
    return "param_groups" in content and "state" in content


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what DataParallel, torch.compile or a surrounding module put before every key."""
    for _ in range(_DEEPEST):
        if any(key.startswith(_KNOWN) for key in tensors):
            break
        tensors = _averaged(tensors)
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None)
        rest = {k[len(prefix) :]: v for k, v in tensors.items()} if prefix else {}
        if not rest or "" in rest:
            break
        tensors = rest
    return tensors


def _averaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return only the averaged network if a file has it beside the other, under a prefix."""
    for prefix in _AVERAGES:
        inner = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        if len(inner) < len(tensors) and any(_is_known(key) for key in inner):
            return inner
    return tensors


def _is_known(key: str) -> bool:
    """Return whether a network's key begins here, or after one prefix."""
    rest = next((key[len(p) :] for p in _PREFIXES if key.startswith(p)), key)
    return rest.startswith(_KNOWN)
