"""Launch file of the node: arguments for topics and settings, ``--show-args`` lists them."""

import sys

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from ddfm_fast.integrations.frames import SETTINGS

TOPICS = {
    "infrared": ("infrared/image", "/thermal/image_raw"),
    "visible": ("visible/image", "/camera/image_raw"),
    "camera_info": ("visible/camera_info", "/camera/camera_info"),
    "fused": ("fused/image", "/fused/image"),
    "fused_camera_info": ("fused/camera_info", "/fused/camera_info"),
}
"""argument → the node's name of the topic, and the default"""


def generate_launch_description():
    """Return the node, in the Python that has this file."""
    arguments = [
        *(DeclareLaunchArgument(name, default_value=topic) for name, (_, topic) in TOPICS.items()),
        *(
            DeclareLaunchArgument(name, default_value=one.default, description=one.help)
            for name, one in SETTINGS.items()
        ),
        DeclareLaunchArgument("queue_size", default_value="10"),
        DeclareLaunchArgument("slop", default_value="0.05"),
    ]
    words = {name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in SETTINGS}
    numbers = {
        "queue_size": ParameterValue(LaunchConfiguration("queue_size"), value_type=int),
        "slop": ParameterValue(LaunchConfiguration("slop"), value_type=float),
    }
    node = Node(
        name="ddfm_fast",
        executable=sys.executable,
        arguments=["-m", "ddfm_fast.integrations.ros"],
        remappings=[(ours, LaunchConfiguration(name)) for name, (ours, _) in TOPICS.items()],
        parameters=[{**words, **numbers}],
        output="screen",
    )
    return LaunchDescription([*arguments, node])
