"""Networks over fused pictures: labels read, scores against the libraries, what is off and why."""

from __future__ import annotations

import csv
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.metrics.downstream import (
    Detection,
    Segmentation,
    average_precision,
    confusion,
    intersections,
    score_tasks,
)
from ddfm_fast.metrics.evaluation import MethodPictures, evaluate
from ddfm_fast.metrics.labels import read_boxes, read_masks
from ddfm_fast.metrics.networks import Network, plain_name
from ddfm_fast.metrics.report import write_report
from ddfm_fast.metrics.tables import as_dict, render

HEIGHT, WIDTH = 64, 96
BOX = (16, 20, 56, 52)
"""left, top, right, bottom of the bright square in the first pair"""
ROWS = ["ours", "mean", "visible alone", "infrared alone"]


@pytest.fixture
def root(tmp_path):
    """Three pairs: a square that only the infrared and ``ours`` show, at another place in each."""
    rng = np.random.default_rng(0)
    for n, name in enumerate("abc"):
        vis = rng.integers(60, 90, (HEIGHT, WIDTH, 3), np.uint8)
        ir = rng.integers(20, 40, (HEIGHT, WIDTH), np.uint8)
        left, top, right, bottom = (x + 4 * n for x in BOX)
        ir[top:bottom, left:right] = 250
        fused = np.maximum(vis, ir[..., None])
        for folder, picture in (("set/ir", ir), ("set/vi", vis), ("ours", fused)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / folder / f"{name}.png")
    return tmp_path


def write_yolo(root, wrong: str = ""):
    folder = root / "yolo"
    folder.mkdir()
    (folder / "classes.txt").write_text("thing\nother\n")
    for n, name in enumerate("abc"):
        left, top, right, bottom = (x + 4 * n for x in BOX)
        center = (left + right) / 2 / WIDTH, (top + bottom) / 2 / HEIGHT
        sides = (right - left) / WIDTH, (bottom - top) / HEIGHT
        line = " ".join(map(str, (0, *center, *sides)))
        (folder / f"{name}.txt").write_text(wrong or line + "\n")
    return folder


def write_voc(root, extra: str = "", size=(WIDTH, HEIGHT)):
    folder = root / "voc"
    folder.mkdir()
    for n, name in enumerate("abc"):
        sides = zip(("xmin", "ymin", "xmax", "ymax"), (x + 4 * n for x in BOX), strict=True)
        box = "".join(f"<{k}>{v}</{k}>" for k, v in sides)
        (folder / f"{name}.xml").write_text(
            f"{extra}<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
            f"<object><name>thing</name><bndbox>{box}</bndbox></object></annotation>"
        )
    return folder


def write_coco(root):
    sides = [BOX[2] - BOX[0], BOX[3] - BOX[1]]
    content = {
        "categories": [{"id": 7, "name": "other"}, {"id": 3, "name": "thing"}],
        "images": [
            {"id": n, "file_name": f"images/{name}.jpg", "width": WIDTH, "height": HEIGHT}
            for n, name in enumerate("abc")
        ],
        "annotations": [
            {
                "id": n,
                "image_id": n,
                "category_id": 3,
                "bbox": [BOX[0] + 4 * n, BOX[1] + 4 * n, *sides],
            }
            for n in range(3)
        ],
    }
    path = root / "labels.json"
    path.write_text(json.dumps(content))
    return path


class Bright:
    """Finds one box of class 1 where a picture is bright, and nothing elsewhere."""

    def __call__(self, pictures):
        return [self.found(picture.mean(0) > 0.9) for picture in pictures]

    def found(self, bright):
        if not bright.any():
            return {
                "boxes": torch.zeros(0, 4),
                "labels": torch.zeros(0).long(),
                "scores": torch.zeros(0),
            }
        rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        return {
            "boxes": torch.tensor([box]).float(),
            "labels": torch.tensor([1]),
            "scores": torch.tensor([0.9]),
        }


class BrightPixels:
    """Labels bright pixels as class 1, and the rest as background."""

    def __call__(self, pictures):
        bright = (pictures.mean(1) > 0.9).float()
        return {"out": torch.stack([1 - bright, bright], 1)}


def network(module, classes=("__background__", "Thing")):
    return Network("toy", module, classes, 2, lambda x: x.float() / 255, torch.device("cpu"))


def scored(root, *tasks):
    items = find_pairs(root / "set")
    methods = [MethodPictures("ours", root / "ours"), MethodPictures("mean")]
    evaluation = evaluate(items, methods)
    score_tasks(evaluation, tasks, items, methods)
    return evaluation


# Labels


@pytest.mark.parametrize("write", [write_yolo, write_voc, write_coco])
def test_boxes_are_the_same_in_every_form(root, write):
    labels = read_boxes(write(root), find_pairs(root / "set"))
    assert set(labels.pairs) == set("abc") and "thing" in labels.classes
    for n, name in enumerate("abc"):
        objects = labels.pairs[name].within(WIDTH, HEIGHT)
        assert objects.names == ["thing"] and objects.ignored == [False]
        np.testing.assert_allclose(objects.boxes, [[x + 4 * n for x in BOX]])


def test_labels_that_cannot_be_read_name_the_file(root):
    items = find_pairs(root / "set")

    def refused(place, match):
        with pytest.raises(ValueError, match=match):
            read_boxes(place, items)

    refused(root / "nothing", "boxes are .*nothing; expected a JSON file of COCO")
    refused(root / "set", "has none of these")
    broken = root / "broken.json"
    broken.write_text('{"images": 3}')
    refused(broken, "not of COCO's form")
    refused(write_yolo(root, wrong="5 .5 .5 .1 .1"), r"a.txt, line 1 .*names 2 classes")
    (root / "yolo" / "a.txt").write_text("0 .5 .5 0 .1")
    refused(root / "yolo", "without area")
    (root / "yolo" / "classes.txt").unlink()
    refused(root / "yolo", "no classes.txt")
    refused(write_voc(root, extra='<!DOCTYPE a [<!ENTITY b "c">]>'), "defines entities")
    (root / "voc" / "a.txt").write_text("")
    refused(root / "voc", r"\.xml and \.txt")


def test_labels_of_another_size_leave_the_pair_out(root):
    entry = read_boxes(write_voc(root, size=(640, 480)), find_pairs(root / "set")).pairs["a"]
    with pytest.raises(ValueError, match="640x480 and it has 96x64"):
        entry.within(WIDTH, HEIGHT)


def test_stems_that_repeat_are_no_names(root):
    items = find_pairs(root / "set")
    folder = write_yolo(root)
    for part in ("x", "y"):
        (folder / part).mkdir()
    (folder / "a.txt").rename(folder / "x" / "a.txt")
    (folder / "y" / "a.txt").write_text("")
    assert set(read_boxes(folder, items).pairs) == {"b", "c"}


def test_names_of_one_class():
    assert plain_name("People") == plain_name("pedestrian") == plain_name("person") == "person"
    assert plain_name("Traffic_Light") == plain_name("traffic light") != plain_name("person")


def test_a_mask_is_its_palettes_indices(root):
    folder = root / "masks"
    folder.mkdir()
    indices = np.zeros((HEIGHT, WIDTH), np.uint8)
    indices[3, 4] = 1
    image = Image.fromarray(indices, mode="P")
    image.putpalette([200, 0, 0, 0, 90, 0])
    image.save(folder / "a.png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / "b.png")
    masks = read_masks(folder, find_pairs(root / "set"))
    np.testing.assert_array_equal(masks.read("a"), indices)
    with pytest.raises(ValueError, match="has colors"):
        masks.read("b")
    with pytest.raises(ValueError, match="no mask of any of the 3 pairs"):
        read_masks(write_yolo(root), find_pairs(root / "set"))


# Scores


def test_detection_scores_each_method_and_each_source(root):
    pytest.importorskip("pycocotools")
    labels = read_boxes(write_voc(root), find_pairs(root / "set"))
    evaluation = scored(root, Detection(network(Bright()), labels))
    (task,) = evaluation.tasks
    assert list(task.rows) == ROWS
    assert {name: round(row["mAP50"], 9) for name, row in task.rows.items()} == {
        "ours": 1, "mean": 0, "visible alone": 0, "infrared alone": 1,
    }  # fmt: skip
    assert task.rows["ours"]["mAP"] == pytest.approx(1)
    assert task.classes["thing"]["infrared alone"] == pytest.approx(1)
    assert "3 pairs with 3 objects of thing" in task.caption
    assert not evaluation.remarks and not task.notes


def test_average_precision_is_that_of_a_hand_made_case():
    """Two objects, three boxes: the best hits, the next misses, the last hits at an IoU of .6."""
    pytest.importorskip("pycocotools")
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "area": 100.0, "iscrowd": 0}
            for n, box in enumerate([[0, 0, 10, 10], [50, 0, 10, 10]], 1)
        ],
    }
    found = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": score}
        for box, score in (([0, 0, 10, 10], 0.9), ([80, 0, 9, 9], 0.8), ([50, 0, 6, 10], 0.7))
    ]
    result = average_precision(truth, found)
    # 101 recalls: precision 1 up to .5, then 2/3; from an IoU of .65 on nothing beyond .5
    at_half = (51 + 50 * 2 / 3) / 101
    assert result["mAP50"] == pytest.approx(at_half)
    assert result["mAP"] == pytest.approx((3 * at_half + 7 * 51 / 101) / 10)
    assert result["classes"] == {"x": pytest.approx(result["mAP"])}
    assert average_precision(truth, [])["mAP50"] == 0


def test_segmentation_scores_each_method_and_each_source(root):
    folder = root / "masks"
    folder.mkdir()
    for n, name in enumerate("ab"):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        left, top, right, bottom = (x + 4 * n for x in BOX)
        mask[top:bottom, left:right] = 1
        mask[:2] = 255
        Image.fromarray(mask).save(folder / f"{name}.png")
    evaluation = scored(
        root, Segmentation(network(BrightPixels()), read_masks(folder, find_pairs(root / "set")))
    )
    (task,) = evaluation.tasks
    square = (BOX[2] - BOX[0]) * (BOX[3] - BOX[1])
    background = 1 - square / ((HEIGHT - 2) * WIDTH)
    assert list(task.rows) == ROWS
    for name in ("ours", "infrared alone"):
        assert task.rows[name]["mIoU"] == 1
    for name in ("mean", "visible alone"):
        assert task.rows[name]["mIoU"] == pytest.approx(background / 2)
        assert task.classes["Thing"][name] == 0
    assert task.notes == ["1 pairs have no labels (c)"]
    assert "segmentation: 1 pairs have no labels (c)" in evaluation.warnings


def test_intersections_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    truth, told = rng.integers(0, 4, (2, 500))
    counts = confusion(torch.from_numpy(truth), torch.from_numpy(told), 4)
    expected = metrics.jaccard_score(truth, told, average=None)
    np.testing.assert_allclose(intersections(counts).numpy(), expected)
    masked = torch.from_numpy(np.where(np.arange(500) < 100, -1, truth))
    counts = confusion(masked, torch.from_numpy(told), 4)
    np.testing.assert_array_equal(
        counts.numpy(), metrics.confusion_matrix(truth[100:], told[100:], labels=range(4))
    )


def test_what_network_and_labels_do_not_share(root):
    items = find_pairs(root / "set")
    pytest.importorskip("pycocotools")
    labels = read_boxes(write_voc(root), items)
    with pytest.raises(ValueError, match="knows none of the labels' classes thing"):
        Detection(network(Bright(), ("__background__", "zebra")), labels)
    with pytest.raises(ValueError, match="no order of classes; put a classes.txt beside them"):
        Detection(network(Bright(), None), labels)
    with pytest.raises(ValueError, match="1 classes apart and the labels have 2 classes"):
        Detection(network(Bright(), None), read_boxes(write_yolo(root), items))
    (root / "voc" / "classes.txt").write_text("thing\n")
    task = Detection(network(Bright(), None), read_boxes(root / "voc", items))
    assert scored(root, task).tasks[0].rows["ours"]["mAP50"] == pytest.approx(1)


def test_objects_of_other_classes_are_left_out_with_a_note(root):
    pytest.importorskip("pycocotools")
    labels = read_boxes(write_yolo(root), find_pairs(root / "set"))
    task = scored(root, Detection(network(Bright()), labels)).tasks[0]
    assert task.notes == ["toy does not know other, whose objects are left out"]
    assert list(task.classes) == ["thing"]


# Tables


def test_every_table_and_the_page_have_them(root):
    folder = root / "masks"
    folder.mkdir()
    for name in "abc":
        Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)).save(folder / f"{name}.png")
    items = find_pairs(root / "set")
    evaluation = scored(root, Segmentation(network(BrightPixels()), read_masks(folder, items)))
    evaluation.tasks[0].rows["mean"]["mIoU"] = 0.75
    evaluation.tasks[0].rows["ours"]["mIoU"] = 0.5
    evaluation.tasks[0].rows["visible alone"]["mIoU"] = 0.25
    evaluation.tasks[0].rows["infrared alone"]["mIoU"] = float("nan")
    text = render(evaluation, "table")
    assert "segmentation by toy, 3 pairs with __background__, Thing" in text
    assert "visible alone   0.250" in text and "infrared alone      –" in text
    markdown = render(evaluation, "markdown")
    assert "| mean | **0.750** |" in markdown and "| ours | <u>0.500</u> |" in markdown
    latex = render(evaluation, "latex")
    assert "\nmean & \\textbf{0.750} \\\\" in latex and latex.count("\\begin{table}") == 2
    rows = {r["method"]: r for r in csv.DictReader(io.StringIO(render(evaluation, "csv")))
            if r["pair"] == "mean"}  # fmt: skip
    assert list(rows) == ROWS and rows["visible alone"]["mIoU"] == "0.25"
    assert rows["visible alone"]["VIF"] == ""
    found = as_dict(evaluation)
    assert found["tasks"][0]["rows"]["infrared alone"] == {"mIoU": None}
    assert "mIoU" in found["definitions"]
    methods = [MethodPictures("ours", root / "ours"), MethodPictures("mean")]
    page = write_report(root / "report.html", evaluation, items, methods).read_text("utf-8")
    assert '<th scope="row">visible alone</th><td>0.250</td>' in page
    assert "Segmentation by toy" in page


# The command


def call(root, *arguments):
    fused = ["--fused", f"ours={root / 'ours'}", "--baselines"]
    return CliRunner().invoke(app, ["evaluate", str(root / "set"), *fused, *map(str, arguments)])


def test_without_torchvision_detection_is_off_and_says_how_to_get_it(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    done = call(root, "--detect", "ssdlite", "--boxes", write_voc(root))
    assert done.exit_code == 1
    assert "--detect is off: detection needs torchvision" in done.stderr
    assert "pip install 'ddfm_fast[detect]'" in done.stderr
    assert "mean ranks" in done.stdout and "mAP" not in done.stdout


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--detect", "ssdlite"], "--detect is given and --boxes is not"),
        (["--masks", "."], "--masks is given and --segment is not"),
        (["--detect", "yolo", "--boxes", "voc"], "expected ssdlite or fasterrcnn"),
        (["--segment", "ssdlite", "--masks", "ours"], "expected lraspp"),
        (["--detect", "ssdlite=none.pth", "--boxes", "voc"], "are no file"),
        (["--detect", "ssdlite", "--boxes", "ours"], "has none of these"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused_before_any_work(root, monkeypatch, arguments, match):
    write_voc(root)
    monkeypatch.chdir(root)
    done = call(root, *arguments)
    assert done.exit_code == 2 and match in " ".join(done.stderr.split()), done.stderr
