"""The node for ComfyUI, on stand-ins for its two interfaces.

No package index carries ComfyUI. The stand-ins keep names and arguments of comfy_api/latest
(``_io.py``: Schema, ComfyNode, NodeOutput, Image, Combo, Int; ``__init__.py``: ComfyExtension and
ComfyAPISync, whose ``execution.set_progress(value, max_value)`` reports) of github.com/Comfy-Org/
ComfyUI, and for the first interface those of docs.comfy.org/custom-nodes and comfy/utils.py
(``ProgressBar(total).update_absolute(value, total)``).
"""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT

from ddfm_fast import PRESETS, fuse

PROGRESS: list[tuple[int, int]] = []
OPTIONS = {"preset": "instant", "denoise": "preset", "color": "auto", "seed": 0}


@dataclass
class Input:
    id: str
    options: list | None = None
    default: Any = None
    min: int | None = None
    max: int | None = None


@dataclass
class Output:
    id: str | None = None
    display_name: str | None = None


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    description: str = ""


class NodeOutput:
    def __init__(self, *args: Any):
        self.result = args


class ProgressBar:
    def __init__(self, total: int):
        self.total = total

    def update_absolute(self, value: int, total: int | None = None) -> None:
        PROGRESS.append((value, total or self.total))


def set_progress(*, value: float, max_value: float) -> None:
    PROGRESS.append((int(value), int(max_value)))


def stand_ins(v3: bool) -> dict[str, ModuleType | None]:
    found: dict[str, ModuleType | None] = {"comfy_api": None, "comfy_api.latest": None}
    if v3:
        latest = ModuleType("comfy_api.latest")
        kind = SimpleNamespace(Input=Input, Output=Output)
        latest.io = SimpleNamespace(
            ComfyNode=type("ComfyNode", (), {}), Schema=Schema, NodeOutput=NodeOutput,
            Image=kind, Combo=kind, Int=kind,
        )  # fmt: skip
        latest.ComfyExtension = type("ComfyExtension", (), {})
        execution = SimpleNamespace(set_progress=set_progress)
        latest.ComfyAPISync = lambda: SimpleNamespace(execution=execution)
        found = {"comfy_api": ModuleType("comfy_api"), "comfy_api.latest": latest}
    utils = ModuleType("comfy.utils")
    utils.ProgressBar = ProgressBar
    return found | {"comfy": ModuleType("comfy"), "comfy.utils": utils}


@pytest.fixture(params=[True, False], ids=["V3", "first interface"])
def node(request, monkeypatch):
    """The names and choices of the inputs, and what runs the node."""
    for name, module in stand_ins(request.param).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "ddfm_fast.integrations.comfyui", raising=False)
    module = importlib.import_module("ddfm_fast.integrations.comfyui")
    PROGRESS.clear()
    if request.param:
        assert module.__all__ == ["comfy_entrypoint"]
        extension = asyncio.run(module.comfy_entrypoint())
        (found,) = asyncio.run(extension.get_node_list())
        schema = found.define_schema()
        inputs = {one.id: (one.options, one.default) for one in schema.inputs}
        assert schema.node_id == "DDFMFuse" and len(schema.outputs) == 1
        yield inputs, lambda *a, **k: found.execute(*a, **k).result
    else:
        assert not hasattr(module, "comfy_entrypoint")
        found = module.NODE_CLASS_MAPPINGS["DDFMFuse"]
        assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == {"DDFMFuse"}
        assert found.RETURN_TYPES == ("IMAGE",)
        inputs = {
            name: (kind[0] if isinstance(kind[0], list) else None, (kind[1:] or ({},))[0])
            for name, kind in found.INPUT_TYPES()["required"].items()
        }
        inputs = {name: (choices, more.get("default")) for name, (choices, more) in inputs.items()}
        yield inputs, getattr(found(), found.FUNCTION)
    sys.modules.pop("ddfm_fast.integrations.comfyui", None)


def images(count: int, seed: int) -> torch.Tensor:
    noise = torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (48, 64), mode="bilinear")
    return smooth.permute(0, 2, 3, 1).contiguous()


def test_inputs_are_listed(node):
    inputs, _ = node
    assert list(inputs) == ["infrared", "visible", "preset", "denoise", "color", "seed"]
    assert inputs["preset"] == (list(PRESETS), "balanced")
    assert inputs["denoise"] == (["preset", "auto", "off"], "preset")


def test_a_batch_is_fused_with_progress(node):
    _, execute = node
    ir, vis = images(3, 1), images(3, 2)
    (fused,) = execute(ir, vis, **OPTIONS)
    assert fused.shape == (3, 48, 64, 3) and fused.dtype == torch.float32
    wanted = fuse(ir, vis, preset="instant", seed=0, value_range=(0.0, 1.0), layout="NHWC")
    assert torch.equal(fused, wanted)
    assert PROGRESS[0] == (0, 3) and PROGRESS[-1] == (3, 3)


def test_one_image_goes_with_all_and_gray_has_three_channels(node):
    _, execute = node
    (fused,) = execute(images(1, 1), images(2, 2), **{**OPTIONS, "color": "none"})
    assert fused.shape == (2, 48, 64, 3)
    assert torch.equal(fused[..., 0], fused[..., 2])


def test_numbers_that_do_not_fit_are_a_sentence(node):
    _, execute = node
    with pytest.raises(ValueError, match="infrared has 2 images and the other source 3"):
        execute(images(2, 1), images(3, 2), **OPTIONS)


@pytest.mark.parametrize(
    "ir, vis, sentence",
    [
        (
            images(2, 1)[..., 0],
            images(2, 2),
            r"infrared has the shape \(2, 48, 64\).*Mask to Image",
        ),
        (
            images(1, 1),
            images(1, 2)[..., [0, 1, 2, 2]],
            r"visible has .* 64, 4\).*Image with Alpha",
        ),
        (images(1, 1)[:, :40], images(1, 2), "infrared is 64x40 and visible 64x48.*Upscale Image"),
        (images(1, 1)[:0], images(1, 2)[:0], "infrared has 0 images"),
        (images(1, 1)[:0], images(2, 2), "infrared has 0 images and the other source 2"),
    ],
)
def test_masks_alpha_sizes_and_nothing_are_sentences(node, ir, vis, sentence):
    """In the host's terms: its nodes, not options of ours that the node does not have."""
    _, execute = node
    with pytest.raises(ValueError, match=sentence):
        execute(ir, vis, **OPTIONS)


def test_the_file_for_custom_nodes_is_printed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ddfm_fast.integrations.comfyui"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    names: dict[str, Any] = {}
    exec(done.stdout, names)
    assert "NODE_CLASS_MAPPINGS" in names or "comfy_entrypoint" in names
