"""``ddfmfuse`` by GStreamer's own command: pipelines of test sources, compared with ``fuse``.

Needs Debian's packages (``ddfm_fast/docs/hosts.md`` has the line) and a loader of Python
plugins that runs the version of Python that runs the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from ddfm_fast import fuse
from ddfm_fast.integrations import gstreamer

pytestmark = [pytest.mark.slow, pytest.mark.extras]
LAUNCH = shutil.which("gst-launch-1.0")
WIDTH, HEIGHT = 66, 48
"""GStreamer pads such rows to 68 bytes in GRAY8 and to 200 in RGB"""
BYTES = {"GRAY8": 1, "GRAY16_LE": 2, "RGB": 3}
OF_BINDINGS = "The created element should be floating"
"""what GStreamer 1.22 prints about every element in Python"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """The variables that the printed lines set, in a shell of their own."""
    if LAUNCH is None:
        pytest.skip("needs gst-launch-1.0")
    if (sentence := gstreamer.trouble(gstreamer.loader_version())) is not None:
        pytest.skip(sentence)
    lines = subprocess.run(
        [sys.executable, "-m", "ddfm_fast.integrations.gstreamer"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "GST_PLUGIN_PATH")}
    shown = subprocess.run(
        ["sh", "-c", f"{lines}\necho $GST_PLUGIN_PATH; echo $PYTHONPATH"],
        capture_output=True, text=True, check=True, env=kept,
    ).stdout.split()  # fmt: skip
    registry = tmp_path_factory.mktemp("gst") / "registry.bin"
    return {
        **kept,
        "GST_PLUGIN_PATH": shown[0],
        "PYTHONPATH": shown[1],
        "GST_REGISTRY": str(registry),
        "OMP_NUM_THREADS": "1",
    }


def launch(environment, *words: str, fails: bool = False, verbose: bool = False):
    command = [LAUNCH, "-v" if verbose else "-q", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode != 0) == fails, done.stderr
    if not fails:
        said = [line for line in done.stderr.splitlines() if line and OF_BINDINGS not in line]
        assert said == [], done.stderr
    return done.stdout + done.stderr


def source(fmt: str, count: int, pattern: str, rate: int = 30) -> list[str]:
    caps = f"video/x-raw,format={fmt},width={WIDTH},height={HEIGHT},framerate={rate}/1"
    return ["videotestsrc", f"num-buffers={count}", f"pattern={pattern}", "!", caps, "!"]


def frames(data: bytes, fmt: str, count: int) -> list[np.ndarray]:
    stride = -(-WIDTH * BYTES[fmt] // 4) * 4
    assert len(data) == count * stride * HEIGHT
    rows = np.frombuffer(data, np.uint8).reshape(count, HEIGHT, stride)
    rows = np.ascontiguousarray(rows[..., : WIDTH * BYTES[fmt]])
    if fmt == "RGB":
        return list(rows.reshape(count, HEIGHT, WIDTH, 3))
    return list(rows.view("<u2" if fmt == "GRAY16_LE" else np.uint8))


def recorded(environment, folder, fmt: str, count: int, pattern: str, rate: int = 30):
    """Return the frames of a test source as GStreamer alone writes them."""
    file = folder / f"{fmt}-{pattern}-{rate}.raw"
    launch(environment, *source(fmt, count, pattern, rate), "filesink", f"location={file}")
    return frames(file.read_bytes(), fmt, count)


def fused(ir, vis, **options) -> np.ndarray:
    image = fuse(ir, vis, preset="instant", device="cpu", **options)
    return image[..., 0] if image.shape[-1] == 1 else image


@pytest.mark.parametrize(
    "ir, vis, out, properties, options",
    [
        ("GRAY8", "RGB", "RGB", [], {}),
        ("GRAY16_LE", "RGB", "RGB", ["ir-range=0,65535"], {"value_range": {"ir": (0, 65535)}}),
        ("GRAY8", "GRAY16_LE", "GRAY16_LE", [], {}),
        ("GRAY16_LE", "GRAY8", "GRAY8", ["denoise=ir=3,vis=off"], {"denoise": {"ir": 3.0}}),
        ("RGB", "GRAY8", "RGB", [], {}),
        ("GRAY8", "RGB", "GRAY8", ["color=none"], {"color": False}),
    ],
)
def test_frames_are_those_of_fuse(environment, tmp_path, ir, vis, out, properties, options):
    file = tmp_path / "out.raw"
    launch(
        environment,
        *source(ir, 3, "circular"), "f.ir",
        *source(vis, 3, "ball"), "f.vis",
        "ddfmfuse", "name=f", "preset=instant", "device=cpu", *properties,
        "!", f"video/x-raw,format={out}", "!", "filesink", f"location={file}",
    )  # fmt: skip
    a = recorded(environment, tmp_path, ir, 3, "circular")
    b = recorded(environment, tmp_path, vis, 3, "ball")
    found = frames(file.read_bytes(), out, 3)
    for n in range(3):
        np.testing.assert_array_equal(found[n], fused(a[n], b[n], **options), err_msg=str(n))
    assert not np.array_equal(found[0], found[2]), "the ball moves"


def stamps(said: str) -> list[tuple[str, str]]:
    """Return (pts, duration) of the buffers that an identity reported."""
    return re.findall(r"chain.*?pts: (\S+),.*?duration: (\S+),", said)


def test_timestamps_are_the_visible_and_the_nearest_infrared_is_taken(environment, tmp_path):
    """30 frames per second with 10: 0, 0, 1, 1, 1, 2, 2, 2, … by distance in time."""
    file = tmp_path / "out.raw"
    said = launch(
        environment,
        *source("GRAY8", 3, "ball", 10), "f.ir",
        *source("GRAY8", 9, "circular"), "f.vis",
        "ddfmfuse", "name=f", "preset=instant", "device=cpu",
        "!", "identity", "name=told", "silent=false", "!", "filesink", f"location={file}",
        verbose=True,
    )  # fmt: skip
    expected = [f"0:00:00.{n * 10**9 // 30:09d}" for n in range(9)]
    assert [pts for pts, _ in stamps(said)] == expected
    assert {lasts for _, lasts in stamps(said)} <= {"0:00:00.033333333", "0:00:00.033333334"}
    a = recorded(environment, tmp_path, "GRAY8", 3, "ball", 10)
    b = recorded(environment, tmp_path, "GRAY8", 9, "circular")
    found = frames(file.read_bytes(), "GRAY8", 9)
    for n, nearest in enumerate((0, 0, 1, 1, 1, 2, 2, 2, 2)):
        assert np.array_equal(found[n], fused(a[nearest], b[n])), n


def test_it_ends_with_the_source_that_ends_first(environment, tmp_path):
    for ir, vis, expected in ((2, 6, 2), (6, 2, 2)):
        file = tmp_path / f"{ir}.raw"
        launch(
            environment,
            *source("GRAY8", ir, "ball"), "f.ir",
            *source("GRAY8", vis, "circular"), "f.vis",
            "ddfmfuse", "name=f", "preset=instant", "!", "filesink", f"location={file}",
        )  # fmt: skip
        frames(file.read_bytes(), "GRAY8", expected)


def test_formats_follow_from_what_downstream_takes(environment, tmp_path):
    """The visible source could send RGB; the file is to be gray, in color, and 16 bits deep."""
    for fmt in ("GRAY8", "RGB", "GRAY16_LE"):
        file = tmp_path / f"{fmt}.raw"
        size = f"video/x-raw,width={WIDTH},height={HEIGHT}"
        launch(
            environment,
            *source("GRAY8", 2, "ball"), "f.ir",
            "videotestsrc", "num-buffers=2", "!", size, "!", "f.vis",
            "ddfmfuse", "name=f", "preset=instant",
            "!", f"video/x-raw,format={fmt}", "!", "filesink", f"location={file}",
        )  # fmt: skip
        frames(file.read_bytes(), fmt, 2)


def test_as_one_video_it_equals_the_stream(environment, tmp_path):
    from ddfm_fast import Fuser

    file = tmp_path / "out.raw"
    launch(
        environment,
        *source("GRAY8", 4, "circular"), "f.ir", *source("RGB", 4, "ball"), "f.vis",
        "ddfmfuse", "name=f", "video-preset=realtime", "device=cpu", "denoise=off",
        "!", "filesink", f"location={file}",
    )  # fmt: skip
    a = recorded(environment, tmp_path, "GRAY8", 4, "circular")
    b = recorded(environment, tmp_path, "RGB", 4, "ball")
    fuser = Fuser(device="cpu", denoise="off", align="off")
    wanted = list(fuser.stream(zip(a, b, strict=True), preset="realtime"))
    np.testing.assert_array_equal(frames(file.read_bytes(), "RGB", 4), wanted)


@pytest.mark.parametrize(
    "properties, height, sentence",
    [
        (["preset=best"], HEIGHT, "preset is 'best'; expected one of"),
        (["color=blue"], HEIGHT, "color is 'blue'; expected one of auto, ir, vis, none"),
        (["video-preset=slow"], HEIGHT, "video_preset is 'slow'; expected one of none, exact"),
        (["ir-range=9000,7000"], HEIGHT, "ir_range is '9000,7000'; expected LO,HI"),
        ([], 64, f"ir is {HEIGHT}x{WIDTH}|{HEIGHT}"),
    ],
)
def test_what_cannot_be_is_an_error_message(environment, properties, height, sentence):
    caps = f"video/x-raw,format=GRAY8,width={WIDTH},height={height}"
    said = launch(
        environment,
        *source("GRAY8", 2, "ball"), "f.ir",
        "videotestsrc", "num-buffers=2", "!", caps, "!", "f.vis",
        "ddfmfuse", "name=f", "preset=instant", *properties, "!", "fakesink",
        fails=True,
    )  # fmt: skip
    assert re.search(f"ERROR: from element .*{sentence}", said), said
    assert "Traceback" not in said


def test_a_pad_that_is_missing_is_named(environment):
    words = (*source("GRAY8", 2, "ball"), "f.ir", "ddfmfuse", "name=f", "!", "fakesink")
    assert "the pad vis is not linked" in launch(environment, *words, fails=True)


def script(environment, body: str) -> str:
    """Return what a program prints under the system's Python."""
    python = shutil.which("python3", path="/usr/bin")
    if python is None or subprocess.run([python, "-c", "import gi"]).returncode:
        pytest.skip("needs the system's Python with gi")
    done = subprocess.run(
        [python, "-c", HEAD + body], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAD = """
import gi
gi.require_version("Gst", "1.0")
from gi.repository import Gst
Gst.init(None)
caps = "caps=video/x-raw,format=GRAY8,width=64,height=48,framerate=10/1"

def push(name, n):
    buffer = Gst.Buffer.new_wrapped(bytes((31 * n + k) % 251 for k in range(64 * 48)))
    buffer.pts, buffer.duration = n * 10**8, 10**8
    pipeline.get_by_name(name).emit("push-buffer", buffer)

def times():
    found = []
    while (sample := pipeline.get_by_name("out").emit("pull-sample")) is not None:
        found.append(sample.get_buffer().pts // 10**8)
    return found
"""


def test_the_lines_of_the_topic_run(environment, tmp_path):
    """As printed, in a shell that finds this Python as ``python``."""
    page = (ROOT / "ddfm_fast/docs/hosts.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "bin").mkdir()
    kept = {k: v for k, v in environment.items() if k not in ("PYTHONPATH", "GST_PLUGIN_PATH")}
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", "-ec", block], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env={**kept, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0 and "DDFM image fusion" in done.stdout, done.stderr
    assert (tmp_path / "fused.avi").stat().st_size > 50 * 320 * 240


DROPS = """
pipeline = Gst.parse_launch(
    f"appsrc name=ir format=time {caps} ! f.ir appsrc name=vis format=time {caps} ! f.vis "
    "ddfmfuse name=f preset=instant ! appsink name=out sync=false"
)
element = pipeline.get_by_name("f")
twice = element.request_pad_simple("ir")
pipeline.set_state(Gst.State.PLAYING)
late = Gst.Event.new_qos(Gst.QOSType.UNDERFLOW, 2.0, 50_000_000, 350_000_000)
element.get_static_pad("src").send_event(late)
for name, first in (("ir", 2), ("vis", 0)):
    for n in range(first, 8):
        push(name, n)
    pipeline.get_by_name(name).emit("end-of-stream")
print(times(), element.get_property("dropped"), twice)
pipeline.set_state(Gst.State.NULL)
"""
STALLED = """
pipeline = Gst.parse_launch(
    f"appsrc name=ir format=time is-live=true {caps} ! queue ! f.ir "
    "videotestsrc is-live=true num-buffers=8 ! "
    "video/x-raw,format=GRAY8,width=64,height=48,framerate=10/1 ! queue ! f.vis "
    "ddfmfuse name=f preset=instant latency=20000000 ! appsink name=out sync=false"
)
pipeline.set_state(Gst.State.PLAYING)
push("ir", 0)
print(times(), pipeline.get_by_name("f").get_property("dropped"))
pipeline.set_state(Gst.State.NULL)
"""


UNKNOWN = """
import time
color = caps.replace("GRAY8", "RGB")
pipeline = Gst.parse_launch(
    f"appsrc name=ir format=time {color} ! f.ir videotestsrc num-buffers=3 ! "
    "video/x-raw,format=GRAY8,width=64,height=48,framerate=10/1 ! f.vis "
    "ddfmfuse name=f preset=instant ! video/x-raw,format=RGB ! appsink name=out sync=false"
)
pipeline.set_state(Gst.State.PLAYING)
time.sleep(1)
for n in range(3):
    buffer = Gst.Buffer.new_wrapped(bytes((31 * n + 7 * k) % 251 for k in range(64 * 48 * 3)))
    buffer.pts, buffer.duration = n * 10**8, 10**8
    pipeline.get_by_name("ir").emit("push-buffer", buffer)
pipeline.get_by_name("ir").emit("end-of-stream")
print(times())
pipeline.set_state(Gst.State.NULL)
"""


def test_formats_fit_though_the_infrared_source_is_silent_yet(environment):
    """A gray visible source, and color of the infrared one, which downstream requires."""
    assert script(environment, UNKNOWN) == "[0, 1, 2]"


def test_frames_that_come_too_late_are_dropped_and_counted(environment):
    """Frames before the first infrared one (0, 1), and frames that end before 450 ms (2, 3)."""
    assert script(environment, DROPS) == "[4, 5, 6, 7] 4 None"


def test_a_live_infrared_source_that_stalls_is_not_waited_for(environment):
    """It sends one frame and no end; all visible frames come out with it, and so does the end."""
    assert script(environment, STALLED) == "[0, 1, 2, 3, 4, 5, 6, 7] 0"


def test_a_loader_of_another_python_is_named():
    version = f"3.{sys.version_info.minor + 1}"
    assert f"runs Python {version}" in (gstreamer.trouble(version) or "")
    assert "apt-get install" in (gstreamer.trouble(None) or "")
    assert gstreamer.trouble(f"3.{sys.version_info.minor}") is None
