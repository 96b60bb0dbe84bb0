"""Finding pairs: every published layout, lists, and errors that name what is wrong."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
from conftest import shared

from ddfm_fast.datasets.items import PairItem
from ddfm_fast.datasets.pairs import LAYOUTS, find_pairs
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.writing import write_image


def touch(root, *paths: str, size=(16, 20)) -> None:
    """Write gray images of that (height, width)."""
    for path in paths:
        write_image(root / path, np.zeros(size, np.uint8))


def found(root, **options) -> dict[str, tuple[str, str]]:
    """Return the two paths of each pair below the root, by the pair's name."""
    items = find_pairs(root, **options)
    assert all(isinstance(item, PairItem) for item in items)
    return {i.name: tuple(p.relative_to(root).as_posix() for p in (i.ir, i.vis)) for i in items}


PUBLISHED = {
    "msrs": {
        "test/00001D": ("test/ir/00001D.png", "test/vi/00001D.png"),
        "test/00002N": ("test/ir/00002N.png", "test/vi/00002N.png"),
        "train/00001D": ("train/ir/00001D.png", "train/vi/00001D.png"),
    },
    "roadscene": {"FLIR_1": ("cropinfrared/FLIR_1.jpg", "crop_LR_visible/FLIR_1.jpg")},
    "m3fd": {
        "00000": ("Ir/00000.png", "Vis/00000.png"),
        "fusion/00000": ("fusion/ir/00000.png", "fusion/vis/00000.png"),
    },
    "tno": {"01": ("ir/01.bmp", "vi/01.bmp"), "02": ("ir/02.png", "vi/02.tif")},
    "llvip": {
        "test/1": ("infrared/test/1.jpg", "visible/test/1.jpg"),
        "train/1": ("infrared/train/1.jpg", "visible/train/1.jpg"),
    },
    "harvard": {
        "CT-MRI/2": ("CT-MRI/MRI/2.png", "CT-MRI/CT/2.png"),
        "MRI_CT/1": ("MRI_CT/MRI/1.png", "MRI_CT/CT/1.png"),
        "MRI_PET/1": ("MRI_PET/MRI/1.png", "MRI_PET/PET/1.png"),
        "MRI_SPECT/1": ("MRI_SPECT/MRI/1.png", "MRI_SPECT/SPECT/1.png"),
    },
    "m3svd": {
        "test/a/0": ("test/ir/a/0.png", "test/vi/a/0.png"),
        "train/b/0": ("train/ir/b/0.png", "train/vi/b/0.png"),
        "val/b/0": ("val/ir/b/0.png", "val/vi/b/0.png"),
    },
    "vtmot": {
        "seq1/000001": ("seq1/infrared/000001.jpg", "seq1/visible/000001.jpg"),
        "seq2/000001": ("seq2/infrared/000001.jpg", "seq2/visible/000001.jpg"),
    },
    "lasher": {"x/y/1": ("x/y/infrared/1.jpg", "x/y/visible/1.jpg")},
    "vtuav": {"s/1": ("s/ir/1.jpg", "s/rgb/1.jpg")},
    "ivif_zoo": {
        "FMB/1": ("FMB/ir/1.png", "FMB/vis/1.png"),
        "TNO/1": ("TNO/ir/1.png", "TNO/vi/1.png"),
    },
    "vifb": {"carLight": ("IR/carLight.jpg", "VI/carLight.jpg")},
    "kaist": {
        "set00/V000/I0": ("set00/V000/lwir/I0.jpg", "set00/V000/visible/I0.jpg"),
        "set01/V000/I0": ("set01/V000/lwir/I0.jpg", "set01/V000/visible/I0.jpg"),
    },
    "flir": {
        "JPEGImages/FLIR_02": (
            "JPEGImages/FLIR_02_PreviewData.jpeg",
            "JPEGImages/FLIR_02_RGB.jpg",
        )
    },
}


def test_every_layout_is_tested():
    assert set(PUBLISHED) == set(LAYOUTS) - {"auto", "mfnet"}  # mfnet has tests of its own


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts(tmp_path, name):
    expected = PUBLISHED[name]
    touch(tmp_path, *(path for pair in expected.values() for path in pair))
    # other files that the published archives contain
    touch(tmp_path, "Segmentation_labels/1.png", ".hidden/ir/9.png", ".hidden.png")
    (tmp_path / "README.md").write_text("text")
    assert found(tmp_path) == expected
    assert found(tmp_path, layout=name) == expected
    assert list(found(tmp_path)) == sorted(expected)


IR_NAMES = ("ir", "Ir", "IR", "infrared", "Infrared", "cropinfrared", "T", "thermal", "lwir")
VIS_NAMES = ("vi", "vis", "Vis", "VIS", "visible", "Visible", "rgb", "RGB", "crop_LR_visible")


@pytest.mark.parametrize("ir", [*IR_NAMES, "infrared_Enhance"])
@pytest.mark.parametrize("vis", [*VIS_NAMES, "visible_Enhance"])
def test_aliases(tmp_path, ir, vis):
    touch(tmp_path, f"{ir}/a.png", f"{vis}/a.jpg")
    assert found(tmp_path) == {"a": (f"{ir}/a.png", f"{vis}/a.jpg")}


def test_two_plain_folders(tmp_path):
    touch(tmp_path, "near/a.png", "near/s/b.png", "far/a.jpg", "far/s/b.png")
    expected = {"a": ("near/a.png", "far/a.jpg"), "s/b": ("near/s/b.png", "far/s/b.png")}
    near, far = tmp_path / "near", tmp_path / "far"
    items = find_pairs((near, str(far)))
    assert items == [PairItem(n, tmp_path / i, tmp_path / v) for n, (i, v) in expected.items()]
    assert found(tmp_path, layout=("near", "far")) == expected
    assert found(tmp_path, layout="Near, FAR") == expected
    with pytest.raises(ImageFileError, match="two folders"):
        find_pairs((near, near))
    with pytest.raises(ValueError, match="no layout"):
        find_pairs((near, far), layout="tno")


def test_shared_data():
    names = [item.name for item in find_pairs(shared("data"))]
    assert len(names) == 36 and {"ivf/TNO_03", "mif/MRI_PET/14", "video/0111_1753/0000"} <= {*names}


def test_links_to_folders_are_followed_and_loops_are_not(tmp_path):
    touch(tmp_path, "elsewhere/a.png", "set/vi/a.png")
    try:
        (tmp_path / "set" / "ir").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "set" / "vi" / "up").symlink_to(tmp_path / "set" / "vi")
        (tmp_path / "set" / "again").symlink_to(tmp_path / "set", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no symbolic links")
    assert list(found(tmp_path / "set")) == ["a"]


# Refusals


def refused(root, *words: str, **options) -> None:
    with pytest.raises(ImageFileError) as caught:
        find_pairs(root, **options)
    for word in words:
        assert word in str(caught.value), caught.value


def test_stems_without_a_partner_are_named(tmp_path):
    touch(tmp_path, *(f"ir/{n}.png" for n in range(10, 19)), "vi/10.png", "vi/x.png")
    refused(tmp_path, "9 images without a partner", "11.png", "15.png and 3 more", "x.png")


def test_a_missing_sequence_is_named(tmp_path):
    touch(tmp_path, "ir/a/1.png", "vi/a/1.png", "ir/b/1.png", "ir/b/2.png")
    refused(tmp_path, "2 images", f"b{os.sep}1.png")


def test_a_folder_whose_other_half_is_absent_is_named(tmp_path):
    touch(tmp_path, "s1/infrared/1.jpg", "s1/visible/1.jpg", "s2/infrared/1.jpg")
    refused(tmp_path, f"s2{os.sep}infrared", "other source")
    touch(tmp_path, "s2/visible/1.jpg")
    (tmp_path / "s3" / "T").mkdir(parents=True)  # an empty folder is no source
    touch(tmp_path, "visible/ir/1.png", "visible/vi/1.png")  # here "visible" is a scene's name
    assert set(found(tmp_path)) == {"s1/1", "s2/1", "visible/1"}


def test_sizes_that_differ_are_named(tmp_path):
    touch(tmp_path, "ir/a.png", "ir/b.png", "vi/a.png")
    touch(tmp_path, "vi/b.png", size=(20, 16))
    refused(tmp_path, "1 of 2 pairs", "b (ir 16x20, vis 20x16)", "--resize vis")
    assert len(find_pairs(tmp_path, check_sizes=False)) == 2
    (tmp_path / "vi" / "b.png").write_bytes(b"corrupt: the one who decodes it says so")
    assert len(find_pairs(tmp_path)) == 2


def test_two_files_of_one_stem(tmp_path):
    touch(tmp_path, "ir/a.png", "vi/a.png", "vi/a.k.png", "vi/a.jpg")
    refused(tmp_path, "a.png", "a.jpg", "same stem")


def test_one_name_twice(tmp_path):
    touch(tmp_path, "infrared/train/1.png", "visible/train/1.png")
    touch(tmp_path, "train/ir/1.png", "train/vi/1.png")
    refused(tmp_path, "train/1", "twice")


def test_folders_that_could_be_either(tmp_path):
    touch(tmp_path, "ir/a.png", "thermal/a.png", "vi/a.png")
    refused(tmp_path, "ir, thermal", "layout", "ir,vi")
    assert found(tmp_path, layout="thermal,vi") == {"a": ("thermal/a.png", "vi/a.png")}


def test_nothing_to_find(tmp_path):
    refused(tmp_path / "none", "none", "no such")
    refused(tmp_path, "no pairs", "holds none")
    touch(tmp_path, "left/a.png", "right/a.png")
    refused(tmp_path, "no pairs", "left/, right/", "two folders")
    refused(tmp_path, "llvip", "infrared beside visible", layout="llvip")
    (tmp_path / "left" / "x_T.avi").write_bytes(b"")
    refused(tmp_path, "videos")
    for name in ("ir", "vi"):
        (tmp_path / name).mkdir()
    refused(tmp_path, "no images")


@pytest.mark.parametrize("layout", ["msr", "a,b,c", "a,", ",", "a,A", (1, 2), 3])
def test_bad_layouts(tmp_path, layout):
    with pytest.raises((ValueError, TypeError), match="layout|not iterable"):
        find_pairs(tmp_path, layout=layout)


@pytest.mark.parametrize("root", [None, 3, b"x"])
def test_bad_roots(root):
    with pytest.raises(TypeError, match="root"):
        find_pairs(root)


@pytest.mark.skipif(sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0,
                    reason="permissions bind no administrator")  # fmt: skip
def test_a_folder_that_cannot_be_listed(tmp_path):
    touch(tmp_path, "ir/a.png", "vi/a.png")
    (tmp_path / "ir").chmod(0)
    try:
        refused(tmp_path, "listed")
    finally:
        (tmp_path / "ir").chmod(0o755)


# Lists

CSV = {
    "plain": "ir,vis,name\na/1.png,b/1.png,first\na/2.png,b/2.png,s/second\n",
    "semicolons and BOM": "\ufeffName;Visible;Infrared\r\nfirst;b/1.png;a/1.png\r\n"
    "s/second;b/2.png;a/2.png\r\n",
    "tabs and another column": "thermal\trgb\tsplit\tname\na/1.png\tb/1.png\tx\tfirst\n"
    "a/2.png\tb/2.png\ty\ts/second\n",
}
ROWS = [
    {"ir": "a/1.png", "vis": "b/1.png", "name": "first"},
    {"ir": "a/2.png", "vis": "b/2.png", "name": "s/second"},
]
JSON = {
    "x.json": json.dumps(ROWS),
    "pairs.json": json.dumps({"about": "x", "pairs": ROWS}),
    "x.jsonl": "\n\n".join(map(json.dumps, ROWS)),
}
LISTED = {"first": ("a/1.png", "b/1.png"), "s/second": ("a/2.png", "b/2.png")}


@pytest.fixture
def listed(tmp_path):
    touch(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    return tmp_path


def write(path, text: str):
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("kind", CSV)
def test_csv(listed, kind):
    path = write(listed / "list.csv", CSV[kind])
    assert found(listed, manifest=path) == LISTED
    assert [item.name for item in find_pairs(path)] == list(LISTED)


@pytest.mark.parametrize("name", JSON)
def test_json(listed, name):
    path = write(listed / name, JSON[name])
    assert found(listed, manifest=path) == LISTED
    assert find_pairs(None, manifest=path) == find_pairs(path) == find_pairs(listed, manifest=path)


def test_lists_of_two_and_names_by_default(listed):
    path = write(listed / "x.json", '[["a/2.png", "b/1.png"], ["a/1.png", "b/2.png"]]')
    assert found(listed, manifest=path) == {
        "2": ("a/2.png", "b/1.png"),
        "1": ("a/1.png", "b/2.png"),
    }


def test_a_list_elsewhere_is_relative_to_the_root(listed, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("lists") / "x.csv", CSV["plain"])
    assert found(listed, manifest=path) == LISTED
    refused(path, "4 files do not exist", "1.png")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.csv", "", ["columns are none"]),
        ("x.csv", "left,right\n1,2\n", ["left, right", "ir and vis"]),
        ("x.csv", "ir,vis\n", ["lists no pairs"]),
        ("x.csv", "ir,vis\na/1.png\n", ["line 2", "vis"]),
        ("x.csv", "ir,vis\na/1.png,a/1.png\n", ["line 2", "two files"]),
        ("x.csv", "ir,vis\na/1.png,b/7.png\n", ["1 files do not exist", "7.png"]),
        ("x.csv", "ir,vis\na/1.png,b/1.png\na/1.png,b/2.png\n", ["twice", "1"]),
        ("x.csv", "ir,vis,name\na/1.png,b/1.png,../up\n", ["name", "../up"]),
        ("x.csv", "ir,vis,name\na/1.png,b/1.png,/abs\n", ["name", "/abs"]),
        ("x.csv", "ir,vis,name\na/1.png,b/1.png,x//y\n", ["name", "x//y"]),
        ("x.csv", "ir,vis,name\na/1.png,b/1.png,c:x\n", ["name", "c:x"]),
        ("x.csv", "ir,vis,name\na/1.png,b/1.png,.hidden\n", ["name", ".hidden"]),
        ("x.json", "[", ["not JSON"]),
        ("x.json", "3", ["list of pairs"]),
        ("x.json", '{"a": 1}', ["pairs"]),
        ("x.json", '[["a/1.png"]]', ["pair 1"]),
        ("x.json", '[{"ir": "a/1.png", "vis": 4}]', ["pair 1", "vis is 4"]),
        ("x.json", '[{"ir": "a/1.png", "vis": "b/1.png", "name": 4}]', ["name is 4"]),
        ("x.txt", "ir,vis\n", [".csv"]),
    ],
)
def test_bad_lists(listed, name, text, words):
    path = write(listed / name, text)
    refused(path, *words)
    refused(listed, *words, manifest=path)


def test_a_list_that_is_no_text(listed):
    (listed / "x.csv").write_bytes(b"\xff\xfe\x00")
    refused(listed / "x.csv", "UTF-8")
    refused(listed, "lost.csv", manifest=listed / "lost.csv")
    with pytest.raises(ValueError, match="exclude"):
        find_pairs(listed, manifest=listed / "x.csv", layout="tno")
