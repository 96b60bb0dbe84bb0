"""Functional maps, such as PET, are distinguished from photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import shared

from ddfm_fast.files.reading import read_image
from ddfm_fast.images.kind import is_functional


def kind(image: np.ndarray) -> bool:
    return is_functional(torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None])[0]


def the_map(side: int = 128) -> np.ndarray:
    """Draw a hot disk in false color on black."""
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    heat = np.clip(1.2 - 3 * np.hypot(rows, columns), 0, 1)
    return (np.stack([heat, heat**2 * 0.6, 0.1 * heat], -1) * 255).round()


@pytest.mark.parametrize("sigma", [0, 2, 5, 10, 20])
def test_noise_on_the_ground_does_not_hide_a_map(sigma):
    noise = sigma * np.random.default_rng(0).standard_normal((128, 128, 3))
    assert kind(np.clip(the_map() + noise, 0, 255).round())


def test_gray_and_bright_ones_are_photographs():
    gray = np.repeat(the_map()[..., :1], 3, -1)
    assert not kind(gray) and not kind(the_map() * 0.5 + 40)
    assert is_functional(torch.rand(2, 1, 32, 32)) == [False, False]


@pytest.mark.parametrize("folder, wanted", [("PET", True), ("SPECT", True), ("CT", False)])
def test_shared_pictures(folder, wanted):
    root = shared(f"data/mif/MRI_{folder}/{folder}")
    images = [read_image(path) for path in sorted(root.iterdir())]
    colored = [np.repeat(i[..., None], 3, -1) if i.ndim == 2 else i for i in images]
    assert [kind(image) for image in colored] == [wanted] * len(images)
