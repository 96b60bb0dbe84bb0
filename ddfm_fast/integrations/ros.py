"""ROS 2: the node ``ddfm_fast``, run by ``python -m ddfm_fast.integrations.ros``.

``ros2 launch $(python -m ddfm_fast.integrations.ros --launch-file)`` starts it with names of topics
and settings as arguments; ``ros_node`` is what runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

LAUNCH_FILE = Path(__file__).resolve().parent / "ros_launch" / "fuse.launch.py"


def main(args: list[str] | None = None) -> int:
    """Run the node until it is shut down, or print where the launch file is."""
    given = sys.argv[1:] if args is None else args
    if given == ["--launch-file"]:
        print(LAUNCH_FILE)
        return 0
    try:
        from .ros_node import spin
    except ModuleNotFoundError as error:
        print(
            f"ddfm_fast: {error.name} is missing; source ROS 2 first (source /opt/ros/…/setup.bash)"
            ", with ddfm_fast installed for the Python that it has",
            file=sys.stderr,
        )
        return 2
    spin(given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
