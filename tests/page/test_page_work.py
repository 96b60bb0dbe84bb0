"""What the page computes: the bytes of the commands, and the sentences about them."""

from __future__ import annotations

import re
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import ddfm_fast
from ddfm_fast.cli.app import app
from ddfm_fast.page.controls import Controls
from ddfm_fast.page.sentences import Sentence, as_html, of_error, without_paths
from ddfm_fast.page.views import make_views, score
from ddfm_fast.page.work import Limits, Work
from ddfm_fast.serve.logs import Log, told_apart

RNG = np.random.default_rng(7)
Y, X = np.mgrid[:48, :64]


def silent(_: float, __: str) -> None:
    """Ignore the progress: nobody watches."""


def picture(dtype: type = np.uint8, *, color: bool = False) -> np.ndarray:
    top = np.iinfo(dtype).max
    plane = 0.5 + 0.4 * np.sin(X / 7) * np.cos(Y / 5)
    values = plane[..., None] * [1.0, 0.8, 0.6] if color else plane
    return np.rint(values * top).astype(dtype)


@pytest.fixture
def pair(tmp_path) -> tuple[str, str]:
    """A gray infrared file of 16 bits and a visible one in color, in folders of their own."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    deep = picture(np.uint16)
    deep[10:20, 30:40] = 65535
    Image.fromarray(deep).save(tmp_path / "a" / "night 1.png")
    Image.fromarray(picture(color=True)).save(tmp_path / "b" / "day.png")
    return str(tmp_path / "a" / "night 1.png"), str(tmp_path / "b" / "day.png")


@pytest.fixture
def work(tmp_path):
    root = tmp_path / "results"
    root.mkdir()
    with told_apart(Log()):
        yield Work(ddfm_fast.Fuser(preset="instant"), root, Limits(max_pixels=10_000))


@pytest.mark.parametrize(
    "controls",
    [
        Controls(),
        Controls(preset="instant", format="tif"),
        Controls(preset="instant", color="gray", ir_range="0,65535", align="off"),
        Controls(preset="balanced", denoise="6", color="ir", seed=5, vis_range="data"),
        Controls(preset="official", steps="2", seed=8),
    ],
    ids=lambda one: " ".join(one.arguments()) or "defaults",
)
def test_a_pair_has_the_bytes_of_the_command_that_is_shown(work, pair, controls, tmp_path):
    done = work.pair(*pair, controls, silent)
    program, *arguments = shlex.split(done.note)
    assert program == "ddfm-fast"
    places = {Path(one).name: one for one in pair}
    out = tmp_path / done.file.name
    places[done.file.name] = str(out)
    result = CliRunner().invoke(app, [places.get(one, one) for one in arguments])
    assert result.exit_code == 0, result.output
    assert done.file.read_bytes() == out.read_bytes()
    assert done.lines[0].text.startswith(f"{done.file.name}: 64 × 48 pixels of 16 bits")


def test_every_step_is_told(work, pair):
    told = []
    work.pair(*pair, Controls(preset="official", steps="3"), lambda *one: told.append(one))
    steps = [one for one in told if one[1].startswith("step")]
    assert [text for _, text in steps] == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert [at for at, _ in told] == sorted(at for at, _ in told)


def test_what_is_found_is_said(work, tmp_path):
    noisy = tmp_path / "noisy.png"
    noise = RNG.normal(0, 20, (128, 160))
    y, x = np.mgrid[:128, :160]
    plane = 128 + 60 * np.sin(x / 17) * np.cos(y / 15)
    Image.fromarray(np.clip(plane + noise, 0, 255).astype(np.uint8)).save(noisy)
    clean = tmp_path / "clean.png"
    Image.fromarray(np.clip(200 - plane / 2, 0, 255).astype(np.uint8)).save(clean)
    big = Work(work.fusers.own, work.root, Limits())
    lines = [one.text for one in big.pair(str(noisy), str(clean), Controls(), silent).lines]
    found = next(re.search(r"^Infrared: noise of ([\d.]+) gray levels", t) for t in lines[1:2])
    assert 16 < float(found[1]) < 24
    assert any(line.startswith("Taken for a photographic pair") for line in lines)


def test_a_shifted_pair_is_told_before_it_is_fused(work, tmp_path):
    big = Work(work.fusers.own, work.root, Limits())
    scene = Image.fromarray(RNG.integers(0, 255, (30, 40), np.uint8)).resize((480, 360))
    scene.crop((0, 0, 440, 360)).save(tmp_path / "a.png")
    scene.crop((24, 0, 464, 360)).save(tmp_path / "b.png")
    lines = big.look(str(tmp_path / "a.png"), str(tmp_path / "b.png"), Controls())
    assert [line.text.split(";")[0] for line in lines[:2]] == [
        "Infrared: 440 × 360 pixels, gray, 8 bits",
        "Visible: 440 × 360 pixels, gray, 8 bits",
    ]
    (warning,) = [line for line in lines if line.kind == "warning"]
    assert "shifted by (+24, +0) pixels" in warning.text or "(-24, +0)" in warning.text
    assert big.look(None, str(tmp_path / "b.png"), Controls()) == []


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"denoise": "much"}, "denoise is 'much'; expected"),
        ({"steps": "x"}, "steps"),
        ({"ir_range": "9,1"}, "range of ir is '9,1'; expected LO,HI"),
        ({"seed": None}, "seed is None; expected a whole number"),
        ({"seed": 1.5}, "seed is 1.5; expected a whole number"),
        ({"align": "calibration.json"}, "calibration.json"),
    ],
)
def test_controls_that_say_nothing_are_refused(work, pair, change, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        work.pair(*pair, Controls(**change), silent)


def test_files_that_do_not_do(work, pair, tmp_path):
    with pytest.raises(ValueError, match="no infrared and no visible picture is chosen"):
        work.pair(None, None, Controls(), silent)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"bad\.png"):
        work.pair(str(bad), pair[1], Controls(), silent)
    large = tmp_path / "large.png"
    Image.new("L", (200, 100)).save(large)
    with pytest.raises(ValueError, match=r"large\.png"):
        work.look(str(large), str(large), Controls())
    with pytest.raises(ValueError, match="equal size"):
        Image.new("L", (32, 32)).save(large)
        work.pair(str(large), pair[1], Controls(), silent)


def test_sentences_name_no_folder_of_the_server(tmp_path):
    root = tmp_path / "app-1"
    text = f"{root}/uploads/ab12/my night.png: is cut; {root}/results/x/out/a/b.png: likewise"
    assert without_paths(text, root) == "my night.png: is cut; b.png: likewise"
    assert of_error(KeyError("x"), root) == (
        "the program has a fault (KeyError: 'x'); its log says where"
    )
    shown = as_html([Sentence("<script>a.png: no", "error")], "ddfm-fast '<b>'")
    assert "<script>" not in shown and "<b>" not in shown and 'class="error"' in shown


@pytest.mark.parametrize(
    "dark, size, control",
    [(20, (150, 100), "Infrared range"), (255, (150, 90), "Resize"), (255, (150, 90), "Align")],
)
def test_sentences_name_controls_of_the_page(work, tmp_path, dark, size, control):
    """The functions' sentences are for calls and commands, neither of which a visitor has."""
    ir, vis = tmp_path / "a.png", tmp_path / "b.png"
    y, x = np.mgrid[:100, :150]
    Image.fromarray((x * dark // 150).astype(np.uint8)).save(ir)
    Image.fromarray((y * 2).astype(np.uint8)).resize(size).save(vis)
    big = Work(work.fusers.own, work.root, Limits())
    try:
        said = [one.text for one in big.pair(str(ir), str(vis), Controls(), silent).lines]
    except ValueError as error:
        said = [str(error)]
    assert any("--" in text for text in said)
    shown = [of_error(ValueError(text), tmp_path) for text in said]
    assert any(control in text for text in shown)
    assert not any("--" in text or "value_range" in text for text in shown), shown
    assert not any(re.search(r"(^|: )(ir|vis): ", text) for text in shown), shown


def test_parts_show_one_place_of_all_three(work, pair):
    views = work.pair(*pair, Controls(preset="instant"), silent).views
    for across, down in ((0.5, 0.5), (0, 0), (1, 1)):
        parts = views.parts(across, down, 16)
        assert {one.shape for one in parts} == {(16 * 26, 16 * 26, 3)}
    left = np.asarray(Image.open(pair[1]))[:16, :16]
    assert np.array_equal(views.parts(0, 0, 16)[1][::26, ::26], left)
    assert views.parts(0.5, 0.5, 1000)[0].shape[0] >= 48


def test_scores_are_those_of_the_metrics(work, pair):
    from ddfm_fast.files.depth import Levels, read_sources
    from ddfm_fast.files.reading import read_image
    from ddfm_fast.metrics import compute, to_luma

    done = work.pair(*pair, Controls(preset="instant"), silent)
    found = read_sources(*pair, Levels())
    wanted = compute(*map(to_luma, (read_image(done.file), found.ir, found.vis)))
    drawn = re.findall(r"<span[^>]*>([^<]*)</span>", score(done.views)[0])
    rows = {drawn[n]: drawn[n + 1 : n + 3] for n in range(3, len(drawn), 3)}
    assert set(rows) >= {"EN", "VIF", "Qabf", "SCD"}
    for name, (value, worse) in rows.items():
        assert value == f"{float(wanted[name]):.3f}"
        assert worse == (f"{float(wanted[f'{name}_min']):.3f}" if f"{name}_min" in wanted else "")


def test_large_pictures_are_not_scored(tmp_path, monkeypatch, pair):
    from ddfm_fast.files.depth import Levels, read_sources

    monkeypatch.setattr("ddfm_fast.page.views.SCORED", 100)
    found = read_sources(*pair, Levels())
    table, (sentence,) = score(make_views(tmp_path, found, found.vis))
    assert not table and "not scored" in sentence


def zipped(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def test_a_folder_of_pairs(work, pair, tmp_path):
    ir, vis = (Path(one).read_bytes() for one in pair)
    files = {"set/ir/one.png": ir, "set/vis/one.png": vis, "set/ir/two.png": ir}
    files |= {"set/vis/two.png": b"nothing", "set/notes.txt": b"x", "__MACOSX/set/._a.png": b"x"}
    told = []
    archive = zipped(tmp_path / "pairs.zip", files)
    done = work.folder(archive, Controls(preset="instant"), lambda *one: told.append(one))
    with zipfile.ZipFile(done.file) as found:
        assert found.namelist() == ["one.png"]
        fused = found.read("one.png")
    alone = work.pair(*pair, Controls(preset="instant"), silent)
    assert fused == alone.file.read_bytes()
    assert done.lines[0].text == "1 of 2 pairs are fused"
    (error,) = [line.text for line in done.lines if line.kind == "error"]
    assert error.startswith("two: ") and "two.png" in error
    assert [text for _, text in told] == ["unpacking", "pair 1 of 2", "pair 2 of 2", "packing"]
    with pytest.raises(ValueError, match="no file is chosen"):
        work.folder(None, Controls(), silent)
    for name in ("set/ir/one.png", "set/ir/two.png"):
        files[name] = b"nothing"
    with pytest.raises(ValueError, match="none of 2 pairs could be fused"):
        work.folder(zipped(tmp_path / "bad.zip", files), Controls(preset="instant"), silent)


def video(path: Path, frames: int = 5) -> str:
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(frames):
            image = np.roll(picture(color=True), 2 * n, axis=1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return str(path)


def frames_of(path: Path) -> list[bytes]:
    import av

    with av.open(str(path)) as found:
        return [one.to_ndarray(format="rgb24").tobytes() for one in found.decode(video=0)]


def test_a_video_is_that_of_the_command(work, tmp_path, monkeypatch):
    """Without loss here: x264 on a busy machine may write other bytes of the same frames."""
    from ddfm_fast.video import pipeline

    ir, vis = video(tmp_path / "t.mp4"), video(tmp_path / "v.mp4")
    out = tmp_path / "out.mkv"
    arguments = ["video", ir, vis, "-o", str(out), "--preset", "realtime", "--align", "off"]
    result = CliRunner().invoke(app, [*arguments, "--codec", "ffv1", "--gray"])
    assert result.exit_code == 0, result.output
    told, real = [], pipeline.fuse_video

    def lossless(a, b, to, **options):
        assert to.suffix == ".mp4"
        return real(a, b, to.with_suffix(".mkv"), codec="ffv1", **options)

    monkeypatch.setattr(pipeline, "fuse_video", lossless)
    controls = Controls(align="off", color="gray")
    done = work.video(ir, vis, "realtime", controls, lambda *one: told.append(one))
    assert frames_of(done.file) == frames_of(out) and len(frames_of(out)) == 5
    assert done.lines[0].text.startswith("t_fused.mp4: 5 frames")
    assert [text for _, text in told] == ["reading", *(f"frame {n} of 5" for n in range(1, 6))]


def test_a_video_for_browsers_and_what_its_threads_say(work, tmp_path):
    import av

    ir, vis = video(tmp_path / "t.mp4"), video(tmp_path / "v.mp4")
    done = work.video(ir, vis, "realtime", Controls(), silent)
    with av.open(str(done.file)) as found:
        assert found.streams.video[0].codec_context.name == "h264"
        assert sum(1 for _ in found.decode(video=0)) == 5
    warnings = [line.text for line in done.lines if line.kind == "warning"]
    assert warnings == ["ir and vis are the same picture; give two different sources"]


def test_a_list_of_other_files_is_no_video(work, tmp_path):
    """FFmpeg would follow it, whatever its suffix."""
    play = tmp_path / "play.mp4"
    play.write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n")
    with pytest.raises(ValueError, match=r"play\.mp4: is not a video that the page takes"):
        work.video(str(play), str(play), "realtime", Controls(), silent)
    with pytest.raises(ValueError, match="no visible video is chosen"):
        work.video(str(play), None, "realtime", Controls(), silent)


def test_old_results_go(work, pair, monkeypatch):
    first = work.pair(*pair, Controls(preset="instant"), silent).file
    monkeypatch.setattr("ddfm_fast.page.work.KEPT_SECONDS", -1)
    second = work.pair(*pair, Controls(preset="instant"), silent).file
    assert not first.exists() and second.exists()
