"""Stand-ins for the parts of ROS 2 that the node uses, since no package index carries rclpy.

Written after the documented interfaces, of which they keep names, argument order and types:

- rclpy.node.Node, rclpy.qos, rclpy.executors: https://docs.ros.org/en/jazzy/p/rclpy/
- message_filters.Subscriber(node, type, topic, qos_profile=…) and
  ApproximateTimeSynchronizer(filters, queue_size, slop): ros2/message_filters,
  src/message_filters/__init__.py; as there, the callback runs with the filter's lock held
- sensor_msgs, std_msgs, diagnostic_msgs, rcl_interfaces: the .msg files of ros2/common_interfaces
  and ros2/rcl_interfaces; a uint8[] takes an array.array("B") without a look at each value, and
  a byte is a bytes object of length one

Fields are checked by type as the generated classes do; what a node sends is kept in ``SENT``.
"""

from __future__ import annotations

import array
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

SENT: dict[str, list[Any]] = {}
LOG: list[str] = []


class Message:
    fields: dict[str, tuple[type, Any]] = {}

    def __init__(self, **given: Any):
        for name, (_, default) in self.fields.items():
            setattr(self, name, given.pop(name, default() if callable(default) else default))
        assert not given, f"no field {given}"

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self.fields, f"{type(self).__name__} has no field {name}"
        kind = self.fields[name][0]
        assert isinstance(value, kind) and not (kind is int and isinstance(value, bool)), name
        if kind is array.array:
            assert value.typecode == "B"
        super().__setattr__(name, value)


def message(name: str, /, **fields: tuple[type, Any]) -> type[Message]:
    return type(name, (Message,), {"fields": fields})


Time = message("Time", sec=(int, 0), nanosec=(int, 0))
Header = message("Header", stamp=(Time, Time), frame_id=(str, ""))
Image = message(
    "Image",
    header=(Header, Header), height=(int, 0), width=(int, 0), encoding=(str, ""),
    is_bigendian=(int, 0), step=(int, 0), data=(array.array, lambda: array.array("B")),
)  # fmt: skip
CameraInfo = message(
    "CameraInfo", header=(Header, Header), height=(int, 0), width=(int, 0), k=(list, list)
)
KeyValue = message("KeyValue", key=(str, ""), value=(str, ""))
DiagnosticStatus = message(
    "DiagnosticStatus",
    level=(bytes, b"\0"), name=(str, ""), message=(str, ""), hardware_id=(str, ""),
    values=(list, list),
)  # fmt: skip
for level, word in enumerate(("OK", "WARN", "ERROR", "STALE")):
    setattr(DiagnosticStatus, word, bytes([level]))
DiagnosticArray = message("DiagnosticArray", header=(Header, Header), status=(list, list))
SetParametersResult = message("SetParametersResult", successful=(bool, False), reason=(str, ""))
ParameterDescriptor = message(
    "ParameterDescriptor", description=(str, ""), dynamic_typing=(bool, False)
)


class Publisher:
    def __init__(self, kind: type, topic: str):
        self.kind, self.topic = kind, topic
        SENT[topic] = []

    def publish(self, sent: Any) -> None:
        assert type(sent) is self.kind
        SENT[self.topic].append(sent)


class Logger:
    def error(self, text: str, *, throttle_duration_sec: float | None = None) -> None:
        assert throttle_duration_sec
        LOG.append(text)


class Node:
    """A node whose topics, timers and parameters a test drives by hand."""

    def __init__(self, node_name: str, *, parameter_overrides: dict[str, Any] | None = None):
        self.node_name, self.overrides = node_name, parameter_overrides or {}
        self.subscriptions_: dict[str, Any] = {}
        self.timers_: list[Any] = []
        self.parameters_callback: Any = None
        self.destroyed = False

    def declare_parameter(self, name: str, value: Any = None, descriptor: Any = None) -> Any:
        found = self.overrides.get(name, value)
        if descriptor is None or not descriptor.dynamic_typing:
            assert type(found) is type(value)
        return SimpleNamespace(name=name, value=found)

    def create_publisher(self, msg_type: type, topic: str, qos_profile: Any) -> Publisher:
        return Publisher(msg_type, topic)

    def create_subscription(
        self, msg_type: type, topic: str, callback: Any, qos_profile: Any
    ) -> Any:
        self.subscriptions_[topic] = (msg_type, callback, qos_profile)
        return SimpleNamespace(topic=topic)

    def create_timer(self, timer_period_sec: float, callback: Any) -> None:
        self.timers_.append(callback)

    def add_on_set_parameters_callback(self, callback: Any) -> None:
        self.parameters_callback = callback

    def get_logger(self) -> Logger:
        return Logger()

    def get_clock(self) -> Any:
        return SimpleNamespace(now=lambda: SimpleNamespace(to_msg=lambda: Time(sec=7)))

    def destroy_node(self) -> None:
        self.destroyed = True

    def receive(self, topic: str, sent: Any) -> None:
        kind, callback, _ = self.subscriptions_[topic]
        assert type(sent) is kind
        callback(sent)


class Subscriber:
    def __init__(self, node: Node, kind: type, topic: str, *, qos_profile: Any):
        self.callbacks: list[Any] = []
        node.create_subscription(kind, topic, self.callback, qos_profile=qos_profile)

    def registerCallback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def callback(self, sent: Any) -> None:
        for callback in self.callbacks:
            callback(sent)


class ApproximateTimeSynchronizer:
    """Pairs the messages that are nearest and less than ``slop`` seconds apart."""

    def __init__(self, filters: list[Subscriber], queue_size: int, slop: float):
        self.queues: list[dict[int, Any]] = [{} for _ in filters]
        self.size, self.slop, self.lock = queue_size, slop * 1e9, threading.Lock()
        self.callback: Any = None
        for n, one in enumerate(filters):
            one.registerCallback(lambda sent, n=n: self.add(sent, n))

    def registerCallback(self, callback: Any) -> None:
        self.callback = callback

    def add(self, sent: Any, n: int) -> None:
        at = sent.header.stamp.sec * 10**9 + sent.header.stamp.nanosec
        with self.lock:
            mine, other = self.queues[n], self.queues[1 - n]
            mine[at] = sent
            while len(mine) > self.size:
                del mine[min(mine)]
            near = [time for time in other if abs(time - at) < self.slop]
            if near:
                time = min(near, key=lambda one: abs(one - at))
                pair = [None, None]
                pair[n], pair[1 - n] = mine.pop(at), other.pop(time)
                self.callback(*pair)


def modules() -> dict[str, ModuleType]:
    """Return the modules by name, for ``sys.modules``."""
    named: dict[str, dict[str, Any]] = {
        "rclpy": {"init": None, "spin": None, "try_shutdown": None},
        "rclpy.node": {"Node": Node},
        "rclpy.executors": {"ExternalShutdownException": type("Ended", (Exception,), {})},
        "rclpy.qos": {
            "QoSProfile": lambda *, depth: ("reliable", depth),
            "qos_profile_sensor_data": ("best effort", 5),
        },
        "message_filters": {
            "Subscriber": Subscriber,
            "ApproximateTimeSynchronizer": ApproximateTimeSynchronizer,
        },
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": Image, "CameraInfo": CameraInfo},
        "diagnostic_msgs": {},
        "diagnostic_msgs.msg": {
            "DiagnosticArray": DiagnosticArray,
            "DiagnosticStatus": DiagnosticStatus,
            "KeyValue": KeyValue,
        },
        "rcl_interfaces": {},
        "rcl_interfaces.msg": {
            "SetParametersResult": SetParametersResult,
            "ParameterDescriptor": ParameterDescriptor,
        },
    }
    found = {}
    for name, contents in named.items():
        found[name] = ModuleType(name)
        vars(found[name]).update(contents)
    return found
