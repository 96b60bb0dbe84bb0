"""Folders of diffusers' UNet2DModel as priors, such as a download of google/ddpm-celebahq-256."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .foreign import why_channels
from .schedulers import keywords_of
from .state_dict import INDEX, check_finite, read_tensors, some
from .unet_config import MOST, MOST_BLOCKS, MOST_LEVELS

MOST_JSON = 1 << 20
"""bytes of a configuration; published ones have 2,000"""
WEIGHTS = "diffusion_pytorch_model"
"""name of the weights in a folder, without suffix"""


class Folder(NamedTuple):
    """What the files of a folder say, without diffusers."""

    root: Path
    """where the model's files are"""
    config: dict[str, Any]
    """the model's"""
    scheduler: dict[str, Any]
    """its configuration, {} if there is none"""
    keywords: dict[str, Any]
    """of the prior"""
    weights: Path


def read_folder(folder: Path) -> Folder:
    """Read the configurations of a folder, and find its weights; ValueError as below."""
    root = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    config = _read_json(root / "config.json", folder)
    _check_model(config, folder)
    keywords: dict[str, Any] = {"multiple": 2 ** (len(config["down_block_types"]) - 1)}
    if config.get("in_channels", 3) == 1:
        keywords["channels"] = 1
    scheduler: dict[str, Any] = {}
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.is_file():
            scheduler = _read_json(path, folder)
            keywords |= keywords_of(scheduler, folder)
            break
    _check_embedding(config, keywords, folder)
    return Folder(root, config, scheduler, keywords, _weights_file(root, folder))


def load_diffusers(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model of a folder and the prior keywords that its configuration files give.

    ``folder`` holds ``config.json`` of a ``UNet2DModel`` (and perhaps ``scheduler_config.json``),
    or is a pipeline with ``unet/`` and ``scheduler/``. Raises ValueError if it holds something
    else, is class-conditional or latent, or was trained under an unknown process; ImportError,
    saying what to install, if diffusers is missing.
    """
    found = read_folder(folder)
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ImportError(
            f"prior: {str(folder)!r} needs the diffusers library; install it with "
            'pip install "ddfm_fast[diffusers]"'
        ) from error
    tensors = read_tensors(found.weights, pickled=(".bin",))[0]
    try:
        with torch.device("meta"):
            state = UNet2DModel.from_config(found.config).state_dict()
        _check_agreement(sum(v.numel() for v in state.values()), tensors)
        model, said = UNet2DModel.from_pretrained(
            found.root,
            local_files_only=True,
            low_cpu_mem_usage=False,
            use_safetensors=found.weights.suffix != ".bin",
            output_loading_info=True,
        )
    except Exception as error:  # a configuration may make another library raise anything
        raise ValueError(f"prior: diffusers cannot load {str(folder)!r}: {error}") from error
    _check_strict(said, folder)
    check_finite(found.weights, dict(model.state_dict()))
    return model.eval().requires_grad_(False), found.keywords


def keywords_of_module(module: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the prior keywords of a diffusers network that is passed in itself.

    ``given``: the caller's keywords, as for other code. Raises ValueError for a network that cannot
    be used, or not with these keywords.
    """
    if hasattr(module, "scheduler") and (hasattr(module, "unet") or hasattr(module, "transformer")):
        raise ValueError(
            f"prior: got a {type(module).__name__}, a pipeline of diffusers; save it by "
            "pipeline.save_pretrained(folder) and give the folder, which tells its process too"
        )
    if not any(_is_unet_2d(kind) for kind in type(module).__mro__):
        return given
    config, name = dict(module.config), type(module).__name__
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ValueError(
            f"prior: this {name} is class-conditional, but DDFM needs an unconditional prior; use "
            "an unconditional one, `ddfm-fast prior list` has some"
        )
    channels = config.get("in_channels", 3), config.get("out_channels", 3)
    if channels[0] not in (1, 3) or channels[1] not in (channels[0], 2 * channels[0]):
        raise ValueError(
            f"prior: this {name} maps {channels[0]} to {channels[1]} channels, expected 3 to 3 or "
            f"6, or 1 to 1 or 2, of pictures{why_channels(channels[0])}"
        )
    if config.get("time_embedding_type") == "fourier" and given.get("prediction", "eps") == "eps":
        raise ValueError(
            f"prior: this {name} has 'fourier' time embeddings, those of a variance-exploding "
            "process, and is taken for eps; give the folder with its scheduler, or config="
            '{"prediction": "score", "value_range": (0, 1), "sigmas": (0.01, 1348)}'
        )
    return {**given, "channels": 1} if channels[0] == 1 else given


def _is_unet_2d(kind: type) -> bool:
    return kind.__name__ == "UNet2DModel" and kind.__module__.startswith("diffusers.")


def _weights_file(root: Path, folder: Path) -> Path:
    """Return the file of weights, or the list of several, checked before diffusers reads it."""
    names = [f"{WEIGHTS}.safetensors", f"{WEIGHTS}{INDEX}", f"{WEIGHTS}.bin"]
    found = next((root / name for name in names if (root / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"prior: folder {str(folder)!r} has no {', '.join(names[:2])} or {names[2]}; get the "
            "folder again, or save it by model.save_pretrained(folder)"
        )
    return found


def _check_agreement(wanted: int, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse weights whose number is not the network's, before it takes memory."""
    # diffusers compares the names: it knows the older ones of its attention blocks
    if (count := sum(v.numel() for v in tensors.values())) != wanted:
        raise ValueError(
            f"config.json makes a network of {wanted:,} weights, the file has {count:,}"
        )


def _check_strict(found: dict[str, Any], folder: Path) -> None:
    """Refuse what would leave weights random."""
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := list(found.get(what) or ()):
            raise ValueError(
                f"prior: the weights of {str(folder)!r} do not fit its config.json "
                f"({len(keys)} {what.replace('_', ' ')}: {some(sorted(map(str, keys)))}); get the "
                "folder again"
            )


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"prior: folder {str(folder)!r} has no {path.name}; expected a diffusers UNet2DModel "
            "or a pipeline folder with unet/config.json"
        )
    try:
        if (size := path.stat().st_size) > MOST_JSON:
            raise ValueError(f"it has {size:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"prior: {str(path)!r} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"prior: {str(path)!r} is not a JSON object")
    return content


def _check_model(config: dict[str, Any], folder: Path) -> None:
    kind = config.get("_class_name")
    _check_latent(str(kind), folder)
    if kind != "UNet2DModel" or "down_block_types" not in config:
        raise ValueError(
            f"prior: {str(folder)!r} holds a {kind}, expected an unconditional UNet2DModel"
        )
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ValueError(
            f"prior: {str(folder)!r} is class-conditional, but DDFM needs an unconditional prior"
        )
    _check_sizes(config, folder)
    channels = config.get("in_channels", 3), config.get("out_channels", 3)
    if channels[0] not in (1, 3) or channels[1] not in (channels[0], 2 * channels[0]):
        raise ValueError(
            f"prior: {str(folder)!r} maps {channels[0]} to {channels[1]} channels, "
            f"expected 3 to 3 or 6, or 1 to 1 or 2, of pictures" + why_channels(channels[0])
        )


def _check_latent(kind: str, folder: Path) -> None:
    """Refuse a network that has an autoencoder or a text encoder beside it, or is made for them."""
    beside = next((n for n in ("vae", "vqvae", "vqmodel") if (folder / n).is_dir()), None)
    if beside is not None:
        raise ValueError(
            f"prior: {str(folder)!r} is a latent diffusion model (it has {beside}/): its network "
            "works on an autoencoder's latents, and the fusion step needs pixels; use one of "
            "pixels, such as google/ddpm-celebahq-256"
        )
    if kind.startswith("UNet2DCondition") or (folder / "text_encoder").is_dir():
        raise ValueError(
            f"prior: {str(folder)!r} holds a {kind}, which is conditioned on text (Stable "
            "Diffusion, SDXL, DeepFloyd), expected an unconditional UNet2DModel of pixels, such as "
            "google/ddpm-celebahq-256"
        )
    if "Transformer2D" in kind:
        raise ValueError(
            f"prior: {str(folder)!r} is a transformer of latents ({kind}: DiT, SD3, Flux), "
            "expected an unconditional UNet2DModel of pixels; call one of pixels by "
            "ddfm_fast.priors.wrap(function, prediction)"
        )


def _check_embedding(config: dict[str, Any], keywords: dict[str, Any], folder: Path) -> None:
    """Refuse a network whose time belongs to another process than its scheduler's."""
    embedding = config.get("time_embedding_type", "positional")
    score = keywords.get("prediction") == "score"
    if (embedding == "fourier") != score or embedding not in ("positional", "fourier"):
        raise ValueError(
            f"prior: {str(folder)!r} has {embedding!r} time embeddings, which "
            + (
                "a variance-exploding scheduler (ScoreSdeVe)"
                if embedding == "fourier"
                else "another scheduler"
            )
            + " goes with, and its scheduler "
            + ("is of that process" if score else "is not, or is missing")
            + "; get the folder again, with scheduler_config.json"
        )


def _check_sizes(config: dict[str, Any], folder: Path) -> None:
    """Limit the numbers of layers and channels, which diffusers would build at once."""
    if not isinstance(config["down_block_types"], list) or not config["down_block_types"]:
        raise ValueError(
            f"prior: {str(folder)!r}: down_block_types is no list; get config.json again"
        )
    if config.get("quantization_config"):
        raise ValueError(f"prior: {str(folder)!r} is quantized, expected floating-point weights")
    for key, value in config.items():
        most = MOST_BLOCKS if key == "layers_per_block" else MOST
        values = value if isinstance(value, list) else [value]
        largest = max((n for n in values if isinstance(n, int | float)), default=0)
        if len(values) > MOST_LEVELS or not -most <= largest <= most:
            raise ValueError(
                f"prior: {str(folder)!r}: {key[:80]} has {len(values)} values up to {largest}, "
                f"expected at most {MOST_LEVELS} up to {most}; get config.json again"
            )
