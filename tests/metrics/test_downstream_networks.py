"""torchvision's networks on fused pictures, with random weights: the published are not at hand.

They show that pictures and labels reach the networks and the scores come back, not what a trained
network would find: the labels are what the same network finds in one method's pictures.
"""

from __future__ import annotations

import json
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.metrics.networks import KNOWN, Absent, load_network

pytestmark = pytest.mark.extras

HEIGHT, WIDTH = 96, 128
CLASSES = ("thing", "other")


@pytest.fixture(scope="module")
def models():
    """torchvision's; skips where it is missing, or was built for another PyTorch."""
    try:
        return import_module("torchvision.models")
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"needs ddfm_fast[detect]: {error}")


def random_weights(models, name: str, classes: int, seed: int = 0):
    """Draw weights under which boxes depend on the picture, as they hardly do under fresh ones."""
    torch.manual_seed(seed)
    module = models.get_model(
        KNOWN[name].builder, weights=None, weights_backbone=None, num_classes=classes
    )
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        for key, weight in module.named_parameters():
            if "regression_head" in key or "bbox_pred" in key:
                weight *= 1e-4  # boxes stay near their anchors
            elif "cls_score" in key:
                weight *= 0.001  # no score is 1, so that none are equal
        module.backbone.train()(torch.rand(4, 3, 320, 320))
    return module.state_dict()


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        ir, vis = (
            rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8), np.uint8).repeat(8, 0).repeat(8, 1)
            for _ in range(2)
        )
        color = np.stack([vis, vis[::-1], vis[:, ::-1]], 2)
        fused = np.maximum(color, ir[..., None])
        for folder, picture in (("set/ir", ir), ("set/vi", color), ("ours", fused)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / folder / f"{name}.png")
    return tmp_path


def pictures(root):
    return [np.asarray(Image.open(root / "ours" / f"{name}.png")) for name in "ab"]


def call(root, *arguments):
    fused = ["--fused", f"ours={root / 'ours'}", "--json"]
    done = CliRunner().invoke(app, ["evaluate", str(root / "set"), *fused, *map(str, arguments)])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["tasks"]


def labels_of_the_best(root, network) -> list[dict]:
    """Return COCO's annotations of both pictures: the network's 15 best boxes in each."""
    found = []
    for image, one in enumerate(network.detect(pictures(root))):
        rows = (one[key].tolist() for key in ("boxes", "labels", "scores"))
        for (x, y, right, bottom), label, score in zip(*rows, strict=True):
            sides = right - x, bottom - y
            found.append((score, {"image_id": image, "category_id": label, "bbox": [x, y, *sides]}))
    return [one for _, one in sorted(found, key=lambda row: -row[0])[:15]]


@pytest.mark.parametrize("name, save", [("ssdlite", "pt"), ("fasterrcnn", "safetensors")])
def test_a_method_whose_boxes_are_the_labels_scores_one(models, root, name, save):
    pytest.importorskip("pycocotools")
    state = random_weights(models, name, 1 + len(CLASSES))
    file = root / f"own.{save}"
    if save == "pt":
        torch.save({"model": state, "epoch": 3}, file)  # as torchvision's scripts do
    else:
        save_file(state, file)
    network = load_network(f"{name}={file}", "detection")
    assert (network.outputs, network.classes) == (3, None)
    content = {
        "images": [
            {"id": n, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT}
            for n, name in enumerate("ab")
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES, 1)],
        "annotations": labels_of_the_best(root, network),
    }
    assert len(content["annotations"]) == 15
    labels = root / "labels.json"
    labels.write_text(json.dumps(content))
    (task,) = call(root, "--detect", f"{name}={file}", "--boxes", labels)
    assert task["network"] == f"{KNOWN[name].builder} ({file.name})"
    assert task["rows"]["ours"] == pytest.approx({"mAP50": 1, "mAP": 1}, abs=1e-6)
    for alone in ("visible alone", "infrared alone"):
        assert task["rows"][alone]["mAP"] < 0.9


def test_a_method_whose_classes_are_the_masks_scores_one(models, root):
    file = root / "own.pth"
    torch.save(random_weights(models, "lraspp", 4), file)
    network = load_network(f"lraspp={file}", "segmentation")
    (root / "masks").mkdir()
    told = network.segment(pictures(root))
    assert told.shape == (2, HEIGHT, WIDTH) and len(told.unique()) > 1
    for name, mask in zip("ab", told, strict=True):
        Image.fromarray(mask.to(torch.uint8).numpy()).save(root / "masks" / f"{name}.png")
    (task,) = call(root, "--segment", f"lraspp={file}", "--masks", root / "masks")
    assert task["rows"]["ours"]["mIoU"] == 1
    assert task["rows"]["visible alone"]["mIoU"] < 0.9


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.mark.parametrize("name", KNOWN)
def test_published_weights_are_named_and_not_fetched(models, hub, name):
    with pytest.raises(Absent, match=f"{hub}/{KNOWN[name].builder}.*not there; fetch https"):
        load_network(name, KNOWN[name].task)
    assert not hub.exists()


@pytest.mark.parametrize("name", KNOWN)
def test_weights_in_the_cache_have_the_published_classes(models, hub, name):
    known = KNOWN[name]
    described = getattr(getattr(models, known.task), known.enum).DEFAULT
    hub.mkdir(parents=True)
    count = len(described.meta["categories"])
    torch.save(random_weights(models, name, count), hub / described.url.rpartition("/")[2])
    network = load_network(name, known.task)
    assert network.outputs == count and "person" in network.classes
    theirs = models.get_model(known.builder, weights="DEFAULT").eval().double()
    ours, given = network.module.double(), torch.rand(1, 3, 96, 128).double()
    with torch.inference_mode():
        if known.task == "segmentation":
            found, expected = ours(given)["out"], theirs(given)["out"]
        else:
            found, expected = ours(given)[0]["boxes"], theirs(given)[0]["boxes"]
    assert len(found)
    torch.testing.assert_close(found, expected)


def test_weights_of_another_network_are_refused(models, tmp_path):
    torch.save(random_weights(models, "lraspp", 4), tmp_path / "own.pth")
    with pytest.raises(ValueError, match="expected the weights of torchvision's ssdlite320"):
        load_network(f"ssdlite={tmp_path / 'own.pth'}", "detection")
    state = random_weights(models, "ssdlite", 4)
    state["head.classification_head.module_list.0.1.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match="weights: .*NaN"):
        load_network(f"ssdlite={tmp_path / 'nan.pth'}", "detection")
    state.popitem()
    torch.save({k: v.nan_to_num() for k, v in state.items()}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match="does not fit torchvision's ssdlite320"):
        load_network(f"ssdlite={tmp_path / 'less.pth'}", "detection")
