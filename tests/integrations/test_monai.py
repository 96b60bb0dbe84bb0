"""``FuseDDFMd``: in MONAI where it is there, else on the part of its interface that is used.

The stand-in follows the documentation of MONAI 1.5, "Transforms", of ``MapTransform`` (``keys``,
``allow_missing_keys``, ``key_iterator``, which raises KeyError for a key that is missing) and
"Data", of ``MetaTensor`` (a tensor with ``meta``, of which ``affine`` is an entry).
"""

from __future__ import annotations

import importlib
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from phantoms import affine, ellipsoid

AT = affine((2.0, 2.5, 4.0), (-38.0, -40.0, -20.0))
OTHER = affine((-2.2, 2.0, 3.0), (40.0, -42.0, -24.0))
SHAPES = ((10, 32, 36), (16, 40, 38))


class MapTransform:
    def __init__(self, keys, allow_missing_keys=False):
        self.keys = (keys,) if isinstance(keys, str) else tuple(keys)
        self.allow_missing_keys = allow_missing_keys

    def key_iterator(self, data):
        for key in self.keys:
            if key in data:
                yield key
            elif not self.allow_missing_keys:
                raise KeyError(f"Key `{key}` was missing in the data")


class MetaTensor(torch.Tensor):
    @staticmethod
    def __new__(cls, x, affine=None, meta=None):
        return torch.as_tensor(x).as_subclass(cls)

    def __init__(self, x, affine=None, meta=None):
        self.meta = dict(meta or {})
        if affine is not None:
            self.meta["affine"] = affine

    @property
    def affine(self):
        return self.meta["affine"]


@pytest.fixture(params=["monai", "stand-in"])
def monai(request, monkeypatch):
    """The module of the transform, and MetaTensor, of MONAI or of the stand-in."""
    pytest.importorskip("scipy", reason="needs ddfm_fast[medical]")
    if request.param == "monai":
        tensor = pytest.importorskip("monai.data", reason="needs MONAI").MetaTensor
    else:
        root, transforms = types.ModuleType("monai"), types.ModuleType("monai.transforms")
        transforms.MapTransform, tensor = MapTransform, MetaTensor
        monkeypatch.setitem(sys.modules, "monai", root)
        monkeypatch.setitem(sys.modules, "monai.transforms", transforms)
    import ddfm_fast.integrations.monai as module

    yield importlib.reload(module), tensor
    monkeypatch.undo()
    importlib.reload(module)


def images(tensor) -> dict:
    found = {}
    for key, shape, at in zip(("mr", "ct"), SHAPES, (AT, OTHER), strict=True):
        values = torch.from_numpy(ellipsoid(shape, at, 0, 900).transpose(2, 1, 0).copy())[None]
        meta = {"filename_or_obj": f"{key}.nii"}
        found[key] = tensor(values, affine=torch.from_numpy(at.copy()), meta=meta)
    return found


OPTIONS = {"preset": "instant", "device": "cpu", "value_range": (0, 900)}


def test_meta_tensors_keep_their_place(monai):
    module, tensor = monai
    sample = images(tensor)
    done = module.FuseDDFMd(("mr", "ct"), **OPTIONS)(sample)
    assert set(done) == {"mr", "ct", "fused"} and "fused" not in sample
    found = done["fused"]
    assert isinstance(found, tensor) and found.shape == (1, 36, 32, 10)
    np.testing.assert_allclose(np.asarray(found.affine), AT)
    assert found.meta["filename_or_obj"] == "mr.nii" and found.meta is not sample["mr"].meta
    other = module.FuseDDFMd(("mr", "ct"), output="o", grid="vis", **OPTIONS)(sample)["o"]
    assert other.shape == (1, 38, 40, 16) and other.meta["filename_or_obj"] == "ct.nii"


def test_the_result_is_that_of_fuse_volumes(monai):
    from ddfm_fast import Fuser
    from ddfm_fast.medical.fuse import fuse_volumes
    from ddfm_fast.medical.volume import Volume

    module, tensor = monai
    fuser = Fuser(preset="instant", device="cpu")
    how = {"value_range": (0, 900), "colormap": "hot"}
    found = module.FuseDDFMd(("mr", "ct"), fuser=fuser, **how)(images(tensor))["fused"]
    volumes = [
        Volume(ellipsoid(shape, at, 0, 900), at)
        for shape, at in zip(SHAPES, (AT, OTHER), strict=True)
    ]
    expected = fuse_volumes(*volumes, fuser, **how).volume.array / np.float32(255)
    np.testing.assert_allclose(np.asarray(found), expected.transpose(3, 2, 1, 0), atol=1e-6)


def test_plain_arrays_and_pictures(monai):
    module, _ = monai
    rng = np.random.default_rng(0)
    gray = rng.random((1, 32, 24), dtype=np.float32)
    rgb = rng.integers(0, 256, (3, 32, 24), dtype=np.uint8)
    transform = module.FuseDDFMd(("a", "b"), preset="instant", device="cpu")
    found = transform({"a": gray, "b": rgb})["fused"]
    assert isinstance(found, np.ndarray) and found.shape == (3, 32, 24)
    assert found.dtype == np.float32 and 0 <= found.min() < found.max() <= 1
    tensors = {"a": torch.from_numpy(gray), "b": torch.from_numpy(rgb)}
    assert torch.equal(transform(tensors)["fused"], torch.from_numpy(found))
    with pytest.raises(ValueError, match=r"b: has shape \(2, 32, 24\); expected \[C, X, Y\]"):
        transform({"a": gray, "b": rgb[:2]})


def test_workers_make_their_own_fuser(monai):
    module, tensor = monai
    transform = module.FuseDDFMd(("mr", "ct"), **OPTIONS)
    first = transform(images(tensor))["fused"]
    state = transform.__getstate__()
    assert state["_kept"] is None
    again = pickle.loads(pickle.dumps(state))
    assert again["_options"] == {"preset": "instant", "device": "cpu"}
    copied = module.FuseDDFMd.__new__(module.FuseDDFMd)
    copied.__dict__.update(again)
    assert torch.equal(torch.as_tensor(copied(images(tensor))["fused"]), torch.as_tensor(first))


def test_keys(monai):
    module, tensor = monai
    sample = images(tensor)
    del sample["ct"]
    with pytest.raises(KeyError, match="ct"):
        module.FuseDDFMd(("mr", "ct"), **OPTIONS)(sample)
    lenient = module.FuseDDFMd(("mr", "ct"), allow_missing_keys=True, **OPTIONS)
    assert set(lenient(sample)) == {"mr"}
    with pytest.raises(ValueError, match="expected two"):
        module.FuseDDFMd(("mr", "ct", "pet"), **OPTIONS)
