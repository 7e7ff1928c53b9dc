"""OpenSCENARIO: trajectories written here and read again, and what a simulator would have to find out."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from fedfleet.scenarios import openscenario
from fedfleet.scenarios.openscenario_xml import read_script
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.tree import walk

TIMES = np.arange(0, 12, 0.1)
ABSOLUTE = '<Timing domainAbsoluteRelative="absolute" scale="1" offset="0"/>'


def follow(rows: Sequence[Sequence[float]], *, timing: str = ABSOLUTE, more: str = "") -> str:
    points = "".join(
        f'<Vertex time="{t!r}"><Position><WorldPosition x="{x!r}" y="{y!r}" z="0" h="0"/></Position></Vertex>'
        for t, x, y in np.asarray(rows).tolist()
    )
    line = f'<Trajectory name="t" closed="false"><Shape><Polyline>{points}</Polyline></Shape></Trajectory>'
    action = f"<TrajectoryRef>{line}</TrajectoryRef><TimeReference>{timing}</TimeReference>"
    return f"<FollowTrajectoryAction{more}>{action}</FollowTrajectoryAction>"


def event(actor: str, action: str, *, trigger: str = "") -> str:
    """A story in which one entity does something."""
    private = f"<PrivateAction><RoutingAction>{action}</RoutingAction></PrivateAction>"
    inside = f'<Event name="e"><Action name="a">{private}</Action>{trigger}</Event>'
    actors = f'<Actors><EntityRef entityRef="{actor}"/></Actors>'
    group = f"<ManeuverGroup>{actors}<Maneuver>{inside}</Maneuver></ManeuverGroup>"
    return f'<Story name="s"><Act name="a">{group}</Act></Story>'


def at_time(seconds: float) -> str:
    condition = f'<SimulationTimeCondition value="{seconds}" rule="greaterThan"/>'
    inside = f"<ByValueCondition>{condition}</ByValueCondition>"
    return f'<StartTrigger><ConditionGroup><Condition delay="0.5">{inside}</Condition></ConditionGroup></StartTrigger>'


def xosc(entities: Mapping[str, str], stories: str, *, init: str = "", head: str = 'revMajor="1"') -> str:
    objects = "".join(
        f'<ScenarioObject name="{name}">{kind}</ScenarioObject>' for name, kind in entities.items()
    )
    return (
        f"<OpenSCENARIO><FileHeader {head}/><ParameterDeclarations>"
        '<ParameterDeclaration name="who" value="Ego"/></ParameterDeclarations>'
        '<RoadNetwork><LogicFile filepath="../xodr/e6mini.xodr"/></RoadNetwork>'
        f"<Entities>{objects}</Entities><Storyboard><Init><Actions>{init}</Actions></Init>{stories}</Storyboard>"
        "</OpenSCENARIO>"
    )


CAR = '<Vehicle vehicleCategory="car"/>'


def read(folder: Path, text: str, *, name: str = "drive.xosc") -> tuple[list[Any], Mapping[str, int]]:
    (folder / name).write_text(text)
    recordings = openscenario.scan(folder, openscenario.detect(walk(folder)))
    return [each for key in recordings.drives for each in recordings.read(key)], recordings.problems


def tracks(seed: int = 3) -> dict[str, np.ndarray]:
    """Three made-up tracks at 10 Hz, one of which begins later."""
    rng = np.random.default_rng(seed)
    whole = {}
    for name, first in {"Ego": 0, "truck": 0, "late": 30}.items():
        xy = np.cumsum(rng.normal([1.0, 0.1], 0.05, (len(TIMES), 2)), axis=0)
        whole[name] = np.column_stack([TIMES, xy])[first:]
    return whole


def test_vertices_on_one_clock_are_the_frames(tmp_path: Path) -> None:
    # Given a file with a trajectory for each of three entities, one of them at the start
    whole = tracks()
    private = f'<Private entityRef="Ego"><PrivateAction><RoutingAction>{follow(whole["Ego"])}</RoutingAction>'
    text = xosc(
        {"Ego": CAR, "truck": '<Vehicle vehicleCategory="truck"/>', "late": "<Pedestrian/>"},
        event("truck", follow(whole["truck"])) + event("late", follow(whole["late"])),
        init=private + "</PrivateAction></Private>",
    )
    # When
    scenarios, problems = read(tmp_path, text)
    # Then positions are exactly those of the file, by an own walk through it
    lines = ET.fromstring(text).iter("Polyline")  # noqa: S314 - written above
    expected = {
        name: {
            round(float(vertex.get("time", "")) * 10): [float(place.get(axis, "")) for axis in "xy"]
            for vertex in action.iter("Vertex")
            for place in vertex.iter("WorldPosition")
        }
        for name, action in zip(("Ego", "truck", "late"), lines, strict=True)
    }
    found: dict[str, dict[int, list[float]]] = {name: {} for name in expected}
    for scenario in scenarios:
        for track, xy in zip(scenario.track_ids, scenario.xy, strict=True):
            for frame in np.flatnonzero(~np.isnan(xy[:, 0])):
                found[track][round(scenario.t0_s * 10) + int(frame)] = list(xy[frame])
    assert found == expected
    assert [scenario.frames for scenario in scenarios] == [100, 20]
    first = scenarios[0]
    assert (first.region, first.drive, first.rate_hz) == ("e6mini", "drive", 10.0)
    assert dict(zip(first.track_ids, zip(first.kinds, first.types, strict=True), strict=True)) == {
        "Ego": ("AV", "vehicle"),
        "truck": ("AGENT", "truck"),
        "late": ("OTHERS", "pedestrian"),
    }
    assert problems == {}


def test_sparse_vertices_are_joined_by_straight_lines_at_10_hz(tmp_path: Path) -> None:
    # Given vertices seconds apart
    rows = [[0.0, 0.0, 0.0], [2.0, 20.0, 0.0], [2.75, 20.0, 7.5]]
    # When
    (scenario,), _ = read(tmp_path, xosc({"a": CAR}, event("a", follow(rows))))
    # Then
    times = np.arange(28) / 10
    expected = np.column_stack([np.minimum(times * 10, 20), np.clip((times - 2) * 10, 0, None)])
    assert scenario.rate_hz == 10.0
    np.testing.assert_allclose(scenario.xy[0], expected, atol=1e-9)


def test_relative_times_count_from_a_known_start_and_are_scaled(tmp_path: Path) -> None:
    timing = '<Timing domainAbsoluteRelative="relative" scale="0.5" offset="1"/>'
    story = event("$who", follow([[0, 0, 0], [4, 8, 0]], timing=timing), trigger=at_time(3))
    (scenario,), _ = read(tmp_path, xosc({"Ego": CAR}, story))
    # Given the trigger at 3 s and its delay of 0.5 s, the trajectory goes from 4.5 s to 6.5 s
    assert (scenario.t0_s, scenario.frames) == (4.5, 21)
    np.testing.assert_allclose(scenario.xy[0, -1], [8, 0])


def test_what_stands_is_a_track_and_what_only_a_simulator_knows_is_counted(tmp_path: Path) -> None:
    # Given a cone that stands, and a car that starts to drive
    place = '<Position><WorldPosition x="5" y="6"/></Position>'
    place = f"<PrivateAction><TeleportAction>{place}</TeleportAction></PrivateAction>"
    speed = '<PrivateAction><LongitudinalAction><AbsoluteTargetSpeed value="{}"/></LongitudinalAction></PrivateAction>'
    init = "".join(
        f'<Private entityRef="{name}">{place}{speed.format(value)}</Private>'
        for name, value in {"cone": "0.0", "driving": "10"}.items()
    )
    entities = {"a": CAR, "cone": "<MiscObject/>", "driving": CAR, "lane": CAR}
    text = xosc(entities, event("a", follow([[0, 0, 0], [1, 8, 0]])), init=init)
    # When
    (scenario,), problems = read(tmp_path, text)
    # Then
    assert (scenario.track_ids, scenario.types) == (("a", "cone"), ("vehicle", "static"))
    np.testing.assert_array_equal(scenario.xy[1], np.tile([5.0, 6.0], (11, 1)))
    assert problems == {"no-trajectory": 2}


def test_catalogues_are_left_alone_and_zips_read(tmp_path: Path) -> None:
    text = xosc({"a": CAR}, event("a", follow([[0, 0, 0], [1, 8, 0]])))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("sub/one.xosc", text)
    catalogue = '<OpenSCENARIO><FileHeader revMajor="1"/><Catalog name="VehicleCatalog"/></OpenSCENARIO>'
    scenarios, _ = read(tmp_path, catalogue, name="vehicles.xosc")
    assert [scenario.scenario_id for scenario in scenarios] == ["one-00000"]


def test_the_hand_written_files_are_refused_with_what_they_hold(data_dir: Path) -> None:
    expected = {
        "cut-in": "SpeedAction, LaneChangeAction",
        "follow_ghost": "SpeedAction, LaneChangeAction",
        "lane_change": "SpeedAction, LaneChangeAction, LaneOffsetAction",
    }
    paths = sorted((data_dir / "formats" / "openscenario" / "xosc").glob("*.xosc"))
    assert [path.stem for path in paths] == sorted(expected)
    for path in paths:
        with pytest.raises(
            ScenarioError, match=f"parametric-scenario: .* got {expected[path.stem]}: needs a simu"
        ):
            read_script(path.read_bytes(), path.name)


LINE = [[0, 0, 0], [1, 8, 0]]
RELATIVE = '<Timing domainAbsoluteRelative="relative" scale="1" offset="0"/>'
FAR = ' initialDistanceOffset="3"'
OTHER = "<StartTrigger><ConditionGroup><Condition><ByEntityCondition/></Condition></ConditionGroup></StartTrigger>"


@pytest.mark.parametrize(
    ("text", "reason", "told"),
    [
        (
            xosc({"a": CAR}, event("a", follow(LINE, timing="<None/>"))),
            "parametric-scenario",
            "expected a polyline",
        ),
        (
            xosc({"a": CAR}, event("a", follow(LINE, timing=RELATIVE), trigger=OTHER)),
            "parametric-scenario",
            "depends",
        ),
        (
            xosc({"a": CAR}, event("a", follow(LINE, more=FAR))),
            "parametric-scenario",
            "inside",
        ),
        (
            xosc({"a": CAR}, event("a", follow(LINE).replace("WorldPosition", "LanePosition"))),
            "parametric-scenario",
            "got LanePosition: needs the road network",
        ),
        (
            xosc({"a": CAR}, event("a", follow(LINE).replace("Polyline", "Nurbs"))),
            "parametric-scenario",
            "another shape",
        ),
        (xosc({"a": CAR}, event("b", follow(LINE))), "missing-track", "expected an entity 'b'"),
        (
            xosc({"a": CAR}, event("a", follow(LINE[::-1]))),
            "shuffled-frames",
            "vertices at rising times, got 2",
        ),
        (xosc({"a": CAR}, event("a", follow(LINE[:1]))), "shuffled-frames", "got 1"),
        (
            xosc({"a": CAR}, event("a", follow(LINE)) * 2),
            "duplicate-row",
            "one trajectory at a time, got two",
        ),
        (
            xosc({"a": CAR}, event("a", follow(LINE)).replace('x="8"', 'x="nan"')),
            "nan-value",
            "x: expected a finite",
        ),
        (
            xosc({"a": CAR}, event("a", follow(LINE)).replace('x="8"', 'x="${2+3}"')),
            "nan-value",
            "got '${2+3}'",
        ),
        (xosc({"a": CAR}, event("a", follow([[0, 0, 0], [1e7, 8, 0]]))), "wrong-units", "limit 86400 s"),
        (xosc({"a": CAR}, "", head='revMajor="0"'), "unknown-version", "got revMajor '0'"),
        ("<OpenDRIVE/>", "unknown-version", "got OpenDRIVE"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "xml-entities", "got <!DOCTYPE"),
        (xosc({"a": CAR}, event("a", follow(LINE)))[:-20], "malformed-xml", "unclosed token"),
    ],
)
def test_what_is_not_as_it_must_be_is_refused(tmp_path: Path, text: str, reason: str, told: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        read(tmp_path, text)
    assert refused.value.reason == reason
    assert told in str(refused.value)
    assert "drive.xosc" in str(refused.value)


def test_an_entity_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    text = xosc({"a": CAR, "b": CAR}, event("a", follow(LINE))).replace('name="b"', 'name="a"')
    with pytest.raises(ScenarioError, match=r"duplicate-track: .*entity 'a' is there twice"):
        read(tmp_path, text)
