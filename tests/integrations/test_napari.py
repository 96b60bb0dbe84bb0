"""The widget for napari: what it makes of layers, and in a viewer that shows nothing.

The second half needs napari and a Qt (``pip install "napari[pyqt6]"``).
"""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from ddfm_fast import Fuser, fuse
from ddfm_fast.integrations.napari import fused_frames, fused_layer

RNG = np.random.default_rng(2)
IR = RNG.integers(0, 256, (3, 32, 40), np.uint8)
VIS = RNG.integers(0, 256, (3, 32, 40, 3), np.uint8)


def layer(data, rgb=False, scale=None):
    count = data.ndim - rgb
    return SimpleNamespace(
        data=data, rgb=rgb, scale=scale or (1.0,) * count, translate=(0.0,) * count
    )


def test_stacks_are_fused_picture_by_picture():
    data, more, kind = fused_layer(
        layer(IR), layer(VIS, True, (1.0, 0.5, 0.5)), "instant", "preset", "auto"
    )
    assert kind == "image" and more["rgb"] and more["scale"] == (1.0, 0.5, 0.5)
    assert data.shape == VIS.shape
    for n in range(3):
        np.testing.assert_array_equal(data[n], fuse(IR[n], VIS[n], preset="instant"))


def test_one_picture_goes_with_a_stack_and_alpha_is_left_out():
    opaque = np.concatenate([VIS[0], np.full((32, 40, 1), 255, np.uint8)], -1)
    data, more, _ = fused_layer(layer(IR), layer(opaque, True), "instant", "off", "none")
    assert data.shape == (3, 32, 40) and not more["rgb"] and len(more["scale"]) == 3
    np.testing.assert_array_equal(
        data[2], fuse(IR[2], VIS[0], preset="instant", color=False)[..., 0]
    )


def test_stacks_that_do_not_fit_are_a_sentence():
    with pytest.raises(ValueError, match=r"infrared is a stack of \(3,\) and visible of \(2,\)"):
        list(fused_frames(Fuser(preset="instant"), layer(IR), layer(VIS[:2], True)))


@pytest.mark.extras
def test_in_a_viewer():
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    pytest.importorskip("napari")
    pytest.importorskip("qtpy", exc_type=Exception)
    from napari.components import ViewerModel
    from qtpy.QtWidgets import QApplication

    from ddfm_fast.integrations.napari import make_widget

    application = QApplication.instance() or QApplication([])
    widget, viewer = make_widget(), ViewerModel()
    infrared, visible = viewer.add_image(IR[0], name="ir"), viewer.add_image(VIS[0], name="vis")
    for name, one in (("infrared", infrared), ("visible", visible)):
        widget[name].choices = [infrared, visible]
        widget[name].value = one
    widget.preset.value = "instant"
    assert "balanced" in widget.preset.choices and visible.rgb
    worker, results = widget(), []
    worker.returned.connect(results.append)
    end = time.monotonic() + 120
    while not results and time.monotonic() < end:
        application.processEvents()
        time.sleep(0.01)
    ((data, more, kind),) = results
    np.testing.assert_array_equal(data, fuse(IR[0], VIS[0], preset="instant"))
    assert kind == "image" and more["name"] == "fused (instant)"


@pytest.mark.extras
def test_the_manifest_is_one_of_napari():
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_file(ROOT / "ddfm_fast/integrations/napari.yaml")
    (widget,) = manifest.contributions.widgets
    (command,) = manifest.contributions.commands
    assert widget.command == command.id
    from ddfm_fast.integrations import napari

    module, _, name = str(command.python_name).partition(":")
    assert module == napari.__name__ and hasattr(napari, name)
