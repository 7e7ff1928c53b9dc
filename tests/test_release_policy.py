"""What the gate refuses leaves no trace, steps that explode are refused, and what is slightly worse does not drive."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_world import configuration
from test_coordinator import ALL, World

from fedfleet.fleet_server import schema, server, store_models
from fedfleet.fleet_server.gate import ReleasePolicy, judge_release, judge_step
from fedfleet.fleet_server.store_models import Model
from fedfleet.models.task import Metric

ERROR = (Metric("error", "m", "lower"),)
NORTH, SOUTH = {"north": {"error": (10.0, 10)}}, {"south": {"error": (20.0, 10)}}


def model(world: World) -> Model:
    with world.parts.store.read() as connection:
        found = store_models.newest_model(connection)
    assert found is not None
    return found


def state(world: World) -> Mapping[str, bytes]:
    """Vector, residual and the strategy's state."""
    found = model(world)
    arrays = {"vector": found.vector, "error": found.error, **found.optimizer}
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def run(folder: Path, **changes: object) -> World:
    world = World(configuration(folder, **changes))
    world.drive(*ALL)
    world.turn(40)
    return world


MOMENTUM: dict[str, Any] = {"name": "fedavgm", "momentum": 0.5, "server_learning_rate": 1.0}


def test_a_refusal_reverts_model_residual_and_optimizer_state(tmp_path: Path) -> None:
    # given a server that has published versions, so that residual and momentum are not zero
    good = run(tmp_path, strategy=MOMENTUM)
    before = state(good)
    assert model(good).version == 3
    assert model(good).error.any()
    assert model(good).optimizer["momentum"].any()
    good.parts.close()
    # when it is started again with a step that overshoots by far, and no tolerance
    rounds = {**dict(good.config.rounds), "total": 4}
    bad = run(
        tmp_path, strategy=MOMENTUM | {"server_learning_rate": 100.0}, gate={"tolerance": 0.0}, rounds=rounds
    )
    # then the round was refused, with a reason, and nothing has changed
    assert model(bad).version == 3
    assert state(bad) == before
    settled = bad.vehicles["n-0"].settlements[4]
    assert (settled.outcome, settled.version) == ("abandoned", 3)
    assert settled.reason
    bad.parts.close()


def test_a_step_above_the_limit_is_refused_before_it_is_scored(tmp_path: Path) -> None:
    world = run(tmp_path, gate={"tolerance": 1.0, "step_norm": 0.001})
    assert model(world).version == 0
    assert "step: its length is" in world.vehicles["n-0"].settlements[1].reason
    assert set(world.vehicles["n-0"].settlements[1].fates.values()) == {"returned"}
    world.parts.close()


@pytest.mark.parametrize(
    ("norm", "recent", "limit", "factor", "words"),
    [
        (1.0, [], None, None, None),
        (1.0, [], 1.0, 10.0, None),
        (1.01, [], 1.0, 10.0, "limit 1"),
        (float("nan"), [], None, None, "its length is nan"),
        (float("inf"), [], None, None, "its length is inf"),
        (1e9, [1.0, 1.0], None, 10.0, None),
        (10.0, [1.0, 1.0, 1.0], None, 10.0, None),
        (10.1, [1.0, 1.0, 1.0], None, 10.0, "limit 10 times that"),
        (10.1, [1.0, 1.0, 1.0], None, None, None),
        (10.1, [1.0, 5.0, 9.0], None, 10.0, None),
        (5.0, [0.0, 0.0, 0.0], None, 10.0, None),
    ],
)
def test_a_step_is_judged_by_a_limit_and_by_those_before_it(
    norm: float, recent: list[float], limit: float | None, factor: float | None, words: str | None
) -> None:
    verdict = judge_step(norm, recent, limit=limit, factor=factor)
    if words is None:
        assert verdict is None
    else:
        assert verdict is not None
        assert not verdict.accepted
        assert words in verdict.reason


def test_the_lengths_of_steps_are_written_down(tmp_path: Path) -> None:
    world = run(tmp_path)
    with world.parts.store.read() as connection:
        norms = store_models.recent_norms(connection)
        assert store_models.recent_norms(connection, last=2) == norms[:2]
    assert len(norms) == 3
    assert all(norm > 0 for norm in norms)
    world.parts.close()


@pytest.mark.parametrize(
    ("error", "policy", "accepted"),
    [
        (10.0, "no-worse-than-released", True),
        (9.0, "no-worse-than-released", True),
        (10.1, "no-worse-than-released", False),
        (10.1, "better-overall", True),
        (10.1, "every-accepted", True),
        (99.0, "every-accepted", True),
    ],
)
def test_what_is_slightly_worse_does_not_drive_unless_the_policy_says_so(
    error: float, policy: ReleasePolicy, accepted: bool
) -> None:
    first = {"north": {"error": (20.0, 10)}, "south": {"error": (30.0, 10)}}
    driving = {**NORTH, **SOUTH}
    candidate = {"north": {"error": (error, 10)}, "south": {"error": (15.0, 10)}}
    verdict = judge_release(
        candidate, first=first, driving=driving, before=driving, metrics=ERROR, policy=policy
    )
    assert verdict.accepted == accepted


@pytest.mark.parametrize(
    ("north", "south", "accepted", "words"),
    [
        (10.0, 20.0, True, "overall"),  # as good as what drives
        (12.0, 15.0, True, "overall"),  # a region gives up some of its gain, all together gain
        (12.0, 20.0, False, "overall"),
        (15.0, 10.0, True, "overall"),  # as in the first release
        (15.1, 10.0, False, "the first release was better: north"),
        (5.0, 25.1, False, "the first release was better: south"),
        (float("nan"), 20.0, False, "north"),
    ],
)
def test_better_overall_lets_no_region_fall_behind_the_first_release(
    north: float, south: float, accepted: bool, words: str
) -> None:
    first = {"north": {"error": (15.0, 10)}, "south": {"error": (25.0, 10)}}
    driving = {**NORTH, **SOUTH}
    candidate = {"north": {"error": (north, 10)}, "south": {"error": (south, 10)}}
    verdict = judge_release(
        candidate, first=first, driving=driving, before=driving, metrics=ERROR, policy="better-overall"
    )
    assert verdict.accepted == accepted
    assert words in verdict.reason


def test_better_overall_knows_where_higher_is_better() -> None:
    higher = (Metric("correlation", "", "higher"),)
    first, driving, worse = (
        {"north": {"correlation": (mean * 10, 10)}, "south": {"correlation": (5.0, 10)}}
        for mean in (0.4, 0.6, 0.39)
    )
    better = {"north": {"correlation": (5.0, 10)}, "south": {"correlation": (9.0, 10)}}
    for candidate, accepted in ((better, True), (worse, False)):
        verdict = judge_release(
            candidate, first=first, driving=driving, before=driving, metrics=higher, policy="better-overall"
        )
        assert verdict.accepted == accepted


@pytest.mark.parametrize("policy", ["no-worse-than-released", "better-overall"])
def test_scored_on_other_samples_it_is_compared_with_the_published_model(policy: ReleasePolicy) -> None:
    older = {"north": {"error": (99.0, 11)}}
    for error, accepted in ((9.0, True), (11.0, False)):
        candidate = {"north": {"error": (error, 10)}}
        verdict = judge_release(
            candidate, first=older, driving=older, before=NORTH, metrics=ERROR, policy=policy
        )
        assert verdict.accepted == accepted


def test_without_a_first_release_on_the_same_samples_no_region_may_be_worse() -> None:
    driving = {**NORTH, **SOUTH}
    candidate = {"north": {"error": (10.1, 10)}, "south": {"error": (15.0, 10)}}
    for first in ({}, NORTH, {**NORTH, "south": {"other": (1.0, 10)}}):
        verdict = judge_release(
            candidate, first=first, driving=driving, before=driving, metrics=ERROR, policy="better-overall"
        )
        assert not verdict.accepted


@pytest.mark.parametrize("policy", ["no-worse-than-released", "better-overall"])
def test_scored_like_nothing_before_it_cannot_be_judged(policy: ReleasePolicy) -> None:
    with pytest.raises(ValueError, match="expected the same samples"):
        judge_release(SOUTH, first=NORTH, driving=NORTH, before=NORTH, metrics=ERROR, policy=policy)


@pytest.mark.parametrize("policy", ["no-worse-than-released", "better-overall"])
def test_a_published_version_that_is_worse_is_trained_from_but_not_driven_with(
    tmp_path: Path, policy: ReleasePolicy
) -> None:
    # given a strategy that overshoots, a gate that lets it pass, and a policy that does not
    changes: dict[str, Any] = {
        "strategy": {"server_learning_rate": 16.0},
        "gate": {"tolerance": 1.0, "step_factor": None},
        "release_policy": policy,
    }
    world = run(tmp_path, **changes)
    shown: Any = world.snapshot()
    # then there are versions that were published and not released
    assert shown["version"] > 0
    assert shown["released"] < shown["version"]
    assert shown["counters"]["release:held"] >= 1
    assert world.vehicles["n-0"].plans[3].base_version > shown["released"]
    # and what drives is the best on validation of all that were released
    scores = {entry["version"]: entry["scores"]["north"] for entry in shown["history"]}
    assert scores[shown["released"]] <= scores[shown["version"]]
    # and the file that is given to replay is what drives, not what is newest
    folder = world.config.data_dir
    drives = (folder / "model.onnx").read_bytes()
    assert sha256(drives).hexdigest() == shown["released_sha256"]
    assert drives == (folder / "models" / f"{shown['released']}.onnx").read_bytes()
    assert drives != (folder / "models" / f"{shown['version']}.onnx").read_bytes()
    world.parts.close()


@pytest.mark.parametrize(
    ("policy", "lucky", "drives"),
    [
        ("no-worse-than-released", "driving", 1),
        ("better-overall", "driving", 2),
        ("better-overall", "first", 1),
    ],
)
def test_a_lucky_score_in_one_region_holds_back_by_policy(
    tmp_path: Path, policy: ReleasePolicy, lucky: str, drives: int
) -> None:
    # given a fleet whose version 1 drives
    rounds = dict(configuration(tmp_path).rounds)
    world = run(tmp_path, rounds=rounds | {"total": 1}, release_policy=policy)
    shown: Any = world.snapshot()
    assert shown["released"] == shown["version"] == 1
    # when what drives, or the first release, had a perfect score in the north, and a bad one in the south
    version = {"first": 0, "driving": 1}[lucky]
    score = schema.score
    with world.parts.store.write() as connection:
        for region, factor in (("north", 0.0), ("south", 10.0)):
            which = (score.c.version == version) & (score.c.region == region)
            connection.execute(score.update().where(which).values(sum=score.c.sum * factor))
    world.parts.close()
    # then the next version, which is better than both were everywhere, drives or does not
    world = run(tmp_path, rounds=rounds | {"total": 2}, release_policy=policy)
    shown = world.snapshot()
    assert (shown["version"], shown["released"]) == (2, drives)
    world.parts.close()


def test_the_file_of_what_drives_stays_however_old_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MODELS_KEPT", 1)
    world = run(
        tmp_path,
        strategy={"server_learning_rate": 16.0},
        gate={"tolerance": 1.0, "step_factor": None},
        release_policy="no-worse-than-released",
    )
    shown: Any = world.snapshot()
    kept = {int(path.stem) for path in (world.config.data_dir / "models").glob("*.onnx")}
    assert kept == {shown["released"], shown["version"]}
    world.parts.close()
