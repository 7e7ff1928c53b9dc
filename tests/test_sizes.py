"""The bytes that a codec needs for a model, and the limits that follow from it."""

from pathlib import Path

import numpy as np
import pytest
from server_world import FLEET, configuration
from test_coordinator import ALL, World

from fedfleet.codec import payload
from fedfleet.codec.common import common
from fedfleet.codec.parts import Part, Parts
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.config_codec import CodecConfig
from fedfleet.fleet_server.sizes import MOST_BYTES, limit_of, need
from fedfleet.fleet_server.troubles import described, of, risen
from fedfleet.protocol import topics
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.messages import CodecPlan, LinkPlan, Metrics, Plan
from fedfleet.vehicle_agent.budget import most_bytes

SIZE = 60_000
PARTS = Parts(
    SIZE,
    (Part("body", ((0, 300), (1_000, SIZE))), Part("body", ((300, 1_000),), "dense", statistics=(True,))),
)


@pytest.mark.parametrize(
    "codec",
    [
        {},
        {"density": 0.001},
        {"density": 0.5, "value": "int8"},
        {"layer_floor": 0.05, "value": "int2"},
        {"index": "common", "value": "int8", "density": 0.1},
        {"index": "common", "value": "sign", "density": 0.02},
        {"index": "dense", "value": "float32"},
        {"index": "dense", "value": "int8"},
        {"index": "dense", "value": "sign"},
        {"index": "dense", "value": "stochastic4"},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", ["normal", "heavy", "one"])
def test_a_real_update_takes_no_more_than_the_most(codec: dict[str, object], spread: str) -> None:
    # given an update of that codec
    config = CodecConfig.model_validate(codec)
    rng = np.random.default_rng(1)
    delta = {
        "normal": lambda: rng.normal(size=SIZE),
        "heavy": lambda: rng.standard_cauchy(size=SIZE).clip(-1e6, 1e6),
        "one": lambda: np.full(SIZE, 0.5),
    }[spread]().astype(np.float32)
    found = need(config, PARTS)
    named = None
    if config.index == "common":
        named = common(None, PARTS, density=config.density, seeded=0.1, seed="s")
    settings = Settings(config.index, config.value, config.density, config.layer_floor)
    size = len(payload.encode(delta, settings, parts=PARTS, common=named, steps=1, examples=1, seed=1))
    # then the limit that is derived takes it, also ten times as dense for who comes back after ten rounds
    assert size <= found.most
    if config.index == "rice":
        denser = Settings("rice", config.value, min(1.0, 10 * config.density), config.layer_floor)
        assert len(payload.encode(delta, denser, parts=PARTS, steps=1, examples=1, seed=1)) <= found.most
    assert found.coarsest <= found.most
    # and what is called ordinary is not above a real one by more than a frame
    if spread == "normal":
        assert found.ordinary <= size * 1.05 + 3_000


def whole(size: int) -> Parts:
    return Parts.whole(size)


@pytest.mark.parametrize(
    ("codec", "size", "given", "told"),
    [
        (
            {"index": "dense", "value": "float32"},
            2_000_000,
            4_000_000,
            "codec dense-float32 of 2,000,000 parameters needs 8.0 MB per update, update_limit_bytes is 4.0 MB",
        ),
        (
            {"index": "dense", "value": "int8"},
            250_000,
            50_000,
            "codec dense-int8 of 250,000 parameters needs 0.3 MB per update, update_limit_bytes is 50.0 kB",
        ),
        (
            {"index": "dense", "value": "int8", "links": {"metered": {"budget_bytes": 20_000}}},
            1_000_000,
            None,
            (
                "codec dense-int8 of 1,000,000 parameters needs 0.1 MB per update at least, "
                "codec.links.metered.budget_bytes is 20.0 kB"
            ),
        ),
        (
            {"index": "dense", "value": "float32"},
            600_000_000,
            None,
            "codec dense-float32 of 600,000,000 parameters needs 2400.0 MB per update, no update is above 2147.5 MB",
        ),
    ],
)
def test_what_cannot_fit_is_refused_in_one_line(
    codec: dict[str, object], size: int, given: int | None, told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        limit_of(CodecConfig.model_validate(codec), whole(size), given=given)
    assert str(caught.value) == told


@pytest.mark.parametrize("size", [10_000, 1_000_000, 1_100_000, 4_000_000, 50_000_000])
def test_dense_float32_fits_whatever_the_model_is(size: int) -> None:
    limit = limit_of(CodecConfig(index="dense", value="float32"), whole(size), given=None)
    assert 4 * size < limit <= MOST_BYTES
    doubled = limit_of(CodecConfig(index="dense", value="float32"), whole(size), given=None, control=True)
    assert 8 * size < doubled


def test_a_limit_that_is_given_and_fits_stays() -> None:
    assert limit_of(CodecConfig(), whole(1_000_000), given=77_777) == 77_777


def plan(**changes: object) -> Plan:
    told: dict[str, object] = {
        "task": "t",
        "region": "r",
        "round": 1,
        "revision": 0,
        "base_version": 0,
        "onnx_sha256": "0" * 64,
        "opened_at_s": 0.0,
        "deadline_s": 1.0,
        "lease_s": 1.0,
        "seed": 0,
        "share": 1.0,
        "codec": CodecPlan(links={"metered": LinkPlan(budget_bytes=5_000)}),
        "training": {},
    }
    return Plan.model_validate(told | changes)


def test_a_vehicle_sends_what_the_server_takes_and_no_more_than_it_may_itself() -> None:
    assert most_bytes(plan(), None) == 4_000_000  # a server of before says nothing
    assert most_bytes(plan(update_limit_bytes=9_000_000), None) == 9_000_000
    assert most_bytes(plan(update_limit_bytes=9_000_000), 1_000_000) == 1_000_000
    assert most_bytes(plan(update_limit_bytes=500_000), 1_000_000) == 500_000


# --- a server and its vehicles ---


def test_a_server_whose_limit_cannot_work_does_not_start(tmp_path: Path) -> None:
    codec = {"index": "dense", "value": "float32"}
    told = "codec dense-float32 of 27 parameters needs 1.1 kB per update, update_limit_bytes is 1.0 kB"
    with pytest.raises(UsageError, match=told):
        World(configuration(tmp_path, codec=codec, update_limit_bytes=1_030))


def test_plans_tell_the_limit(tmp_path: Path) -> None:
    world = World(configuration(tmp_path))
    world.drive(*ALL)
    world.turn(3)
    assert world.vehicles["n-0"].plans[1].update_limit_bytes == 1_000_000
    world.parts.close()


def metrics(vehicle: str, refusals: dict[str, int], *, at_s: float = 5.0) -> Metrics:
    zero = ("active_version", "frames", "missed", "missed_in_swap", "swaps", "p50_ms", "p99_ms")
    counters = dict.fromkeys((*zero, "bytes_up", "bytes_down", "trainings"), 0)
    told = {"vehicle": vehicle, "task": "t", "at_s": at_s, "session": 1, "refusals": refusals}
    return Metrics.model_validate(counters | told)


def test_what_a_vehicle_says_has_gone_wrong_reaches_log_and_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # given a vehicle whose updates are too large, as only it knows
    world = World(configuration(tmp_path))
    world.drive(*ALL)
    world.turn(3)
    vehicle = world.vehicles["n-0"]
    for times in (2, 2, 3):
        told = metrics(
            "n-0", {"update-too-large": times, "ineligible-not-parked": 4}, at_s=world.now_s + times
        )
        vehicle.link.publish(topics.metrics(FLEET, "n-0"), vehicle.seal(told, Kind.METRICS))
        world.turn(2)
    # then the server's log has a line with vehicle and reason, and status says so
    lines = [line for line in capsys.readouterr().out.splitlines() if "vehicle reports trouble" in line]
    assert lines
    assert "vehicle=n-0" in lines[0]
    assert "reason=update-too-large" in lines[0]
    assert world.snapshot()["troubles"] == "update-too-large (1)"
    world.parts.close()


def test_only_what_rises_is_told_again() -> None:
    before = metrics("v", {"over-budget": 2, "update-returned-late": 9})
    assert risen(None, before) == {"over-budget": 2}
    assert risen(before, before) == {}
    assert risen(before, metrics("v", {"over-budget": 3, "disk-full": 1})) == {
        "over-budget": 3,
        "disk-full": 1,
    }
    # and after a start, when counters begin anew
    assert risen(metrics("v", {"over-budget": 9}), metrics("v", {"over-budget": 1})) == {"over-budget": 1}


def test_reasons_are_summed_over_vehicles() -> None:
    each = [
        metrics("a", {"disk-full": 7}),
        metrics("b", {"disk-full": 1, "over-budget": 1}),
        metrics("c", {}),
    ]
    assert described(each) == "disk-full (2), over-budget (1)"
    assert of(each[2]) == {}
