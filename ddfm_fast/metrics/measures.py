"""The metrics themselves, on float64 luma planes [N, 3, H, W] of 0..255: fused, infrared, visible.

A metric of the fused image alone gives [N]; one that compares it with the sources gives [N, 2].
On a CPU the window metrics go through strips of rows, whose temporaries stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from .conventions import Convention, SsimWindow

SMALLEST = {"VIF": 41, "MS-SSIM": 176, "LPIPS": 32, "DISTS": 32}
"""least height and width that leave a window at the coarsest scale; for others MIN_SIZE"""

PSNR_LIMIT = 100.0

_VIF_NOISE = 2.0
_VIF_FLOOR = 1e-10
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_MS_SSIM_WINDOW = SsimWindow(11, 1.5, 255.0)
_BLOCK = 32
_STRIP_PIXELS = 1 << 16
_TINY = 1e-300


def filter_valid(planes: Tensor, size: int, sigma: float | None, step: int = 1) -> Tensor:
    """Average over size × size windows, whole windows only, keeping every step-th value.

    The weights are separable, and each block of outputs is a product with a small banded matrix:
    PyTorch's CPU convolution of float64 planes takes 20 times longer at size 17.

    Args:
        planes: [N, C, H, W].
        size: Side of the window.
        sigma: Standard deviation of Gaussian weights, or None for equal ones.
        step: Distance between the values kept.

    Returns:
        [N, C, (H − size) // step + 1, (W − size) // step + 1].
    """
    images, channels, height, width = planes.shape
    rows, columns = (height - size) // step + 1, (width - size) // step + 1
    band = _band(size, sigma, step, planes.device)
    across = planes.new_empty(images * channels, height, columns)
    flat, flat_across = planes.reshape(-1, width), across.view(-1, columns)
    for start in range(0, columns, _BLOCK):
        count = min(_BLOCK, columns - start)
        span = (count - 1) * step + size
        block = flat[:, start * step : start * step + span]
        torch.mm(block, band[:span, :count], out=flat_across[:, start : start + count])
    out = planes.new_empty(images * channels, rows, columns)
    for start in range(0, rows, _BLOCK):
        count = min(_BLOCK, rows - start)
        span = (count - 1) * step + size
        weights = band[:span, :count].T.expand(len(out), count, span)
        block = across[:, start * step : start * step + span]
        torch.bmm(weights, block, out=out[:, start : start + count])
    return out.view(images, channels, rows, columns)


@lru_cache(maxsize=64)
def _band(size: int, sigma: float | None, step: int, device: torch.device) -> Tensor:
    """[(B − 1)·step + size, B]: column j holds the weights, shifted down by j·step."""
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = (
        torch.ones_like(offsets) if sigma is None else torch.exp(-((offsets / sigma) ** 2) / 2)
    )
    band = torch.zeros((_BLOCK - 1) * step + size, _BLOCK, dtype=torch.float64)
    for column in range(_BLOCK):
        band[column * step : column * step + size, column] = weights / weights.sum()
    return band.to(device)


def sum_over_strips(term: Callable[[Tensor], Tensor], planes: Tensor, size: int) -> Tensor:
    """Sum term(strip) over strips of rows, each with the rows that its windows reach into.

    term: takes [N, C, h, W], whose windows are h − size + 1 rows, and returns their sums.
    """
    height, width = planes.shape[-2:]
    rows = height - size + 1
    strip = rows if planes.is_cuda else max(_BLOCK, _STRIP_PIXELS // width // _BLOCK * _BLOCK)
    starts = range(0, rows, strip)
    return _sum([term(planes[..., start : start + strip + size - 1, :]) for start in starts])


def _sum(terms: list[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


def _local_moments(planes: Tensor, size: int, sigma: float | None) -> tuple[Tensor, ...]:
    """Compute local means, variances and covariances: mean_f, mean_s, var_f, var_s, cov.

    planes must be near 0 (see ``_centered``): E[x²] − E[x]² loses the digits of a large mean.
    """
    products = torch.cat([planes, planes**2, planes[:, :1] * planes[:, 1:]], 1)
    mean, square, product = filter_valid(products, size, sigma).split([3, 3, 2], 1)
    variance = square - mean**2
    mean_f, mean_s = mean[:, :1], mean[:, 1:]
    return mean_f, mean_s, variance[:, :1], variance[:, 1:], product - mean_f * mean_s


def _centered(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Return planes minus their rounded mean, and that mean [N, 3, 1, 1]: whole levels stay so."""
    middle = planes.mean((-2, -1), keepdim=True).round()
    return planes - middle, middle


def histograms(levels: Tensor, bins: int) -> Tensor:
    """Count exactly [N, bins] (int64) the integer levels [N, ...] in 0..bins − 1."""
    images = len(levels)
    index = levels.reshape(images, -1)
    if images > 1:
        index = index + bins * torch.arange(images, device=index.device)[:, None]
    return torch.bincount(index.reshape(-1), minlength=images * bins).view(images, bins)


def entropy(counts: Tensor, base: float) -> Tensor:
    """Compute Shannon entropy of integer histograms: [..., bins] → [...]."""
    share = counts.double() / counts.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1) / math.log(base)


def fused_entropy(planes: Tensor, convention: Convention) -> Tensor:
    fused = planes[:, 0]
    levels = fused.floor() if convention.entropy_floor else fused.round()
    return entropy(histograms(levels.long(), 256), 2.0)


def standard_deviation(planes: Tensor, _convention: Convention) -> Tensor:
    return planes[:, 0].var((-2, -1), correction=0).sqrt()


def spatial_frequency(planes: Tensor, convention: Convention) -> Tensor:
    fused = planes[:, 0]
    squares = fused.diff(dim=-1).square(), fused.diff(dim=-2).square()
    if convention.frequency_pixels:
        return (_sum([s.sum((-2, -1)) for s in squares]) / fused[0].numel()).sqrt()
    return _sum([s.mean((-2, -1)) for s in squares]).sqrt()


def average_gradient(planes: Tensor, convention: Convention) -> Tensor:
    d_rows, d_columns = torch.gradient(planes[:, 0], dim=(-2, -1))
    total = ((d_rows**2 + d_columns**2) / 2).sqrt().sum((-2, -1))
    height, width = planes.shape[-2:]
    cells = (height - 1) * (width - 1) if convention.gradient_cells else height * width
    return total / cells


def mutual_information(planes: Tensor, convention: Convention) -> Tensor:
    return _information(planes, convention)[0]


def normalized_information(planes: Tensor, convention: Convention) -> Tensor:
    """Hossny, Nahavandi and Creighton 2008: of each source 2 MI(F, S) / (EN(F) + EN(S))."""
    shared, marginals = _information(planes, convention)
    return torch.where(marginals > 0, 2 * shared / marginals.clamp(min=_TINY), 0.0)


def _information(planes: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    """Compute MI of fused with each source, and the sums of their entropies, both [N, 2]."""
    levels = (stretched(planes) if convention.mi_rescale else planes.round()).long()
    joint = histograms((levels[:, :1] * 256 + levels[:, 1:]).flatten(0, 1), 256 * 256)
    joint = joint.view(-1, 2, 256, 256)
    base = convention.mi_base
    marginals = entropy(joint.sum(-1), base) + entropy(joint.sum(-2), base)
    return (marginals - entropy(joint.flatten(-2), base)).clamp(min=0), marginals


def stretched(planes: Tensor) -> Tensor:
    """Stretch each plane from its extremes to 0..255, rounded half up; a flat one is 0."""
    low, high = planes.amin((-2, -1), keepdim=True), planes.amax((-2, -1), keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    return ((planes - low) / span * 255 + 0.5).floor()


def visual_information_fidelity(planes: Tensor, _convention: Convention) -> Tensor:
    """Sheikh and Bovik 2006, the pixel-domain form; 1 for a source without any structure."""
    planes, _ = _centered(planes)
    sums = []
    for size in (17, 9, 5, 3):
        if size < 17:
            planes = filter_valid(planes, size, size / 5, step=2)
        sums.append(sum_over_strips(partial(_vif_terms, size=size), planes, size))
    kept, there = _sum(sums)
    return share(kept, there)


def _vif_terms(planes: Tensor, size: int) -> Tensor:
    """Sum the kept and the existing information over the windows, [2, N, 2]."""
    _, _, var_f, var_s, cov = _local_moments(planes, size, size / 5)
    usable = (var_s >= _VIF_FLOOR) & (var_f >= _VIF_FLOOR) & (cov > 0)
    gain = torch.where(usable, cov / (var_s + _VIF_FLOOR), 0.0)
    noise = (var_f - gain * cov).clamp_(min=_VIF_FLOOR)
    var_s = torch.where(var_s < _VIF_FLOOR, 0.0, var_s)
    kept = torch.log1p(gain.square_().mul_(var_s).div_(noise.add_(_VIF_NOISE)))
    there = torch.log1p(var_s.div_(_VIF_NOISE))
    return torch.stack([kept.sum((-2, -1)), there.sum((-2, -1))])


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Divide part by whole; 1 where there is nothing to have a part of."""
    return torch.where(whole > 0, part / whole.clamp(min=_TINY), 1.0)


def edge_preservation(planes: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    """Qabf of the pair [N] and of each source [N, 2]: edges preserved, weighted by their strength.

    1 for sources without any edge, which leave nothing to preserve. In float32, as in the
    community's evaluator: gradients of whole gray levels and their squares are exact in it, so
    that "equal strength" is too. Only the sums need float64.
    """

    def terms(padded: Tensor) -> Tensor:
        return _edge_terms(*sobel(padded), convention.qabf_equal)

    parts, weights = sum_over_strips(terms, F.pad(planes.float(), (1, 1, 1, 1)), 3)
    return share(parts.sum(1), weights.sum(1)), share(parts, weights)


def sobel(padded: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradient strength, and atan of vertical over horizontal, π/2 where that is 0."""
    d_columns = padded[..., 2:] - padded[..., :-2]
    d_rows = padded[..., :-2, :] - padded[..., 2:, :]
    x = d_columns[..., :-2, :] + d_columns[..., 2:, :] + 2 * d_columns[..., 1:-1, :]
    y = d_rows[..., :-2] + d_rows[..., 2:] + 2 * d_rows[..., 1:-1]
    angle = torch.atan(y / x).masked_fill_(x == 0, math.pi / 2)
    return x.square_().add_(y.square_()).sqrt_(), angle


def _edge_terms(strength: Tensor, angle: Tensor, equal: float | None) -> Tensor:
    """Sum preserved and present edge strength of each source over pixels, float64 [2, N, 2]."""
    strength_f, strength_s = strength[:, :1], strength[:, 1:]
    ratio = torch.minimum(strength_f, strength_s) / torch.maximum(strength_f, strength_s)
    of_equals = torch.ones_like(strength_f) if equal is None else equal * strength_f
    ratio = torch.where(strength_f == strength_s, of_equals, ratio)
    alignment = 1 - (angle[:, 1:] - angle[:, :1]).abs_().div_(math.pi / 2)
    by_strength = ratio.sub_(0.5).mul_(-15).exp_().add_(1)
    by_angle = alignment.sub_(0.8).mul_(-22).exp_().add_(1)
    kept = strength_s / by_strength.mul_(by_angle)
    kept, there = (p.sum((-2, -1), dtype=torch.float64) for p in (kept, strength_s))
    return torch.stack([0.9994 * 0.9879 * kept, there])


def structural_similarity(planes: Tensor, convention: Convention) -> Tensor:
    return _ssim(planes, convention.ssim)[0]


def multi_scale_similarity(planes: Tensor, _convention: Convention) -> Tensor:
    """Wang, Simoncelli and Bovik 2003: luminance at the last scale, the rest at all five."""
    factors = []
    for weight in _MS_SSIM_WEIGHTS[:-1]:
        factors.append(_ssim(planes, _MS_SSIM_WINDOW)[1].clamp(min=0) ** weight)
        planes = F.avg_pool2d(planes, 2)
    factors.append(_ssim(planes, _MS_SSIM_WINDOW)[0].clamp(min=0) ** _MS_SSIM_WEIGHTS[-1])
    return reduce(torch.mul, factors)


def _ssim(planes: Tensor, window: SsimWindow) -> Tensor:
    """Return the mean SSIM and the mean of its contrast-structure factor, [2, N, 2]."""
    planes, middle = _centered(planes)
    if window.replicate:
        planes = F.pad(planes, (window.size // 2,) * 4, mode="replicate")
    total = sum_over_strips(lambda strip: _ssim_terms(strip, middle, window), planes, window.size)
    height, width = planes.shape[-2:]
    return total / ((height - window.size + 1) * (width - window.size + 1))


def _ssim_terms(planes: Tensor, middle: Tensor, window: SsimWindow) -> Tensor:
    mean_f, mean_s, var_f, var_s, cov = _local_moments(planes, window.size, window.sigma)
    mean_f, mean_s = mean_f + middle[:, :1], mean_s + middle[:, 1:]
    pixels = window.size**2
    scale = pixels / (pixels - 1) if window.unbiased else 1.0
    c1, c2 = (0.01 * window.data_range) ** 2, (0.03 * window.data_range) ** 2
    contrast = cov.mul_(2 * scale).add_(c2).div_((var_f + var_s).mul_(scale).add_(c2))
    luminance = (mean_f * mean_s).mul_(2).add_(c1).div_((mean_f**2 + mean_s**2).add_(c1))
    return torch.stack([(contrast * luminance).sum((-2, -1)), contrast.sum((-2, -1))])


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Compute Pearson's correlation over the last two axes; 0 where either side is constant."""
    a, b = (p - p.mean((-2, -1), keepdim=True) for p in (a, b))
    norm = (a.square().sum((-2, -1)) * b.square().sum((-2, -1))).sqrt()
    defined = norm > 1e-9 * a.shape[-2:].numel()
    return torch.where(defined, (a * b).sum((-2, -1)) / norm.clamp(min=_TINY), 0.0)


def source_correlation(planes: Tensor, _convention: Convention) -> Tensor:
    return correlation(planes[:, 1:], planes[:, :1])


def correlation_of_differences(planes: Tensor, _convention: Convention) -> Tensor:
    """Aslantas and Bendes 2015: each source against what the fused image adds to the other."""
    return correlation(planes[:, 1:], planes[:, :1] - planes[:, 1:].flip(1))


def squared_error(planes: Tensor, convention: Convention) -> Tensor:
    """Return the error behind the convention's PSNR, which two conventions misname."""
    squares = (planes[:, :1] - planes[:, 1:]).div_(convention.psnr_unit).square_()
    if convention.psnr_root:
        return squares.sum((-2, -1)).sqrt() / squares.shape[-2:].numel()
    return squares.mean((-2, -1))


def peak_ratio(planes: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    """PSNR of the pair [N] (from the mean of the two errors) and of each source [N, 2], in dB.

    It is limited to ±100 dB, since an identical image would give infinity.
    """
    error = squared_error(planes, convention)
    peak = planes[:, 0].amax((-2, -1)) if convention.psnr_peak is None else convention.psnr_peak
    peak = torch.as_tensor(peak, dtype=torch.float64, device=planes.device)[..., None]

    def decibels(error: Tensor) -> Tensor:
        ratio = 20 * peak.clamp(min=1e-30).log10() - 10 * error.clamp(min=1e-30).log10()
        return ratio.clamp(-PSNR_LIMIT, PSNR_LIMIT)

    return decibels(error.mean(1, keepdim=True))[:, 0], decibels(error)
