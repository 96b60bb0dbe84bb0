"""Pairs by name, by time and by pattern: each kind, and each that must not be guessed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from typer.testing import CliRunner

from ddfm_fast import DDFMWarning
from ddfm_fast.cli.app import app
from ddfm_fast.datasets.jobs import plan_jobs
from ddfm_fast.datasets.pairs import find_pairs, survey_pairs
from ddfm_fast.datasets.shots import read_shot
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.writing import write_image

TAKEN, FRACTION, EXIF = 36867, 37521, 0x8769
NOON = "2026:11:29 12:00:00"


def touch(root: Path, *names: str) -> None:
    for name in names:
        write_image(root / name, np.zeros((8, 8), np.uint8))


def shoot(path: Path, second: str = NOON, fraction: str = "", *, counts: bool = False) -> None:
    """Write a JPEG with a time, and perhaps with the segment in which FLIR stores its counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif.get_ifd(EXIF)[TAKEN] = second
    if fraction:
        exif.get_ifd(EXIF)[FRACTION] = fraction
    Image.new("L", (8, 8)).save(path, "JPEG", exif=exif)
    if counts:
        data = path.read_bytes()
        body = b"FLIR\0\x01\x00\x00" + bytes(32)
        segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
        path.write_bytes(data[:2] + segment + data[2:])


def found(root, **options) -> dict[str, tuple[str, str]]:
    base = root if isinstance(root, Path) else root[0].parent
    return {
        i.name: (i.ir.relative_to(base).as_posix(), i.vis.relative_to(base).as_posix())
        for i in find_pairs(root, **options)
    }


def lone(root, **options) -> dict[str, str]:
    return {one.file.name: one.why for one in survey_pairs(root, **options).alone}


def refused(root, *words: str, **options) -> None:
    with pytest.raises(ImageFileError) as caught:
        find_pairs(root, **options)
    for word in words:
        assert word in str(caught.value), caught.value


# One folder

KINDS = {
    "a": ("a_T.png", "a_V.jpg"),
    "b": ("b_IR.png", "b_RGB.png"),
    "c": ("c_thermal.tif", "c_visible.png"),
    "d": ("d_ir.png", "d_vi.png"),
    "e": ("IR1.png", "VIS1.png"),
    "f": ("IR_0007.jpg", "rgb_0007.jpg"),
    "g": ("g-lwir.png", "g-vis.png"),
    "h": ("left.IR.01.png", "left.VIS.01.png"),
    "i": ("T-junction_T_4.png", "T-junction_V_4.png"),
    "j": ("DJI_20240520212354_0001_T.JPG", "DJI_20240520212354_0001_W.JPG"),
    "k": ("DJI_0003_T.JPG", "dji_0003_z.jpg"),
    "l": ("FLIR_00002_PreviewData.jpeg", "FLIR_00002_RGB.jpg"),
    "m": ("scene_thermal.png", "scene.png"),
    "n": ("scene.png", "scene_rgb.png"),
    "o": ("ir.png", "vis.png"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_folder_of_both(tmp_path, kind):
    touch(tmp_path, *KINDS[kind])
    assert [*found(tmp_path).values()] == [KINDS[kind]]
    assert not survey_pairs(tmp_path).alone


def test_all_kinds_beside_one_another(tmp_path):
    kinds = [pair for kind, pair in KINDS.items() if kind != "n"]
    touch(tmp_path, *(name for pair in kinds for name in pair))
    assert sorted(found(tmp_path).values()) == sorted(kinds)


def test_names_of_pairs_are_what_their_files_share(tmp_path):
    touch(tmp_path, "DJI_0001_T.png", "DJI_0001_V.png", "IR_5.png", "VIS_5.png")
    touch(tmp_path, "s/ir.png", "s/vis.png", "s/b/x-thermal-2.png", "s/b/x-rgb-2.png")
    assert list(found(tmp_path)) == ["5", "DJI_0001", "s", "s/b/x-2"]


def test_a_drones_folder():
    pairs = find_pairs(shared("cases/TV"))
    assert [(p.name, p.ir.name, p.vis.name) for p in pairs] == [
        (f"DJI_000{n}", f"DJI_000{n}_T.JPG", f"DJI_000{n}_V.JPG") for n in (1, 2)
    ]


def test_two_candidates_are_both_named(tmp_path):
    touch(tmp_path, "d_1_T.png", "d_1_W.png", "d_1_Z.png", "d_2_T.png", "d_2_W.png")
    refused(tmp_path, "d_1_T.png fits d_1_W.png and d_1_Z.png", "--pattern", "manifest")
    assert lone(tmp_path) == {
        "d_1_T.png": "fits d_1_W.png and d_1_Z.png",
        "d_1_W.png": "fits d_1_T.png, as d_1_Z.png does",
        "d_1_Z.png": "fits d_1_T.png, as d_1_W.png does",
    }
    assert list(found(tmp_path, pattern="{}_T.*,{}_W.*")) == ["d_1", "d_2"]


@pytest.mark.parametrize(
    "names",
    [
        ("a_T.png", "a_T.tif", "a_V.png"),
        ("a_T.png", "a_V.png", "a_V.jpg"),
        ("a_T.png", "a_ir.png", "a_V.png"),
        ("a_T.png", "A_t.png", "a_V.png"),
        ("a_ir.png", "a.png", "a.jpg"),
    ],
)
def test_no_guess_in_one_folder(tmp_path, names):
    touch(tmp_path, *names)
    if len([*tmp_path.iterdir()]) < len(names):
        pytest.skip("names here do not differ by case")
    assert not survey_pairs(tmp_path).pairs
    refused(tmp_path, "more than one possible partner", *names)


def test_no_partner(tmp_path):
    touch(tmp_path, "a_T.png", "a_V.png", "b_T.png", "c_V.png")
    refused(tmp_path, "2 images without a partner", "infrared alone:", "b_T.png", "c_V.png")
    assert lone(tmp_path) == {
        "b_T.png": "no visible picture has its name or its time",
        "c_V.png": "no infrared picture has its name or its time",
    }


def test_one_stem_in_two_subfolders(tmp_path):
    touch(tmp_path, "a/x_T.png", "a/x_V.png", "b/x_T.png", "b/x_V.png")
    assert list(found(tmp_path)) == ["a/x", "b/x"]
    touch(tmp_path, "c/y_T.png", "d/y_V.png")  # two shots, as far as names tell
    refused(tmp_path, "2 images without a partner", "y_T.png", "y_V.png")


def test_what_claims_no_partner_is_left_out_with_a_word(tmp_path):
    touch(tmp_path, "a_T.png", "a_V.png", "a_MSX.png", "overview.png")
    with pytest.warns(DDFMWarning, match=r"left out, .*a_MSX\.png, .*overview\.png"):
        assert list(found(tmp_path)) == ["a"]
    assert "blend" in lone(tmp_path)["a_MSX.png"] and "neither" in lone(tmp_path)["overview.png"]


@pytest.mark.parametrize(
    "names",
    [
        ("a.png", "a_V.png"),
        ("T1.png", "V1.png"),
        ("a_T.png", "b_V.png"),
        ("aT.png", "aV.png"),
        ("T_V.png", "V_T.png"),
    ],
)
def test_what_does_not_pair(tmp_path, names):
    touch(tmp_path, *names)
    with pytest.raises(ImageFileError, match="no pairs|without a partner"):
        find_pairs(tmp_path)


def test_folders_of_the_sources_come_first(tmp_path):
    touch(tmp_path, "ir/a.png", "vi/a.png", "b_T.png", "b_V.png")
    assert list(found(tmp_path)) == ["a"]


def test_both_in_a_folder_called_after_one(tmp_path):
    touch(tmp_path, "thermal/a_T.png", "thermal/a_V.png")
    assert list(found(tmp_path)) == ["thermal/a"]


# By time


def test_consecutive_numbers_of_one_second(tmp_path):
    for n in (1, 3):
        shoot(tmp_path / f"DJI_000{n}_T.JPG", f"2026:11:29 12:00:0{n}")
        shoot(tmp_path / f"DJI_000{n + 1}_W.JPG", f"2026:11:29 12:00:0{n}")
    assert found(tmp_path) == {
        "DJI_0001": ("DJI_0001_T.JPG", "DJI_0002_W.JPG"),
        "DJI_0003": ("DJI_0003_T.JPG", "DJI_0004_W.JPG"),
    }


def test_consecutive_numbers_alone_say_nothing(tmp_path):
    shoot(tmp_path / "DJI_0001_T.JPG")
    shoot(tmp_path / "DJI_0002_W.JPG", "2026:11:29 12:00:05")
    touch(tmp_path, "DJI_0011_T.png", "DJI_0012_W.png")
    refused(tmp_path, "4 images without a partner")


def test_one_second_alone_says_nothing(tmp_path):
    shoot(tmp_path / "DJI_0001_T.JPG")
    shoot(tmp_path / "DJI_0007_W.JPG")
    refused(tmp_path, "2 images without a partner")


def test_a_clock_that_was_never_set_says_nothing(tmp_path):
    for name in ("DJI_0001_T.JPG", "DJI_0002_W.JPG"):
        shoot(tmp_path / name, "0000:00:00 00:00:00")
    refused(tmp_path, "2 images without a partner")


def test_three_files_of_one_second(tmp_path):
    for name in ("DJI_0001_T.JPG", "DJI_0002_W.JPG", "DJI_0003_Z.JPG"):
        shoot(tmp_path / name)
    refused(tmp_path, "DJI_0001_T.JPG fits DJI_0002_W.JPG and DJI_0003_Z.JPG")


def test_a_burst_within_a_second(tmp_path):
    names = ("DJI_0001_T.JPG", "DJI_0002_W.JPG", "DJI_0003_T.JPG", "DJI_0004_W.JPG")
    for name in names:
        shoot(tmp_path / name)
    refused(tmp_path, "DJI_0003_T.JPG fits DJI_0002_W.JPG and DJI_0004_W.JPG")
    for n, name in enumerate(names):  # fractions of a second tell them apart
        shoot(tmp_path / name, fraction="25" if n < 2 else "75")
    assert [*found(tmp_path).values()] == [names[:2], names[2:]]


def test_flir_pairs(tmp_path):
    shoot(tmp_path / "IR_1234.jpg", counts=True)
    shoot(tmp_path / "DC_1235.jpg")
    shoot(tmp_path / "one" / "FLIR0001.jpg", counts=True)
    shoot(tmp_path / "one" / "FLIR0002.jpg")
    shoot(tmp_path / "two" / "FLIR0001.jpg", counts=True)
    shoot(tmp_path / "two" / "IMG_77.jpg")
    assert [*found(tmp_path).values()] == [
        ("IR_1234.jpg", "DC_1235.jpg"),
        ("one/FLIR0001.jpg", "one/FLIR0002.jpg"),
        ("two/FLIR0001.jpg", "two/IMG_77.jpg"),
    ]


def test_two_flir_pictures_of_one_second(tmp_path):
    for name in ("FLIR0001.jpg", "FLIR0003.jpg"):
        shoot(tmp_path / name, counts=True)
    shoot(tmp_path / "FLIR0002.jpg")
    refused(tmp_path, "FLIR0002.jpg fits FLIR0001.jpg and FLIR0003.jpg")


def test_times_in_names_a_second_apart(tmp_path):
    touch(tmp_path, "DJI_20240520215959_0001_T.JPG", "DJI_20240520220000_0001_V.JPG")
    assert list(found(tmp_path)) == ["DJI_20240520215959_0001"]
    touch(tmp_path, "DJI_20240520221000_0002_T.JPG", "DJI_20240520221004_0002_V.JPG")
    refused(tmp_path, "2 images without a partner", "221000", "221004")


def test_headers(tmp_path):
    shoot(tmp_path / "a.jpg", fraction="5", counts=True)
    assert read_shot(tmp_path / "a.jpg") == (NOON, "5", True)
    with Image.open(tmp_path / "a.jpg") as image:
        assert isinstance(image, JpegImageFile)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:30])
    (tmp_path / "c.jpg").mkdir()
    touch(tmp_path, "d.png")
    for name in ("b.jpg", "c.jpg", "d.png", "none.jpg"):
        assert read_shot(tmp_path / name) == ("", "", False)


# Two folders


@pytest.mark.parametrize(
    ("ir", "vis"),
    [
        (["A.JPG"], ["a.png"]),
        (["caf\u00e9.png"], ["cafe\u0301.png"]),
        (["1_T.png", "2_T.png"], ["1_V.png", "2_V.png"]),
        (["1_ir.png"], ["1.png"]),
        (["1.png"], ["vis_1.png"]),
        (["IR_1.png", "IR_2.png"], ["1_rgb.png", "2_rgb.png"]),
        (["cam0-1-x.png", "cam0-2-x.png"], ["frame1.png", "frame2.png"]),
        (["s/1_ir.png"], ["s/1_vi.png"]),
        (["S/1.png"], ["s/1.png"]),
        (["DJI_20240520215959_0001_T.JPG"], ["DJI_20240520220000_0001_V.JPG"]),
    ],
)
def test_two_folders(tmp_path, ir, vis):
    touch(tmp_path / "near", *ir)
    touch(tmp_path / "far", *vis)
    expected = [(f"near/{a}", f"far/{b}") for a, b in zip(ir, vis, strict=True)]
    assert [*found((tmp_path / "near", tmp_path / "far")).values()] == expected
    assert [*found(tmp_path, layout="near,far").values()] == expected
    if not any("/" in name for name in (*ir, *vis)):
        jobs = plan_jobs(tmp_path / "near", tmp_path / "far", tmp_path / "out")
        assert [(job.ir.name, job.vis.name) for job in jobs] == [*zip(ir, vis, strict=True)]
        assert [job.output.name for job in jobs] == [f"{Path(name).stem}.png" for name in ir]


@pytest.mark.parametrize(
    ("ir", "vis", "words"),
    [
        (["A.png"], ["a.png", "a_V.png"], "1 images without a partner"),
        (["x_a.png"], ["X_A.png", "X_a.jpg"], "fits X_A.png and X_a.jpg"),
        (["1_T.png"], ["1_V.png", "V_1.png"], "fits 1_V.png and V_1.png"),
        (["p1.png"], ["q1.png"], "2 images without a partner"),
        (["101.png", "102.png"], ["201.png", "202.png"], "4 images without a partner"),
        (["s/a.png", "s/b.png"], ["t/a.png", "t/b.png"], "4 images without a partner"),
        (["a.png", "c1.png", "c2.png"], ["a.png", "d1.png", "d2.png"], "4 images without"),
    ],
)
def test_no_guess_between_two_folders(tmp_path, ir, vis, words):
    touch(tmp_path / "ir", *ir)
    touch(tmp_path / "vi", *vis)
    if len([p for p in (tmp_path / "vi").rglob("*.*")]) < len(vis):
        pytest.skip("names here do not differ by case")
    refused(tmp_path, words)
    refused((tmp_path / "ir", tmp_path / "vi"), words)
    if "/" not in ir[0]:
        with pytest.raises(ImageFileError, match="without a partner|more than one possible"):
            plan_jobs(tmp_path / "ir", tmp_path / "vi", tmp_path / "out")


def test_equal_names_come_before_similar_ones(tmp_path):
    touch(tmp_path, "ir/a.png", "ir/A_T.png", "vi/a.png", "vi/A_V.png")
    assert list(found(tmp_path)) == ["A", "a"]


def test_numbers_and_time_in_two_folders(tmp_path):
    shoot(tmp_path / "T" / "DJI_0001_T.JPG")
    shoot(tmp_path / "rgb" / "DJI_0002_W.JPG")
    assert list(found(tmp_path)) == ["DJI_0001"]


# Patterns


def test_patterns(tmp_path):
    touch(tmp_path, "a_T.png", "a_W.jpg", "a_Z.png", "s/b_t.png", "s/B_w.tif", "other.png")
    expected = {"a": ("a_T.png", "a_W.jpg"), "s/b": ("s/b_t.png", "s/B_w.tif")}
    assert found(tmp_path, pattern="{}_T.*,{}_W.*") == expected
    assert found(tmp_path, pattern=("a{}T.png", "a{}W.jpg")) == {"_": expected["a"]}
    assert lone(tmp_path, pattern="{}_T.*,{}_W.*") == dict.fromkeys(
        ("a_Z.png", "other.png"), "fits neither pattern"
    )


def test_patterns_with_folders(tmp_path):
    touch(tmp_path, "day/near/a.png", "day/far/a.png", "night/near/a.png", "night/far/a.png")
    assert found(tmp_path, pattern="near/{}.png,far/{}.png") == {
        f"{when}/a": (f"{when}/near/a.png", f"{when}/far/a.png") for when in ("day", "night")
    }
    two = (tmp_path / "day" / "near", tmp_path / "night" / "far")
    assert [p.name for p in find_pairs(two, pattern="{}.png,{}.png")] == ["a"]


def test_patterns_that_do_not_decide(tmp_path):
    touch(tmp_path, "a_T.png", "a_W.png", "a_W.jpg", "b_T.png")
    refused(tmp_path, "a_T.png fits a_W.jpg and a_W.png", "b_T.png", pattern="{}_T.*,{}_W.*")
    refused(tmp_path, "no files fit", "a_T.png", pattern="{}_X.*,{}_Y.*")
    with pytest.raises(ValueError, match=r"a_T\.png fits both"):
        find_pairs(tmp_path, pattern="{}_T.*,{}_?.png")


@pytest.mark.parametrize("pattern", ["{}_T.*", "a,b", "{}{},{}", "{},{},{}", "", 3, ("{}", 3)])
def test_bad_patterns(tmp_path, pattern):
    with pytest.raises((ValueError, TypeError), match="pattern is"):
        find_pairs(tmp_path, pattern=pattern)


def test_one_way_to_say_it(tmp_path):
    with pytest.raises(ValueError, match="layout and pattern exclude each other"):
        find_pairs(tmp_path, layout="tno", pattern="{}_T.*,{}_V.*")


# The command


def listed(*arguments):
    return CliRunner().invoke(app, ["batch", *map(str, arguments), "--list"])


def test_list(tmp_path):
    touch(tmp_path, "a_T.png", "a_V.png", "overview.png")
    result = listed(tmp_path)
    assert result.exit_code == 0, result.output
    first, second, last = result.stdout.splitlines()
    assert first == f"a: {tmp_path / 'a_T.png'} + {tmp_path / 'a_V.png'}"
    assert second.startswith(f"no pair: {tmp_path / 'overview.png'}: its name says neither")
    assert last == "1 pairs, 1 files without a partner"
    assert {path.name for path in tmp_path.iterdir()} == {"a_T.png", "a_V.png", "overview.png"}


def test_list_says_why(tmp_path):
    touch(tmp_path, "a_T.png", "a_W.png", "a_Z.png", "b_T.png", "c_T.png", "c_V.png")
    result = listed(tmp_path, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and not report["ok"]
    assert [pair["name"] for pair in report["pairs"]] == ["c"]
    alone = {Path(one["file"]).name: one for one in report["alone"]}
    assert [Path(p).name for p in alone["a_T.png"]["candidates"]] == ["a_W.png", "a_Z.png"]
    assert alone["b_T.png"]["why"].startswith("no visible picture")
    assert all(one["lacks_partner"] for one in alone.values())


def test_list_is_a_manifest(tmp_path):
    touch(tmp_path / "set", "a_T.png", "a_V.png")
    path = tmp_path / "pairs.json"
    path.write_text(listed(tmp_path / "set", "--json").stdout)
    assert find_pairs(path) == find_pairs(tmp_path / "set")
    assert "a: " in listed(path).stdout


def test_list_names_half_a_layout(tmp_path):
    touch(tmp_path, "s1/ir/a.png", "s1/vi/a.png", "s2/ir/a.png")
    result = listed(tmp_path)
    assert result.exit_code == 1 and "s1/a: " in result.stdout
    assert "no folder of the other source beside it" in result.stdout


def test_list_with_a_pattern_or_nothing(tmp_path):
    touch(tmp_path, "a-1.png", "a-2.png")
    result = listed(tmp_path)
    assert result.exit_code == 2 and "no pairs found" in result.stderr
    assert "a: " in listed(tmp_path, "--pattern", "{}-1.*,{}-2.*").stdout


def test_an_output_is_needed_without_list(tmp_path):
    touch(tmp_path, "a_T.png", "a_V.png")
    result = CliRunner().invoke(app, ["batch", str(tmp_path)])
    assert result.exit_code == 2 and "--out is missing" in result.stderr
