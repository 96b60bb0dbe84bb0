"""The ROS 2 node on stand-ins for rclpy (``tests/tools/ros_stubs.py`` has their sources)."""

from __future__ import annotations

import array
import importlib
import runpy
import subprocess
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import ros_stubs
from conftest import ROOT

from ddfm_fast import fuse
from ddfm_fast.integrations import ros
from ddfm_fast.integrations.ros_images import ENCODINGS, fill, to_array

RNG = np.random.default_rng(4)
GRAY = RNG.integers(0, 256, (20, 18), np.uint8)
DEEP = RNG.integers(0, 65536, (20, 18), np.uint16)
COLOR = RNG.integers(0, 256, (20, 18, 3), np.uint8)
OPTIONS = {"preset": "instant", "device": "cpu"}


def sent(encoding: str, rows: np.ndarray, *, pad: int = 0, big: int = 0, at: float = 0.0):
    """Make a message by its definition: rows of bytes, each with ``pad`` bytes of nonsense."""
    data = b"".join(row.tobytes() + b"\xaa" * pad for row in rows)
    stamp = ros_stubs.Time(sec=int(at), nanosec=round((at - int(at)) * 1e9))
    return ros_stubs.Image(
        header=ros_stubs.Header(stamp=stamp, frame_id="camera"),
        height=rows.shape[0],
        width=rows.shape[1],
        encoding=encoding,
        is_bigendian=big,
        step=len(data) // rows.shape[0],
        data=array.array("B", data),
    )


@pytest.mark.parametrize("pad", [0, 6])
def test_messages_are_read_by_their_definition(pad):
    alpha = np.full((20, 18, 1), 9, np.uint8)
    for message, expected in (
        (sent("mono8", GRAY, pad=pad), GRAY),
        (sent("8UC1", GRAY, pad=pad), GRAY),
        (sent("mono16", DEEP.astype("<u2"), pad=pad), DEEP),
        (sent("16UC1", DEEP.astype(">u2"), pad=pad, big=1), DEEP),
        (sent("rgb8", COLOR, pad=pad), COLOR),
        (sent("bgr8", COLOR[..., ::-1], pad=pad), COLOR),
        (sent("bgra8", np.concatenate([COLOR[..., ::-1], alpha], 2), pad=pad), COLOR),
        (sent("rgb16", np.stack([DEEP] * 3, 2).astype(">u2"), pad=pad, big=1),
         np.stack([DEEP] * 3, 2)),
    ):  # fmt: skip
        found = to_array(message, "ir")
        assert found.dtype == expected.dtype and found.dtype.isnative
        np.testing.assert_array_equal(found, expected, err_msg=message.encoding)


@pytest.mark.parametrize("like", sorted(ENCODINGS))
@pytest.mark.parametrize("image", [GRAY, DEEP, COLOR], ids=["gray", "deep", "color"])
def test_what_is_written_is_read_again(like, image):
    message = fill(ros_stubs.Image(), image, like)
    assert (message.height, message.width) == (20, 18)
    assert message.step * 20 == len(message.data) == image.nbytes
    np.testing.assert_array_equal(to_array(message, "vis"), image)


def test_colors_keep_the_order_of_their_source():
    blue_first = fill(ros_stubs.Image(), COLOR, "bgr8")
    assert blue_first.encoding == "bgr8"
    assert list(blue_first.data[:3]) == list(COLOR[0, 0, ::-1])
    assert fill(ros_stubs.Image(), GRAY, "bgr8").encoding == "mono8"


def test_what_cannot_be_read_is_a_sentence():
    with pytest.raises(ValueError, match="ir: encoding 'yuv422'; expected one of mono8"):
        to_array(sent("yuv422", GRAY), "ir")
    short = sent("mono8", GRAY)
    short.data = short.data[:-1]
    with pytest.raises(ValueError, match="vis: 18x20 mono8 with a step of 18 and 359 bytes"):
        to_array(short, "vis")
    wide = sent("mono16", GRAY)
    with pytest.raises(ValueError, match="expected a step of at least 36"):
        to_array(wide, "ir")


@pytest.fixture
def module(monkeypatch):
    for name, found in ros_stubs.modules().items():
        monkeypatch.setitem(sys.modules, name, found)
    monkeypatch.delitem(sys.modules, "ddfm_fast.integrations.ros_node", raising=False)
    ros_stubs.SENT.clear()
    ros_stubs.LOG.clear()
    yield importlib.import_module("ddfm_fast.integrations.ros_node")
    sys.modules.pop("ddfm_fast.integrations.ros_node", None)


@pytest.fixture
def node(module):
    made = module.FusionNode(parameter_overrides=OPTIONS)
    yield made
    made.destroy_node()
    assert made.destroyed and not made._worker.is_alive()


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def fused_images(count: int) -> list:
    wait_for(lambda: len(ros_stubs.SENT["fused/image"]) >= count)
    return ros_stubs.SENT["fused/image"]


def test_a_pair_comes_out_fused_with_the_visible_stamp_and_camera(node):
    info = ros_stubs.CameraInfo(height=20, width=18, k=[1.0])
    node.receive("visible/camera_info", info)
    ir, vis = sent("mono8", GRAY, at=1.00), sent("bgr8", COLOR[..., ::-1], pad=2, at=1.01)
    node.receive("infrared/image", ir)
    assert not ros_stubs.SENT["fused/image"], "the visible one is missing"
    node.receive("visible/image", vis)
    (message,) = fused_images(1)
    assert message.header is vis.header and message.encoding == "bgr8"
    np.testing.assert_array_equal(to_array(message, "vis"), fuse(GRAY, COLOR, **OPTIONS))
    wait_for(lambda: ros_stubs.SENT["fused/camera_info"])
    (camera,) = ros_stubs.SENT["fused/camera_info"]
    assert camera.header is vis.header and camera.k == [1.0]


def test_pairs_are_those_within_slop(node):
    for at in (1.0, 2.0):
        node.receive("infrared/image", sent("mono8", GRAY, at=at))
    node.receive("visible/image", sent("mono8", GRAY.T.copy().reshape(20, 18), at=1.5))
    node.receive("visible/image", sent("mono8", GRAY[::-1], at=2.04))
    (message,) = fused_images(1)
    assert message.header.stamp.nanosec == 40_000_000


def test_topics_of_cameras_are_best_effort(node):
    for topic in ("infrared/image", "visible/image", "visible/camera_info"):
        assert node.subscriptions_[topic][2] == ("best effort", 5)


def test_only_the_newest_pair_waits(node, module):
    """While one is fused, four come: the last of them is fused, the others are counted."""
    going, entered = threading.Event(), threading.Event()
    fusion = node._fusion

    def slow(ir, vis):
        entered.set()
        going.wait(60)
        return fusion(ir, vis)

    node._fusion = slow
    for n in range(5):
        start = time.perf_counter()
        node.receive("infrared/image", sent("mono8", GRAY, at=float(n)))
        node.receive("visible/image", sent("mono8", GRAY[::-1], at=float(n)))
        assert time.perf_counter() - start < 1, "the executor's thread does no work"
        if n == 0:
            assert entered.wait(60)
    going.set()
    stamps = [message.header.stamp.sec for message in fused_images(2)]
    assert stamps == [0, 4]
    node.timers_[0]()
    (status,) = ros_stubs.SENT["/diagnostics"][0].status
    assert status.level == b"\1" and status.message == "3 of 5 pairs dropped"
    assert {one.key: one.value for one in status.values}["dropped"] == "3"


def test_diagnostics_say_what_is_wrong(node):
    def reported():
        node.timers_[0]()
        (status,) = ros_stubs.SENT["/diagnostics"][-1].status
        return status.level, status.message

    assert reported()[0] == b"\1" and "no pairs" in reported()[1]
    node.receive("infrared/image", sent("mono8", GRAY[:16], at=1.0))
    node.receive("visible/image", sent("mono8", GRAY, at=1.0))
    wait_for(lambda: ros_stubs.LOG)
    wait_for(lambda: node._counts["failed"])
    level, sentence = reported()
    assert level == b"\2" and "16" in sentence and sentence == ros_stubs.LOG[0]
    node.receive("infrared/image", sent("mono8", GRAY, at=2.0))
    node.receive("visible/image", sent("mono8", GRAY[::-1], at=2.0))
    fused_images(1)
    wait_for(lambda: node._counts["fused"])
    assert reported() == (b"\0", "every pair is fused")


def test_parameters_may_be_set_while_it_runs(node):
    def given(**values):
        return node.parameters_callback(
            [SimpleNamespace(name=name, value=value) for name, value in values.items()]
        )

    refused = given(preset="best")
    assert not refused.successful and "preset is 'best'; expected one of" in refused.reason
    assert not given(slop=1.0).successful
    assert given(use_sim_time=True).successful
    assert given(color="none").successful
    node.receive("infrared/image", sent("mono8", GRAY))
    node.receive("visible/image", sent("rgb8", COLOR))
    (message,) = fused_images(1)
    expected = fuse(GRAY, COLOR, color=False, **OPTIONS)[..., 0]
    np.testing.assert_array_equal(to_array(message, "vis"), expected)


@pytest.mark.parametrize("value, expected", [(False, "off"), (12, 12.0), ("ir=3", (("ir", 3.0),))])
def test_numbers_and_switches_of_yaml_are_taken(module, value, expected):
    made = module.FusionNode(parameter_overrides={**OPTIONS, "denoise": value})
    try:
        assert made._fusion.fuser.config.denoise == expected
    finally:
        made.destroy_node()


def test_wrong_parameters_stop_the_start(module):
    with pytest.raises(ValueError, match="color is 'blue'"):
        module.FusionNode(parameter_overrides={"color": "blue"})


def test_the_launch_file_is_there_and_names_what_the_node_has(monkeypatch, capsys):
    """On stand-ins for launch and launch_ros, of which only the arguments are kept."""
    assert ros.main(["--launch-file"]) == 0
    path = capsys.readouterr().out.strip()

    def kept(kind):
        return lambda *words, **named: SimpleNamespace(kind=kind, words=words, **named)

    for name, contents in {
        "launch": ["LaunchDescription"],
        "launch.actions": ["DeclareLaunchArgument"],
        "launch.substitutions": ["LaunchConfiguration"],
        "launch_ros": [],
        "launch_ros.actions": ["Node"],
        "launch_ros.parameter_descriptions": ["ParameterValue"],
    }.items():
        found = ModuleType(name)
        vars(found).update({one: kept(one) for one in contents})
        monkeypatch.setitem(sys.modules, name, found)
    *arguments, node = runpy.run_path(path)["generate_launch_description"]().words[0]
    source = (ROOT / "ddfm_fast/integrations/ros_node.py").read_text(encoding="utf-8")
    for ours, _ in node.remappings:
        assert f'"{ours}"' in source
    names = {one.words[0] for one in arguments}
    assert set(node.parameters[0]) < names
    assert {value.words[0].words[0] for value in node.parameters[0].values()} < names
    assert node.executable == sys.executable
    assert node.arguments == ["-m", "ddfm_fast.integrations.ros"]


def test_without_ros_a_sentence_says_what_to_source():
    done = subprocess.run(
        [sys.executable, "-m", "ddfm_fast.integrations.ros"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode == 0:
        pytest.skip("ROS is here")
    assert done.returncode == 2 and "source ROS 2 first" in done.stderr
    assert "Traceback" not in done.stderr
