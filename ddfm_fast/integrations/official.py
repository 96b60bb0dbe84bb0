"""The interface of the authors' repository (MMIF-DDFM) on this package's loop.

In their ``sample.py`` replace three imports and keep the rest:

    from ddfm_fast.integrations.official import create_model, create_sampler
    from ddfm_fast.integrations.official import EM_Initial, EM_onestep

Names, argument order, dictionary keys and results are theirs. What differs, on purpose: a
checkpoint that does not load is an error instead of random weights, nothing is copied to the CPU
within a step, and ``p_sample_loop`` takes batches (their loop stops at more than one image).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import FuseConfig
from ..images.doubts import warn
from ..priors.checkpoint import load_checkpoint
from ..priors.load import load_prior
from ..priors.prior import Prior
from ..priors.unet import UNet
from ..rectify import e_step, get_solver, get_variant, mean_inverse, x_step
from ..sampler import StepInfo, prior_rows, sample
from ..schedule import StepRow

RESCALE = "rescale_timesteps"
_STUDIO = (
    (65.481, 128.553, 24.966),
    (-37.797, -74.203, 112.0),
    (112.0, -93.786, -18.214),
)
_STUDIO_OFFSET = (16.0, 128.0, 128.0)
_CHANNEL_MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}


def rgb_to_ycbcr(input_: Tensor) -> Tensor:
    """Studio-range YCbCr (Y from 16 to 235 for RGB in [0, 1]), float32; [N, 3, H, W] or [3, H, W].

    It is scikit-image's ``rgb2ycbcr`` on the tensor's device; RGB outside [0, 1] is not clipped.
    """
    matrix, offset = _studio(input_)
    converted = torch.einsum("dc,...chw->...dhw", matrix, input_.double()) + offset
    return converted.float()


def ycbcr_to_rgb(input_: Tensor) -> Tensor:
    """Return the inverse of :func:`rgb_to_ycbcr`, float32, not clipped."""
    matrix, offset = _studio(input_)
    inverse = torch.linalg.inv(matrix)
    return torch.einsum("dc,...chw->...dhw", inverse, input_.double() - offset).float()


def _studio(image: Tensor) -> tuple[Tensor, Tensor]:
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(
            f"input_ has shape {tuple(image.shape)}; expected [N, 3, H, W] or [3, H, W]"
        )
    matrix = torch.tensor(_STUDIO, dtype=torch.float64, device=image.device)
    offset = torch.tensor(_STUDIO_OFFSET, dtype=torch.float64, device=image.device)
    return matrix, offset[:, None, None]


def EM_Initial(IR: Tensor) -> dict:
    """Return the state before the first EM step for sources shaped like ``IR`` [N, 1, H, W].

    Keys: C = m̄, D = n̄, F1 and F2 = u along x and y, H = k, tau_a = γ, tau_b = ρ, and the
    spectra of the two forward differences.
    """
    height, width = IR.shape[-2:]
    kx, ky = (
        torch.exp(2j * torch.pi * torch.arange(n, dtype=torch.float64) / n) - 1
        for n in (width, height)
    )
    k1 = kx.expand(height, width).to(IR.device, torch.complex64)
    k2 = ky[:, None].expand(height, width).to(IR.device, torch.complex64)
    return {
        "C": torch.ones_like(IR),
        "D": torch.ones_like(IR),
        "F2": torch.zeros_like(IR),
        "F1": torch.zeros_like(IR),
        "H": torch.zeros_like(IR),
        "tau_a": 1,
        "tau_b": 1,
        "fft_k1": k1,
        "fft_k2": k2,
        "fft_k1sq": torch.conj(k1) * k1,
        "fft_k2sq": torch.conj(k2) * k2,
    }


def EM_onestep(
    f_pre: Tensor, I: Tensor, V: Tensor, HyperP: dict, lamb: float = 0.5, rho: float = 0.01
) -> tuple[Tensor, dict]:
    """Return one EM iteration of the authors' code: (rectified luma, next state).

    f_pre, I, V: [N, 1, H, W] in [−1, 1]; lamb = ψ, rho = η. γ and ρ are means over the whole
    batch, as theirs are; ``ddfm_fast.fuse`` keeps them per image.
    """
    gamma, scale_n = (torch.as_tensor(HyperP[t]).to(f_pre) for t in ("tau_a", "tau_b"))
    x, y = f_pre - V, I - V
    p, q = e_step(x, y, gamma, scale_n, official=True)
    u1, u2 = HyperP["F1"].to(f_pre), HyperP["F2"].to(f_pre)
    divergence = u1.roll(1, -1) - u1 + u2.roll(1, -2) - u2
    solve = get_solver(*f_pre.shape[-2:], f_pre.dtype, f_pre.device)
    k = solve(y - x + divergence)
    ratio = rho / (2 * lamb + rho)
    u1, u2 = k.clone(), k.clone()
    u1[..., :-1] -= k[..., 1:]
    u2[..., :-1, :] -= k[..., 1:, :]
    rectified = I - x_step(y, k, p, q, rho, official=True)
    state = {
        "C": 1 / p,
        "D": 1 / q,
        "F2": u2.mul_(ratio),
        "F1": u1.mul_(ratio),
        "H": k,
        "tau_a": mean_inverse(p, official=True) + gamma / 2,
        "tau_b": mean_inverse(q, official=True) + scale_n / 2,
    }
    return rectified, {**HyperP, **state}


def create_model(
    image_size,
    num_channels,
    num_res_blocks,
    channel_mult="",
    learn_sigma=False,
    class_cond=False,
    use_checkpoint=False,
    attention_resolutions="16",
    num_heads=1,
    num_head_channels=-1,
    num_heads_upsample=-1,
    use_scale_shift_norm=False,
    dropout=0,
    resblock_updown=False,
    use_fp16=False,
    use_new_attention_order=False,
    model_path="",
):
    """Make the ADM UNet of a configuration with the weights of ``model_path``: an nn.Module.

    ``attention_resolutions`` are feature sizes at ``image_size``, as in their YAML file. Raises
    ValueError if the checkpoint is missing or does not fit; no network has random weights.
    """
    if channel_mult == "":
        if image_size not in _CHANNEL_MULT:
            raise ValueError(
                f"image_size is {image_size!r} and channel_mult is empty; expected an image_size "
                f"of {', '.join(map(str, _CHANNEL_MULT))}, or channel_mult such as '1,2,2'"
            )
        multipliers = _CHANNEL_MULT[image_size]
    else:
        multipliers = tuple(float(m) for m in str(channel_mult).split(","))
    config = dict(
        image_size=image_size,
        in_channels=3,
        model_channels=num_channels,
        out_channels=6 if learn_sigma else 3,
        num_res_blocks=num_res_blocks,
        attention_resolutions=tuple(
            image_size // int(size) for size in str(attention_resolutions).split(",")
        ),
        dropout=dropout,
        channel_mult=multipliers,
        num_classes=1000 if class_cond else None,
        use_checkpoint=use_checkpoint,
        use_fp16=use_fp16,
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        use_new_attention_order=use_new_attention_order,
    )
    if not model_path:
        raise ValueError(
            "model_path is empty; expected the path of a .pt or .safetensors checkpoint"
        )
    unet, _ = load_checkpoint(model_path, config)
    return unet.float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def create_sampler(
    sampler,
    steps,
    noise_schedule,
    model_mean_type,
    model_var_type,  # noqa: ARG001
    dynamic_threshold,
    clip_denoised,
    rescale_timesteps,
    timestep_respacing="",
) -> DDIM:
    """Return the authors' DDIM sampler with EM rectification.

    Their configuration (``ddim``, ``epsilon``, no dynamic threshold, clipped) is what the loop
    does; anything else is a ValueError. ``model_var_type`` has no effect on DDIM with η = 0.
    """
    expected = {
        "sampler": (sampler, "ddim"),
        "model_mean_type": (str(model_mean_type).strip(), "epsilon"),
        "dynamic_threshold": (bool(dynamic_threshold), False),
        "clip_denoised": (bool(clip_denoised), True),
    }
    for name, (given, supported) in expected.items():
        if given != supported:
            raise ValueError(
                f"{name} is {given!r}; expected {supported!r}, as in the authors' configuration "
                '(for DDPM use ddfm_fast.fuse(..., preset="paper"))'
            )
    if isinstance(timestep_respacing, (list, tuple)):
        timestep_respacing = ",".join(map(str, timestep_respacing))
    return DDIM(timestep_respacing or steps, steps, noise_schedule, bool(rescale_timesteps))


class DDIM:
    """Respaced DDIM with η = 0 in the loop; made by :func:`create_sampler`."""

    def __init__(self, respacing, steps: int, noise_schedule: str, rescale_timesteps: bool):
        self.respacing = respacing
        self.prior_config = {
            "num_train_timesteps": steps,
            "noise_schedule": noise_schedule,
            "rescale_timesteps": rescale_timesteps,
        }
        self._wrapped: tuple = (None, None)
        self.num_timesteps = len(self._rows(load_prior(lambda x, _t: x, self.prior_config)))

    def _prior(self, model) -> Prior:
        if self._wrapped[0] is not model:
            self._wrapped = (model, self._as_prior(model))
        return self._wrapped[1]

    def _as_prior(self, model) -> Prior:
        """Return ``model`` if it is a prior of this sampler's process, else as a callable."""
        config = self.prior_config
        if isinstance(model, Prior):
            process = {name: getattr(model, name) for name in config if name != RESCALE}
            if process == {name: config[name] for name in process}:
                return model
            warn(
                f"model {model.name!r} was trained with {process}, and the sampler has "
                f"{ ({name: config[name] for name in process}) }; pass the same to create_sampler",
            )
            own = {RESCALE: False, "multiple": model.multiple}  # its call takes whole timesteps
            return load_prior(model.__call__, {**config, **own})
        # a callable with unknown needs gets x as it comes, as in the authors' loop
        own = {} if isinstance(model, UNet) else {"multiple": 1}
        return load_prior(model, {**config, **own})

    def _rows(self, prior: Prior, eta: float = 0.0) -> list[StepRow]:
        return prior_rows(prior, FuseConfig(steps=self.respacing, ddim_eta=eta))

    def p_sample(
        self, model, x, t, bfHP, infrared, visible, lamb, rho, eta=0.0
    ) -> tuple[dict, dict]:
        """Take the reverse step of index ``t`` ([N], all equal): ({sample, pred_xstart}, state).

        x: [N, 3, H, W]; infrared, visible: [N, 1, H, W] in [−1, 1].
        """
        prior = self._prior(model)
        index = int(torch.as_tensor(t).reshape(-1)[0])
        row = self._rows(prior, float(eta))[self.num_timesteps - 1 - index]
        eps = prior.eps(x, prior.conditioning(torch.tensor([row.timestep]))[0]).float()
        x0 = (row.recip * x - row.recipm1 * eps).clamp_(-1, 1)
        variant = get_variant("official")
        weights = torch.tensor(variant.luma_weights).to(x0)
        f = torch.einsum("c,nchw->nhw", weights, x0)[:, None] + variant.luma_offset
        fused, bfHP = EM_onestep(f, infrared, visible, bfHP, lamb=lamb, rho=rho)
        x0 = x0 + variant.writeback * (fused - f)
        previous = row.a * x + row.b * x0
        if row.sigma and index:
            previous = previous + row.sigma * torch.randn_like(x)
        return {"sample": previous, "pred_xstart": x0}, bfHP

    def p_sample_loop(
        self, model, x_start, record, I, V, save_root, img_index, lamb, rho
    ) -> Tensor:
        """Reverse x_T = ``x_start`` [N, 3, H, W] to x_0 under the sources I and V [N, 1, H, W].

        With ``record`` every step's stretched luma is saved as
        ``save_root/progress/<img_index>/x_<step>.png`` (first image of a batch).
        """
        folder = Path(save_root) / "progress" / str(img_index)

        def save(info: StepInfo) -> None:
            _save_progress(folder / f"x_{info.steps - info.step:04d}.png", info.x_t[0])

        result = sample(
            self._prior(model),
            I,
            V,
            FuseConfig(steps=self.respacing, psi=float(lamb), eta=float(rho)),
            x_start=x_start,
            progress=True,
            callback=save if record else None,
        )
        return result.x0.clone()


def _save_progress(path: Path, x: Tensor) -> None:
    from ..files.writing import write_image
    from ..images.color import luma

    gray = luma(x[None])[0, 0].double().cpu().numpy()
    span = max(gray.max() - gray.min(), np.finfo(np.float64).tiny)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, ((gray - gray.min()) / span * 255).astype(np.uint8))
