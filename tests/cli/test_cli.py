"""The command line: what it writes, prints and returns, and how it refuses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ddfm_fast import PRESETS, fuse
from ddfm_fast.cli.app import app
from ddfm_fast.config import DEFAULT_PRESET
from ddfm_fast.datasets.jobs import plan_jobs
from ddfm_fast.files.depth import same_depth
from ddfm_fast.files.reading import read_image
from ddfm_fast.files.writing import write_image
from ddfm_fast.images.panel import draw_panel, to_rgb8
from ddfm_fast.kernels.cpu.build import status
from ddfm_fast.priors.checkpoint import save_unet
from ddfm_fast.priors.unet import UNet
from ddfm_fast.priors.unet_config import UNetConfig

SIZE = 32


@pytest.fixture(scope="session")
def prior(tmp_path_factory) -> str:
    """A tiny random prior: the command line is tested here, not the picture."""
    torch.manual_seed(0)
    config = UNetConfig(model_channels=32, num_res_blocks=1, attention_resolutions=())
    config = dataclasses.replace(config, channel_mult=(1,), middle_attention=False)
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    return str(save_unet(path, UNet(config)))


@pytest.fixture
def call(prior):
    """Run the command in this process; ``fuse`` gets the tiny prior and two steps."""

    def run(*arguments):
        arguments = [str(a) for a in arguments]
        if arguments[0] == "fuse":
            arguments += ["--prior", prior] * ("--prior" not in arguments)
            arguments += ["--steps", "2"] * ("--steps" not in arguments)
        return CliRunner().invoke(app, arguments)

    return run


def picture(seed: int, *, color: bool = False, dtype=np.uint8) -> np.ndarray:
    """Draw a smooth picture with some texture, so that the result is not constant."""
    rng = np.random.default_rng(seed)
    shape = (SIZE, SIZE, 3) if color else (SIZE, SIZE)
    ramp = np.linspace(0.1, 0.8, SIZE).reshape((SIZE, 1, 1) if color else (SIZE, 1))
    return ((ramp + 0.2 * rng.random(shape)) * np.iinfo(dtype).max).astype(dtype)


@pytest.fixture
def pair(tmp_path):
    """(infrared path, visible path): 8-bit gray and color PNG."""
    return (
        write_image(tmp_path / "in" / "ir.png", picture(0)),
        write_image(tmp_path / "in" / "vis.png", picture(1, color=True)),
    )


@pytest.fixture
def folders(tmp_path):
    """Two folders of three pairs, ``a``, ``b`` and ``c``, whose suffixes differ."""
    for n, name in enumerate("abc"):
        write_image(tmp_path / "ir" / f"{name}.bmp", picture(n))
        write_image(tmp_path / "vi" / f"{name}.png", picture(n + 10, color=True))
    return tmp_path / "ir", tmp_path / "vi"


def refused(result, *words: str) -> None:
    """Check for exit code 2, and one or two lines with the words on stderr, without a traceback."""
    assert result.exit_code == 2, result.output
    assert 1 <= len(result.stderr.strip().splitlines()) <= 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


# What it writes


def test_file_equals_the_api(call, pair, prior, tmp_path):
    result = call("fuse", *pair, "-o", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    expected = fuse(*map(read_image, pair), prior=prior, steps=2)
    np.testing.assert_array_equal(read_image(tmp_path / "out.png"), expected)
    assert "out.png" in result.stdout and "32x32" in result.stdout
    assert result.stderr == ""


def test_options_reach_the_api(call, pair, prior, tmp_path):
    options = ["--variant", "paper", "--sampler", "ddpm", "--steps", "3", "--psi", "0.2"]
    options += ["--eta", "0.1", "--seed", "7", "--stretch", "none", "--gray", "--device", "cpu"]
    result = call("fuse", *pair, "-o", tmp_path / "out.png", *options)
    assert result.exit_code == 0, result.output
    options += ["--reuse", "2"]
    settings = {"variant": "paper", "sampler": "ddpm", "steps": 3, "psi": 0.2, "eta": 0.1}
    settings["reuse"] = 2
    expected = fuse(
        *map(read_image, pair), prior=prior, seed=7, stretch="none", color=False, **settings
    )
    written = read_image(tmp_path / "out.png")
    np.testing.assert_array_equal(written, expected.reshape(written.shape))


def test_color_from_infrared(call, pair, tmp_path):
    gray, color = pair
    for order, source in (((gray, color), "vis"), ((color, gray), "ir")):
        result = call("fuse", *order, "-o", tmp_path / f"{source}.png", "--color-from", source)
        assert result.exit_code == 0, result.output
        out = read_image(tmp_path / f"{source}.png").astype(int)
        assert np.ptp(out, axis=2).max() > 10


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_16_bit_stays_16_bit(call, tmp_path, suffix):
    ir = write_image(tmp_path / "ir.png", picture(0, dtype=np.uint16))
    vis = write_image(tmp_path / "vis.png", picture(1, color=True, dtype=np.uint16))
    result = call("fuse", ir, vis, "-o", tmp_path / f"out{suffix}", "--panel")
    assert result.exit_code == 0, result.output
    out = read_image(tmp_path / f"out{suffix}")
    assert out.dtype == np.uint16
    assert np.unique(out % 257).size > 100  # not 8 bits in disguise
    assert read_image(tmp_path / "out.panel.png").dtype == np.uint8


def test_mixed_depths_give_the_deeper_one(call, pair, tmp_path):
    deep = write_image(tmp_path / "deep.png", picture(0, dtype=np.uint16))
    assert call("fuse", deep, pair[1], "-o", tmp_path / "out.png").exit_code == 0
    assert read_image(tmp_path / "out.png").dtype == np.uint16
    a, b = same_depth(np.array([0, 1, 255], np.uint8), np.array([5], np.uint16))
    assert a.tolist() == [0, 257, 65535] and b.tolist() == [5]


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".tif"])
def test_formats(call, pair, tmp_path, suffix):
    assert call("fuse", *pair, "-o", tmp_path / f"out{suffix}").exit_code == 0
    assert read_image(tmp_path / f"out{suffix}").shape == (SIZE, SIZE, 3)


def test_output_folder_and_format(call, pair, tmp_path):
    assert call("fuse", *pair, "-o", tmp_path / "new" / "out", "--format", "jpg").exit_code == 0
    assert [p.name for p in (tmp_path / "new" / "out").iterdir()] == ["ir.jpg"]


def test_panel_shows_all_three(call, pair, tmp_path):
    assert call("fuse", *pair, "-o", tmp_path / "out.bmp", "--panel").exit_code == 0
    panel = read_image(tmp_path / "out.panel.png")
    assert panel.shape[1] >= 3 * SIZE and panel.shape[0] > SIZE
    for path in (*pair, tmp_path / "out.bmp"):
        tile = to_rgb8(read_image(path))
        windows = np.lib.stride_tricks.sliding_window_view(panel, tile.shape)[:, :, 0]
        assert (windows == tile).all(axis=(-3, -2, -1)).any(), path
    assert (panel[:8].min() == 255) and (panel[8:20].min() < 100)  # a label, below the margin


def test_panel_fits_sizes_and_labels():
    wide, small = picture(0).repeat(4, axis=1), picture(1, dtype=np.uint16)
    panel = draw_panel([[("wide", wide), ("small", small)], [("a longer label", small)]], height=64)
    assert panel.dtype == np.uint8 and panel.shape[2] == 3
    assert panel.shape[1] == 8 + (256 + 8) + (64 + 8)
    assert to_rgb8(np.array([[0, 257, 65535]], np.uint16))[0, :, 0].tolist() == [0, 1, 255]
    with pytest.raises(TypeError, match="float64"):
        draw_panel([[("float", np.zeros((16, 16)))]])


# Folders


def test_folders_match_by_stem(call, folders, tmp_path):
    result = call("fuse", *folders, "-o", tmp_path / "out", "--panel")
    assert result.exit_code == 0, result.output
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {f"{s}{e}" for s in "abc" for e in (".png", ".panel.png")}
    assert "3 of 3 pairs" in result.stdout


def test_a_broken_file_does_not_stop_the_others(call, folders, tmp_path):
    (folders[0] / "b.bmp").write_bytes(b"BM not an image")
    result = call("fuse", *folders, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.png", "c.png"}
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert [r["ok"] for r in report["results"]] == [True, False, True]
    assert "b.bmp" in report["results"][1]["error"]
    assert "error: b: " in result.stderr and "Traceback" not in result.stderr


def test_sizes_that_differ_fail_one_pair(call, folders, tmp_path):
    write_image(folders[0] / "c.bmp", picture(0)[:20])
    result = call("fuse", *folders, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "error: c: " in result.stderr and "20x32" in result.stderr
    assert "2 of 3 pairs" in result.stdout


def test_skip_existing(call, folders, tmp_path):
    kept = write_image(tmp_path / "out" / "a.png", picture(5))
    before = kept.read_bytes()
    result = call("fuse", *folders, "-o", tmp_path / "out", "--skip-existing", "--json")
    assert result.exit_code == 0
    assert [r["skipped"] for r in json.loads(result.stdout)["results"]] == [True, False, False]
    assert kept.read_bytes() == before
    assert call("fuse", *folders, "-o", tmp_path / "out").exit_code == 0
    assert kept.read_bytes() != before


def test_a_stem_without_partner_is_refused(call, folders, tmp_path):
    (folders[0] / "b.bmp").unlink()
    line = ["fuse", *folders, "-o", tmp_path / "out"]
    refused(call(*line), "b", "partner", f"batch {folders[0]} {folders[1]} -o {tmp_path / 'out'}")
    for kept in ("a", "c"):
        next(folders[0].glob(f"{kept}.*")).unlink()
    (folders[0] / "z.png").write_bytes(b"")
    assert "batch" not in call(*line).stderr


@pytest.mark.parametrize("which", [0, 1], ids=["ir", "vis"])
def test_the_only_pair_has_no_name_in_front_of_its_error(call, pair, tmp_path, which):
    pair[which].write_bytes(b"no image")
    result = call("fuse", *pair, "-o", tmp_path / "seed.png")
    refused(result, str(pair[which]))
    assert result.stderr.startswith(f"error: {pair[which]}: ")


def test_sizes_of_the_only_pair_lead_to_the_topic(call, pair, tmp_path):
    write_image(pair[0], picture(0)[:20])
    result = call("fuse", *pair, "-o", tmp_path / "out.png")
    refused(result, "ir is 20x32 and vis is 32x32 (height x width)", "help inputs")


def test_a_name_that_is_nearly_right_gets_the_right_one(call, pair, tmp_path):
    result = call("fuse", pair[0].with_name("ir.pgn"), pair[1], "-o", tmp_path / "out.png")
    refused(result, f"did you mean {pair[0]}?")
    result = call("fuse", tmp_path / "no" / "x.png", pair[1], "-o", tmp_path / "out.png")
    refused(result, "does not exist; give a file or a folder")


def test_videos_lead_to_their_command(call, pair, tmp_path):
    clip = tmp_path / "a clip.MP4"
    clip.write_bytes(b"whatever")
    result = call("fuse", pair[0], clip, "-o", tmp_path / "out.mp4")
    refused(result, f"VIS is {clip}, a video", f"ddfm-fast video {pair[0]} '{clip}' -o ")
    assert not (tmp_path / "out.mp4").exists()


# What it prints


def test_json_is_all_of_stdout(call, pair, tmp_path):
    result = call("fuse", *pair, "-o", tmp_path / "out.png", "--json", "--seed", 5)
    report = json.loads(result.stdout)
    assert report["ok"] is True and report["device"] in ("cpu", "cuda:0", "cuda")
    assert report["config"]["steps"] == 2 and report["config"]["variant"] == "official"
    assert len(report["prior"]["fingerprint"]) == 64
    (entry,) = report["results"]
    assert entry["height"] == entry["width"] == SIZE and entry["dtype"] == "uint8"
    assert entry["seconds"] > 0 and entry["error"] is None


def test_json_carries_the_error(call, pair, tmp_path):
    result = call("fuse", *pair, "-o", tmp_path / "out.png", "--json", "--preset", "none")
    report = json.loads(result.stdout)
    assert report["ok"] is False and "preset" in report["error"]
    refused(result, "preset")


def test_quiet(call, pair, tmp_path):
    result = call("fuse", *pair, "-o", tmp_path / "out.png", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_warnings_are_one_line(call, pair, tmp_path):
    from PIL import Image

    rgba = np.dstack([picture(1, color=True), np.full((SIZE, SIZE), 100, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    result = call("fuse", pair[0], tmp_path / "rgba.png", "-o", tmp_path / "out.png")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: ") and len(result.stderr.splitlines()) == 1


def test_presets(call):
    result = call("presets")
    assert result.exit_code == 0
    for name, config in PRESETS.items():
        mark = " (default)" * (name == DEFAULT_PRESET)
        assert f"{name}{mark}: {config.summary}" in result.stdout
    assert json.loads(call("presets", "--json").stdout)["official"]["steps"] == 100


def test_help_teaches(call):
    for command in (["fuse"], ["presets"], ["doctor"], ["demo"], ["prior", "info"]):
        result = (
            call(*command, "--help")
            if command != ["fuse"]
            else CliRunner().invoke(app, ["fuse", "--help"])
        )
        assert result.exit_code == 0
        assert "Example:" in result.stdout and "ddfm-fast" in result.stdout, command
    assert "Example:" in call("prior", "convert", "--help").stdout


# How it refuses


@pytest.mark.parametrize(
    "options, words",
    [
        (["--preset", "best"], ["preset", "best", "official"]),
        (["--variant", "new"], ["variant", "new"]),
        (["--sampler", "euler"], ["sampler", "euler", "ddim"]),
        (["--steps", "0"], ["steps", "0"]),
        (["--steps", "1001"], ["steps", "1001"]),
        (["--steps", "many"], ["steps", "many"]),
        (["--psi", "-1"], ["psi", "-1"]),
        (["--eta", "nan"], ["eta", "nan"]),
        (["--seed", "-3"], ["seed", "-3"]),
        (["--device", "abacus"], ["device", "abacus"]),
        (["--prior", "no/such.pt"], ["no/such.pt"]),
        (["--prior-config", "{"], ["--prior-config", "JSON"]),
        (["--prior-config", "[1]"], ["--prior-config"]),
        (["--gray", "--color-from", "ir"], ["--gray", "--color-from"]),
        (["--max-pixels", "100"], ["100", "max"]),
        (["--align", ""], ["align is ''", "check", "homography"]),
    ],
)
def test_bad_options(call, pair, tmp_path, options, words):
    refused(call("fuse", *pair, "-o", tmp_path / "out.png", *options), *words)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("text", ["", "1,2", "ir=", "ir=1,ir=2", "x=1", "ir=1;vis=2"])
def test_bad_nodata(call, pair, tmp_path, text):
    result = call("fuse", *pair, "-o", tmp_path / "o.png", "--nodata", text)
    assert result.exit_code == 2 and f"--nodata is {text!r}; expected a number" in result.stderr


@pytest.mark.parametrize("option", ["--color-from", "--stretch", "--psi", "--max-pixels"])
def test_usage_errors(call, pair, tmp_path, option):
    result = call("fuse", *pair, "-o", tmp_path / "out.png", option, "much")
    assert result.exit_code == 2 and option in result.stderr


def test_bad_inputs(call, pair, tmp_path):
    out = tmp_path / "out.png"
    text = tmp_path / "text.png"
    text.write_text("hello")
    tiny = write_image(tmp_path / "tiny.png", picture(0)[:8])
    cut = tmp_path / "cut.png"
    cut.write_bytes(pair[1].read_bytes()[:200])
    refused(call("fuse", tmp_path / "none.png", pair[1], "-o", out), "IR", "none.png")
    refused(call("fuse", pair[0], tmp_path / "none.png", "-o", out), "VIS", "none.png")
    refused(call("fuse", pair[0], tmp_path, "-o", out), "folder", "file")
    refused(call("fuse", text, pair[1], "-o", out), "text.png")
    refused(call("fuse", pair[0], cut, "-o", out), "cut.png")
    other = write_image(tmp_path / "other.png", picture(1)[:8])
    refused(call("fuse", tiny, other, "-o", out), "16")
    assert not out.exists()


def test_bad_outputs_are_refused_before_the_prior_loads(call, pair, folders, tmp_path):
    (tmp_path / "file").write_text("in the way")
    lost = ["--prior", "lost.pt"]  # would be the error if the prior came first
    refused(call("fuse", *pair, "-o", tmp_path / "file" / "out.png", *lost), "file")
    refused(call("fuse", *pair, "-o", tmp_path / "out.gif", *lost), ".gif", "png")
    refused(call("fuse", *pair, "-o", tmp_path / "o.png", "--format", "jpg", *lost), "--format")
    refused(call("fuse", *pair, "-o", tmp_path / "out", "--format", "gif", *lost), "gif", "png")
    refused(call("fuse", *pair, "-o", pair[0], *lost), "replace an input")
    refused(call("fuse", *folders, "-o", folders[1], *lost), "replace an input")
    refused(call("fuse", *folders, "-o", tmp_path / "out.png", *lost), "folder")
    (tmp_path / "d.png").mkdir()
    (tmp_path / "d.png" / "ir.png").mkdir()
    refused(call("fuse", *pair, "-o", tmp_path / "d.png", *lost), "is a folder")


def test_16_bits_into_jpeg_become_8_with_a_word(call, tmp_path):
    deep = write_image(tmp_path / "deep.png", picture(0, dtype=np.uint16))
    other = write_image(tmp_path / "other.png", picture(1, dtype=np.uint16))
    result = call("fuse", deep, other, "-o", tmp_path / "out.jpg", "--steps", "2")
    assert result.exit_code == 0 and result.stderr.count("the 16 bits of the result") == 1
    assert read_image(tmp_path / "out.jpg").dtype == np.uint8


def test_panels_and_outputs_never_share_a_name(tmp_path):
    for name in ("a", "a.panel"):
        write_image(tmp_path / "ir" / f"{name}.png", picture(0))
        write_image(tmp_path / "vi" / f"{name}.png", picture(1))
    with pytest.raises(ValueError, match="written twice"):
        plan_jobs(tmp_path / "ir", tmp_path / "vi", tmp_path / "out", panel=True)
    assert len(plan_jobs(tmp_path / "ir", tmp_path / "vi", tmp_path / "out")) == 2


def test_a_failure_leaves_the_old_output(call, pair, tmp_path):
    out = write_image(tmp_path / "out.png", picture(3))
    before = out.read_bytes()
    refused(call("fuse", *pair, "-o", out, "--max-pixels", 10))
    assert out.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out.png"}


# Priors


def test_prior_info_and_convert(call, pair, prior, tmp_path):
    shown = json.loads(call("prior", "info", prior, "--json").stdout)
    assert shown["config"]["model_channels"] == 32 and shown["dtype"] == "float32"
    text = call("prior", "info", prior)
    assert text.exit_code == 0 and f"{shown['parameters']:,}" in text.stdout
    half = tmp_path / "half.safetensors"
    assert call("prior", "convert", prior, half, "--dtype", "float16").exit_code == 0
    assert json.loads(call("prior", "info", half, "--json").stdout)["dtype"] == "float16"
    assert call("fuse", *pair, "-o", tmp_path / "o.png", "--prior", half).exit_code == 0


def test_prior_info_knows_the_embedded_prior(call):
    result = call("prior", "info", "embedded", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["training"]["photos"] > 0


def test_prior_check(call, prior):
    good = call("prior", "check", "embedded")
    assert good.exit_code == 0 and good.stdout.splitlines()[-1] == "it denoises"
    random = call("prior", "check", prior, "--json")  # a network of random weights
    assert random.exit_code == 1 and json.loads(random.stdout)["good"] is False


def test_prior_config_is_read(call, pair, prior, tmp_path):
    (tmp_path / "config.json").write_text('{"model_channels": 64}')
    for config in ('{"model_channels": 64}', tmp_path / "config.json"):
        result = call("fuse", *pair, "-o", tmp_path / "o.png", "--prior-config", config)
        refused(result, "model_channels", "64", "32")


def test_bad_priors(call, tmp_path):
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"junk")
    refused(call("prior", "info", junk), "junk.pt")
    refused(call("prior", "info", tmp_path / "none.pt"), "none.pt")
    refused(call("prior", "convert", junk, tmp_path / "o.safetensors"), "junk.pt")
    assert not (tmp_path / "o.safetensors").exists()


# The machine


def test_doctor(call):
    result = call("doctor")
    assert result.exit_code == 0, result.output
    assert "ok    embedded prior" in result.stdout and "ok    self-test" in result.stdout
    assert "not been run on a GPU yet" in result.stdout
    assert "backend      torch" in result.stdout and "the device is the CPU" in result.stdout
    missing = status()
    expected = (
        f"PyTorch's operations: {missing.splitlines()[0]}"
        if missing
        else "our kernels, compiled here"
    )
    assert f"CPU prior    {expected}" in result.stdout
    report = json.loads(call("doctor", "--json").stdout)
    assert report["ok"] and report["machine"]["cores"] >= 1
    assert report["packages"]["torch"] == torch.__version__
    if report["devices"]["cuda"]["version"] is None:
        assert any("CUDA" in hint["install"] for hint in report["advice"])


def test_doctor_reports_a_broken_prior(call, monkeypatch):
    from ddfm_fast.priors import load
    from ddfm_fast.runtime import doctor

    def broken(*args, **kwargs):
        raise ValueError("embedded.safetensors is truncated")

    monkeypatch.setattr(load, "load_prior", broken)
    result = call("doctor")
    assert result.exit_code == 1
    assert "FAIL  embedded prior: ValueError: embedded.safetensors is truncated" in result.stdout
    assert doctor.examine()["ok"] is False
