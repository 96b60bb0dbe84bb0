"""Convert ``sensor_msgs/Image`` to arrays and back, without cv_bridge.

This follows the message's definition (ros2/common_interfaces, sensor_msgs/msg/Image.msg, and the
encodings of sensor_msgs/include/sensor_msgs/image_encodings.hpp): rows of ``step`` bytes, which may
be longer than the pixels, values of two bytes in the order that ``is_bigendian`` says.
"""

from __future__ import annotations

import array
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Encoding(NamedTuple):
    """How an encoding stores pixels."""

    channels: int
    bits: int
    order: tuple[int, ...]
    """where red, green and blue are; (0,) for gray"""


ENCODINGS = {
    "mono8": Encoding(1, 8, (0,)),
    "8UC1": Encoding(1, 8, (0,)),
    "mono16": Encoding(1, 16, (0,)),
    "16UC1": Encoding(1, 16, (0,)),
    "rgb8": Encoding(3, 8, (0, 1, 2)),
    "bgr8": Encoding(3, 8, (2, 1, 0)),
    "8UC3": Encoding(3, 8, (2, 1, 0)),
    "rgba8": Encoding(4, 8, (0, 1, 2)),
    "bgra8": Encoding(4, 8, (2, 1, 0)),
    "rgb16": Encoding(3, 16, (0, 1, 2)),
    "bgr16": Encoding(3, 16, (2, 1, 0)),
}
"""encodings that are read; alpha is left out"""


def to_array(message: Any, name: str) -> Array:
    """Return the pixels of a message: uint8 or uint16, [H, W] or [H, W, 3] in red, green, blue.

    Args:
        message: A ``sensor_msgs/Image``.
        name: "ir" or "vis", for errors.

    Raises:
        ValueError: The encoding is not supported, or there are fewer bytes than the size needs.
    """
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        raise ValueError(
            f"{name}: encoding {message.encoding!r}; expected one of {', '.join(ENCODINGS)}"
        )
    height, width, step = message.height, message.width, message.step
    row = width * encoding.channels * encoding.bits // 8
    data = np.frombuffer(message.data, np.uint8)
    needed = step * (height - 1) + row
    if min(height, width) < 1 or step < row or len(data) < needed:
        raise ValueError(
            f"{name}: {width}x{height} {message.encoding} with a step of {step} and {len(data)} "
            f"bytes; expected a step of at least {row} and at least {needed} bytes"
        )
    rows = np.lib.stride_tricks.as_strided(data, (height, row), (step, 1), writeable=False)
    values = np.ascontiguousarray(rows)
    if encoding.bits == 16:
        stored = values.view(">u2" if message.is_bigendian else "<u2")
        values = stored.astype(np.uint16)
    if encoding.channels == 1:
        return values
    pixels = values.reshape(height, width, encoding.channels)
    return np.ascontiguousarray(pixels[..., encoding.order])


def fill(message: Any, image: Array, like: str) -> Any:
    """Put an image into a message; return the message.

    Args:
        message: A ``sensor_msgs/Image``.
        image: uint8 or uint16, [H, W] or [H, W, 3] in red, green, blue.
        like: The encoding of the source, whose order of colors is kept.
    """
    bits = 8 * image.dtype.itemsize
    if image.ndim == 3:
        from_blue = like.startswith("bgr") or like == "8UC3"
        message.encoding = f"{'bgr' if from_blue else 'rgb'}{bits}"
        image = image[..., ::-1] if from_blue else image
    else:
        message.encoding = f"mono{bits}"
    message.height, message.width = image.shape[:2]
    message.step = image[0].size * image.dtype.itemsize
    message.is_bigendian = 0
    message.data = array.array(
        "B", np.ascontiguousarray(image, image.dtype.newbyteorder("<")).tobytes()
    )
    return message
