"""What is said of a model beside its figures: whether it is better than the trivial answer, and where it is not. Pure.

One convention of signs holds in every table, chart and sentence: + is better, whichever way the metric goes.
"""

from collections.abc import Mapping
from typing import Any, Final

from fedfleet.models.bootstrap import SAME, Difference
from fedfleet.models.slices import ALL
from fedfleet.models.task import Metric

__all__ = ["GAIN", "against", "against_json", "gain_text", "interval_text", "percent_text"]

GAIN: Final = "gain (+ is better)"
"""Head of a column, or title of an axis, of gains."""
SHOWN: Final = 5


def against(found: Mapping[str, Difference], metric: Metric, *, model: str, other: str) -> tuple[str, ...]:
    """Say in one or two lines how `model` does against `other` overall and by slice; `found` is of the model.

    The slices where it is worse are named, the worst first, with the number of drives in which it is.
    """
    if not found:
        return ()
    worse = _worse(found)
    overall = f"is {_how(found[ALL])} {other} overall" if ALL in found else "has no judged sample"
    slices = len(found) - (ALL in found)
    if not worse:
        return (f"{model} {overall}" + (f"; it is worse in none of {slices} slices" if slices else ""),)
    sure = sum(one.verdict == "worse" for one in worse)
    told = f"{model} {overall}; it is worse in {len(worse)} of {slices} slices, in {sure} for sure"
    names = "; ".join(_told(one, metric) for one in worse[:SHOWN])
    more = f"; and {len(worse) - SHOWN} more" if len(worse) > SHOWN else ""
    return (told, f"worse than {other}: {names}{more}")


def against_json(
    found: Mapping[str, Difference], metric: Metric, *, model: str, other: str
) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "other": other,
        "is_worse_overall": ALL in found and found[ALL].is_worse,
        "slices": len(found) - (ALL in found),
        "worse_in": [one.slice for one in _worse(found)],
        "said": list(against(found, metric, model=model, other=other)),
    }


def gain_text(one: Difference) -> str:
    """The gain with its sign."""
    return f"{one.gain:+.3f}"


def interval_text(one: Difference) -> str:
    """The interval of the gain; a dash without one."""
    found = one.gain_interval
    return "–" if found is None else f"{found[0]:+.3f}…{found[1]:+.3f}"


def percent_text(percent: float | None) -> str:
    """A gain in percent with its sign; a dash without one."""
    return "–" if percent is None else f"{percent:+.1f} %"


def _how(one: Difference) -> str:
    """How the model does on one slice, and whether that may be chance."""
    if one.is_worse:
        return "worse than" if one.verdict == "worse" else "(perhaps by chance) worse than"
    if one.gain <= SAME * abs(one.value):
        return "as good as"
    return "better than" if one.verdict == "better" else "(perhaps by chance) better than"


def _worse(found: Mapping[str, Difference]) -> list[Difference]:
    """The slices where the model is worse, the largest loss first, as a share of the other's value."""
    worse = [one for name, one in found.items() if name != ALL and one.is_worse]
    return sorted(worse, key=lambda one: (one.gain / max(abs(one.value), 1e-12), one.slice))


def _told(one: Difference, metric: Metric) -> str:
    figures = f"{metric.name} {one.other:.3f} against {one.value:.3f} {metric.unit}".rstrip()
    return f"{one.slice} ({figures}, in {one.drives_worse} of {one.drives} drives)"
