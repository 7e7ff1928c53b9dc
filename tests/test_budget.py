"""Encoding by class of link and within a budget: of what fits, the setting that leaves the least behind."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfleet.codec.residual import encode_with_feedback
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.config_codec import CodecConfig
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import CodecPlan, LinkPlan, Plan, decode
from fedfleet.vehicle_agent.budget import Encoded, best, budget_for, settings_for

SIZE = 5000


def delta(seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=SIZE) * rng.pareto(2.0, SIZE)).astype(np.float32)


def encode(values: np.ndarray, wished: Settings) -> Encoded:
    data, left = encode_with_feedback(values, np.zeros_like(values), wished, steps=1, examples=1)
    return Encoded(data, left, wished)


def test_without_a_budget_the_plan_is_followed() -> None:
    wished = Settings("rice", "int8", 0.1)
    assert best(partial(encode, delta()), wished, size=SIZE, limit_bytes=None).settings == wished


def test_a_roomy_budget_changes_nothing() -> None:
    wished = Settings("rice", "int8", 0.1)
    assert best(partial(encode, delta()), wished, size=SIZE, limit_bytes=10_000).settings == wished


@given(limit=st.integers(60, 1000), seed=st.integers(0, 5), value=st.sampled_from(["sign", "int8"]))
@settings(max_examples=40, deadline=None)
def test_what_is_taken_fits_and_no_denser_payload_of_the_same_bits_would(
    limit: int, seed: int, value: str
) -> None:
    values, wished = delta(seed), Settings("rice", value, 0.2)
    found = best(partial(encode, values), wished, size=SIZE, limit_bytes=limit)
    assert len(found.data) <= limit
    assert found.data == encode(values, found.settings).data
    if found.settings.density < wished.density:
        denser = Settings("rice", found.settings.value, found.settings.density * 2 ** (4 / 32))
        assert len(encode(values, denser).data) > limit


def test_the_least_is_left_behind_among_all_bits_per_value() -> None:
    values, wished = delta(), Settings("rice", "int8", 0.2)
    found = best(partial(encode, values), wished, size=SIZE, limit_bytes=300)
    sign = best(partial(encode, values), Settings("rice", "sign", 0.2), size=SIZE, limit_bytes=300)
    assert found.left <= sign.left
    assert best(partial(encode, values), wished, size=SIZE, limit_bytes=300).data == found.data


def test_a_dense_update_gets_coarser_values() -> None:
    found = best(partial(encode, delta()), Settings("dense", "float32"), size=SIZE, limit_bytes=6000)
    assert found.settings.value == "int8"


def test_nothing_fits() -> None:
    with pytest.raises(PeerError, match=r"over-budget: update is .* bytes, no setting fits 10"):
        best(partial(encode, delta()), Settings(), size=SIZE, limit_bytes=10)


def test_a_class_of_link_has_its_own_settings_and_the_smaller_budget_counts() -> None:
    links = {"metered": LinkPlan(value="sign", density=0.001, budget_bytes=900)}
    plan = CodecPlan(value="int8", density=0.05, links=links)
    assert settings_for(plan, "metered") == Settings("rice", "sign", 0.001)
    assert settings_for(plan, "wifi") == settings_for(plan, "unheard-of") == Settings("rice", "int8", 0.05)
    assert [budget_for(plan, "metered", own) for own in (None, 500, 2000)] == [900, 500, 900]
    assert [budget_for(plan, "wifi", own) for own in (None, 500)] == [None, 500]


def test_golden_plans_are_read_with_the_meaning_they_had() -> None:
    golden = json.loads((Path(__file__).parent / "golden/protocol/plans.json").read_text())
    old, new = (decode(Plan, json.dumps(golden[name]).encode(), sender="s") for name in ("plan_1", "plan_2"))
    for link in ("metered", "wifi", "ethernet", ""):
        assert settings_for(old.codec, link) == Settings("rice", "int8", 0.05)
        assert budget_for(old.codec, link, None) is None
    assert old.mode == "sync"
    assert settings_for(new.codec, "metered") == Settings("common", "sign", 0.02)
    assert settings_for(new.codec, "ethernet") == Settings("common", "int4", 0.02)
    assert (budget_for(new.codec, "metered", None), new.codec.seeded) == (2000, 0.25)
    assert new.coordinates_seed == "fedfleet common 1:1:12"


def test_the_servers_configuration_says_it_in_the_plan() -> None:
    told = {"density": 0.05, "links": {"metered": {"density": 0.01, "budget_bytes": 2000}}}
    plan = CodecConfig.model_validate(told).plan()
    assert plan.links == {"metered": LinkPlan(density=0.01, budget_bytes=2000)}
    assert plan.coordinates == "own"


def test_rounds_of_many_vehicles_ask_for_less_effort_unless_told_otherwise() -> None:
    efforts = {told: CodecConfig.model_validate({"effort": told}) for told in ("auto", "full", "quick")}
    for vehicles, expected in ((99, ["full", "full", "quick"]), (100, ["quick", "full", "quick"])):
        assert [config.plan(vehicles).effort for config in efforts.values()] == expected
    assert settings_for(efforts["quick"].plan(), "") == Settings("rice", "sign", 0.02, effort="quick")
    # and a word that a later server may say is no reason not to answer
    assert settings_for(CodecPlan(effort="slower-still"), "").effort == "full"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"effort": "none"}, "'auto', 'full' or 'quick'"),
        ({"links": {"metered": {"value": "float32"}}}, 'value "float32" needs index "dense"'),
        ({"index": "common", "links": {"wifi": {"density": 0.1}}}, "index common is the same for all"),
        ({"links": {"satellite": {}}}, "metered"),
    ],
)
def test_a_class_that_cannot_be_is_an_error_of_the_configuration(told: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodecConfig.model_validate(told)
