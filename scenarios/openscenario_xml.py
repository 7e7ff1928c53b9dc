"""One OpenSCENARIO file: the entities, and where each is at which time, as far as the file itself says so.

That is a polyline trajectory with times at its vertices and world positions, or a world position at the start of what
does nothing. All else (speeds, lane changes, conditions on others) is for a simulator to find out: it is not read.
After ASAM OpenSCENARIO XML 1.3, classes FollowTrajectoryAction, Trajectory, Polyline, Timing and TeleportAction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.markup import parse_xml
from fedfleet.scenarios.records import ScenarioError

__all__ = ["Entity", "Script", "read_script"]

_EGO: Final = ("ego", "hero", "ego_vehicle")
_CATEGORIES: Final = {
    "car": "vehicle",
    "van": "vehicle",
    "truck": "truck",
    "trailer": "truck",
    "semitrailer": "truck",
    "bus": "bus",
    "motorbike": "motorcycle",
    "bicycle": "cyclist",
}
_ACTIONS: Final = (
    "SpeedAction",
    "LaneChangeAction",
    "LaneOffsetAction",
    "AssignRouteAction",
    "AcquirePositionAction",
)
_NO_TRAJECTORY: Final = "parametric-scenario"

Doubles = NDArray[np.float64]


@dataclass
class Entity:
    """One participant; `pieces` are its trajectories: times float64[N] s, rising, and xy float64[N, 2] m.

    `stands` is its place where it has one and does nothing.
    """

    name: str
    type: str
    is_ego: bool
    pieces: list[tuple[Doubles, Doubles]] = field(default_factory=list)
    stands: tuple[float, float] | None = None


@dataclass(frozen=True)
class Script:
    """What a file says: the name of its road network ("" for none) and its entities."""

    road: str
    entities: tuple[Entity, ...]


def read_script(data: bytes, where: str) -> Script | None:
    """The script in a file; None for a catalogue, which has no storyboard.

    Raises ScenarioError naming `where` for what is no OpenSCENARIO 1.x, and for a trajectory that is not as it must be.
    """
    root = parse_xml(data, where)
    header = root.find("FileHeader")
    if root.tag != "OpenSCENARIO" or header is None or header.get("revMajor") != "1":
        got = root.tag if header is None else f"revMajor {header.get('revMajor')!r:.20}"
        raise ScenarioError(
            "unknown-version", f"{where}: expected OpenSCENARIO with revMajor 1, got {got:.60}"
        )
    if root.find("Storyboard") is None:
        return None
    reading = _Reading(where, root)
    entities = {entity.name: entity for entity in reading.entities()}
    reading.init(entities)
    for story in root.iterfind("Storyboard/Story"):
        reading.story(story, entities)
    if not any(entity.pieces for entity in entities.values()):
        found = ", ".join(name for name in _ACTIONS if next(root.iter(name), None) is not None) or "no action"
        text = f"{where}: expected a polyline trajectory with times, got {found}: needs a simulator"
        raise ScenarioError(_NO_TRAJECTORY, text)
    road = root.find("RoadNetwork/LogicFile")
    path = "" if road is None else road.get("filepath", "")
    return Script(path.replace("\\", "/").rpartition("/")[2].partition(".")[0], tuple(entities.values()))


@dataclass(frozen=True)
class _Reading:
    where: str
    root: Element

    def entities(self) -> Iterator[Entity]:
        names = set()
        for each in self.root.iterfind("Entities/ScenarioObject"):
            name = each.get("name", "")
            if name in names:
                raise ScenarioError("duplicate-track", f"{self.where}: entity {name!r:.60} is there twice")
            names.add(name)
            told = any(
                one.get("name") == "type" and one.get("value") == "ego_vehicle"
                for one in each.iter("Property")
            )
            yield Entity(name, _type(each), told or name.lower() in _EGO)

    def init(self, entities: Mapping[str, Entity]) -> None:
        """Trajectories and places at the start."""
        values = _values(self.root.find("ParameterDeclarations"), {})
        for private in self.root.iterfind("Storyboard/Init/Actions/Private"):
            entity = self.entity(entities, private.get("entityRef"), values)
            for follow in private.iter("FollowTrajectoryAction"):
                self.add(entity, follow, values, start_s=0.0)
            place = private.find("PrivateAction/TeleportAction/Position/WorldPosition")
            if place is not None and not _moves(private):
                entity.stands = self.number(place, "x", values), self.number(place, "y", values)

    def story(self, story: Element, entities: Mapping[str, Entity]) -> None:
        """Trajectories of one story; who acts in any other way does not stand."""
        values = _values(self.root.find("ParameterDeclarations"), {})
        values = _values(story.find("ParameterDeclarations"), values)
        for act in story.iterfind("Act"):
            for group in act.iterfind("ManeuverGroup"):
                actors = [
                    self.entity(entities, each.get("entityRef"), values)
                    for each in group.iterfind("Actors/EntityRef")
                ]
                for actor in actors:
                    actor.stands = None
                for event in group.iterfind("Maneuver/Event"):
                    start_s = self.start(act.find("StartTrigger"), event.find("StartTrigger"), values)
                    for follow in event.iter("FollowTrajectoryAction"):
                        for actor in actors:
                            self.add(actor, follow, values, start_s=start_s)

    def entity(self, entities: Mapping[str, Entity], name: str | None, values: Mapping[str, str]) -> Entity:
        wanted = name or ""
        wanted = values.get(wanted[1:], "") if wanted.startswith("$") else wanted
        if wanted not in entities:
            raise ScenarioError(
                "missing-track", f"{self.where}: expected an entity {wanted!r:.60}, got none of it"
            )
        return entities[wanted]

    def start(self, act: Element | None, event: Element | None, values: Mapping[str, str]) -> float | None:
        """When both triggers have fired, where simulation time alone decides; None otherwise."""
        starts = [self.trigger(each, values) for each in (act, event)]
        known = [start for start in starts if start is not None]
        return max(known) if len(known) == len(starts) else None

    def trigger(self, trigger: Element | None, values: Mapping[str, str]) -> float | None:
        conditions = [] if trigger is None else list(trigger.iter("Condition"))
        if not conditions:
            return 0.0
        time = conditions[0].find("ByValueCondition/SimulationTimeCondition")
        if len(conditions) > 1 or time is None or not time.get("rule", "").startswith("greater"):
            return None
        delay = self.number(conditions[0], "delay", values) if conditions[0].get("delay") else 0.0
        return max(0.0, self.number(time, "value", values)) + delay

    def add(
        self, entity: Entity, follow: Element, values: Mapping[str, str], *, start_s: float | None
    ) -> None:
        """Add a trajectory to its entity."""
        at = f"{self.where}: entity {entity.name!r:.60}"
        trajectory = follow.find("Trajectory")
        if trajectory is None:
            trajectory = follow.find("TrajectoryRef/Trajectory")
        line = None if trajectory is None else trajectory.find("Shape/Polyline")
        timing = follow.find("TimeReference/Timing")
        if trajectory is None or line is None or timing is None:
            text = f"{at}: expected a polyline in the file and Timing, got another shape, a catalogue or no times"
            raise ScenarioError(_NO_TRAJECTORY, text)
        offset = follow.get("initialDistanceOffset", "0")
        if (
            trajectory.get("closed") == "true"
            or offset.strip("0.")
            or (timing.get("domainAbsoluteRelative") != "absolute" and start_s is None)
        ):
            text = f"{at}: its trajectory is closed, begins inside, or at a time that depends on others"
            raise ScenarioError(_NO_TRAJECTORY, text)
        begin = 0.0 if timing.get("domainAbsoluteRelative") == "absolute" else float(start_s or 0.0)
        begin += self.number(timing, "offset", values)
        scale = self.number(timing, "scale", values)
        rows = [self.vertex(vertex, values, at) for vertex in line.iterfind("Vertex")]
        found = np.array(rows, dtype=np.float64).reshape(-1, 3)
        times = found[:, 0] * scale + begin
        if len(times) < 2 or not (np.diff(times) > 0).all():
            text = f"{at}: expected 2 or more vertices at rising times, got {len(times)}"
            raise ScenarioError("shuffled-frames", text)
        if any(times[0] <= before[-1] and before[0] <= times[-1] for before, _ in entity.pieces):
            raise ScenarioError("duplicate-row", f"{at}: expected one trajectory at a time, got two")
        entity.pieces.append((times, found[:, 1:]))

    def vertex(self, vertex: Element, values: Mapping[str, str], at: str) -> tuple[float, float, float]:
        place = vertex.find("Position/WorldPosition")
        if place is None:
            kind = next((each.tag for each in vertex.iterfind("Position/*")), "none")
            raise ScenarioError(
                _NO_TRAJECTORY, f"{at}: expected a WorldPosition, got {kind}: needs the road network"
            )
        return (
            self.number(vertex, "time", values),
            self.number(place, "x", values),
            self.number(place, "y", values),
        )

    def number(self, element: Element, name: str, values: Mapping[str, str]) -> float:
        text = element.get(name, "").strip()
        given = values.get(text[1:], text) if text.startswith("$") else text
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            what = f"{element.tag} {name}: expected a finite number or a declared parameter, got {text!r:.60}"
            raise ScenarioError("nan-value", f"{self.where}: {what}")
        return value


def _values(declared: Element | None, before: Mapping[str, str]) -> dict[str, str]:
    found = dict(before)
    for each in () if declared is None else declared.iterfind("ParameterDeclaration"):
        found[each.get("name", "").lstrip("$")] = each.get("value", "")
    return found


def _moves(private: Element) -> bool:
    """Whether anything at the start sets it going; a speed of 0 does not."""
    speeds = [each.get("value", "") for each in private.iter("AbsoluteTargetSpeed")]
    others = [
        each
        for name in ("LongitudinalDistanceAction", "LateralAction", "SynchronizeAction", "RoutingAction")
        for each in private.iter(name)
    ]
    relative = next(private.iter("RelativeTargetSpeed"), None) is not None
    return bool(others) or relative or any(speed.strip("0.") for speed in speeds)


def _type(entity: Element) -> str:
    vehicle = entity.find("Vehicle")
    if vehicle is not None:
        return _CATEGORIES.get(vehicle.get("vehicleCategory", ""), "unknown")
    if entity.find("Pedestrian") is not None:
        animal = entity.find("Pedestrian[@pedestrianCategory='animal']") is not None
        return "unknown" if animal else "pedestrian"
    if entity.find("MiscObject") is not None:
        return "static"
    reference = entity.find("CatalogReference")
    catalogue = "" if reference is None else reference.get("catalogName", "").lower()
    kinds = {"vehicle": "vehicle", "pedestrian": "pedestrian", "misc": "static"}
    return next((kind for start, kind in kinds.items() if catalogue.startswith(start)), "unknown")
