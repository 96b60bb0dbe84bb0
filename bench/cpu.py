"""The two CPU benchmarks: a step after the prior, and a whole loop with a small ADM prior."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.reference import ReferenceLoop, ReferenceUNet, em_initial
from bench.timing import interleave, summarise
from ddfm_fast.config import FuseConfig
from ddfm_fast.priors import load_prior
from ddfm_fast.priors.unet import UNet, UNetConfig
from ddfm_fast.rectify import Rectifier
from ddfm_fast.sampler import sample
from ddfm_fast.schedule import make_schedule, step_rows

SMALL_ADM = dict(
    in_channels=3,
    model_channels=32,
    out_channels=6,
    num_res_blocks=1,
    attention_resolutions=(4, 8),
    channel_mult=(1, 2, 2, 4),
    num_head_channels=32,
    use_scale_shift_norm=True,
    resblock_updown=True,
)
"""the architecture of the small ADM UNet in the test data"""

PARITY = 2e-3


def small_adm() -> UNet:
    """The small ADM with random (seeded) weights, since only the cost matters."""
    torch.manual_seed(0)
    unet = UNet(UNetConfig(**SMALL_ADM)).eval().requires_grad_(False)
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return unet


def sources(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Smooth random luma planes [1, 1, H, W] in [−1, 1]."""
    coarse = torch.rand(2, 1, 12, 15, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return fine[:1], fine[1:]


def step(height: int, width: int, repeats: int) -> dict:
    """Everything between the prior's output and x_{t-1}, per step, float32."""
    i, v = sources(height, width)
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(1, 3, height, width, generator=generator)
    out = torch.cat([torch.randn(x_t.shape, generator=generator), 0.1 * x_t], 1)
    schedule = make_schedule(100)
    loop = ReferenceLoop(schedule.timesteps, schedule.betas)
    rows = step_rows(schedule, "ddim")
    rectifier, theirs, ours = Rectifier(i, v, rows=rows), em_initial(i), x_t.clone()
    reference = {"x": x_t, "state": theirs}

    def reference_step(index: int = 60) -> Tensor:
        t = torch.tensor([index])
        reference["x"], reference["state"] = loop.after_prior(
            reference["x"], t, out, i, v, reference["state"], 0.5, 0.001
        )
        return reference["x"]

    def our_step(index: int = 60) -> Tensor:
        rectifier.step = len(rows) - 1 - index
        return rectifier.step_(ours, out)

    worst = max(
        float((reference_step(index) - our_step(index)).abs().max()) for index in range(99, 89, -1)
    )
    _require_parity("step", worst)
    samples = interleave({"reference": reference_step, "ddfm_fast": our_step}, repeats=repeats)
    return _result("step after the prior", height, width, 1, worst, samples)


def loop(height: int, width: int, steps: int, repeats: int) -> dict:
    """The whole official-preset loop with the same small ADM weights on both sides."""
    unet = small_adm()
    reference_unet = ReferenceUNet(unet.state_dict(), SMALL_ADM["num_head_channels"])
    prior = load_prior(unet, device="cpu")
    i, v = sources(height, width)
    schedule = make_schedule(steps)
    reference_loop = ReferenceLoop(schedule.timesteps, schedule.betas)
    x_T = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(3407))

    def reference() -> Tensor:
        return reference_loop(reference_unet, x_T, i, v)

    def ours() -> Tensor:
        return sample(prior, i, v, FuseConfig(steps=steps)).x0

    worst = float((reference() - ours()).abs().max())
    _require_parity("loop", worst)
    samples = interleave({"reference": reference, "ddfm_fast": ours}, repeats=repeats, warmup=0)
    return _result("whole loop, small ADM", height, width, steps, worst, samples)


def _require_parity(what: str, worst: float) -> None:
    if not worst <= PARITY:
        raise RuntimeError(
            f"{what}: ours and the reference differ by {worst:.1e}, more than {PARITY:.0e}; "
            "no speed-up is reported for a different result"
        )


def _result(name, height, width, steps, worst, samples) -> dict:
    return {
        "name": name,
        "height": height,
        "width": width,
        "steps": steps,
        "largest_difference": worst,
        "rows": summarise(samples, "reference"),
    }
