"""The metrics against the community's recorded numbers, plain oracles and public libraries."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import shared

from ddfm_fast import metrics
from ddfm_fast.files.reading import read_image
from ddfm_fast.metrics.conventions import LOWER, ON_REQUEST, WEIGHTED

SIX = ("EN", "SD", "MI", "VIF", "Qabf", "SSIM")
ALL = [name for name in metrics.NAMES if name not in WEIGHTED]
TWO_SOURCES = [name for name in ALL if name not in metrics.SINGLE]


def triple(height: int = 64, width: int = 80, seed: int = 0) -> list[np.ndarray]:
    """Draw fused, infrared and visible: float64 whole gray levels with some texture."""
    rng = np.random.default_rng(seed)
    blocks = rng.uniform(0, 255, (2, -(-height // 8), -(-width // 8)))
    ir, vis = np.kron(blocks, np.ones((8, 8)))[:, :height, :width]
    ir, vis = (np.clip(p + 6 * rng.standard_normal(p.shape), 0, 255).round() for p in (ir, vis))
    fused = np.clip(0.6 * ir + 0.4 * vis + 2 * rng.standard_normal(ir.shape), 0, 255).round()
    return [fused, ir, vis]


def values(scores: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items()}


def test_golden_of_the_community_evaluator():
    golden = json.loads(shared("golden/metrics_cddfuse.json").read_text())
    assert len(golden) == 32
    for row, expected in golden.items():
        ir_path, vis_path, rule = row.split("|")
        ir, vis = (
            metrics.to_luma(read_image(shared("data") / path)) for path in (ir_path, vis_path)
        )
        fused = torch.maximum(ir, vis) if rule == "max" else ((ir + vis) / 2).round()
        scores = values(metrics.compute(fused, ir, vis, names=SIX))
        sane = values(metrics.compute(fused, ir, vis, convention="sane", names=["SSIM"]))
        scores["SSIM_data_range_2"] = scores["SSIM"]
        scores["SSIM_data_range_255"] = 2 * sane["SSIM"]
        for name, value in expected.items():
            assert scores[name] == pytest.approx(value, rel=1e-4), (row, name)
        assert metrics.near_copy(fused, ir, vis) is None, row


def test_numpy_transcription_agrees():
    pytest.importorskip("scipy")
    from bench.metrics import baseline

    images = triple()
    scores = values(metrics.compute(*images, names=SIX))
    for name, value in baseline(*(p.astype(np.float32) for p in images)).items():
        assert scores[name] == pytest.approx(value, rel=2e-5), name


def test_plain_formulas():
    f, a, b = triple(48, 61)
    scores = values(metrics.compute(f, a, b))
    squares = np.mean(np.diff(f, axis=1) ** 2), np.mean(np.diff(f, axis=0) ** 2)
    assert scores["SD"] == pytest.approx(f.std())
    assert scores["SF"] == pytest.approx(math.sqrt(sum(squares)))
    gradient = np.gradient(f)
    assert scores["AG"] == pytest.approx(np.mean(np.hypot(*gradient)) / math.sqrt(2))
    cc = [np.corrcoef(f.ravel(), s.ravel())[0, 1] for s in (a, b)]
    assert [scores["CC_ir"], scores["CC_vis"]] == pytest.approx(cc)
    assert scores["CC"] == pytest.approx(np.mean(cc))
    differences = [
        np.corrcoef(a.ravel(), (f - b).ravel())[0, 1],
        np.corrcoef(b.ravel(), (f - a).ravel())[0, 1],
    ]
    assert [scores["SCD_ir"], scores["SCD_vis"]] == pytest.approx(differences)
    assert scores["SCD"] == pytest.approx(sum(differences))
    errors = [np.mean((f - s) ** 2) for s in (a, b)]
    assert scores["PSNR"] == pytest.approx(10 * math.log10(f.max() ** 2 / np.mean(errors)))
    assert scores["PSNR_ir"] == pytest.approx(10 * math.log10(f.max() ** 2 / errors[0]))


def test_convention_differences():
    f, a, b = triple(48, 61)
    by_convention = {p: values(metrics.compute(f, a, b, convention=p)) for p in metrics.CONVENTIONS}
    base, vifb, tang, sane = (by_convention[p] for p in ("cddfuse", "vifb", "tang", "sane"))
    pixels, cells = 48 * 61, 47 * 60
    assert vifb["AG"] == pytest.approx(base["AG"] * pixels / cells)
    rows, columns = np.diff(f, axis=0), np.diff(f, axis=1)
    total = np.sum(rows**2) + np.sum(columns**2)
    assert vifb["SF"] == pytest.approx(math.sqrt(total / pixels))
    roots = [math.sqrt(np.sum((f - s) ** 2)) / pixels for s in (a, b)]
    assert vifb["PSNR"] == pytest.approx(10 * math.log10(255**2 / np.mean(roots)))
    assert tang["MI"] == pytest.approx(base["MI"] / math.log(2))
    usual = 10 * math.log10(255**2 / np.mean([np.mean((f - s) ** 2) for s in (a, b)]))
    assert tang["PSNR"] == pytest.approx(usual + 20 * math.log10(255))
    assert sane["PSNR"] == pytest.approx(usual)
    for name in ("MI", "VIF"):
        assert sane[name] == pytest.approx(base[name] / 2)
    for name in ("SSIM", "MI", "VIF"):
        assert sane[name] == pytest.approx((sane[f"{name}_ir"] + sane[f"{name}_vis"]) / 2)
        assert base[name] == pytest.approx(base[f"{name}_ir"] + base[f"{name}_vis"])


def test_vifb_floors_and_rescales():
    f, a, b = (p * 0.5 + 20.7 for p in triple(48, 61))
    vifb = values(metrics.compute(f, a, b, convention="vifb", names=["EN", "MI"]))
    share = np.bincount(np.floor(f).astype(int).ravel()) / f.size
    share = share[share > 0]
    assert vifb["EN"] == pytest.approx(-np.sum(share * np.log2(share)))
    stretched = [(p - p.min()) / (p.max() - p.min()) * 255 for p in (f, a, b)]
    stretched = [np.floor(p + 0.5) for p in stretched]
    plain = values(metrics.compute(*stretched, names=["MI"]))
    assert vifb["MI"] == pytest.approx(plain["MI"])


def test_qabf_of_an_identical_image():
    """A perfect copy keeps every edge: the ratio of equal gradients is 1, and sane says so."""
    _, a, _ = triple()
    limit = 0.9994 / (1 + math.exp(-7.5)) * 0.9879 / (1 + math.exp(-4.4))
    scores = values(metrics.compute(a, a, a, convention="sane", names=["Qabf"]))
    assert scores["Qabf"] == pytest.approx(limit, rel=1e-6)


def test_qabf_conventions_differ_only_where_gradients_are_equal():
    """Gradients below one half are where taking g for the ratio of equals costs most."""
    faint = 100 + 0.05 * np.add.outer(np.arange(32), np.arange(32)) / 2
    faint[[0, -1]] = faint[:, [0, -1]] = 0
    scores = {
        p: values(metrics.compute(faint, faint, faint, convention=p, names=["Qabf"]))["Qabf"]
        for p in metrics.CONVENTIONS
    }
    assert scores["cddfuse"] == scores["tang"] < scores["sane"]
    assert scores["cddfuse"] < scores["vifb"]


def test_scikit_image():
    similarity = pytest.importorskip("skimage.metrics").structural_similarity
    shannon = pytest.importorskip("skimage.measure").shannon_entropy
    f, a, b = triple()
    sane = values(metrics.compute(f, a, b, convention="sane", names=["SSIM", "EN", "PSNR"]))
    assert sane["SSIM_ir"] == pytest.approx(similarity(f, a, data_range=255), rel=1e-9)
    assert sane["SSIM_vis"] == pytest.approx(similarity(f, b, data_range=255), rel=1e-9)
    assert sane["EN"] == pytest.approx(shannon(f.astype(np.uint8)), rel=1e-9)
    base = values(metrics.compute(f, a, b, names=["SSIM"]))
    assert base["SSIM_ir"] == pytest.approx(similarity(f, a, data_range=2), rel=1e-9)
    assert base["SSIM_ir"] != pytest.approx(sane["SSIM_ir"], rel=1e-3)


def test_gaussian_ssim_of_scikit_image_and_matlabs_edges():
    similarity = pytest.importorskip("skimage.metrics").structural_similarity
    f, a, b = triple()
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    vifb = values(metrics.compute(f, a, b, convention="vifb", names=["SSIM"]))
    expected = similarity(f, a, data_range=255, **options)
    assert vifb["SSIM_ir"] == pytest.approx(expected, rel=1e-9)
    tang = values(metrics.compute(f, a, b, convention="tang", names=["SSIM"]))
    padded = [np.pad(p, 5, mode="edge") for p in (f, a)]
    assert tang["SSIM_ir"] == pytest.approx(similarity(*padded, data_range=1, **options), rel=1e-9)
    assert tang["SSIM"] == pytest.approx((tang["SSIM_ir"] + tang["SSIM_vis"]) / 2)


def test_scikit_learn():
    score = pytest.importorskip("sklearn.metrics").mutual_info_score
    f, a, b = triple()
    scores = values(metrics.compute(f, a, b, names=["MI"]))
    assert scores["MI_ir"] == pytest.approx(score(f.ravel(), a.ravel()), rel=1e-9)
    assert scores["MI_vis"] == pytest.approx(score(f.ravel(), b.ravel()), rel=1e-9)


def test_scikit_learns_normalized_information():
    score = pytest.importorskip("sklearn.metrics").normalized_mutual_info_score
    f, a, b = triple()
    expected = [score(f.ravel(), s.ravel()) for s in (a, b)]
    scores = values(metrics.compute(f, a, b, names=["NMI"]))
    assert [scores["NMI_ir"], scores["NMI_vis"]] == pytest.approx(expected, rel=1e-9)
    assert scores["NMI"] == pytest.approx(sum(expected), rel=1e-9)


MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def pyramid(plane: np.ndarray) -> list[np.ndarray]:
    """Return five scales, each of 2 × 2 averages of the previous one; an odd end is lost."""
    scales = [plane]
    for _ in MS_SSIM_WEIGHTS[1:]:
        height, width = (n // 2 for n in plane.shape)
        plane = plane[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3))
        scales.append(plane)
    return scales


def gaussian_ssim(x: np.ndarray, y: np.ndarray, **options) -> float:
    from skimage.metrics import structural_similarity

    options = dict(data_range=255, use_sample_covariance=False, sigma=1.5) | options
    return structural_similarity(x, y, gaussian_weights=True, **options)


def test_multi_scale_ssim_from_scikit_images_ssim():
    """A vast K1 makes the luminance factor 1 and leaves the contrast and structure."""
    pytest.importorskip("skimage")
    f, a, _ = triple(176, 181)
    scales = list(zip(pyramid(f), pyramid(a), strict=True))
    parts = [gaussian_ssim(x, y, K1=1e6) for x, y in scales[:-1]] + [gaussian_ssim(*scales[-1])]
    expected = math.prod(p**w for p, w in zip(parts, MS_SSIM_WEIGHTS, strict=True))
    scores = values(metrics.compute(f, a, a, names=["MS-SSIM"]))
    assert scores["MS-SSIM_ir"] == pytest.approx(expected, rel=1e-8)
    assert scores["MS-SSIM"] == pytest.approx(expected, rel=1e-8)


def test_torchmetrics():
    """torchmetrics' last scale of MS-SSIM reflects the edges; the other four scales are Wang's."""
    image = pytest.importorskip("torchmetrics.functional.image")
    planes = triple(192, 240)
    scores = values(metrics.compute(*planes, names=["VIF", "MS-SSIM"]))
    f, *sources = (torch.from_numpy(p)[None, None] for p in planes)
    for name, source in zip(("ir", "vis"), sources, strict=True):
        vif = image.visual_information_fidelity(f, source, sigma_n_sq=2.0)
        assert scores[f"VIF_{name}"] == pytest.approx(float(vif), rel=1e-9)
        theirs = image.multiscale_structural_similarity_index_measure(f, source, data_range=255.0)
        last = [pyramid(p[0, 0].numpy())[-1] for p in (f, source)]
        reflected = gaussian_ssim(*(np.pad(p, 5, mode="reflect") for p in last))
        ours = scores[f"MS-SSIM_{name}"] * (reflected / gaussian_ssim(*last)) ** MS_SSIM_WEIGHTS[-1]
        assert ours == pytest.approx(float(theirs), rel=1e-6)


def test_keys_and_worse_source():
    scores = metrics.compute(*triple(176, 176), names=ALL)
    expected = []
    for name in ALL:
        expected.append(name)
        if name in TWO_SOURCES:
            worse = f"{name}_max" if name in LOWER else f"{name}_min"
            expected += [f"{name}_ir", f"{name}_vis", worse]
    assert list(scores) == expected
    assert all(v.shape == (1,) and v.dtype == torch.float64 for v in scores.values())
    for name in TWO_SOURCES:
        pair = scores[f"{name}_ir"], scores[f"{name}_vis"]
        if name in LOWER:
            assert torch.equal(scores[f"{name}_max"], torch.maximum(*pair))
        else:
            assert torch.equal(scores[f"{name}_min"], torch.minimum(*pair))
        assert pair[0] != pair[1]


def test_swapping_the_sources_swaps_their_scores():
    f, a, b = triple()
    names = [n for n in TWO_SOURCES if metrics.smallest_size(n) <= 64]
    one, two = (metrics.compute(f, *sources, names=names) for sources in ((a, b), (b, a)))
    for name in names:
        assert float(one[f"{name}_ir"]) == float(two[f"{name}_vis"])
        assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-12)


@pytest.mark.parametrize("convention", metrics.CONVENTIONS)
def test_a_batch_gives_each_image_what_it_gets_alone(convention):
    batch = [np.stack(planes) for planes in zip(*(triple(seed=s) for s in range(3)), strict=True)]
    names = [n for n in ALL if metrics.smallest_size(n) <= 64]
    together = metrics.compute(*batch, convention=convention, names=names)
    for index in range(3):
        alone = metrics.compute(*(p[index] for p in batch), convention=convention, names=names)
        for name, value in alone.items():
            assert torch.equal(together[name][index : index + 1], value), name


def test_rows_cut_into_strips_do_not_change_the_sums(monkeypatch):
    images = triple(176, 181)
    whole = values(metrics.compute(*images, names=ALL))
    monkeypatch.setattr("ddfm_fast.metrics.measures._STRIP_PIXELS", 1)
    assert values(metrics.compute(*images, names=ALL)) == pytest.approx(whole, rel=1e-12)


def test_containers_and_dtypes_agree():
    images = triple()
    expected = values(metrics.compute(*images))
    kinds = [
        lambda p: p.astype(np.uint8),
        lambda p: p.astype(np.float32)[None],
        lambda p: p.astype(">f4"),
        lambda p: torch.from_numpy(p)[None, None],
        lambda p: torch.from_numpy(p).to(torch.uint8),
        lambda p: np.ascontiguousarray(p[::-1])[::-1],
        lambda p: torch.from_numpy(p.T.copy()).T,
    ]
    for kind in kinds:
        assert values(metrics.compute(*(kind(p) for p in images))) == expected


def test_inputs_are_left_alone():
    images = triple()
    copies = [p.copy() for p in images]
    metrics.compute(*images)
    metrics.near_copy(*images)
    assert all(np.array_equal(p, c) for p, c in zip(images, copies, strict=True))


@pytest.mark.parametrize("convention", metrics.CONVENTIONS)
@pytest.mark.parametrize("levels", [(0, 0, 0), (255, 255, 255), (90, 90, 12), (100.3, 7.7, 0)])
def test_flat_images_score_finite(convention, levels):
    flat = [np.full((41, 48), level, np.float64) for level in levels]
    names = [n for n in ALL if metrics.smallest_size(n) <= 41]
    scores = values(metrics.compute(*flat, convention=convention, names=names))
    assert all(math.isfinite(v) for v in scores.values())
    assert scores["Qcb"] == scores["FMI-pixel"] == 1 and scores["Qcv"] == scores["NMI"] == 0
    assert scores["EN"] == scores["MI"] == scores["CC"] == scores["SCD"] == 0
    assert scores["SD"] == pytest.approx(0, abs=1e-12)
    assert scores["VIF_min"] == 1


def test_one_flat_source_and_a_perfect_copy():
    _, a, _ = triple()
    scores = values(metrics.compute(a, a, np.zeros_like(a)))
    assert scores["VIF_ir"] == pytest.approx(1, abs=1e-6) and scores["VIF_vis"] == 1
    assert scores["PSNR_ir"] == 100 and scores["SSIM_ir"] == pytest.approx(1)
    assert scores["MI_ir"] == pytest.approx(scores["EN"] * math.log(2)) and scores["MI_vis"] == 0
    assert scores["CC_vis"] == 0
    assert metrics.near_copy(a, a, np.zeros_like(a)) == "ir"


def test_names_choose_and_sizes_limit():
    images = triple()
    chosen = metrics.compute(*images, names=["SD", "EN"])
    assert list(chosen) == ["EN", "SD"]
    assert not set(ON_REQUEST) & set(metrics.compute(*images))
    tiny = metrics.compute(*triple(16, 40))
    assert "VIF" not in tiny and "SSIM" in tiny and "MS-SSIM" not in tiny
    assert "VIF" in metrics.compute(*triple(41, 41))
    with pytest.raises(ValueError, match="VIF needs at least 41 pixels a side.* have 40"):
        metrics.compute(*triple(64, 40), names=["VIF"])
    with pytest.raises(ValueError, match="MS-SSIM needs at least 176.*--extra"):
        metrics.compute(*triple(175, 200), names=["MS-SSIM"])
    assert metrics.smallest_size("VIF") == 41 and metrics.smallest_size("EN") == 16


def test_every_convention_defines_every_metric_in_words():
    assert list(metrics.CONVENTIONS) == ["cddfuse", "vifb", "tang", "sane"]
    for convention in metrics.CONVENTIONS.values():
        assert tuple(convention.definitions) == metrics.NAMES
        assert all(len(text) > 20 for text in convention.definitions.values())


def broken(change) -> list[np.ndarray]:
    images = triple(32, 32)
    return change(*images)


def with_value(value: float):
    def change(f, a, b):
        a[3, 4] = value
        return [f, a, b]

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f, a, b: [f, a[1:], b], ValueError, r"ir: got shape \(31, 32\).*fused"),
        (lambda f, a, b: [f, a, b[None]], ValueError, r"vis: got shape \(1, 32, 32\)"),
        (lambda f, a, b: [f[:15], a[:15], b[:15]], ValueError, "fused: got 15x32 pixels"),
        (lambda f, a, b: [np.stack([p] * 3, -1)[None] for p in (f, a, b)], ValueError, "to_luma"),
        (lambda f, a, b: [p[None][:0] for p in (f, a, b)], ValueError, "at least one image"),
        (lambda f, a, b: [f.ravel(), a.ravel(), b.ravel()], ValueError, r"\[H, W\]"),
        (with_value(math.nan), ValueError, "ir: has NaN"),
        (with_value(math.inf), ValueError, "ir: has NaN or infinite"),
        (with_value(-1), ValueError, "ir: values reach from -1 to .*0..255"),
        (with_value(256), ValueError, "ir: values reach from .* to 256"),
        (lambda f, a, b: [f / 255, a, b], ValueError, "fused: .*range 0..1.*multiply by 255"),
        (lambda f, a, b: [f, a, b.astype(np.uint16)], TypeError, "vis: got dtype uint16.*to_luma"),
        (lambda f, a, b: [f, torch.ones(32, 32).long(), b], TypeError, "ir: got dtype torch.int64"),
        (lambda f, a, b: [f.tolist(), a, b], TypeError, "fused: got list"),
    ],
)
def test_bad_images_are_refused(change, error, message):
    images = broken(change)
    for function in (metrics.compute, metrics.near_copy):
        with pytest.raises(error, match=message):
            function(*images)


def test_bad_choices_are_refused():
    images = triple(32, 32)
    with pytest.raises(ValueError, match="convention: got 'matlab', expected one of cddfuse"):
        metrics.compute(*images, convention="matlab")
    with pytest.raises(ValueError, match="names: 'Q' unknown"):
        metrics.compute(*images, names=["Q", "EN"])
    with pytest.raises(TypeError, match=r"names: got the string 'EN'.*\['EN'\]"):
        metrics.compute(*images, names="EN")
    with pytest.raises(ValueError, match="fused: got 2 images, expected one"):
        metrics.near_copy(*(np.stack([p, p]) for p in images))


def test_to_luma_is_the_evaluators():
    cv2 = pytest.importorskip("cv2")
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    luma = metrics.to_luma(rgb)
    bgr = np.ascontiguousarray(rgb[..., ::-1]).astype(np.float32)
    assert luma.dtype == torch.float64
    assert np.array_equal(luma.numpy(), np.round(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)))
    gray = rgb[..., 0]
    assert np.array_equal(metrics.to_luma(gray).numpy(), gray)
    assert np.array_equal(metrics.to_luma(np.stack([gray] * 3, -1)).numpy(), gray)
    wide = gray.astype(np.uint16) * 257
    assert np.array_equal(metrics.to_luma(wide).numpy(), gray)
    assert np.array_equal(metrics.to_luma(wide + np.uint16(0)).numpy(), gray)
    assert metrics.to_luma(np.full((16, 16), 65535 // 3, np.uint16)).unique().tolist() == [85]
    for bad, error in ((rgb[..., :2], ValueError), (gray / 255, TypeError), ([1], TypeError)):
        with pytest.raises(error, match="image: got"):
            metrics.to_luma(bad)


def corrupted(plane: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(plane.shape, generator=torch.Generator().manual_seed(1))
    return (255 * (plane / 255) ** 1.1 + 2 * noise).clamp(0, 255).round()


def test_near_copy_on_real_pairs():
    data = shared("data")
    pairs = [(ir, data / "ivf/vi" / ir.name) for ir in sorted((data / "ivf/ir").iterdir())]
    for group in sorted((data / "mif").iterdir()):
        mri, other = group / "MRI", group / group.name.split("_")[1]
        pairs += [(path, other / path.name) for path in sorted(mri.iterdir())]
    assert len(pairs) == 16
    for paths in pairs:
        ir, vis = (metrics.to_luma(read_image(path)) for path in paths)
        assert metrics.near_copy((ir + vis) / 2, ir, vis) is None
        assert metrics.near_copy(torch.maximum(ir, vis), ir, vis) is None
        for name, source in (("ir", ir), ("vis", vis)):
            assert metrics.near_copy(source, ir, vis) == name
            assert metrics.near_copy(corrupted(source), ir, vis) == name
            assert metrics.near_copy(0.7 * source + 20, ir, vis) == name
            assert metrics.near_copy(255 - source, ir, vis) is None


def test_near_copy_needs_two_sources_that_differ():
    _, a, b = triple()
    assert metrics.near_copy(a, a, a) is None
    assert metrics.near_copy(b, a, b) == "vis"
    assert metrics.near_copy(np.full_like(a, 40), a, b) is None


@pytest.mark.gpu
def test_cuda_agrees():
    batch = [np.stack(p) for p in zip(*(triple(176, 181, s) for s in range(3)), strict=True)]
    for convention in metrics.CONVENTIONS:
        options = {"convention": convention, "names": ALL}
        expected = metrics.compute(*batch, **options)
        scores = metrics.compute(*(torch.from_numpy(p).cuda() for p in batch), **options)
        for name, value in expected.items():
            assert scores[name].is_cuda
            torch.testing.assert_close(scores[name].cpu(), value, rtol=1e-5, atol=1e-7)
