"""The gate: what it accepts and refuses, and the one line that says why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.fleet_server.gate import Scores, Verdict, judge
from fedfleet.models.task import Metric

ADE = Metric("ade", "m", "lower")
ACCURACY = Metric("accuracy", "", "higher")
COUNT = 100


def scores(metric: Metric = ADE, /, **means: float) -> dict[str, dict[str, tuple[float, int]]]:
    """Regions with 100 samples each and these means, and a second metric that is terrible."""
    return {name: {metric.name: (mean * COUNT, COUNT), "other": (1e9, COUNT)} for name, mean in means.items()}


def verdict(before: Scores, after: Scores, metric: Metric = ADE, tolerance: float = 0.05) -> Verdict:
    return judge(
        before, after, metrics=(metric, Metric("other", "", "lower")), tolerance=tolerance, finite=True
    )


def test_a_better_model_is_accepted() -> None:
    found = verdict(scores(north=2.1, south=3.0), scores(north=2.0, south=2.9))
    assert found == Verdict(accepted=True, reason="overall: ade 2.45 m, before 2.55 m")


def test_a_region_that_gets_worse_by_more_than_the_tolerance_is_refused() -> None:
    # given a candidate that is better overall
    found = verdict(scores(north=2.1, south=3.0), scores(north=2.41, south=2.0))
    # then the region still counts
    assert found == Verdict(accepted=False, reason="north: ade 2.41 m, before 2.10 m, tolerance 5 %")


def test_worse_within_the_tolerance_is_accepted() -> None:
    assert verdict(scores(north=2.0), scores(north=2.09)).accepted
    assert not verdict(scores(north=2.0), scores(north=2.11)).accepted


def test_exactly_the_tolerance_is_accepted() -> None:
    assert verdict(scores(north=2.0), scores(north=2.5), tolerance=0.25).accepted


def test_the_overall_mean_is_over_samples_not_over_regions() -> None:
    # given a large region that gets better and a small one within its tolerance
    before = {"big": {"ade": (900.0, 900)}, "small": {"ade": (100.0, 100)}}
    after = {"big": {"ade": (450.0, 900)}, "small": {"ade": (104.0, 100)}}
    found = judge(before, after, metrics=[ADE], tolerance=0.05, finite=True)
    assert found == Verdict(accepted=True, reason="overall: ade 0.55 m, before 1.00 m")


def test_with_a_higher_is_better_metric_less_is_worse() -> None:
    found = verdict(scores(ACCURACY, north=0.8), scores(ACCURACY, north=0.5), ACCURACY)
    assert found == Verdict(accepted=False, reason="north: accuracy 0.50, before 0.80, tolerance 5 %")
    assert verdict(scores(ACCURACY, north=0.8), scores(ACCURACY, north=0.9), ACCURACY).accepted


def test_negative_scores_have_a_tolerance_of_their_size() -> None:
    gain = Metric("gain", "dB", "higher")
    assert verdict(scores(gain, north=-10.0), scores(gain, north=-10.4), gain).accepted
    assert not verdict(scores(gain, north=-10.0), scores(gain, north=-10.6), gain).accepted


def test_a_small_difference_is_told_with_enough_decimals() -> None:
    found = verdict(scores(north=2.0), scores(north=2.0004), tolerance=0.0)
    assert found == Verdict(accepted=False, reason="north: ade 2.0004 m, before 2.0000 m, tolerance 0 %")


def test_weights_that_are_not_finite_are_refused_whatever_the_scores() -> None:
    found = judge({}, {}, metrics=[ADE], tolerance=0.05, finite=False)
    assert found == Verdict(accepted=False, reason="weights: a value is NaN or infinite")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("metric", [ADE, ACCURACY], ids=lambda metric: metric.name)
def test_a_score_that_is_not_finite_is_refused(metric: Metric, value: float) -> None:
    found = verdict(scores(metric, north=1.0, south=1.0), scores(metric, north=1.0, south=value), metric)
    assert found == Verdict(
        accepted=False, reason=f"south: {metric.name} is {value}, expected a finite number"
    )


def test_a_published_model_without_a_finite_score_does_not_hold_up_a_candidate() -> None:
    assert verdict(scores(north=float("nan")), scores(north=1.0)).accepted


def test_no_validation_is_refused() -> None:
    assert verdict({}, {}) == Verdict(accepted=False, reason="no region has validation samples")
    empty = scores(north=1.0) | {"south": {"ade": (0.0, 0), "other": (0.0, 0)}}
    assert verdict(empty, empty) == Verdict(accepted=False, reason="south: no judged validation samples")


def test_a_region_may_be_called_overall() -> None:
    found = verdict(scores(overall=1.0, south=1.0), scores(overall=2.0, south=0.1))
    assert found == Verdict(accepted=False, reason="overall: ade 2.00 m, before 1.00 m, tolerance 5 %")


def test_scores_of_different_samples_are_our_error() -> None:
    with pytest.raises(ValueError, match="expected the same samples"):
        verdict(scores(north=1.0), scores(north=1.0, south=1.0))
    with pytest.raises(ValueError, match="expected the same samples"):
        verdict(scores(north=1.0), {"north": {"ade": (1.0, 1)}})


def test_a_missing_score_is_our_error() -> None:
    with pytest.raises(ValueError, match="north has no score 'ade'"):
        verdict(scores(north=1.0), scores(ACCURACY, north=1.0))


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_a_tolerance_without_meaning_is_our_error(tolerance: float) -> None:
    with pytest.raises(ValueError, match="a tolerance ≥ 0"):
        verdict(scores(north=1.0), scores(north=1.0), tolerance=tolerance)


def test_no_metric_is_our_error() -> None:
    with pytest.raises(ValueError, match=r"expected a metric .*, got 0 metrics"):
        judge({}, {}, metrics=[], tolerance=0.05, finite=True)


means = st.dictionaries(st.sampled_from(["north", "south", "east"]), st.floats(0.1, 100), min_size=1)


@given(before=means, factor=st.floats(0.1, 3), tolerance=st.floats(0, 1))
def test_scaling_every_region_alike_is_judged_by_the_factor(
    before: dict[str, float], factor: float, tolerance: float
) -> None:
    after = {name: mean * factor for name, mean in before.items()}
    found = verdict(scores(ADE, **before), scores(ADE, **after), tolerance=tolerance)
    if abs(factor - 1 - tolerance) > 1e-6:
        assert found.accepted == (factor < 1 + tolerance)


@given(mean=means, tolerance=st.floats(0, 1))
def test_the_same_scores_are_always_accepted(mean: dict[str, float], tolerance: float) -> None:
    assert verdict(scores(ADE, **mean), scores(ADE, **mean), tolerance=tolerance).accepted
