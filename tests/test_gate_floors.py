"""Floors of slices: what the gate holds, from the configuration to a candidate that is refused."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import server_world
from pydantic import ValidationError
from traffic import write_folder

from fedfleet.fleet_server.config import GateConfig
from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.gate import Verdict, judge_floors
from fedfleet.fleet_server.model_state import Graph, Proposal, propose
from fedfleet.fleet_server.store_models import Model
from fedfleet.fleet_server.validation import open_validation
from fedfleet.models import layout, slices
from fedfleet.models.motion_forecast import TASK
from fedfleet.models.task import Metric
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.prepare import Job, prepare

ADE = Metric("ade", "m", "lower")
TURN = "manoeuvre=turn-left"


def floors(old: float, new: float, floor: float, metric: Metric = ADE) -> Verdict | None:
    return judge_floors({TURN: (old * 10, 10)}, {TURN: (new * 10, 10)}, metric=metric, floors={TURN: floor})


def test_a_slice_on_the_right_side_of_its_floor_holds() -> None:
    assert floors(2.0, 2.9, 3.0) is None
    assert floors(2.0, 3.0, 3.0) is None


def test_a_slice_that_falls_beyond_its_floor_is_refused_and_named() -> None:
    assert floors(2.0, 3.1, 3.0) == Verdict(
        accepted=False, reason="manoeuvre=turn-left: ade 3.10 m, before 2.00 m, floor 3"
    )


def test_a_model_that_is_beyond_the_floor_may_climb_but_not_stay() -> None:
    assert floors(5.0, 4.0, 3.0) is None
    assert floors(5.0, 5.0, 3.0) is not None
    assert floors(5.0, 5.5, 3.0) is not None


def test_with_a_higher_is_better_metric_the_floor_is_below() -> None:
    accuracy = Metric("accuracy", "", "higher")
    assert floors(0.9, 0.8, 0.7, accuracy) is None
    assert floors(0.9, 0.6, 0.7, accuracy) is not None
    assert floors(0.5, 0.6, 0.7, accuracy) is None


def test_a_floor_that_nothing_can_be_held_against_is_our_error() -> None:
    with pytest.raises(ValueError, match="no judged validation sample in slice manoeuvre=turn-left"):
        judge_floors({}, {}, metric=ADE, floors={TURN: 1.0})
    assert floors(2.0, float("nan"), 3.0) is not None


@pytest.mark.parametrize("name", ["turn-left", "=x", "manoeuvre=", "a b=c"])
def test_a_floor_on_what_is_no_slice_s_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        GateConfig(floors={name: 1.0})
    with pytest.raises(ValidationError):
        GateConfig(floors={TURN: float("nan")})


@pytest.fixture(scope="module")
def validation_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validation folders of two regions, as they are prepared for the server."""
    place = tmp_path_factory.mktemp("gate")
    folder = write_folder(place / "pack", drives=2)
    jobs = [
        Job(out=place / "validation" / name, drives=(f"{name}/d00", f"{name}/d01"), parts=("validation",))
        for name in ("coast", "town")
    ]
    prepare(TASK, folder, jobs)
    return place / "validation"


def test_prepared_samples_are_cut_as_recordings_are(validation_dir: Path) -> None:
    # given
    wanted = ("all", "manoeuvre=turn-left", "density=00", "region=town")
    validation = open_validation(validation_dir, TASK, regions=("coast", "town"), batch=64, floors=wanted)
    # when
    rows = {
        name: sum(len(each) for each in by_region.values()) for name, by_region in validation.rows.items()
    }
    # then
    folder = validation_dir.parent / "pack"
    expected: dict[str, int] = {}
    for region in ("coast", "town"):
        found = TASK.samples(folder, [f"{region}/d00", f"{region}/d01"])
        labels = slices.cut(TASK, found, region=region)
        for name, sums in slices.sums(TASK, TASK.baseline(found.inputs), found, labels).items():
            expected[name] = expected.get(name, 0) + sums["ADE"][1]
    assert rows == {name: expected[name] for name in wanted}


def test_a_floor_on_a_slice_without_samples_stops_the_server_at_its_start(validation_dir: Path) -> None:
    words = r"gate.floors: no judged validation sample in slice type=tram, there are all, density="
    with pytest.raises(UsageError, match=words):
        open_validation(validation_dir, TASK, regions=("coast",), batch=64, floors=("type=tram",))


def proposal(folder: Path, step: float, limits: Mapping[str, float]) -> Proposal:
    """What the server makes of an aggregate that goes so far towards the truth."""
    config = server_world.configuration(folder, gate={"tolerance": 1.0, "floors": dict(limits)})
    export = config.data_dir / "export"
    graph = Graph((export / "graph.onnx").read_bytes(), layout.read((export / "layout.json").read_bytes()))
    zero = np.zeros(server_world.SIZE, np.float32)
    model = Model(0, zero, zero, {}, "", "", None, None, 0.0)
    validation = open_validation(
        config.validation_dir,
        server_world.TASK,
        regions=config.regions,
        batch=64,
        floors=tuple(config.gate.floors),
    )
    aggregates = {
        region: Aggregate(server_world.TRUTH.astype(np.float64) * step, 1.0, 1) for region in config.regions
    }
    return propose(model, aggregates, config=config, graph=graph, validation=validation)


def test_a_candidate_within_the_tolerance_but_beyond_a_floor_is_not_published(tmp_path: Path) -> None:
    # given a step away from the truth, within the tolerance of 100 %
    assert proposal(tmp_path, -0.3, {}).verdict.accepted
    # when a floor is set below where the published model is
    refused = proposal(tmp_path, -0.3, {"region=south": 0.5}).verdict
    # then
    assert not refused.accepted
    assert refused.reason.startswith("region=south: distance ")
    assert refused.reason.endswith(", floor 0.5")
    # and a step towards the truth is welcome, though it is not there yet
    assert proposal(tmp_path, 0.3, {"region=south": 0.5}).verdict.accepted
