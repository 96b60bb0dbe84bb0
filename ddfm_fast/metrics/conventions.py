"""The conventions under which toolboxes score the same image differently, named and written out."""

from __future__ import annotations

import math
from dataclasses import dataclass

SINGLE = ("EN", "SD", "SF", "AG")
"""metrics of the fused image alone; every other one compares it with both sources"""

DEFAULT = "cddfuse"
"""the convention that scores follow unless another is named"""

NAMES = (
    *("EN", "SD", "SF", "AG", "MI", "VIF", "Qabf", "SSIM", "MS-SSIM", "SCD", "CC", "PSNR"),
    *("MSE", "NMI", "FMI-pixel", "FMI-gradient", "Qcb", "Qcv", "LPIPS", "DISTS"),
)

LOWER = frozenset({"MSE", "Qcv", "LPIPS", "DISTS"})
"""metrics for which less is better"""


def lower(column: str) -> bool:
    """Return whether less is better in a column: a metric, or its score of one source."""
    return column.partition("_")[0] in LOWER


WEIGHTED = ("LPIPS", "DISTS")
"""metrics that need an extra and weights which are not shipped"""

ON_REQUEST = ("FMI-pixel", "FMI-gradient", *WEIGHTED)
"""metrics computed only if they are named: they take longer than all others together"""


@dataclass(frozen=True)
class SsimWindow:
    """Local statistics of an SSIM.

    size: side of the square window, in pixels.
    sigma: the Gaussian's standard deviation, in pixels; None if every pixel weighs the same.
    data_range: L of C1 = (0.01 L)² and C2 = (0.03 L)².
    unbiased: covariances divided by n − 1, not n.
    replicate: edge pixels repeated so that every pixel has a window; otherwise only the windows
        that lie wholly inside the image count.
    """

    size: int
    sigma: float | None
    data_range: float
    unbiased: bool = False
    replicate: bool = False


@dataclass(frozen=True)
class Convention:
    """One toolbox's choices; ``definitions`` says each metric in words, the rest is what runs.

    entropy_floor: EN counts floor(x) where the others count round(x).
    mi_base: the base of MI's logarithm. mi_rescale: for MI and NMI each image is stretched to
        0..255 first.
    averaged: the metrics given as the mean of the two sources where others give their sum.
    qabf_equal: the ratio of two equal gradients is qabf_equal times their strength, not 1;
        None for 1.
    psnr_peak: the peak, or None for the largest value of the fused image.
    psnr_root: the "MSE" is √(sum of squares) / pixels. psnr_unit: images are divided by it first.
    gradient_cells: AG divides by (H − 1)(W − 1), not by the pixels.
    frequency_pixels: SF divides by the pixels, not by the number of differences.
    """

    name: str
    summary: str
    definitions: dict[str, str]
    ssim: SsimWindow
    averaged: frozenset[str]
    entropy_floor: bool = False
    mi_base: float = math.e
    mi_rescale: bool = False
    qabf_equal: float | None = 1.0
    psnr_peak: float | None = 255.0
    psnr_root: bool = False
    psnr_unit: float = 1.0
    gradient_cells: bool = False
    frequency_pixels: bool = False


_CDDFUSE = {
    "EN": "entropy in bits of the 256-bin histogram of round(F)",
    "SD": "population standard deviation of F, 0..255",
    "SF": "√(mean of squared horizontal differences + mean of squared vertical differences)",
    "AG": "mean over the pixels of √((Fx² + Fy²) / 2), central differences, one-sided at the edges",
    "MI": "MI(F, ir) + MI(F, vis) in nats, 256 × 256 joint histogram of rounded values",
    "VIF": "sum over both sources of the pixel-domain VIF: 4 scales, noise variance 2, Gaussian "
    "windows of side N = 17, 9, 5, 3 and σ = N / 5, whole windows only; 1 for a flat source",
    "Qabf": "Xydeas and Petrović with Sobel gradients (zeros beyond the edge); Tg .9994, kg −15, "
    "Dg .5, Ta .9879, ka −22, Da .8; where the gradients are equal their ratio is taken as the "
    "gradient itself, not 1; orientations do not wrap; both sources' maps weighted by gradient",
    "SSIM": "SSIM(F, ir) + SSIM(F, vis), 7 × 7 uniform window, sample covariance, whole windows "
    "only, L = 2 (what older scikit-image assumes of float images) on values of 0..255",
    "MS-SSIM": "mean over both sources of Wang's five-scale SSIM: 11 × 11 Gaussian, σ 1.5, L = "
    "255, 2 × 2 averages between scales, negative scales taken as 0; not in the toolbox",
    "SCD": "corr(ir, F − vis) + corr(vis, F − ir), the sum of the correlations of differences",
    "CC": "mean of the linear correlations of F with ir and with vis",
    "PSNR": "10 log10(max(F)² / mean of the two mean squared errors), dB, at most 100",
    "MSE": "mean of the two mean squared errors, gray levels²; less is better",
    "NMI": "2 MI(F, ir) / (EN(F) + EN(ir)) + 2 MI(F, vis) / (EN(F) + EN(vis)), histograms as of MI "
    "(Hossny 2008); not in the toolbox",
    "FMI-pixel": "mean over both sources of Fast-FMI (Haghighat 2014) of the gray levels, 3 × 3 "
    "windows, whole ones only; 1 where both are flat; not in the toolbox",
    "FMI-gradient": "as FMI-pixel, of the horizontal derivatives by central differences; not in "
    "the toolbox",
    "Qcb": "Chen and Blum 2009 as in VIFB: images stretched to 0..255, contrast of Gaussians σ 2 "
    "and 4 after the filter of the eye, weighted by its square; not in the toolbox",
    "Qcv": "Chen and Varshney 2007 as in VIFB: images stretched to 0..255, Mannos-Sakrison filter, "
    "16 × 16 blocks weighted by Sobel strength⁵; less is better; not in the toolbox",
    "LPIPS": "mean over both sources of Zhang 2018, version 0.1 on AlexNet, luma as gray color; "
    "less is better; not in the toolbox",
    "DISTS": "mean over both sources of Ding 2020 on VGG-16, luma as gray color; less is better; "
    "not in the toolbox",
}
_BEYOND = ("NMI", "FMI-pixel", "FMI-gradient", "Qcb", "Qcv", *WEIGHTED)

_VIFB = _CDDFUSE | {
    "EN": "entropy in bits of the 256-bin histogram of floor(F)",
    "SF": "√((sum of squared horizontal + sum of squared vertical differences) / pixels)",
    "AG": _CDDFUSE["AG"].replace("mean over the pixels", "sum / ((H − 1)(W − 1))"),
    "MI": "MI(F, ir) + MI(F, vis) in nats, each image first stretched from its minimum and maximum "
    "to 0..255 and rounded half up",
    "VIF": _CDDFUSE["VIF"] + "; not in the toolbox",
    "Qabf": _CDDFUSE["Qabf"].replace("the gradient itself", "255 times the gradient"),
    "SSIM": "SSIM(F, ir) + SSIM(F, vis), 11 × 11 Gaussian, σ 1.5, population covariance, whole "
    "windows only, L = 255",
    "SCD": _CDDFUSE["SCD"] + "; not in the toolbox",
    "CC": _CDDFUSE["CC"] + "; not in the toolbox",
    "PSNR": "10 log10(255² / mean of the two errors), where the toolbox's error is "
    "√(sum of squared differences) / pixels, not the mean squared error",
    "MSE": "mean of the two √(sum of squared differences) / pixels, which the toolbox calls RMSE; "
    "less is better",
    "NMI": _CDDFUSE["NMI"].replace("not in the toolbox", "the toolbox's authors have it in MEFB"),
    "Qcb": _CDDFUSE["Qcb"].removesuffix("; not in the toolbox"),
    "Qcv": _CDDFUSE["Qcv"].removesuffix("; not in the toolbox"),
}

_TANG = _CDDFUSE | {
    "AG": _VIFB["AG"],
    "MI": "MI(F, ir) + MI(F, vis) in bits, 256 × 256 joint histogram of rounded values",
    "SSIM": "mean of SSIM(F, ir) and SSIM(F, vis), 11 × 11 Gaussian, σ 1.5, edges replicated, "
    "L = 1 (what MATLAB assumes of double images) on values of 0..255",
    "MS-SSIM": _CDDFUSE["MS-SSIM"].replace(
        "not in the toolbox", "what the toolbox prints under this name is MEF-SSIM, another metric"
    ),
    "PSNR": "10 log10(255² / mean of the two mean squared errors of the images divided by 255): "
    "48.13 dB above the usual PSNR",
    "MSE": "mean of the two mean squared errors of the images divided by 255; less is better",
    "FMI-pixel": _CDDFUSE["FMI-pixel"].replace(
        "not in the toolbox",
        "the toolbox's FMI_pixel calls Fast-FMI without a feature, which then takes edges",
    ),
}

_SANE = _CDDFUSE | {
    "MI": "mean of MI(F, ir) and MI(F, vis) in nats, 256 × 256 joint histogram of rounded values",
    "VIF": _CDDFUSE["VIF"].replace("sum over", "mean over"),
    "Qabf": "Xydeas and Petrović with Sobel gradients (zeros beyond the edge); Tg .9994, kg −15, "
    "Dg .5, Ta .9879, ka −22, Da .8; equal gradients have ratio 1; orientations do not wrap; both "
    "sources' maps weighted by gradient",
    "SSIM": "mean of SSIM(F, ir) and SSIM(F, vis), 7 × 7 uniform window, sample covariance, whole "
    "windows only, L = 255",
    "PSNR": "10 log10(255² / mean of the two mean squared errors), dB, at most 100",
    "NMI": "mean of 2 MI(F, S) / (EN(F) + EN(S)) over both sources S, histograms as of MI",
    **{n: _CDDFUSE[n].removesuffix("; not in the toolbox") for n in _BEYOND if n != "NMI"},
}

_MEANS = frozenset({"MS-SSIM", "CC", "MSE", "FMI-pixel", "FMI-gradient", *WEIGHTED})

CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            "cddfuse",
            "the evaluator of the DDFM authors' group (MMIF-CDDFuse), as their tables use it",
            _CDDFUSE,
            SsimWindow(7, None, 2.0, unbiased=True),
            averaged=_MEANS,
            psnr_peak=None,
        ),
        Convention(
            "vifb",
            "the VIFB benchmark's MATLAB toolbox, on luma (the toolbox averages color channels)",
            _VIFB,
            SsimWindow(11, 1.5, 255.0),
            averaged=_MEANS,
            entropy_floor=True,
            mi_rescale=True,
            qabf_equal=255.0,
            psnr_root=True,
            gradient_cells=True,
            frequency_pixels=True,
        ),
        Convention(
            "tang",
            "the MATLAB toolbox Evaluation-for-Image-Fusion of Linfeng Tang",
            _TANG,
            SsimWindow(11, 1.5, 1.0, replicate=True),
            averaged=_MEANS | {"SSIM"},
            mi_base=2.0,
            psnr_unit=255.0,
            gradient_cells=True,
        ),
        Convention(
            "sane",
            "cddfuse with data range 255, the mean of the sources, and Qabf's equality fixed",
            _SANE,
            SsimWindow(7, None, 255.0, unbiased=True),
            averaged=_MEANS | {"MI", "VIF", "SSIM", "NMI"},
            qabf_equal=None,
        ),
    )
}
"""toolboxes by which people compare, and ``sane``; ``definitions`` has the words"""
