"""Name common files that are not unconditional priors in pixels, and say why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_AS_CALLABLE = "load it with its own code and give it as ddfm_fast.priors.wrap(function, {})"
_LATENT = (
    "it works on the latents of an autoencoder, and the fusion step needs pixels; use a prior "
    "of pixels, `ddfm-fast prior list` has some"
)
_TEXT = (
    "it is conditioned on text, and its noise predictions without a prompt are no picture's; "
    "use an unconditional prior, `ddfm-fast prior list` has some"
)
_CLASSES = (
    "it is class-conditional, but DDFM needs an unconditional prior; use an unconditional "
    "checkpoint, `ddfm-fast prior list` has some"
)
_KEYS = (
    ((".lora_", ".to_q_lora.", ".to_k_lora.", ".to_v_lora.", ".to_out_lora.", "lora_unet_",
      "lora_te"), "LoRA",
     "it changes the weights of another network and is none itself; merge it into that network "
     "with its own code, and give the whole state dict"),
    (("model.diffusion_model.", "diffusion_model.", "first_stage_model.", "cond_stage_model."),
     "latent diffusion model (Stable Diffusion's layout)", _LATENT),
    ((".transformer_blocks.", ".attn2."),
     "text-conditioned U-Net (Stable Diffusion, SDXL)", f"{_TEXT}; most are latent, too"),
    (("xf_proj.", "transformer.resblocks.", "token_embedding."), "text-conditioned GLIDE", _TEXT),
    (("x_embedder.", "y_embedder."), "DiT or SiT",
     f"{_LATENT}; one of pixels: " + _AS_CALLABLE.format('"eps" or "flow"')),
    (("label_emb.",), "class-conditional ADM", _CLASSES),
    (("all_modules.",), "network of score_sde (NCSN++)", _AS_CALLABLE.format('"score"')),
    (("map_layer0.", "unet.map_noise.", "map_noise."), "EDM network",
     _AS_CALLABLE.format('"denoised"')),
    (("inner_model.",), "network of k-diffusion", _AS_CALLABLE.format('"denoised"')),
    (("down_blocks.0.resnets.",), "file of weights of diffusers",
     "give the folder that it is in, with config.json and the scheduler's configuration"),
    (("down.0.block.0.",), "network of DDPM's or DDIM's PyTorch code",
     _AS_CALLABLE.format('"eps"')),
)  # fmt: skip
"""beginnings or middles of keys, the kind of file that has them, and what to do"""

_SUFFIXES = {
    ".gguf": "GGUF holds quantized weights of language models; give the float .safetensors",
    ".pkl": "it holds code, which is never run here (EDM, StyleGAN); in an environment that you "
    "trust, " + _AS_CALLABLE.format('"denoised"'),
    ".ckpt": "it may hold code besides weights; in an environment that you trust, save its "
    "state_dict() as .safetensors",
    ".onnx": "ONNX holds a graph, not a network of a known kind; call it in a function: "
    "ddfm_fast.priors.wrap(function, prediction)",
}


def refusal_of_keys(keys: Iterable[str]) -> str | None:
    """Name the family of a state dict that cannot be used, and say why; None for others."""
    keys = list(keys)
    for marks, name, why in _KEYS:
        if found := next((k for k in keys for m in marks if k.startswith(m) or _inside(k, m)), ""):
            return f"the tensors are those of a {name} ({found[:80]}): {why}"
    has = {key.split(".")[0] for key in keys}
    if "input_blocks" in has and "output_blocks" not in has:
        return (
            "the tensors are those of a classifier (input_blocks without output_blocks), which "
            "guides a diffusion model and is none; give the diffusion model's file"
        )
    return None


def _inside(key: str, mark: str) -> bool:
    return mark.startswith(".") and mark in key


def refusal_of_suffix(path: Path) -> str:
    """Return why a file with such a name is not read, "" if nothing is known."""
    return _SUFFIXES.get(path.suffix.lower(), "")


_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file; fetch it by `git lfs pull`"),
    (b"GGUF", "GGUF, which holds quantized weights of language models; give the float one"),
    (b"<", "a page of a website, as a download gives that needs a login or a license"),
    (b"{", "JSON; give the file of weights that belongs to it"),
)
"""first bytes of files that are not checkpoints, whatever their name"""


def what_it_is(path: Path) -> str:
    """Say what a file that cannot be read as a checkpoint looks like, "" if nothing is known."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip()
    except OSError:
        return ""
    found = next((words for begins, words in _BEGINNINGS if start.startswith(begins)), "")
    return found and f"; it is {found}"


def why_channels(inputs: int) -> str:
    """Say what a network with this many channels likely is, "" for others."""
    return {
        2: "; 2 are the real and the imaginary part of complex data (fastMRI), which has no "
        "black and white: use a network of magnitudes, of one channel",
        4: "; 4 are mostly those of a latent model, which knows no pixels",
        6: "; 6 in are those of a model that enlarges pictures (it is given the small one, too)",
    }.get(inputs, "")
