"""Definitions of the messages that bags of ROS 2 Humble and before do not hold: those released with Humble.

After github.com/ros-perception/vision_msgs 4.1, github.com/astuff/astuff_sensor_msgs 4.0 (derived_object_msgs),
github.com/ros2/common_interfaces 4.2 (sensor_msgs, geometry_msgs) and github.com/ros-drivers/ackermann_msgs 2.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["DEFINITIONS"]

_GEOMETRY: Final = """
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: geometry_msgs/Point
float64 x
float64 y
float64 z
================================================================================
MSG: geometry_msgs/Quaternion
float64 x
float64 y
float64 z
float64 w
================================================================================
MSG: geometry_msgs/Vector3
float64 x
float64 y
float64 z
================================================================================
MSG: geometry_msgs/Pose
Point position
Quaternion orientation
"""
_DETECTIONS: Final = """std_msgs/Header header
vision_msgs/Detection3D[] detections
================================================================================
MSG: vision_msgs/Detection3D
std_msgs/Header header
ObjectHypothesisWithPose[] results
BoundingBox3D bbox
string id
================================================================================
MSG: vision_msgs/ObjectHypothesisWithPose
ObjectHypothesis hypothesis
geometry_msgs/PoseWithCovariance pose
================================================================================
MSG: vision_msgs/ObjectHypothesis
string class_id
float64 score
================================================================================
MSG: vision_msgs/BoundingBox3D
geometry_msgs/Pose center
geometry_msgs/Vector3 size
================================================================================
MSG: geometry_msgs/PoseWithCovariance
Pose pose
float64[36] covariance"""
_OBJECTS: Final = """std_msgs/Header header
derived_object_msgs/Object[] objects
================================================================================
MSG: derived_object_msgs/Object
std_msgs/Header header
uint32 id
uint8 detection_level
bool object_classified
geometry_msgs/Pose pose
geometry_msgs/Twist twist
geometry_msgs/Accel accel
geometry_msgs/Polygon polygon
shape_msgs/SolidPrimitive shape
uint8 classification
uint8 classification_certainty
uint32 classification_age
================================================================================
MSG: geometry_msgs/Twist
Vector3 linear
Vector3 angular
================================================================================
MSG: geometry_msgs/Accel
Vector3 linear
Vector3 angular
================================================================================
MSG: geometry_msgs/Polygon
Point32[] points
================================================================================
MSG: geometry_msgs/Point32
float32 x
float32 y
float32 z
================================================================================
MSG: shape_msgs/SolidPrimitive
uint8 type
float64[<=3] dimensions
geometry_msgs/Polygon polygon"""

_IMAGE: Final = """std_msgs/Header header
string format
uint8[] data"""
_TWIST: Final = """Vector3 linear
Vector3 angular"""
_TWIST_STAMPED: Final = """std_msgs/Header header
Twist twist
================================================================================
MSG: geometry_msgs/Twist
Vector3 linear
Vector3 angular"""
_ACKERMANN: Final = """std_msgs/Header header
ackermann_msgs/AckermannDrive drive
================================================================================
MSG: ackermann_msgs/AckermannDrive
float32 steering_angle
float32 steering_angle_velocity
float32 speed
float32 acceleration
float32 jerk"""

DEFINITIONS: Final[Mapping[str, str]] = {
    "vision_msgs/Detection3DArray": _DETECTIONS + _GEOMETRY,
    "derived_object_msgs/ObjectArray": _OBJECTS + _GEOMETRY,
    "sensor_msgs/CompressedImage": _IMAGE + _GEOMETRY,
    "geometry_msgs/Twist": _TWIST + _GEOMETRY,
    "geometry_msgs/TwistStamped": _TWIST_STAMPED + _GEOMETRY,
    "ackermann_msgs/AckermannDriveStamped": _ACKERMANN + _GEOMETRY,
}
