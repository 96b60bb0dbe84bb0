"""Frames as cameras code them: interlaced, by several matrices and ranges, HDR, with alpha."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from clips import pan, read_clip, write_clip
from fusing import run

from ddfm_fast import DDFMWarning
from ddfm_fast.video.converting import deinterlaced, field_order
from ddfm_fast.video.decoding import plausible_rate
from ddfm_fast.video.frames import DEFAULT_RATE, Intake
from ddfm_fast.video.hdr import HLG, PQ, to_sdr
from ddfm_fast.video.sources import open_source

av = pytest.importorskip("av")


def read(path, **options):
    """Read a clip; return its frames and the warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DDFMWarning)
        source = open_source(path, "vis", **options)
        frames = list(source.frames())
        source.close()
    return frames, [str(w.message) for w in said], source


# Interlaced


def weave(n: int) -> np.ndarray:
    """Draw a bar that moves by 3 pixels per field; the top field is the earlier one."""
    fields = []
    for moment in (2 * n, 2 * n + 1):
        field = np.full((64, 64), 40, np.uint8)
        field[:, 4 + 3 * moment : 12 + 3 * moment] = 220
        fields.append(field)
    fields[0][1::2] = fields[1][1::2]
    return fields[0]


INTERLACED = {
    "libx264": (".mp4", {"x264-params": "tff=1", "crf": "8"}),
    "mpeg2video": (".ts", {"flags": "+ildct+ilme", "b": "4M"}),
    "ffv1": (".mkv", {"field_order": "tt"}),
}


def woven(tmp_path, codec):
    suffix, options = INTERLACED[codec]
    path = tmp_path / f"i{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for n in range(8):
            frame = av.VideoFrame.from_ndarray(weave(n), "gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def bar(row: np.ndarray) -> list[int]:
    bright = np.flatnonzero(row[:, 0] > 130)
    return [int(bright[0]), int(bright[-1])]


@pytest.mark.parametrize("codec", INTERLACED)
def test_interlaced_frames_lose_their_combs(tmp_path, codec):
    path = woven(tmp_path, codec)
    tell = codec != "ffv1" or hasattr(av.video.codeccontext.VideoCodecContext, "field_order")
    frames, said, source = read(path, intake=Intake(deinterlace="auto" if tell else "tff"))
    assert [f.number for f in frames] == list(range(8)) and not source.faults.count
    assert [float(f.time) for f in frames] == pytest.approx([n / 25 for n in range(8)], abs=1e-3)
    for n in (2, 4, 6):
        # PyAV marks no frame as top field first, so that two encoders say bottom field first
        first = 4 + 6 * n + (0 if codec == "ffv1" else 3)
        assert bar(frames[n].image[20]) == bar(frames[n].image[21]) == [first, first + 7]
    if tell:
        assert [s for s in said if "interlaced" in s] == said and len(said) == 1
        assert "--deinterlace off" in said[0] and str(path) in said[0]
    frames, said, _ = read(path, intake=Intake(deinterlace="off"))
    assert bar(frames[4].image[20]) == [28, 35] and bar(frames[4].image[21]) == [31, 38]
    assert said == [] and len(frames) == 8


def test_the_field_order_is_unknown_where_pyav_does_not_tell(tmp_path):
    """PyAV 17, the newest for Python 3.10, does not: such a stream has combs that nothing marks."""
    assert field_order(SimpleNamespace()) == 0 and field_order(SimpleNamespace(field_order=2)) == 2
    with av.open(str(woven(tmp_path, "ffv1"))) as container, warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = deinterlaced(
            container.decode(video=0), av, "it", field_order(SimpleNamespace()), Fraction(1, 1000),
            "tff",
        )  # fmt: skip
        assert bar(list(frames)[4].to_ndarray(format="rgb24")[20]) == [28, 35]


def test_interlaced_from_the_middle_and_with_a_bad_setting(tmp_path):
    path = woven(tmp_path, "libx264")
    with pytest.warns(DDFMWarning, match="interlaced"):
        source = open_source(path, "vis")
        numbers = [f.number for f in source.frames(Fraction(1, 10))]
    source.close()
    assert numbers == [3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match="deinterlace is 'yes'"):
        open_source(path, "vis", intake=Intake(deinterlace="yes"))
    with pytest.raises(ValueError, match="reconnect is -1"):
        open_source(path, "vis", intake=Intake(reconnect=-1.0))


def test_progressive_frames_are_left_alone(tmp_path):
    images = pan(4, 1)
    path = write_clip(tmp_path / "p.mkv", images, codec="ffv1", pix_fmt="gray")
    frames, said, _ = read(path)
    assert said == []
    for frame, image in zip(frames, images, strict=True):
        np.testing.assert_array_equal(frame.image, image)


# Matrices and ranges


MATRICES = {5: (0.299, 0.114), 6: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}
"""FFmpeg's number → the shares of red and blue in luma"""


def rgb_of(yuv, kr: float, kb: float, full: bool, bits: int) -> np.ndarray:
    """Return RGB in 0..1 by the definition of ITU-R BT.601, BT.709 and BT.2020."""
    step = 2.0 ** (bits - 8)
    y, u, v = yuv
    if full:
        most = 2**bits - 1
        y, u, v = y / most, (u - 128 * step) / most, (v - 128 * step) / most
    else:
        y, u, v = (y / step - 16) / 219, (u / step - 128) / 224, (v / step - 128) / 224
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip([red, green, blue], 0, 1)


def coded(path, yuv, pix_fmt, *, space, full, primaries=2, transfer=2):
    """Write a lossless clip of one color, as planes of Y, U and V."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.colorspace, context.color_range = space, 2 if full else 1
        context.color_primaries, context.color_trc = primaries, transfer
        frame = av.VideoFrame(32, 32, pix_fmt)
        for plane, value in zip(frame.planes, yuv, strict=True):
            kind = np.uint8 if frame.format.components[0].bits == 8 else np.uint16
            values = np.broadcast_to(value, (plane.height, plane.width)).astype(kind)
            rows = np.zeros((plane.height, plane.line_size // values.itemsize), kind)
            rows[:, : plane.width] = values
            plane.update(rows.tobytes())
        frame.colorspace, frame.color_range = space, 2 if full else 1
        frame.color_primaries, frame.color_trc = primaries, transfer
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("space", MATRICES)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_matrix_and_range_follow_the_tags(tmp_path, pix_fmt, space, full):
    bits = 10 if "10" in pix_fmt else 8
    for color in ((120, 90, 170), (200, 100, 110), (16, 128, 128), (235, 128, 128)):
        yuv = [c * 2 ** (bits - 8) for c in color]
        path = coded(tmp_path / "c.mkv", yuv, pix_fmt, space=space, full=full)
        (frame,), said, source = read(path)
        expected = rgb_of(yuv, *MATRICES[space], full, bits)
        top = 65535 if bits > 8 else 255
        # FFmpeg's 8-bit conversion of 4:2:0 rounds by up to two levels
        assert np.abs(frame.image[8, 8] / top - expected).max() <= 2 / 255
        assert source.color_tags.space == space and said == []


def test_the_ends_of_a_full_range_ramp_stay(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 32).round().astype(np.uint8), (32, 1))
    path = tmp_path / "ramp.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25, options={"qscale": "1"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuvj420p"
        frame = av.VideoFrame(32, 32, "yuvj420p")
        for plane in frame.planes:
            plane.update(np.full(plane.buffer_size, 128, np.uint8).tobytes())
        rows = np.zeros((32, frame.planes[0].line_size), np.uint8)
        rows[:, :32] = ramp
        frame.planes[0].update(rows.tobytes())
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (frame,), _, _ = read(path)
    assert frame.image[:, 0].max() <= 2 and frame.image[:, -1].min() >= 253
    assert np.abs(frame.image[..., 0].astype(int) - ramp).max() <= 3
    lossless = coded(tmp_path / "r.mkv", [ramp, 128, 128], "yuv444p", space=1, full=True)
    (frame,), _, _ = read(lossless)
    np.testing.assert_array_equal(frame.image[0, [0, -1]], [[0] * 3, [255] * 3])


# HDR


def pq_code(nits: float) -> float:
    """Return the code of ST 2084, written out from the standard's fractions."""
    y = (nits / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 4096 * 32 * y) / (1 + 2392 / 4096 * 32 * y)) ** (
        2523 / 4096 * 128
    )


def pq_nits(code: float) -> float:
    low, high = 0.0, 10000.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if pq_code(middle) < code else (low, middle)
    return low


def rolled(nits: float) -> float:
    """Return what BT.2390 makes of it from 1000 to 203 cd/m², with 203 as 1."""
    code, most = pq_code(min(nits, 1000)) / pq_code(1000), pq_code(203) / pq_code(1000)
    knee = 1.5 * most - 0.5
    if code > knee:
        t = (code - knee) / (1 - knee)
        code = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee)
        code += (-2 * t**3 + 3 * t**2) * most
    return pq_nits(code * pq_code(1000)) / 203


@pytest.mark.parametrize("nits", [0.0, 0.1, 5, 50, 100, 203, 500, 1000, 4000])
def test_gray_of_pq(nits):
    image = np.full((4, 4, 3), round(pq_code(nits) * 65535), np.uint16)
    got = to_sdr(image, PQ)[1, 1] / 65535
    assert got == pytest.approx([rolled(nits) ** (1 / 2.4)] * 3, abs=2e-3)
    assert to_sdr(image[..., 0], PQ)[1, 1] == pytest.approx(got[0] * 65535, abs=80)


@pytest.mark.parametrize("code", [0.0, 0.2, 0.5, 0.75, 1.0])
def test_gray_of_hlg(code):
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = code**2 / 3 if code <= 0.5 else (np.exp((code - c) / a) + b) / 12
    expected = rolled(1000 * scene**1.2) ** (1 / 2.4)
    image = np.full((4, 4, 3), round(code * 65535), np.uint16)
    assert to_sdr(image, HLG)[1, 1] / 65535 == pytest.approx([expected] * 3, abs=2e-3)


def test_primaries_of_2020_become_those_of_709():
    """A color inside both gamuts: CIE XYZ of the two, from their chromaticities in BT.709/2020."""

    def to_xyz(points):
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in points]).T
        white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
        return columns * np.linalg.solve(columns, white)

    wide = to_xyz([(0.708, 0.292), (0.170, 0.797), (0.131, 0.046)])
    narrow = to_xyz([(0.640, 0.330), (0.300, 0.600), (0.150, 0.060)])
    light = np.array([60.0, 40.0, 50.0])  # below the knee: no compression
    expected = (np.linalg.solve(narrow, wide @ light) / 203) ** (1 / 2.4)
    image = np.array([round(pq_code(n) * 65535) for n in light], np.uint16)
    got = to_sdr(np.tile(image, (4, 4, 1)), PQ)[0, 0] / 65535
    assert got == pytest.approx(expected, abs=3e-3)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_clips_are_tone_mapped_with_a_word(tmp_path, transfer):
    tags = {"space": 9, "full": False, "primaries": 9, "transfer": transfer}
    path = coded(tmp_path / "h.mkv", [600, 512, 512], "yuv420p10le", **tags)
    (frame,), said, source = read(path)
    code = (600 / 4 - 16) / 219
    expected = to_sdr(np.full((1, 1, 3), round(code * 65535), np.uint16), transfer)[0, 0]
    assert np.abs(frame.image[4, 4].astype(int) - expected).max() < 600
    assert len(said) == 1 and "tone-mapped" in said[0] and "--tone-map off" in said[0]
    assert source.color_tags[0] == source.color_tags[2] == source.color_tags[3] == 1
    (frame,), said, source = read(path, intake=Intake(tone_map="off"))
    # FFmpeg's 16-bit RGB has white at 255 * 256
    assert np.abs(frame.image[4, 4] / 65280 - code).max() < 0.001 and said == []
    assert source.color_tags.transfer == transfer


# Pixels that are not square


def test_pixels_that_are_not_square_are_kept_or_named(tmp_path):
    aspect = Fraction(16, 15)
    vis = write_clip(tmp_path / "v.mp4", pan(3, 2, channels=3), aspect=aspect)
    alike = write_clip(tmp_path / "a.mp4", pan(3, 1), aspect=aspect)
    square = write_clip(tmp_path / "s.mp4", pan(3, 1))

    def said(ir, out, **options):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", DDFMWarning)
            report = run(ir, vis, tmp_path / out, **options)
        return [str(w.message) for w in found], report.out

    words, out = said(alike, "o.mp4")
    assert words == [] and read_clip(out)[2]["aspect"] == aspect
    words, out = said(square, "o.mp4")
    assert words == ["the pixels of ir are 1:1 and those of vis 16:15; they are fused one to one"]
    words, _ = said(alike, "o")
    assert len(words) == 1 and "16:15, which PNG files do not say; --resize" in words[0]
    words, out = said(alike, "r.mp4", resize=(64, 68))
    assert len(words) == 1 and "count as square" in words[0]
    assert read_clip(out)[2]["aspect"] in (None, 0, 1)


# Alpha, odd sizes, one frame, damage


def test_alpha_is_left_out_with_a_word(tmp_path):
    image = np.full((32, 32, 4), (200, 100, 50, 128), np.uint8)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "bgra"
        for n in range(2):
            frame = av.VideoFrame.from_ndarray(image, "rgba").reformat(format="bgra")
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames, said, _ = read(path)
    assert frames[0].image[3, 3].tolist() == [200, 100, 50]
    assert len(said) == 1 and "alpha" in said[0]


def test_one_frame_and_odd_sizes(tmp_path):
    cut = [np.ascontiguousarray(f[:63, :61]) for f in pan(1, 1)]
    other = [np.ascontiguousarray(f[:63, :61]) for f in pan(1, 2)]
    pair = [
        write_clip(tmp_path / f"{n}.mkv", frames, codec="ffv1", pix_fmt="gray")
        for n, frames in enumerate((cut, other))
    ]
    report = run(*pair, tmp_path / "o.mkv", codec="ffv1")
    frames, _, _ = read_clip(report.out)
    assert report.ok and len(frames) == 1 and frames[0].shape == (63, 61, 3)


def test_damaged_rate(tmp_path):
    """Flipped bits and a rate of one frame in 16 months: 3 bad frames are left out of 30."""
    path = Path(__file__).parents[1] / "data" / "damaged_rate.ts"
    out = tmp_path / "o.mp4"
    report = run(pan(30, 2, size=48), path, out, resize="vis")
    assert report.frames + report.bad_count == 30 and report.bad_count == 3
    assert {bad.reason for bad in report.bad} == {"the decoder marks it as corrupt"}
    assert len(read_clip(out)[0]) == report.frames == 27


@pytest.mark.parametrize(
    ("average", "guessed", "expected"),
    [
        (Fraction(1, 42949673), Fraction(25), 25),
        (Fraction(30000, 1001), Fraction(30), Fraction(30000, 1001)),
        (None, Fraction(1, 10), Fraction(1, 10)),
        (Fraction(0), Fraction(90_000_000), DEFAULT_RATE),
    ],
)
def test_a_rate_that_no_camera_has_is_not_believed(average, guessed, expected):
    stream = SimpleNamespace(average_rate=average, guessed_rate=guessed)
    assert plausible_rate(stream) == expected
