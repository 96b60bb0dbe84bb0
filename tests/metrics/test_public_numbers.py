"""Metrics against numbers that the public code printed for the same pictures.

MATLAB files ran in GNU Octave 7.3 with `mean2`, `blkproc`, `freqspace` and `fspecial`, which are of
packages it lacks, written out: VIFB (xingchenzhang/VIFB, 5d29ee7), Tang
(Linfeng-Tang/Evaluation-for-Image-Fusion), Liu (zhengliu6699/imageFusionMetrics, d6f7f1a). VF-Bench
(Zhaozixiang1228/VF-Bench, 2025-10-17) ran in PyTorch with the flow below in place of its network.
"""

from __future__ import annotations

import numpy as np
import pytest

from ddfm_fast import metrics
from ddfm_fast.metrics import vfbench


def pictures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw fused, infrared and visible [50, 67]: whole levels; some or all are flat in places."""
    y, x = np.indices((50, 67))
    grain = (31 * x + 17 * y + x * y) % 23
    ir = np.rint(120 + 60 * np.sin(x / 6) + 40 * np.cos(y / 5 + x / 17)) + grain % 7
    vis = np.rint(110 + 50 * np.cos(x / 9 - y / 4) + 35 * np.sin(y / 3)) + grain
    ir[:12, :15] = vis[:12, :15] = 0
    ir[30:40, 50:] = 10
    vis[30:45, 45:] = 20
    return np.rint(0.6 * ir + 0.4 * vis), ir, vis


FAST_FMI = {"FMI-pixel": 0.463791190695, "FMI-gradient": 0.490782470785}
"""`analysis_fmi` of Tang's toolbox, with the features 'none' and 'gradient'"""

PUBLIC = {
    "vifb": {
        "EN": 6.8351225898,
        "SF": 18.1846334998,
        "AG": 6.23644225458,
        "MI": 4.62286464156,
        "Qabf": 0.408895323903,
        "SSIM": 1.28125979495,
        "PSNR": 50.3253133298,
        "MSE": 0.603321813615,
        "NMI": 0.951904431172,  # Liu's metricMI, which MEFB took over
        "Qcb": 0.534585354122,
        "Qcv": 161.943769408,
    },
    "tang": {
        "SD": 47.9422061886939,
        "SF": 18.3478579386,
        "AG": 6.23644225458,
        "VIF": 0.386830230581,
        "Qabf": 0.408895323903,
        "CC": 0.791754867204,
        "PSNR": 65.2300297659,
        "MSE": 0.0195019206161,
        **FAST_FMI,
    },
}
QABF = 3e-8  # ours is in float32, as the evaluator of CDDFuse


@pytest.mark.parametrize("convention", PUBLIC)
def test_the_toolboxes_numbers(convention):
    expected = PUBLIC[convention]
    found = metrics.compute(*pictures(), convention=convention, names=expected)
    for name, value in expected.items():
        tolerance = QABF if name == "Qabf" else 1e-10
        assert float(found[name]) == pytest.approx(value, rel=tolerance), name


def test_one_source_twice_is_that_sources_score():
    """Liu's code on (ir, ir) gives our score of ir alone in Q_CV and FMI."""
    found = metrics.compute(*pictures(), names=["Qcv", "FMI-pixel"])
    assert float(found["Qcv_ir"]) == pytest.approx(62.9727671284, rel=1e-10)
    assert float(found["FMI-pixel_ir"]) == pytest.approx(0.491712158152, rel=1e-10)
    fused, ir, _ = pictures()
    twice = metrics.compute(fused, ir, ir, names=["Qcb"])
    assert float(twice["Qcb"]) == pytest.approx(0.535175930814, rel=1e-10)


def clip(phase: float) -> np.ndarray:
    y, x = np.indices((40, 56))
    waves = [
        70 * np.sin(x / 5 + phase + 0.3 * t) + 40 * np.cos(y / 4 - phase * t / 3) for t in range(5)
    ]
    return np.rint(127 + np.stack(waves))


def made_up_flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Make a flow of the levels alone, equal on any machine; it leaves some pixels unseen."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.stack([(b - a) / 40, (b - a) / 60 + np.sin(a / 30) / 1.2], -1)


def test_vf_benchs_numbers():
    ir, vis = clip(0.5), clip(1.7)
    found = vfbench.compute(np.rint((2 * ir + vis) / 3), ir, vis, flow=made_up_flow)
    assert list(found) == list(vfbench.NAMES)
    biswe = [28.258975982666016, 26.54971694946289, 23.42045783996582]
    ms2r = [0.190211683511734, 0.20186308026313782, 0.2130119800567627]
    assert found["BiSWE"].tolist() == pytest.approx(biswe, rel=1e-6)  # theirs is float32
    assert found["MS2R"].tolist() == pytest.approx(ms2r, rel=1e-6)


def test_vf_benchs_measures_are_zero_where_nothing_changes_and_see_flicker():
    still = np.repeat(clip(0.5)[:1], 4, 0)
    found = vfbench.compute(still, still, still)
    assert found["BiSWE"].shape == (2,) and float(found["BiSWE"].max()) < 1e-10
    assert not found["MS2R"].any()
    moving = clip(0.5) * 0.9
    light = np.array([0, 20, 0, 20, 0])[:, None, None]
    steady, flicker = (vfbench.compute(v, moving, moving) for v in (moving, moving + light))
    assert float(steady["MS2R"].max()) == 0
    assert float(flicker["BiSWE"].mean()) > float(steady["BiSWE"].mean()) + 20


def test_vf_benchs_measures_refuse_what_they_cannot_score():
    frames = clip(0.5)
    with pytest.raises(ValueError, match="fewer than 3"):
        vfbench.compute(*[frames[:2]] * 3)
    with pytest.raises(ValueError, match=r"flow: gave shape \(40, 56\), expected \(40, 56, 2\)"):
        vfbench.compute(frames, frames, frames, flow=lambda a, b: a)
