"""The baseline: what the authors' published code computes, operation by operation.

It is written from its behavior, with its costs on purpose: the luma goes through NumPy and
scikit-image twice per step, the k-solve takes three complex FFTs and one inverse, coefficients
are taken from NumPy arrays at every use, the posterior mean and the learned variance are computed
and not used, attention materializes its weights. Everything the benchmarks print is a ratio to
this. ``tests/bench/test_reference.py`` checks it against the authors' tensors. The PNG that their
script writes at every step is written if a folder for it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.color import rgb2ycbcr, ycbcr2rgb
from skimage.io import imsave
from torch import Tensor


def _take(table: np.ndarray, t: Tensor, like: Tensor) -> Tensor:
    value = torch.from_numpy(table).to(like.device)[t].float()
    return value.view(-1, *[1] * (like.ndim - 1)).expand_as(like)


def convert_colors(convert: Callable, image: Tensor, double: bool) -> Tensor:
    """Apply scikit-image's ``convert`` to the image [N, 3, H, W] on the host; return the result."""
    array = image.cpu()
    array = (array.double() if double else array).permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(convert(array)).float().permute(0, 3, 1, 2).to(image.device)


def _spectrum(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    padded = F.pad(kernel, (0, size[1] - kernel.shape[1], 0, size[0] - kernel.shape[0]))
    for axis, length in enumerate(kernel.shape):
        padded = padded.roll(-(length // 2), axis)
    return torch.fft.fftn(padded)


def em_initial(i: Tensor) -> dict:
    """Return the state before the first step for sources [N, 1, H, W]."""
    size = i.shape[-2:]
    k1 = _spectrum(torch.tensor([[1, -1]], device=i.device), size)
    k2 = _spectrum(torch.tensor([[1], [-1]], device=i.device), size)
    return {
        "k1": k1, "k2": k2, "k1sq": k1.conj() * k1, "k2sq": k2.conj() * k2,
        "C": torch.ones_like(i), "D": torch.ones_like(i), "H": torch.zeros_like(i),
        "F1": torch.zeros_like(i), "F2": torch.zeros_like(i), "tau_a": 1, "tau_b": 1,
    }  # fmt: skip


def em_onestep(f: Tensor, i: Tensor, v: Tensor, state: dict, psi: float, eta: float):
    """Return one EM step on luma planes [N, 1, H, W]: (rectified luma, next state)."""
    y, x = i - v, f - v
    d = torch.sqrt(2 / state["tau_b"] / (x**2 + 1e-6))
    c = torch.sqrt(2 / state["tau_a"] / ((y - x + 1e-6) ** 2))
    over = d > 2 * c
    d[over] = 2 * c[over]
    tau_b = torch.mean(1.0 / (d + 1e-10) + state["tau_b"] / 2)
    tau_a = torch.mean(1.0 / (c + 1e-10) + state["tau_a"] / 2)
    spectrum = (
        torch.fft.fft2(y - x)
        + state["k1"].conj() * torch.fft.fft2(state["F1"])
        + state["k2"].conj() * torch.fft.fft2(state["F2"])
    )
    h = torch.fft.ifft2(spectrum / (1 + state["k1sq"] + state["k2sq"])).real
    a1, a2 = torch.zeros_like(h), torch.zeros_like(h)
    a1[..., :-1], a1[..., -1] = h[..., :-1] - h[..., 1:], h[..., -1]
    a2[..., :-1, :], a2[..., -1, :] = h[..., :-1, :] - h[..., 1:, :], h[..., -1, :]
    ratio = eta / (2 * psi + eta)
    x = (2 * c * y + eta * (y - h)) / (2 * c + 2 * d + eta)
    after = dict(C=c, D=d, H=h, F1=ratio * a1, F2=ratio * a2, tau_a=tau_a, tau_b=tau_b)
    return i - x, {**state, **after}


def rectify(x0: Tensor, i: Tensor, v: Tensor, state: dict, psi: float, eta: float):
    """Return the EM step on x0's luma, between two conversions on the CPU: (x0, state)."""
    ycbcr = convert_colors(rgb2ycbcr, x0, double=False) / 255
    luma, state = em_onestep(ycbcr[:, :1], i, v, state, psi, eta)
    ycbcr[:, 0] = luma[:, 0]
    return convert_colors(ycbcr2rgb, ycbcr * 255, double=True), state


class ReferenceLoop:
    """DDIM (η = 0) with the EM rectification, over a respaced schedule (timesteps, betas).

    ``rectify``: (x0, i, v, state, psi, eta) → (x0, state); the waterfall passes faster ones.
    """

    def __init__(self, timesteps: np.ndarray, betas: np.ndarray, rectify: Callable = rectify):
        self.timesteps, self.betas, self.rectify = timesteps, betas, rectify
        alphas = np.cumprod(1.0 - betas)
        previous = np.append(1.0, alphas[:-1])
        variance = betas * (1 - previous) / (1 - alphas)
        self.alphas, self.previous = alphas, previous
        self.recip, self.recipm1 = np.sqrt(1 / alphas), np.sqrt(1 / alphas - 1)
        self.mean_x0 = betas * np.sqrt(previous) / (1 - alphas)
        self.mean_x = (1 - previous) * np.sqrt(1 - betas) / (1 - alphas)
        self.log_min = np.log(np.append(variance[1], variance[1:]))
        self.log_max = np.log(betas)

    def predict(self, model, x: Tensor, t: Tensor) -> Tensor:
        """Compute x0 from the prior's output, and the mean and variance that DDIM does not use."""
        out = model(x, torch.tensor(self.timesteps, device=t.device)[t])
        return self.split(x, t, out)

    def split(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        eps, *values = torch.split(out, x.shape[1], dim=1)
        x0 = _take(self.recip, t, x) * x - _take(self.recipm1, t, eps) * eps
        x0 = x0.clamp(-1, 1)
        _mean = _take(self.mean_x0, t, x0) * x0 + _take(self.mean_x, t, x) * x
        low = _take(self.log_min, t, x)
        if values:  # a prior without the variance half gets the schedule's
            fraction = (values[0] + 1.0) / 2.0
            low = fraction * _take(self.log_max, t, x) + (1 - fraction) * low
        torch.exp(low)
        return x0

    def after_prior(self, x, t, out, i, v, state, psi, eta):
        """Do everything between the prior's output and x_{t-1}; return (x_{t-1}, state)."""
        x0, state = self.rectify(self.split(x, t, out), i, v, state, psi, eta)
        return self.advance(x, x0, t), state

    def advance(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Compute x_{t-1} of DDIM with η = 0; its noise is drawn and multiplied by 0."""
        eps = (_take(self.recip, t, x) * x - x0) / _take(self.recipm1, t, x)
        alpha, previous = _take(self.alphas, t, x), _take(self.previous, t, x)
        sigma = 0.0 * torch.sqrt((1 - previous) / (1 - alpha)) * torch.sqrt(1 - alpha / previous)
        noise = torch.randn_like(x)
        sample = x0 * torch.sqrt(previous) + torch.sqrt(1 - previous - sigma**2) * eps
        if t[0] != 0:
            sample += sigma * noise
        return sample

    def __call__(
        self, model, x: Tensor, i: Tensor, v: Tensor, psi=0.5, eta=0.001, png: Path | None = None
    ) -> Tensor:
        """Take x_T to x_0; ``png``: a folder for the stretched luma of every step, as in theirs."""
        state = em_initial(i)
        for index in reversed(range(len(self.betas))):
            t = torch.tensor([index] * len(x), device=x.device)
            out = model(x, torch.tensor(self.timesteps, device=x.device)[t])
            x, state = self.after_prior(x, t, out, i, v, state, psi, eta)
            if png is not None:
                write_progress(png / f"x_{index:04d}.png", x)
        return x


def write_progress(path: Path, x: Tensor) -> None:
    """Write the first image's luma, stretched to 8 bits, as a PNG."""
    picture = x.detach().cpu()[0].permute(1, 2, 0).numpy()
    luma = rgb2ycbcr(picture)[..., 0]
    luma = (luma - luma.min()) / (luma.max() - luma.min())
    imsave(path, (luma * 255).astype(np.uint8), check_contrast=False)


class ReferenceUNet:
    """The ADM UNet as the authors run it, from a state dict: NCHW, float32, nothing folded.

    ``num_head_channels`` and the legacy qkv order as in the official checkpoint;
    ``pixel_unshuffle`` folds pixels into channels before and after, and ``sigma_data`` puts x_t
    and the network's answer together, as the embedded prior needs.
    """

    def __init__(
        self,
        state: dict[str, Tensor],
        num_head_channels: int = 64,
        pixel_unshuffle: int = 1,
        sigma_data: float = 0,
    ):
        self.w, self.head, self.unshuffle = state, num_head_channels, pixel_unshuffle
        self.sigma_data = sigma_data
        self.width = state["time_embed.0.weight"].shape[1]
        layers: dict[str, set[str]] = {}
        for key in state:
            parts = key.split(".")
            if parts[0] in ("input_blocks", "output_blocks"):
                layers.setdefault(".".join(parts[:2]), set()).add(".".join(parts[:3]))
            elif parts[0] == "middle_block":
                layers.setdefault(parts[0], set()).add(".".join(parts[:2]))
        self.layers = {block: sorted(names) for block, names in layers.items()}
        self.inputs = sum(block.startswith("input") for block in layers)
        self.outputs = sum(block.startswith("output") for block in layers)
        self.resamplers = self._find_resamplers()

    def _find_resamplers(self) -> set[str]:
        """Find the residual blocks that halve or double the size, by their places, not by keys.

        A second residual block in an output block upsamples and closes a level; input levels have
        one residual block less and end in one that downsamples.
        """
        ups = [
            (n, names[-1])
            for n in range(self.outputs)
            if len(names := self.layers[f"output_blocks.{n}"]) > 1
            and f"{names[-1]}.in_layers.0.weight" in self.w
        ]
        if not ups:  # layers of their own resample, as their keys tell
            return set()
        per_level = ups[0][0] + 1
        return {name for _, name in ups} | {
            f"input_blocks.{n}.0" for n in range(per_level, self.inputs, per_level)
        }

    def _conv(self, key: str, x: Tensor, padding: int = 0) -> Tensor:
        return F.conv2d(x, self.w[f"{key}.weight"], self.w[f"{key}.bias"], padding=padding)

    def _norm(self, key: str, x: Tensor) -> Tensor:
        weight, bias = self.w[f"{key}.weight"], self.w[f"{key}.bias"]
        return F.group_norm(x.float(), 32, weight.float(), bias.float()).type(x.dtype)

    def _resample(self, key: str, x: Tensor) -> Tensor:
        if key not in self.resamplers:
            return x
        if key.startswith("input"):
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest")

    def _resblock(self, key: str, x: Tensor, emb: Tensor) -> Tensor:
        h = F.silu(self._norm(f"{key}.in_layers.0", x))
        h, x = self._resample(key, h), self._resample(key, x)
        h = self._conv(f"{key}.in_layers.2", h, 1)
        w, b = self.w[f"{key}.emb_layers.1.weight"], self.w[f"{key}.emb_layers.1.bias"]
        emb = F.linear(F.silu(emb), w, b)
        scale, shift = emb.type(h.dtype)[..., None, None].chunk(2, dim=1)
        h = F.silu(self._norm(f"{key}.out_layers.0", h) * (1 + scale) + shift)
        h = self._conv(f"{key}.out_layers.3", h, 1)
        if f"{key}.skip_connection.weight" in self.w:
            x = self._conv(f"{key}.skip_connection", x)
        return x + h

    def _attention(self, key: str, x: Tensor) -> Tensor:
        n, channels, *size = x.shape
        flat = x.reshape(n, channels, -1)
        w, b = self.w[f"{key}.qkv.weight"], self.w[f"{key}.qkv.bias"]
        qkv = F.conv1d(self._norm(f"{key}.norm", flat), w, b)
        q, k, v = qkv.reshape(-1, 3 * self.head, flat.shape[-1]).split(self.head, dim=1)
        scale = 1 / math.sqrt(math.sqrt(self.head))
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(n, channels, -1)
        h = F.conv1d(h, self.w[f"{key}.proj_out.weight"], self.w[f"{key}.proj_out.bias"])
        return (flat + h).reshape(n, channels, *size)

    def _block(self, block: str, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self.layers[block]:
            if f"{layer}.qkv.weight" in self.w:
                x = self._attention(layer, x)
            elif f"{layer}.op.weight" in self.w:
                weight, bias = self.w[f"{layer}.op.weight"], self.w[f"{layer}.op.bias"]
                x = F.conv2d(x, weight, bias, stride=2, padding=1)
            elif f"{layer}.conv.weight" in self.w:
                doubled = F.interpolate(x, scale_factor=2, mode="nearest")
                x = self._conv(f"{layer}.conv", doubled, 1)
            else:
                x = self._resblock(layer, x, emb)
        return x

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Evaluate x [N, 3, H, W] at t [N]; return [N, 3 or 6, H, W]."""
        if self.sigma_data:
            a = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
            a = a.to(x.device)[t][:, None, None, None]
            power = 1 - a + a * self.sigma_data**2
            skip, out = (1 - a).sqrt() / power, self.sigma_data * (a / power).sqrt()
            return skip.type(x.dtype) * x + out.type(x.dtype) * self._network(x, t)
        return self._network(x, t)

    def _network(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.width // 2
        freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        args = t[:, None].float() * freqs[None].to(x.device)
        emb = torch.cat([torch.cos(args), torch.sin(args)], dim=-1)
        for n in (0, 2):
            w, b = self.w[f"time_embed.{n}.weight"], self.w[f"time_embed.{n}.bias"]
            emb = F.linear(emb.type(w.dtype), w, b)
            emb = F.silu(emb) if n == 0 else emb
        if self.unshuffle > 1:
            x = F.pixel_unshuffle(x, self.unshuffle)
        x = self._conv("input_blocks.0.0", x, 1)
        skips = [x]
        for n in range(1, self.inputs):
            x = self._block(f"input_blocks.{n}", x, emb)
            skips.append(x)
        x = self._block("middle_block", x, emb)
        for n in range(self.outputs):
            x = self._block(f"output_blocks.{n}", torch.cat([x, skips.pop()], dim=1), emb)
        x = self._conv("out.2", F.silu(self._norm("out.0", x)), 1)
        return F.pixel_shuffle(x, self.unshuffle) if self.unshuffle > 1 else x
