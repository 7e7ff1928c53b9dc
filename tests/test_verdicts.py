"""What is said of a model beside its figures, with one convention of signs: + is better."""

from collections.abc import Mapping

import numpy as np
import pytest

from fedfleet.cli import claims, verdicts
from fedfleet.models import bootstrap, slices
from fedfleet.models.bootstrap import Difference
from fedfleet.models.motion_forecast import TASK
from fedfleet.models.slices_motion_forecast import standing
from fedfleet.models.task import Metric, Samples

ERROR = Metric("ADE", "m", "lower")
SHARE = Metric("accuracy", "share", "higher")


def tally(values: Mapping[str, Mapping[str, float]], metric: Metric) -> bootstrap.Tally:
    """Ten samples of a drive in each slice, with this mean."""
    return {
        drive: {name: {metric.name: (10 * value, 10)} for name, value in of_drive.items()}
        for drive, of_drive in values.items()
    }


def differences(
    trivial: Mapping[str, float], model: Mapping[str, float], metric: Metric = ERROR, *, drives: int = 9
) -> Mapping[str, Difference]:
    both = [
        tally(
            {f"town/d{i}": {name: value + i / 100 for name, value in one.items()} for i in range(drives)},
            metric,
        )
        for one in (trivial, model)
    ]
    return bootstrap.compare(*both, metric, seed=1)


def said(found: Mapping[str, Difference], metric: Metric = ERROR) -> tuple[str, ...]:
    return verdicts.against(found, metric, model="m.onnx", other="constant velocity")


def test_a_model_that_is_better_everywhere_is_said_to_be() -> None:
    found = differences({"all": 2.0, "type=car": 3.0}, {"all": 1.5, "type=car": 2.5})
    assert said(found) == (
        "m.onnx is better than constant velocity overall; it is worse in none of 1 slices",
    )
    assert found["all"].gain == pytest.approx(0.5)
    low, high = found["all"].gain_interval or (0, 0)
    assert low <= 0.5 + 1e-9
    assert high >= 0.5 - 1e-9
    assert found["all"].drives_worse == 0


def test_a_model_that_moves_parked_cars_is_said_to_and_in_how_many_drives() -> None:
    # given a model that is better overall, and moves what stands by 0.2 m
    found = differences(
        {"all": 2.0, "manoeuvre=stop": 2.0, "standing=vehicle": 0.01},
        {"all": 1.5, "manoeuvre=stop": 2.1, "standing=vehicle": 0.21},
    )
    first, second = said(found)
    assert first == (
        "m.onnx is better than constant velocity overall; it is worse in 2 of 2 slices, in 2 for sure"
    )
    # then the largest loss for what it was comes first
    assert second == (
        "worse than constant velocity: standing=vehicle (ADE 0.250 against 0.050 m, in 9 of 9 drives); "
        "manoeuvre=stop (ADE 2.140 against 2.040 m, in 9 of 9 drives)"
    )
    told = verdicts.against_json(found, ERROR, model="m.onnx", other="constant velocity")
    assert (told["is_worse_overall"], told["slices"]) == (False, 2)
    assert told["worse_in"] == ["standing=vehicle", "manoeuvre=stop"]


def test_where_more_is_better_the_signs_are_the_same() -> None:
    found = differences({"all": 0.9, "light=dark": 0.5}, {"all": 0.8, "light=dark": 0.6}, SHARE)
    assert found["all"].gain == pytest.approx(-0.1)
    assert found["light=dark"].gain == pytest.approx(0.1)
    assert said(found, SHARE)[0].startswith(
        "m.onnx is worse than constant velocity overall; it is worse in none"
    )
    assert (SHARE.gain(0.8, 0.9), ERROR.gain(0.8, 0.9)) == (pytest.approx(-0.1), pytest.approx(0.1))
    assert SHARE.gain_percent(0.6, 0.5) == pytest.approx(20)
    assert ERROR.gain_percent(0.6, 0.5) == pytest.approx(-20)
    assert Metric("likelihood", "nat", "higher").gain_percent(-1.0, -2.0) == pytest.approx(50)
    assert ERROR.gain_percent(1.0, 0.0) is None


def test_few_drives_prove_nothing_and_the_same_model_is_as_good() -> None:
    found = differences({"all": 2.0}, {"all": 1.5}, drives=2)
    assert said(found) == ("m.onnx is (perhaps by chance) better than constant velocity overall",)
    same = differences({"all": 2.0, "type=car": 1.0}, {"all": 2.0 + 1e-9, "type=car": 1.0})
    assert said(same)[0].startswith(
        "m.onnx is as good as constant velocity overall; it is worse in none of 1"
    )
    assert said({}) == ()


def test_two_names_of_the_same_samples_are_one_test() -> None:
    # given two slices of other samples, and then the same with `all` under two more names
    base = {"all": 2.0, "type=car": 2.0, "region=town": 2.0, "light=dark": 3.0}
    better = {"all": 1.5, "type=car": 1.5, "region=town": 1.5, "light=dark": 3.5}
    many = differences(base, better)
    few = differences(
        {name: base[name] for name in ("all", "light=dark")},
        {name: better[name] for name in ("all", "light=dark")},
    )
    assert many["type=car"].p_corrected == many["region=town"].p_corrected == many["all"].p_corrected
    assert many["all"].p_corrected == few["all"].p_corrected
    assert many["light=dark"].p_corrected == few["light=dark"].p_corrected


def test_what_stands_is_a_slice_of_its_own_though_no_one_judges_it() -> None:
    # given a parked car and a waiting bus that are not judged, and a car that drives
    parked = np.zeros((3, 50, 2), dtype=np.float32)
    parked[2, :, 0] = np.arange(50)
    kinds = np.array(["vehicle", "bus", "vehicle"])
    found = Samples(parked[:, :20], parked[:, 20:], np.array([False, False, True]), traits={"type": kinds})
    assert standing(found).tolist() == ["vehicle", "bus", ""]
    # when a model moves all of them by 0.2 m
    by_slice = slices.sums(TASK, found.targets + np.float32([0.2, 0.0]), found, slices.cut(TASK, found))
    # then that is seen, and the judged ones are what they were
    assert by_slice["standing=vehicle"]["ADE"] == (pytest.approx(0.2), 1)
    assert by_slice["standing=bus"]["ADE"] == (pytest.approx(0.2), 1)
    assert by_slice["all"]["ADE"][1] == 1
    assert "manoeuvre=standing" not in by_slice
    # and of recordings that tell no types
    untold = Samples(parked[:, :20], parked[:, 20:], np.zeros(3, dtype=np.bool_))
    assert standing(untold).tolist() == ["unknown", "unknown", ""]
    assert list(slices.sums(TASK, untold.targets, untold, slices.cut(TASK, untold))) == ["standing=unknown"]


def test_the_demo_s_claims_have_the_same_sign() -> None:
    outcome = _outcome(scores={"town": 1.1}, baseline={"town": 1.0}, published=0)
    rounds, town, *_ = claims.judge(outcome)
    assert not town.is_true
    assert "(-10.0 %, + is better)" in town.evidence
    # and a demo that published nothing says so
    assert not rounds.is_true
    assert rounds.evidence.startswith("10 of 10 rounds were run to their end, 0 published a version")
    assert rounds.evidence.endswith("version 0, untrained, drives")


def _outcome(*, scores: Mapping[str, float], baseline: Mapping[str, float], published: int) -> claims.Outcome:
    numbers = dict.fromkeys(
        (
            *("updates", "bytes_up", "dense_bytes_up", "bytes_down", "frames", "missed", "missed_in_swap"),
            *("swaps", "vehicles", "on_last_release", "agent_rss_bytes"),
        ),
        0,
    )
    return claims.Outcome(
        task="t",
        metric="ADE",
        unit="m",
        lower_is_better=True,
        rounds_asked=10,
        rounds_run=10,
        rounds_published=published,
        seconds=0.0,
        first_round_s=0.0,
        scores=scores,
        baseline=baseline,
        p50_ms=0.0,
        p99_ms=0.0,
        model_sha256="",
        released_sha256="",
        **numbers,
    )
