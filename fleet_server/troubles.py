"""What vehicles say has gone wrong with them, out of the counters in their metrics: for the log and for ``status``."""

from collections import Counter
from collections.abc import Iterable

from fedfleet.protocol.messages import Metrics

__all__ = ["described", "of", "risen"]

USUAL = ("ineligible-", "update-returned-", "request-refused", "no-word", "stale", "late")
"""Beginnings of reasons that say how a fleet goes, not that something is wrong."""


def of(metrics: Metrics) -> dict[str, int]:
    """Return the reasons that something is wrong with a vehicle, each with how often since its start."""
    found = metrics.refusals.items()
    return {reason: count for reason, count in found if count and not reason.startswith(USUAL)}


def risen(before: Metrics | None, after: Metrics) -> dict[str, int]:
    """Return the reasons that are new or counted anew: more often than before, or from 1 since the vehicle's start."""
    known = of(before) if before is not None else {}
    return {reason: count for reason, count in of(after).items() if count != known.get(reason, 0)}


def described(metrics: Iterable[Metrics]) -> str:
    """Return how many vehicles report which reasons, the most frequent first; empty when none does."""
    vehicles = Counter(reason for each in metrics for reason in of(each))
    shown = sorted(vehicles.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{reason} ({number})" for reason, number in shown[:8])
