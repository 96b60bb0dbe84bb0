"""``FuseDDFM``: alone, and in a ``Compose`` where Albumentations (2.0) is installed."""

from __future__ import annotations

import importlib
import json
import pickle
import sys

import numpy as np
import pytest

from ddfm_fast import Fuser, fuse

OPTIONS = {"preset": "instant", "device": "cpu"}


@pytest.fixture(params=["alone", "albumentations"])
def module(request, monkeypatch):
    import ddfm_fast.integrations.albumentations as found

    if request.param == "albumentations":
        try:
            importlib.import_module("albumentations")
        except ImportError:
            pytest.skip("needs albumentations")
        yield importlib.reload(found)
    else:
        monkeypatch.setitem(sys.modules, "albumentations", None)
        yield importlib.reload(found)
        monkeypatch.undo()
        importlib.reload(found)


def sample(height: int = 48, width: int = 64) -> dict:
    rows, columns = np.mgrid[:height, :width]
    visible = np.stack([5 * rows, 5 * rows, 200 - 3 * rows], -1).astype(np.uint8)
    return {"image": visible, "infrared": (3 * columns).astype(np.uint8), "label": 3}


def test_it_fuses_and_leaves_the_rest(module):
    given = sample()
    before = given["image"].copy()
    done = module.FuseDDFM(**OPTIONS)(**given)
    np.testing.assert_array_equal(done["image"], fuse(given["infrared"], before, **OPTIONS))
    assert done["infrared"] is given["infrared"] and done["label"] == 3
    assert np.array_equal(given["image"], before), "the source is not written to"
    other = module.FuseDDFM(("infrared", "image"), "fused", color=False, **OPTIONS)(**given)
    assert other["image"] is given["image"] and other["fused"].shape == (48, 64, 1)


def test_keys_and_options(module):
    given = sample()
    del given["infrared"]
    with pytest.raises(KeyError, match="'infrared' is missing in the sample; it has image, label"):
        module.FuseDDFM(**OPTIONS)(**given)
    assert module.FuseDDFM(allow_missing_keys=True, **OPTIONS)(**given) == given
    with pytest.raises(KeyError, match="given by name"):
        module.FuseDDFM(**OPTIONS)(given)
    with pytest.raises(ValueError, match="expected two"):
        module.FuseDDFM(("a", "b", "c"))
    with pytest.raises(ValueError, match="keys is .'a', 'a'.; expected two"):
        module.FuseDDFM(("a", "a"))
    with pytest.raises(TypeError, match="'step' is not an option; did you mean 'steps'"):
        module.FuseDDFM(step=3)
    with pytest.raises(ValueError, match="p is 2|less than or equal to 1"):
        module.FuseDDFM(p=2)
    with pytest.raises(ValueError, match="options preset have no effect with fuser"):
        module.FuseDDFM(fuser=Fuser(**OPTIONS), preset="fast")


def test_probability(module):
    given = sample()
    assert module.FuseDDFM(p=0.0, **OPTIONS)(**given)["image"] is given["image"]
    forced = module.FuseDDFM(p=0.0, **OPTIONS)(force_apply=True, **given)
    assert forced["image"] is not given["image"]
    half = module.FuseDDFM(p=0.5, **OPTIONS)
    done = [half(**given)["image"] is not given["image"] for _ in range(40)]
    assert 5 < sum(done) < 35


def test_workers_make_their_own_fuser(module):
    transform = module.FuseDDFM(**OPTIONS)
    first = transform(**sample())["image"]
    again = pickle.loads(pickle.dumps(transform))
    assert again.__dict__["_kept"] is None
    np.testing.assert_array_equal(again(**sample())["image"], first)
    own = Fuser(**OPTIONS)
    assert module.FuseDDFM(fuser=own).__getstate__()["_kept"] is own


def test_it_is_saved_printed_and_made_again(module):
    """Its options are kept, and saving it does not load the network."""
    albumentations = pytest.importorskip("albumentations", reason="needs albumentations")
    made = module.FuseDDFM(color=False, **OPTIONS)
    if not isinstance(made, albumentations.BasicTransform):
        pytest.skip("made without it")
    assert "preset='instant'" in repr(made) and "color=False" in repr(made)
    text = json.dumps(albumentations.to_dict(albumentations.Compose([made])))
    assert made.__dict__["_kept"] is None
    (again,) = albumentations.from_dict(json.loads(text)).transforms
    np.testing.assert_array_equal(again(**sample())["image"], made(**sample())["image"])
    assert again(**sample())["image"].shape == (48, 64, 1)


def test_in_a_compose(module):
    albumentations = pytest.importorskip("albumentations", reason="needs albumentations")
    if not isinstance(module.FuseDDFM(**OPTIONS), albumentations.BasicTransform):
        pytest.skip("made without it")
    given = sample()
    steps = [module.FuseDDFM(**OPTIONS), albumentations.HorizontalFlip(p=1.0)]
    targets = {"infrared": "image"}
    done = albumentations.Compose(steps, additional_targets=targets)(
        image=given["image"], infrared=given["infrared"]
    )
    expected = fuse(given["infrared"], given["image"], **OPTIONS)
    np.testing.assert_array_equal(done["image"], expected[:, ::-1])
    np.testing.assert_array_equal(done["infrared"], given["infrared"][:, ::-1])
