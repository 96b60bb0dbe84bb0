"""Fusers, priors and the state of videos in other processes: with the same bytes."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import threading
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

import ddfm_fast
from ddfm_fast.method import Baseline, EMAlone
from ddfm_fast.priors.callable import CallablePrior
from ddfm_fast.priors.checkpoint import build_unet
from ddfm_fast.priors.load import EMBEDDED, load_prior
from ddfm_fast.priors.network import UNetPrior
from ddfm_fast.runtime.locks import ForkLock
from ddfm_fast.runtime.travel import sent_to
from ddfm_fast.video.motion import MotionFinder
from ddfm_fast.video.temporal import TemporalFuser

WAYS = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "oldest": lambda x: pickle.loads(pickle.dumps(x, 2)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}
if find_spec("cloudpickle"):
    import cloudpickle

    WAYS["cloudpickle"] = lambda x: pickle.loads(cloudpickle.dumps(x))


class Shrinks(nn.Module):
    """A prior of the user's, with a weight."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.25))

    def forward(self, x, t):
        return x * self.factor + t[:, None, None, None] * 1e-4


def shrinks(x, t):
    return x * 0.25 + t[:, None, None, None] * 1e-4


def pair(seed: int = 0, size: tuple[int, int] = (48, 40)) -> tuple[np.ndarray, np.ndarray]:
    """Draw a noisy gray picture and a noisy color one, so that the prior is evaluated."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    ir = 90 + 60 * np.sin(x / 7) + rng.normal(0, 12, size)
    vis = (120 + 50 * np.cos(y / 9))[..., None] + rng.normal(0, 12, (*size, 3))
    return ir.clip(0, 255).astype(np.uint8), vis.clip(0, 255).astype(np.uint8)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "prior.safetensors"
    path.write_bytes(EMBEDDED.read_bytes())
    return path


def assigned() -> ddfm_fast.Fuser:
    """Make a fuser that is no longer what its options say."""
    fuser = ddfm_fast.Fuser(preset="fast", seed=5)
    fuser.config = ddfm_fast.FuseConfig(steps=1)
    fuser.color = "ir"
    return fuser


MAKERS = {
    "default": lambda _: ddfm_fast.Fuser(),
    "steps": lambda _: ddfm_fast.Fuser(steps=2, seed=11, stretch="none", batch_size=2),
    "config": lambda _: ddfm_fast.Fuser(preset=ddfm_fast.FuseConfig(steps=1, sampler="ddpm")),
    "assigned": lambda _: assigned(),
    "path": lambda path: ddfm_fast.Fuser(prior=path, steps=1),
    "prior": lambda path: ddfm_fast.Fuser(prior=load_prior(path, {"multiple": 64}), steps=1),
    "bfloat16": lambda path: ddfm_fast.Fuser(prior=str(path), steps=1, dtype="bfloat16"),
    "module": lambda _: ddfm_fast.Fuser(prior=Shrinks(), steps=2),
    "function": lambda _: ddfm_fast.Fuser(prior=shrinks, steps=2),
    "network": lambda _: ddfm_fast.Fuser(prior=load_prior("embedded").unet, steps=1),
    "baseline": lambda _: ddfm_fast.Fuser(method=Baseline("max").of),
    "em": lambda _: ddfm_fast.Fuser(method=EMAlone, steps=2),
}


@pytest.mark.filterwarnings("ignore:dtype. this CPU has no bfloat16")
@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_fuser_arrives_with_its_settings_and_bytes(name, checkpoint):
    fuser = MAKERS[name](checkpoint)
    expected = fuser(*pair())
    for way in WAYS.values():
        there = way(fuser)
        assert type(there) is ddfm_fast.Fuser
        again = way(there)  # sent on before it was used
        for arrived in (there, again, way(there)):
            np.testing.assert_array_equal(arrived(*pair()), expected)
            for setting in ("config", "seed", "color", "batch_size", "automatic_batch", "progress"):
                assert getattr(arrived, setting) == getattr(fuser, setting), setting
            assert arrived.source_options == fuser.source_options
            assert arrived.prior.precision == fuser.prior.precision
            assert arrived.loops is not fuser.loops


def test_names_and_paths_travel_without_weights_and_are_loaded_when_used(checkpoint):
    for prior in ("embedded", checkpoint):
        fuser = ddfm_fast.Fuser(prior=prior)
        data = pickle.dumps(fuser)
        assert len(data) < 4000 < checkpoint.stat().st_size
        assert len(pickle.dumps(fuser.prior)) < 2000
        there = pickle.loads(data)
        assert "prior" not in vars(there)
        assert there.prior.fingerprint == fuser.prior.fingerprint
        assert "prior" in vars(there)
        with pytest.raises(AttributeError, match="no attribute 'sed'"):
            there.sed  # noqa: B018


def test_what_is_assigned_before_the_first_use_stays():
    there = pickle.loads(pickle.dumps(ddfm_fast.Fuser(preset="instant")))
    there.seed, there.config = 7, ddfm_fast.FuseConfig(steps=1)
    assert (there.seed, there.config.steps) == (7, 1)
    expected = ddfm_fast.Fuser(preset=ddfm_fast.FuseConfig(steps=1), seed=7)(*pair())
    np.testing.assert_array_equal(there(*pair()), expected)


def test_weights_made_in_memory_go_along():
    embedded = load_prior("embedded")
    weights = {k: v.flip(0).contiguous() for k, v in embedded.unet.state_dict().items()}
    prior = load_prior(build_unet(embedded.unet.config, weights))
    fuser = ddfm_fast.Fuser(prior=prior, steps=1)
    expected = fuser(*pair())
    for way in WAYS.values():
        np.testing.assert_array_equal(way(fuser)(*pair()), expected)
    copied = copy.deepcopy(prior)
    assert isinstance(copied, UNetPrior)
    assert copied.fingerprint == prior.fingerprint
    first = next(iter(copied.unet.parameters())).data_ptr()
    assert first != next(iter(prior.unet.parameters())).data_ptr()


def test_a_copied_module_is_another():
    module = Shrinks()
    prior = copy.deepcopy(CallablePrior(module))
    module.factor.data.fill_(9.0)
    assert prior.function.factor.item() == 0.25


@pytest.mark.filterwarnings("ignore:dtype. this CPU has no bfloat16")
def test_a_prior_that_was_rounded_travels_with_its_weights():
    rounded = load_prior("embedded", dtype="bfloat16").to(dtype="float32")
    arrived = pickle.loads(pickle.dumps(rounded))
    assert arrived.fingerprint == rounded.fingerprint != load_prior("embedded").fingerprint


def test_a_file_that_changed_is_refused(checkpoint):
    fuser = ddfm_fast.Fuser(prior=checkpoint)
    data, own = pickle.dumps(fuser), pickle.dumps(fuser.prior)
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"prior.safetensors' is not what was sent.*sha256"):
        pickle.loads(data).prior  # noqa: B018
    with pytest.raises(ValueError, match=r"is not what was sent by this path"):
        pickle.loads(own)
    with pytest.raises(ValueError, match=r"was changed after it was loaded"):
        pickle.dumps(fuser)
    checkpoint.unlink()
    with pytest.raises(ValueError, match=r"there is no .*prior.safetensors' here; .* put the file"):
        pickle.loads(data)(*pair())
    fuser(*pair())  # a loaded prior is not read again
    copy.deepcopy(fuser)(*pair())


def test_a_relative_path_is_found_from_elsewhere(checkpoint, monkeypatch, tmp_path):
    monkeypatch.chdir(checkpoint.parent)
    data = pickle.dumps(ddfm_fast.Fuser(prior=checkpoint.name))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert pickle.loads(data).prior.name == "prior"


def test_many_threads_use_a_fuser_that_has_just_arrived():
    there = pickle.loads(pickle.dumps(ddfm_fast.Fuser(preset="instant")))
    expected = ddfm_fast.Fuser(preset="instant")(*pair())
    found: list = []
    threads = [threading.Thread(target=lambda: found.append(there(*pair()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert all((one == expected).all() for one in found)


def test_another_device_is_named_on_the_way():
    fuser = ddfm_fast.Fuser(preset="instant")
    there = sent_to(fuser, "cuda")
    assert "device" not in vars(there)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda"):
            there.device  # noqa: B018
    assert sent_to(fuser, "cpu").device.type == "cpu"


def fused_there(fuser, prior, connection) -> None:
    torch.set_num_threads(1)
    noise = prior(torch.zeros(1, 3, 64, 64), 10)
    connection.send((fuser(*pair()), fuser.config, noise.numpy()))
    connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes(method, checkpoint):
    context = multiprocessing.get_context(method)
    fuser = ddfm_fast.Fuser(prior=checkpoint, steps=1)
    expected = fuser(*pair())
    here, there = context.Pipe()
    process = context.Process(target=fused_there, args=(fuser, fuser.prior, there))
    process.start()
    there.close()
    assert here.poll(120), "the child said nothing"
    fused, config, noise = here.recv()
    process.join(30)
    assert process.exitcode == 0
    np.testing.assert_array_equal(fused, expected)
    assert config == fuser.config
    np.testing.assert_array_equal(noise, fuser.prior(torch.zeros(1, 3, 64, 64), 10).numpy())


@pytest.mark.parametrize("way", WAYS)
def test_configurations(way):
    for config in (*ddfm_fast.PRESETS.values(), ddfm_fast.FuseConfig(denoise={"ir": 3})):
        arrived = WAYS[way](config)
        assert arrived == config and hash(arrived) == hash(config)
        assert arrived.summary == config.summary


@pytest.mark.parametrize("preset", ["balanced", "realtime", "exact"])
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_a_video_goes_on_elsewhere(preset, way):
    """Frames 0 to 2 here and 3 to 5 there are the frames of one run."""
    frames = [pair(n % 2) for n in range(6)]
    temporal, find = TemporalFuser(ddfm_fast.Fuser(steps=1), preset), MotionFinder()
    stream = temporal.open()
    whole = [temporal.fuse(stream, *frame, find(*frame)) for frame in frames]

    temporal, find = TemporalFuser(ddfm_fast.Fuser(steps=1), preset), MotionFinder()
    stream, found = temporal.open(), []
    for n, frame in enumerate(frames):
        if n == 3:
            temporal, stream, find = WAYS[way]((temporal, stream, find))
        found.append(temporal.fuse(stream, *frame, find(*frame)))
    np.testing.assert_array_equal(np.stack(found), np.stack(whole))
    assert temporal.found["ir"].frames == 6


def test_the_state_of_a_video_is_moved_to_the_device_of_its_frames():
    temporal, find = TemporalFuser(ddfm_fast.Fuser(preset="fast")), MotionFinder()
    stream = temporal.open()
    temporal.fuse(stream, *pair(), find(*pair()))
    there = pickle.loads(pickle.dumps(stream))
    assert there.kept.ir.device.type == "cpu" and not there.settled and stream.settled
    there.settle(torch.device("meta"))
    assert {plane.device.type for plane in (*there.kept, there.scale.limits)} == {"meta"}


def exit_code_of_child(work) -> int | None:
    """Fork, do the work in the child, and return its exit code; None if it hangs."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # kills the child that hangs
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_lock_of_another_thread_is_open_in_a_fork():
    lock, held, done = ForkLock(), threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            done.wait(120)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    try:
        assert exit_code_of_child(lock.__enter__) == 0
    finally:
        done.set()
        thread.join()
    with lock:  # the thread's own lock stays
        assert exit_code_of_child(lock.__exit__) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fuser_at_work_can_be_forked():
    fuser = ddfm_fast.Fuser(steps=1)
    expected, stop = fuser(*pair()), threading.Event()

    def fuse_on():
        while not stop.is_set():
            fuser(*pair())

    def fuse_once():
        np.testing.assert_array_equal(fuser(*pair()), expected)

    threads = [threading.Thread(target=fuse_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert [exit_code_of_child(fuse_once) for _ in range(4)] == [0] * 4
    finally:
        stop.set()
        for thread in threads:
            thread.join()
