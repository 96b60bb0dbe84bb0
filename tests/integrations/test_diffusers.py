"""``DDFMPipeline`` in the diffusers library: loading, what a call gives, and its callbacks."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ddfm_fast import fuse

diffusers = pytest.importorskip("diffusers", reason="needs ddfm_fast[diffusers]")
pipelines = pytest.importorskip("ddfm_fast.integrations.diffusers")
DDFMPipeline = pipelines.DDFMPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An unconditional pipeline as diffusers saves it, with random weights."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=32, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("prior") / "tiny"
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipe(folder):
    made = DDFMPipeline.from_pretrained(folder, steps=3, device="cpu")
    made.set_progress_bar_config(disable=True)
    return made


def pictures(height=48, width=64) -> tuple[Image.Image, Image.Image]:
    rows, columns = np.mgrid[:height, :width]
    color = np.stack([5 * rows, 5 * rows, 200 - 3 * rows], -1)
    return Image.fromarray((3 * columns).astype(np.uint8)), Image.fromarray(color.astype(np.uint8))


def test_the_pictures_are_those_of_fuse(pipe, folder):
    ir, vis = pictures()
    expected = fuse(ir, vis, prior=folder, steps=3, device="cpu")
    out = pipe(ir, vis)
    assert isinstance(out, diffusers.ImagePipelineOutput) and len(out.images) == 1
    np.testing.assert_array_equal(np.asarray(out.images[0]), np.asarray(expected))
    assert pipe(ir, vis, return_dict=False)[0][0].tobytes() == expected.tobytes()
    gray = pipe(np.asarray(ir), np.asarray(vis), color=False).images[0]
    assert gray.mode == "L" and gray.size == (64, 48)


def test_output_types(pipe):
    ir, vis = pictures()
    (pil,) = pipe(ir, vis).images
    array = pipe(ir, vis, output_type="np").images
    tensor = pipe(ir, vis, output_type="pt").images
    assert array.shape == (1, 48, 64, 3) and tensor.shape == (1, 3, 48, 64)
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.rint(array[0] * 255), np.asarray(pil))
    two = pipe([ir, ir], [vis, vis], output_type="pt").images
    assert torch.equal(two, torch.cat([tensor, tensor]))
    small = pictures(32, 32)
    mixed = pipe([ir, small[0]], [vis, small[1]]).images
    assert [x.size for x in mixed] == [(64, 48), (32, 32)]
    with pytest.raises(ValueError, match="results have different sizes"):
        pipe([ir, small[0]], [vis, small[1]], output_type="np")
    with pytest.raises(ValueError, match="output_type is 'latent'; expected one of pil, np, pt"):
        pipe(ir, vis, output_type="latent")


def test_steps_and_generator(pipe, folder):
    ir, vis = pictures()
    expected = fuse(ir, vis, prior=folder, steps=5, device="cpu")
    assert pipe(ir, vis, num_inference_steps=5).images[0].tobytes() == expected.tobytes()
    assert len(pipe.fuser.method.rows) == 3, "for that call alone"

    def drawn(generator):
        return pipe(ir, vis, generator=generator).images[0].tobytes()

    first = torch.Generator().manual_seed(7)
    a, b = drawn(first), drawn(first)
    assert a != b and drawn(torch.Generator().manual_seed(7)) == a
    with pytest.raises(TypeError, match="generator is a list; expected one torch.Generator"):
        pipe(ir, vis, generator=[first])


def test_callbacks(pipe):
    seen = []

    def each(own, step, timestep, tensors):
        assert own is pipe
        seen.append((step, timestep, sorted(tensors)))
        tensors["latents"] += 0  # a copy
        return tensors

    names = ["latents", "pred_original_sample"]
    ir, vis = pictures()
    plain = pipe(ir, vis).images[0]
    watched = pipe(
        ir, vis, callback_on_step_end=each, callback_on_step_end_tensor_inputs=names
    ).images[0]
    assert seen == [(0, 999, names), (1, 500, names), (2, 0, names)]
    assert watched.tobytes() == plain.tobytes()
    with pytest.raises(ValueError, match="changed 'latents'"):
        pipe(ir, vis, callback_on_step_end=lambda p, s, t, k: {"latents": k["latents"] * 2})
    with pytest.raises(ValueError, match="has 'prompt_embeds'; expected some of latents"):
        pipe(ir, vis, callback_on_step_end=each,
             callback_on_step_end_tensor_inputs=["prompt_embeds"])  # fmt: skip


def test_interrupted(pipe):
    steps = []

    def stop(own, step, timestep, tensors):
        steps.append(step)
        own._interrupt = step == 1

    ir, vis = pictures()
    with pytest.raises(pipelines.FusionInterrupted, match="after step 2 of 3"):
        pipe(ir, vis, callback_on_step_end=stop)
    assert steps == [0, 1]
    assert pipe(ir, vis).images[0].size == (64, 48), "the next call is not"


def test_what_a_pipeline_has(pipe):
    assert pipe.device.type == "cpu" and pipe.dtype == torch.float32
    assert set(pipe.components) == {"fusion"}
    assert pipe.to("cpu") is pipe
    with pytest.raises(ValueError, match="save_pretrained: .* the file or folder of its prior"):
        pipe.save_pretrained("anywhere")


def test_from_pretrained(folder, monkeypatch):
    ir, vis = pictures()
    own = DDFMPipeline.from_pretrained("embedded", preset="instant", device="cpu")
    expected = fuse(ir, vis, preset="instant", device="cpu")
    assert own(ir, vis).images[0].tobytes() == expected.tobytes()
    half = DDFMPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, device="cpu")
    assert half.dtype == torch.bfloat16
    told = {"num_train_timesteps": 500}
    assert (
        DDFMPipeline.from_pretrained(folder / "unet", prior_config=told).fuser.prior.keywords()[
            "num_train_timesteps"
        ]
        == 500
    )
    with pytest.raises(TypeError, match="'step' is not an option; did you mean 'steps'"):
        DDFMPipeline.from_pretrained(folder, step=3)
    with pytest.raises(ValueError, match="there is no file or folder 'nowhere'"):
        DDFMPipeline.from_pretrained("nowhere")
    asked = {}

    def download(name, **how):
        asked.update(how, name=name)
        return str(folder)

    monkeypatch.setattr(DDFMPipeline, "download", staticmethod(download))
    found = DDFMPipeline.from_pretrained("owner/name", revision="main", steps=2)
    assert asked == {"name": "owner/name", "revision": "main"}
    assert found.fuser.prior.name == "tiny" and len(found.fuser.method.rows) == 2


def test_without_diffusers(monkeypatch):
    import importlib

    monkeypatch.setitem(sys.modules, "diffusers", None)
    try:
        bare = importlib.reload(pipelines)
        with pytest.raises(ImportError, match=r"pip install 'ddfm_fast\[diffusers\]'"):
            bare.DDFMPipeline.from_pretrained("embedded")
    finally:
        monkeypatch.undo()
        importlib.reload(pipelines)
