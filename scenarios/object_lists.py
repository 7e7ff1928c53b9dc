"""What a message of an object list says: the time, the frame of its coordinates, and each object's id, type and place.

Known are `vision_msgs/Detection3DArray` (tracked: with `id`), `derived_object_msgs/ObjectArray`, Autoware's
`TrackedObjects`, and `foxglove.SceneUpdate` as JSON or protobuf. May live here: one function per message, and no more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedfleet.scenarios.protobuf_wire import double, fields
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.ros_messages import Definition, decode, parse_definition
from fedfleet.scenarios.words import in_words

__all__ = ["SCHEMAS", "Listed", "Thing", "reader"]

_BY_WORD: Final = (
    ("truck", "truck"),
    ("trailer", "truck"),
    ("bus", "bus"),
    ("motor", "motorcycle"),
    ("bicycle", "cyclist"),
    ("cyclist", "cyclist"),
    ("bike", "cyclist"),
    ("pedestrian", "pedestrian"),
    ("person", "pedestrian"),
    ("cone", "static"),
    ("barrier", "static"),
    ("car", "vehicle"),
    ("vehicle", "vehicle"),
    ("van", "vehicle"),
)
_OBJECT: Final = ("unknown",) * 4 + (
    *("pedestrian", "cyclist", "vehicle", "truck", "motorcycle", "vehicle"),
    *("static", "static"),
)
"""By `derived_object_msgs/Object.classification`."""
_AUTOWARE: Final = ("unknown", "vehicle", "truck", "bus", "truck", "motorcycle", "cyclist", "pedestrian")


@dataclass(frozen=True)
class Thing:
    """One object: metres in the message's frame; `id` is empty for one that is not tracked."""

    id: str
    type: str
    x: float
    y: float


@dataclass(frozen=True)
class Listed:
    """One message: `stamp_s` is NaN where it tells none."""

    stamp_s: float
    frame_id: str
    things: tuple[Thing, ...]


Reader = Callable[[bytes, str], Listed]


def reader(schema: str, encoding: str, text: bytes, where: str) -> Reader | None:
    """How messages of a schema are read; None for one that is no object list."""
    name = schema.replace("/msg/", "/")
    if name == "foxglove.SceneUpdate" and encoding in _SCENE:
        return _SCENE[encoding]
    if name not in SCHEMAS or encoding != "cdr":
        return None
    definition = parse_definition(text.decode(errors="replace"), name, where)
    if name == "vision_msgs/Detection3DArray" and "id" not in definition.names("vision_msgs/Detection3D"):
        raise ScenarioError(
            "untracked-objects", f"{where}: expected detections with an id, got a version without"
        )
    return lambda data, at: _ros(data, at, name, definition)


def _ros(data: bytes, where: str, name: str, definition: Definition) -> Listed:
    message = decode(data, definition, where)
    try:
        header = message["header"]
        stamp = header["stamp"]
        things = tuple(SCHEMAS[name](message))
        return Listed(stamp["sec"] + stamp["nanosec"] * 1e-9, header["frame_id"], things)
    except (KeyError, TypeError, IndexError) as error:
        raise ScenarioError("malformed-schema", f"{where}: {name}: {in_words(error)}") from error


def _detections(message: Mapping[str, Any]) -> Iterator[Thing]:
    for each in message["detections"]:
        guesses = [guess["hypothesis"] for guess in each["results"]]
        best = max(guesses, key=lambda guess: float(guess["score"]))["class_id"] if guesses else ""
        place = each["bbox"]["center"]["position"]
        yield Thing(each["id"], _word(best), place["x"], place["y"])


def _objects(message: Mapping[str, Any]) -> Iterator[Thing]:
    for each in message["objects"]:
        place = each["pose"]["position"]
        kind = _OBJECT[each["classification"]] if each["classification"] < len(_OBJECT) else "unknown"
        yield Thing(str(each["id"]), kind, place["x"], place["y"])


def _autoware(message: Mapping[str, Any]) -> Iterator[Thing]:
    for each in message["objects"]:
        place = each["kinematics"]["pose_with_covariance"]["pose"]["position"]
        guesses: Sequence[Mapping[str, Any]] = each["classification"]
        best = max(guesses, key=lambda guess: float(guess["probability"]))["label"] if guesses else 0
        kind = _AUTOWARE[best] if best < len(_AUTOWARE) else "unknown"
        yield Thing(each["object_id"]["uuid"].hex(), kind, place["x"], place["y"])


SCHEMAS: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterator[Thing]]]] = {
    "vision_msgs/Detection3DArray": _detections,
    "derived_object_msgs/ObjectArray": _objects,
    "autoware_perception_msgs/TrackedObjects": _autoware,
    "autoware_auto_perception_msgs/TrackedObjects": _autoware,
}


def _scene_json(data: bytes, where: str) -> Listed:
    try:
        entities = json.loads(data).get("entities") or []
        things = tuple(thing for thing in map(_json_thing, entities) if thing is not None)
        stamps = [each["timestamp"]["sec"] + each["timestamp"]["nsec"] * 1e-9 for each in entities]
        frames = {str(each["frame_id"]) for each in entities}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        text = f"{where}: expected a SceneUpdate: {in_words(error)}"
        raise ScenarioError("malformed-message", text) from error
    return _scene(stamps, frames, things, where)


def _json_thing(entity: Mapping[str, Any]) -> Thing | None:
    """The first shape with a place of its own; lines, texts and the like have none."""
    shapes = [
        shape for name in ("cubes", "models", "cylinders", "spheres") for shape in entity.get(name) or ()
    ]
    if not shapes:
        return None
    place = shapes[0]["pose"]["position"]
    told = {str(one["key"]).lower(): str(one["value"]) for one in entity.get("metadata") or ()}
    return Thing(str(entity["id"]), _class(told), float(place["x"]), float(place["y"]))


def _scene_protobuf(data: bytes, where: str) -> Listed:
    """Fields by Foxglove's SceneUpdate.proto: the entities are field 2."""
    stamps, frames, things = [], set(), []
    for entity in _each(data, 2, where):
        time = {at: part for at, _, part in fields(_first(entity, 1, where), where) if isinstance(part, int)}
        stamps.append(time.get(1, 0) + time.get(2, 0) * 1e-9)
        frames.add(_text(entity, 2, where))
        thing = _protobuf_thing(entity, where)
        things += [thing] if thing else []
    return _scene(stamps, frames, tuple(things), where)


def _protobuf_thing(entity: bytes, where: str) -> Thing | None:
    """By SceneEntity.proto: id 3, metadata 6; cubes 8, models 14, cylinders 10, spheres 9, whose pose is field 1."""
    shapes = [shape for number in (8, 14, 10, 9) for shape in _each(entity, number, where)]
    if not shapes:
        return None
    pairs = [
        [_first(pair, number, where).decode(errors="replace") for number in (1, 2)]
        for pair in _each(entity, 6, where)
    ]
    place = {at: part for at, _, part in fields(_first(_first(shapes[0], 1, where), 1, where), where)}
    x, y = (double(place[axis], where) if axis in place else 0.0 for axis in (1, 2))
    told = {key.lower(): value for key, value in pairs}
    return Thing(_text(entity, 3, where), _class(told), x, y)


def _text(data: bytes, wanted: int, where: str) -> str:
    return _first(data, wanted, where).decode(errors="replace")


def _first(data: bytes, wanted: int, where: str) -> bytes:
    return next(iter(_each(data, wanted, where)), b"")


def _each(data: bytes, wanted: int, where: str) -> list[bytes]:
    return [
        value for number, _, value in fields(data, where) if number == wanted and isinstance(value, bytes)
    ]


def _scene(stamps: list[float], frames: set[str], things: tuple[Thing, ...], where: str) -> Listed:
    if len(frames) > 1:
        raise ScenarioError("moving-frame", f"{where}: entities in frames {', '.join(sorted(frames)):.80}")
    return Listed(max(stamps, default=math.nan), next(iter(frames), ""), things)


_SCENE: Final[Mapping[str, Reader]] = {"json": _scene_json, "protobuf": _scene_protobuf}


def _class(told: Mapping[str, str]) -> str:
    return _word(next((told[key] for key in ("type", "class", "category", "label") if key in told), ""))


def _word(text: str) -> str:
    low = text.lower()
    return next((kind for word, kind in _BY_WORD if word in low), "unknown")
