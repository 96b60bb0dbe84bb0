"""The ROS 2 node: two image topics, paired by time, and the fused one with the visible stamp.

It subscribes to ``infrared/image`` and ``visible/image`` (best effort, as cameras send), and
``visible/camera_info``; it publishes ``fused/image``, ``fused/camera_info`` and ``/diagnostics``.
Parameters are ``frames.SETTINGS``, which may be set while it runs, and ``queue_size`` and ``slop``
(seconds) of the pairing, which are fixed at the start.

The executor does no work: it puts a pair where there is room for one, and replaces a pair that is
still there. A thread fuses what it finds, so the output is as new as the machine allows, and
replaced pairs are counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import message_filters
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

from .frames import SETTINGS, FrameFusion
from .ros_images import fill, to_array

PERIOD = 1.0
"""seconds between two reports"""
QUIET = 5.0
"""seconds for which an error is not repeated in the log"""


class NewestPair:
    """Room for one pair: a newer one takes its place."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pair: tuple[Any, Any] | None = None
        self._closed = False
        self.dropped = 0

    def put(self, ir: Any, vis: Any) -> None:
        """Leave a pair, in place of one that was not taken."""
        with self._changed:
            self.dropped += self._pair is not None
            self._pair = ir, vis
            self._changed.notify()

    def take(self) -> tuple[Any, Any] | None:
        """Wait for a pair; None once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._pair is not None)
            pair, self._pair = self._pair, None
            return None if self._closed else pair

    def close(self) -> None:
        """Release whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class FusionNode(Node):
    """The node ``ddfm_fast``; ValueError for impossible parameters."""

    def __init__(self, **options: Any):
        super().__init__("ddfm_fast", **options)
        words = {
            name: _word(
                self.declare_parameter(
                    name,
                    one.default,
                    ParameterDescriptor(description=one.help, dynamic_typing=True),
                ).value
            )
            for name, one in SETTINGS.items()
        }
        queue_size = self.declare_parameter("queue_size", 10).value
        slop = self.declare_parameter("slop", 0.05).value
        self._words, self._fusion = words, FrameFusion(words)
        self._newest = NewestPair()
        self._info: Any = None
        self._counts = {"pairs": 0, "fused": 0, "failed": 0}
        self._before = dict(self._counts, dropped=0)
        self._took, self._trouble = 0.0, ""
        self._image = self.create_publisher(Image, "fused/image", QoSProfile(depth=1))
        self._camera = self.create_publisher(CameraInfo, "fused/camera_info", QoSProfile(depth=1))
        self._told = self.create_publisher(DiagnosticArray, "/diagnostics", QoSProfile(depth=1))
        self.create_subscription(
            CameraInfo, "visible/camera_info", self._keep_info, qos_profile_sensor_data
        )
        sources = [
            message_filters.Subscriber(self, Image, topic, qos_profile=qos_profile_sensor_data)
            for topic in ("infrared/image", "visible/image")
        ]
        self._pairing = message_filters.ApproximateTimeSynchronizer(sources, queue_size, slop)
        self._pairing.registerCallback(self._paired)
        self.add_on_set_parameters_callback(self._set)
        self.create_timer(PERIOD, self._report)
        self._worker = threading.Thread(target=self._work, name="ddfm_fast", daemon=True)
        self._worker.start()

    def destroy_node(self) -> None:
        """End the thread, then the node."""
        self._newest.close()
        self._worker.join()
        super().destroy_node()

    def _keep_info(self, info: Any) -> None:
        self._info = info

    def _paired(self, ir: Any, vis: Any) -> None:
        self._counts["pairs"] += 1
        self._newest.put(ir, vis)

    def _set(self, parameters: Sequence[Any]) -> Any:
        """Take parameters that change the fusion; refuse impossible ones with a sentence."""
        changed = {p.name: _word(p.value) for p in parameters if p.name in SETTINGS}
        fixed = [p.name for p in parameters if p.name in ("queue_size", "slop")]
        if fixed:
            reason = f"{fixed[0]} is fixed at the start; give it to ros2 run or ros2 launch"
            return SetParametersResult(successful=False, reason=reason)
        if not changed:
            return SetParametersResult(successful=True)
        words = {**self._words, **changed}
        try:
            fusion = FrameFusion(words)
        except (ValueError, TypeError, ImportError, OSError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._words, self._fusion = words, fusion
        return SetParametersResult(successful=True)

    def _work(self) -> None:
        while (pair := self._newest.take()) is not None:
            try:
                start = time.perf_counter()
                self._publish(*pair)
                self._took, self._trouble = time.perf_counter() - start, ""
                self._counts["fused"] += 1
            except Exception as error:  # concerns one pair; the next one may work
                self._counts["failed"] += 1
                self._trouble = str(error)
                self.get_logger().error(str(error), throttle_duration_sec=QUIET)

    def _publish(self, ir: Any, vis: Any) -> None:
        fused = self._fusion(to_array(ir, "ir"), to_array(vis, "vis"))
        message = fill(Image(), fused, vis.encoding)
        message.header = vis.header
        self._image.publish(message)
        info = self._info
        if info is not None and (info.height, info.width) == fused.shape[:2]:
            info.header = vis.header
            self._camera.publish(info)

    def _report(self) -> None:
        """Publish what happened since the previous report."""
        now = dict(self._counts, dropped=self._newest.dropped)
        since = {name: count - self._before[name] for name, count in now.items()}
        self._before = now
        status = DiagnosticStatus(name="ddfm_fast: fusion", hardware_id="")
        status.level, status.message = self._judged(since)
        found = {**now, "fused a second": since["fused"] / PERIOD, "ms a pair": self._took * 1e3}
        status.values = [
            KeyValue(key=key, value=str(value) if isinstance(value, int) else f"{value:.1f}")
            for key, value in found.items()
        ]
        report = DiagnosticArray(status=[status])
        report.header.stamp = self.get_clock().now().to_msg()
        self._told.publish(report)

    def _judged(self, since: dict[str, int]) -> tuple[bytes, str]:
        if self._trouble:
            return DiagnosticStatus.ERROR, self._trouble
        if not since["pairs"]:
            return DiagnosticStatus.WARN, "no pairs; see the topics, their stamps, and slop"
        if since["dropped"]:
            return DiagnosticStatus.WARN, f"{since['dropped']} of {since['pairs']} pairs dropped"
        return DiagnosticStatus.OK, "every pair is fused"


def _word(value: Any) -> str:
    """Return a parameter as text; YAML reads ``off`` as False, and ``12`` as a number."""
    if isinstance(value, bool):
        return "auto" if value else "off"
    return str(value)


def spin(args: list[str]) -> None:
    """Run the node until it is shut down."""
    rclpy.init(args=args)
    try:
        node = FusionNode()
        try:
            rclpy.spin(node)
        finally:
            node.destroy_node()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
