"""What the messages of a camera and of a driver say: an image's bytes, and how far the car was steered.

Known are `sensor_msgs/CompressedImage`, `ackermann_msgs/AckermannDriveStamped`, `geometry_msgs/TwistStamped` and
`geometry_msgs/Twist`, in CDR. ROS counts to the left (REP 103), a driver's angle to the right: −1 left … 1 right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from fedfleet.scenarios.bag_files import Topic
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.ros_messages import Definition, decode, parse_definition

__all__ = [
    "ACKERMANN",
    "IMAGE",
    "MAX_STEERING_RAD",
    "MAX_TURN_RAD_PER_S",
    "TWISTS",
    "definition_of",
    "image_data",
    "read",
]

IMAGE: Final = "sensor_msgs/CompressedImage"
ACKERMANN: Final = "ackermann_msgs/AckermannDriveStamped"
TWISTS: Final = ("geometry_msgs/TwistStamped", "geometry_msgs/Twist")

MAX_STEERING_RAD: Final = 0.6
"""`steering_angle` that is angle 1: small cars turn their wheels by 0.4, road cars by 0.5 to 0.6."""
MAX_TURN_RAD_PER_S: Final = 1.0
"""`angular.z` that is angle 1: what a stick at its end gives with the usual scale of teleoperation."""


def definition_of(topic: Topic, where: str) -> tuple[str, Definition] | None:
    """The name of a topic's messages and how they are laid out; None for a topic of no camera and no driver.

    Depth images (`…/compressedDepth`) are of no camera. ScenarioError for a definition that is none.
    """
    name = topic.schema.replace("/msg/", "/")
    if name not in _VALUES or topic.encoding != "cdr" or topic.name.endswith("/compressedDepth"):
        return None
    return name, parse_definition(topic.text.decode(errors="replace"), name, f"{where} {topic.name}")


def read(data: bytes, name: str, definition: Definition, where: str) -> tuple[float, float]:
    """Time of the header in s, NaN without a header, and angle −1 … 1 (beyond it as it is), of an image NaN.

    ScenarioError for a message that is not as its definition says.
    """
    message = decode(data, definition, where)
    try:
        stamp = message["header"]["stamp"] if "header" in message else None
        time_s = stamp["sec"] + stamp["nanosec"] * 1e-9 if stamp else math.nan
        return time_s, _VALUES[name](message)
    except (KeyError, TypeError, ValueError) as error:
        raise ScenarioError("malformed-schema", f"{where}: {name} without {error}"[:300]) from error


def image_data(data: bytes, definition: Definition, where: str) -> bytes:
    """The JPEG or PNG in a message; ScenarioError for a message that is not as its definition says."""
    found = decode(data, definition, where).get("data")
    if not isinstance(found, bytes):
        raise ScenarioError("malformed-schema", f"{where}: {IMAGE} without data")
    return found


def _image(message: Mapping[str, Any]) -> float:
    if not isinstance(message["data"], bytes):
        raise TypeError("data")
    return math.nan


def _ackermann(message: Mapping[str, Any]) -> float:
    return -float(message["drive"]["steering_angle"]) / MAX_STEERING_RAD


def _twist(message: Mapping[str, Any]) -> float:
    return -float(message["angular"]["z"]) / MAX_TURN_RAD_PER_S


_VALUES: Final[Mapping[str, Callable[[Mapping[str, Any]], float]]] = {
    IMAGE: _image,
    ACKERMANN: _ackermann,
    "geometry_msgs/TwistStamped": lambda message: _twist(message["twist"]),
    "geometry_msgs/Twist": _twist,
}
