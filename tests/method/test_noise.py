"""Counter-based noise: the published words, the normal distribution, independence of the batch."""

import numpy as np
import pytest
import torch
from scipy import stats

from ddfm_fast.noise import box_muller, normals, philox

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    "counter, key, words",
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_words_of_the_papers_library(counter, key, words):
    """Known answers of Random123 for philox4x32-10."""
    assert tuple(int(w) for w in philox(counter, key)) == words


def test_deviates_are_standard_normal_and_uncorrelated():
    z = normals(torch.arange(8), 3, 128, 160, torch.float64)
    count = z.numel()
    assert abs(float(z.mean())) < 4 / count**0.5
    assert abs(float(z.var()) - 1) < 4 * (2 / count) ** 0.5
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    channels = z.transpose(0, 1).reshape(3, -1)
    neighbors = torch.stack([channels[0, :-1], channels[0, 1:]])
    for pairs in (channels, neighbors):
        off = torch.corrcoef(pairs) - torch.eye(len(pairs))
        assert float(off.abs().max()) < 4.5 * len(pairs) / count**0.5


def test_each_seed_step_and_pixel_has_its_own():
    one = normals(torch.tensor([7]), 0, 20, 30)
    for seed, step in [(8, 0), (7, 1), (7 + 2**32, 0), (7 + 2**40, 0)]:
        assert not torch.equal(normals(torch.tensor([seed]), step, 20, 30), one)
    assert len(one.unique()) > 0.999 * one.numel()


def test_an_image_gets_its_noise_whatever_it_is_batched_with():
    seeds = torch.tensor([3407, 5, 3407])
    together = normals(seeds, 4, 17, 31)
    assert torch.equal(together[0], together[2])
    for n in range(3):
        assert torch.equal(together[n : n + 1], normals(seeds[n : n + 1], 4, 17, 31))


def test_the_extremes_are_finite():
    words = torch.tensor([0, 1, 2**23, 2**30 - 1, 2**30, 2**31, 3 * 2**30, 2**32 - 1])
    radial, angular = (w.flatten() for w in torch.meshgrid(words, words, indexing="ij"))
    pair = torch.stack(box_muller(radial, angular, torch.float32))
    assert torch.isfinite(pair).all() and float(pair.abs().max()) < 5.8
    exact = torch.stack(box_muller(radial, angular, torch.float64))
    np.testing.assert_allclose(pair, exact, rtol=2e-6, atol=2e-6)
