"""Frames to the device and back; the GPU half skips without one and has not run on one yet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clips import pan, quick_fuser, read_clip

from ddfm_fast.api import Fuser
from ddfm_fast.images.pixels import Pixels
from ddfm_fast.runtime.transfer import Transfer, copy_each_, fetched, stacked
from ddfm_fast.video import fuse_video


def test_on_the_cpu_nothing_is_copied():
    image, other = np.zeros((2, 16, 16), np.uint8)
    found = Pixels(torch.device("cpu")).ahead(image, other)
    assert found[0] is image and found[1] is other


@pytest.mark.gpu
@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_round_trip(dtype, aside):
    transfer = Transfer(torch.device("cuda"))
    rng = np.random.default_rng(0)
    for _ in range(20):
        a = torch.from_numpy(rng.integers(0, 255, (48, 65, 3))).to(dtype)
        b = torch.from_numpy(rng.integers(0, 255, (31, 17))).to(dtype).T
        sent = transfer.upload(a, b, aside=aside).tensors()
        for image, tensor in zip((a, b), sent, strict=True):
            assert tensor.is_cuda and tensor.dtype == dtype
            assert torch.equal(transfer.download(tensor.contiguous()).tensor(), image)


@pytest.mark.gpu
def test_video_equals_the_cpu(tmp_path):
    ir, vis = pan(8, 1), pan(8, 2, channels=3)
    for name, fuser in (("cpu", quick_fuser()), ("cuda", Fuser(prior=quick_fuser().prior))):
        out = tmp_path / f"{name}.mkv"
        fuse_video(ir, vis, out, fuser=fuser, preset="realtime", codec="ffv1")
    frames = [read_clip(tmp_path / f"{name}.mkv")[0] for name in ("cpu", "cuda")]
    assert np.abs(np.subtract(*np.stack(frames).astype(int))).max() <= 2


@pytest.mark.gpu
def test_memory_on_the_device_is_flat():
    fuser = Fuser(prior=quick_fuser().prior, device="cuda")
    pairs = list(zip(pan(20, 1), pan(20, 2, channels=3), strict=True))
    seen = []
    for n, _ in enumerate(fuser.stream((pairs[n % 20] for n in range(400)), preset="realtime")):
        if n in (100, 399):
            seen.append(torch.cuda.memory_allocated())
    assert seen[1] <= seen[0] * 1.05


def test_two_tensors_in_one_storage_are_one():
    both = torch.rand(2, 1, 1, 20, 24)
    first, second = both
    assert torch.equal(stacked(first, second), both)
    assert stacked(first, second).data_ptr() == both.data_ptr()
    cropped = stacked(first[..., :16, :20], second[..., :16, :20])
    assert torch.equal(cropped, both[..., :16, :20])
    assert torch.equal(stacked(first, first), torch.stack([first, first]))
    for others in [
        (second, first),
        (first, second.clone()),
        (first, second[..., :16, :]),
        (first,),
    ]:
        assert stacked(*others) is None
    targets = torch.zeros(2, 1, 1, 20, 24)
    copy_each_(targets.unbind(), (first, second.clone()))
    assert torch.equal(targets, both)
    copy_each_(targets.unbind(), (second, second))
    assert torch.equal(targets[0], second) and torch.equal(targets[1], second)
    assert fetched(first, second)[1] is second, "on the host as they are"
