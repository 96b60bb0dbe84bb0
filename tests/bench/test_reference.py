"""The benchmark's baseline computes what the authors' code computes."""

import json

import numpy as np
import pytest
import torch
from analytic import tanh_prior_with_variance
from conftest import shared

pytest.importorskip("skimage", reason="the baseline converts colors with scikit-image")

from bench.reference import ReferenceLoop, ReferenceUNet, em_initial, em_onestep
from ddfm_fast.schedule import make_schedule


@pytest.mark.parametrize("case", ["default", "strong_tv", "odd"])
def test_em_onestep(case):
    golden = np.load(shared("golden/em_onestep.npz"))
    i, v = (torch.tensor(golden[f"{case}/{name}"]) for name in "IV")
    state = em_initial(i)
    for call in range(6):
        f = torch.tensor(golden[f"{case}/{call}/f_in"])
        psi, eta = float(golden[f"{case}/lamb"]), float(golden[f"{case}/rho"])
        fused, state = em_onestep(f, i, v, state, psi, eta)
        for name in ("C", "D", "F1", "F2", "H"):
            wanted = golden[f"{case}/{call}/{name}"]
            assert abs(state[name].numpy() - wanted).max() < 2e-5 * abs(wanted).max()
        np.testing.assert_allclose(fused, golden[f"{case}/{call}/f_out"], atol=2e-5)


@pytest.mark.parametrize("case", ["s10", "s25_strong_tv", "s100"])
def test_loop(case):
    golden = np.load(shared("golden/ddim_loop.npz"))
    i, v, x = (torch.tensor(golden[f"{case}/{name}"]) for name in ("I", "V", "x_T"))
    schedule = make_schedule(int(golden[f"{case}/steps"]))
    loop = ReferenceLoop(schedule.timesteps, schedule.betas)
    psi, eta = float(golden[f"{case}/lamb"]), float(golden[f"{case}/rho"])
    got = loop(tanh_prior_with_variance, x, i, v, psi, eta)
    np.testing.assert_allclose(got, golden[f"{case}/x_0"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", ["b1", "b2_rect"])
def test_unet(case):
    from safetensors.torch import load_file

    io = np.load(shared("golden/adm_small_io.npz"))
    state = {k: t.float() for k, t in load_file(shared("golden/adm_small.safetensors")).items()}
    unet = ReferenceUNet(state, json.loads(str(io["config_json"]))["num_head_channels"])
    got = unet(torch.tensor(io[f"{case}/x"]), torch.tensor(io[f"{case}/t"]))
    np.testing.assert_allclose(got, io[f"{case}/out"], rtol=0, atol=1e-4)
