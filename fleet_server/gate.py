"""The gate: a candidate is published only when it is not worse on validation drives, overall and in every region."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Literal, TypeAlias

from fedfleet.models.task import Metric

__all__ = [
    "FEW_STEPS",
    "ReleasePolicy",
    "Scores",
    "Verdict",
    "judge",
    "judge_floors",
    "judge_release",
    "judge_step",
]

Scores: TypeAlias = Mapping[str, Mapping[str, tuple[float, int]]]
"""By region, then metric: the sum over judged validation samples and their number."""

ReleasePolicy: TypeAlias = Literal["no-worse-than-released", "better-overall", "every-accepted"]

OVERALL = "overall"
FEW_STEPS = 3
"""With fewer recent steps there is nothing to compare a step with."""


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate may be published, and why, in one line."""

    accepted: bool
    reason: str


def judge(
    before: Scores, after: Scores, *, metrics: Sequence[Metric], tolerance: float, finite: bool
) -> Verdict:
    """Judge a candidate (`after`) against the published model (`before`) by the primary metric, `metrics[0]`.

    Refused when the weights are not `finite`, when there is no validation (no region, or no judged sample in one),
    when a score is not finite, or when the mean overall or of a region is worse than before by more than
    `tolerance` × |before| (0.05 = 5 %). Worse by exactly that is accepted. The overall mean is over all samples.
    The published model's own score that is not finite is not held against the candidate.
    Raises ValueError when both do not score the same regions on the same number of samples, for a tolerance
    below 0 or not finite, or for no metric.
    """
    if not metrics or not (isfinite(tolerance) and tolerance >= 0):
        raise ValueError(
            f"gate: expected a metric and a tolerance ≥ 0, got {len(metrics)} metrics, tolerance {tolerance}"
        )
    if not finite:
        return Verdict(accepted=False, reason="weights: a value is NaN or infinite")
    metric = metrics[0]
    was, now = _primary(before, metric), _primary(after, metric)
    _check_same(was, now)
    if not now:
        return Verdict(accepted=False, reason="no region has validation samples")
    for region, (_, count) in now.items():
        if count == 0:
            return Verdict(accepted=False, reason=f"{region}: no judged validation samples")
    compared = [(region, _mean([now[region]]), _mean([was[region]])) for region in now]
    overall = _mean(now.values()), _mean(was.values())
    for name, new, old in (*compared, (OVERALL, *overall)):
        if not isfinite(new):
            return Verdict(accepted=False, reason=f"{name}: {metric.name} is {new}, expected a finite number")
        if _is_worse(new, old, metric=metric, tolerance=tolerance):
            return Verdict(
                accepted=False, reason=f"{_told(name, new, old, metric)}, tolerance {tolerance * 100:g} %"
            )
    return Verdict(accepted=True, reason=_told(OVERALL, *overall, metric))


def judge_floors(
    before: Mapping[str, tuple[float, int]],
    after: Mapping[str, tuple[float, int]],
    *,
    metric: Metric,
    floors: Mapping[str, float],
) -> Verdict | None:
    """Refuse a candidate that is beyond the floor of a slice, and there worse than the published model or no better.

    `before` and `after` have the sum and number of the primary metric by slice. A model that was beyond a floor already
    may climb back. None: every floor holds. Raises ValueError for a floor on a slice without samples.
    """
    for name, floor in sorted(floors.items()):
        if not after.get(name, (0.0, 0))[1]:
            raise ValueError(f"gate: no judged validation sample in slice {name}")
        new, old = _mean([after[name]]), _mean([before[name]])
        beyond, climbs = (new > floor, new < old) if metric.better == "lower" else (new < floor, new > old)
        if not isfinite(new) or (beyond and not climbs):
            return Verdict(accepted=False, reason=f"{_told(name, new, old, metric)}, floor {floor:g}")
    return None


def judge_step(
    norm: float, recent: Sequence[float], *, limit: float | None, factor: float | None
) -> Verdict | None:
    """Refuse a step of this length (L2): above the `limit`, or above `factor` times the middle one of `recent` steps.

    Fewer than `FEW_STEPS` recent steps tell nothing. None: nothing is wrong with it. A length that is not finite is
    always refused; steps of length zero before it are not held against it.
    """
    if not isfinite(norm):
        return Verdict(accepted=False, reason=f"step: its length is {norm}, expected a finite number")
    if limit is not None and norm > limit:
        return Verdict(accepted=False, reason=f"step: its length is {norm:.4g}, limit {limit:.4g}")
    middle = median(recent) if len(recent) >= FEW_STEPS else 0.0
    if factor is not None and norm > factor * middle > 0:
        told = f"the last {len(recent)} have {middle:.4g} in the middle, limit {factor:g} times that"
        return Verdict(accepted=False, reason=f"step: its length is {norm:.4g}, {told}")
    return None


def judge_release(
    candidate: Scores,
    *,
    first: Scores,
    driving: Scores,
    before: Scores,
    metrics: Sequence[Metric],
    policy: ReleasePolicy,
) -> Verdict:
    """Judge whether a published candidate may drive instead of what drives now; no policy has a tolerance.

    `every-accepted`: always. `no-worse-than-released`: when it is no worse than `driving`, overall and in every region.
    `better-overall`: when it is no worse than `driving` overall, and in no region worse than the `first` release.
    What was scored on other samples than the candidate cannot be compared: instead of `driving` the published model
    `before` it is taken then, and without a `first` every region must be no worse.
    """
    if policy == "every-accepted":
        return Verdict(accepted=True, reason=policy)
    counts = _counts(candidate, metrics)
    now = driving if _counts(driving, metrics) == counts else before
    if policy == "no-worse-than-released" or _counts(first, metrics) != counts:
        return judge(now, candidate, metrics=metrics, tolerance=0.0, finite=True)
    held = judge(first, candidate, metrics=metrics, tolerance=0.0, finite=True)
    if not held.accepted:
        return Verdict(accepted=False, reason=f"the first release was better: {held.reason}")
    return judge(
        {OVERALL: _summed(now, metrics)},
        {OVERALL: _summed(candidate, metrics)},
        metrics=metrics,
        tolerance=0.0,
        finite=True,
    )


def _counts(scores: Scores, metrics: Sequence[Metric]) -> dict[str, int]:
    """Return the number of judged samples by region; 0 where the primary metric is missing."""
    name = metrics[0].name
    return {region: by_metric.get(name, (0.0, 0))[1] for region, by_metric in scores.items()}


def _summed(scores: Scores, metrics: Sequence[Metric]) -> dict[str, tuple[float, int]]:
    """Return the primary metric over all regions together."""
    parts = _primary(scores, metrics[0]).values()
    return {metrics[0].name: (sum(total for total, _ in parts), sum(count for _, count in parts))}


def _primary(scores: Scores, metric: Metric) -> dict[str, tuple[float, int]]:
    missing = sorted(region for region, by_metric in scores.items() if metric.name not in by_metric)
    if missing:
        raise ValueError(f"gate: {missing[0]} has no score {metric.name!r}")
    return {region: by_metric[metric.name] for region, by_metric in sorted(scores.items())}


def _check_same(was: Mapping[str, tuple[float, int]], now: Mapping[str, tuple[float, int]]) -> None:
    counts_before = {region: count for region, (_, count) in was.items()}
    counts_after = {region: count for region, (_, count) in now.items()}
    if counts_before != counts_after:
        raise ValueError(
            f"gate: scored before on {counts_before}, after on {counts_after}, expected the same samples"
        )


def _mean(sums: Collection[tuple[float, int]]) -> float:
    return sum(total for total, _ in sums) / sum(count for _, count in sums)


def _is_worse(new: float, old: float, *, metric: Metric, tolerance: float) -> bool:
    slack = tolerance * abs(old)
    return new > old + slack if metric.better == "lower" else new < old - slack


def _told(name: str, new: float, old: float, metric: Metric) -> str:
    # As few decimals as show the difference, at least two.
    digits = next((d for d in range(2, 9) if f"{new:.{d}f}" != f"{old:.{d}f}"), 2)
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{name}: {metric.name} {new:.{digits}f}{unit}, before {old:.{digits}f}{unit}"
