"""Rules: how a region makes one mean of its updates. Here those that stream: memory O(M), whatever the number.

A rule takes updates that `check_update` has passed, in fold order, and may iterate over them more than once. What a
rule leaves out stands in the aggregate's `dropped`, with the reason. Rules that must see all updates at once are in
`robust_columns.py` and `robust_pairwise.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import floor, sqrt
from statistics import median
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fedfleet.codec.delta import Delta
from fedfleet.fleet_server.fold import Aggregate, Update, fold_ordered
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import UpdateId

__all__ = [
    "Fold",
    "Rule",
    "VoidError",
    "fltrust",
    "hostile",
    "length",
    "lengths",
    "mean",
    "nonempty",
    "norm_clip",
    "part",
    "vote_weight",
]

HISTORY = 4.0
_BLOCK = 65_536
"""How many times the usual norm of recent rounds the median of one round counts at most."""

Fold: TypeAlias = Callable[[Iterable[Update], int], Aggregate]
"""(updates, size M) -> aggregate."""


class VoidError(Exception):
    """A fold can make nothing of what came: the region's round is void, its updates are returned.

    `dropped` and `returned` are those whose fate is decided all the same, with the reason.
    """

    def __init__(
        self,
        text: str,
        *,
        dropped: Mapping[UpdateId, str] = MappingProxyType({}),
        returned: Mapping[UpdateId, str] = MappingProxyType({}),
    ) -> None:
        """Keep the text, and the fates."""
        super().__init__(text)
        self.dropped, self.returned = dropped, returned


@dataclass(frozen=True)
class Rule:
    """How updates become one mean.

    `needs`: "sum" rules stream, "each" rules hold all updates or read them again block by block. `aligned` rules
    work coordinate by coordinate, so all updates must have the same coordinates (`common` or `dense`; under `own`
    most entries of a column are zeros that nobody sent, and the median of them is zero). With fewer updates than
    `smallest` the rule protects against nobody and refuses (VoidError); more than `most` it does not take.
    """

    name: str
    needs: Literal["sum", "each"]
    fold: Fold
    aligned: bool = False
    smallest: int = 1
    most: int | None = None


def hostile(count: int, share: float, limit: int) -> int:
    """Return how many of `count` updates a rule takes as hostile: the share, rounded down, from 1 to `limit`."""
    return min(max(1, part(share, count)), limit)


def part(share: float, count: int) -> int:
    """Return the share of a count rounded down, the share taken as it is written: 0.29 of 100 is 29, not 28."""
    return floor(Fraction(str(share)) * count)


def vote_weight(weights: Sequence[float]) -> float:
    """Return the weight of an aggregate whose updates count equally: their number times the median weight.

    Robust rules give every vehicle one vote: the number of examples is its own word. All updates of the region count
    here, those that the rule leaves out as well.
    """
    return len(weights) * median(weights)


def mean() -> Rule:
    """Return the weighted mean Σ w_k δ_k / Σ w_k: one update can move it anywhere."""

    def fold(updates: Iterable[Update], size: int) -> Aggregate:
        return fold_ordered(nonempty(updates), size=size, checked=True)

    return Rule("mean", "sum", fold)


def norm_clip(
    bound: float | None = None,
    *,
    factor: float = 1.0,
    usual: float | None = None,
    measured: npt.NDArray[np.bool_] | None = None,
) -> Rule:
    """Return norm clipping: the weighted mean of δ_k · min(1, C / ‖δ_k‖₂).

    Sun et al. 2019, "Can you really backdoor federated learning?" (norm thresholding). C is `bound`, or when None
    `factor` times the median of this round's norms, so that fewer than half of the updates are cut. Of one or two
    updates the median says little: it counts at most `HISTORY` times what is `usual`, the median norm of recent
    rounds where it is known. A hostile update of weight share p moves the mean by at most 2 p C. Where `measured`
    bool[M] tells which coordinates are running statistics, these are bounded by the median of their own lengths: they
    are in the data's unit, beside which no weight would count.
    Raises UsageError for a bound that is not above 0, or a factor below 1.
    """
    if bound is not None and not (np.isfinite(bound) and bound > 0):
        raise UsageError(f"clip_norm: expected a finite number above 0, got {bound}")
    if not (np.isfinite(factor) and factor >= 1):
        raise UsageError(f"clip_factor: expected a finite number of at least 1, got {factor}")

    def fold(updates: Iterable[Update], size: int) -> Aggregate:
        both = {id_: lengths(delta, measured) for id_, delta, _ in updates}
        _enough("norm-clip", len(both), 1)
        norms = {id_: learned for id_, (learned, _) in both.items()}
        limit = bound
        if limit is None:
            middle = median(norms.values())
            limit = factor * (min(middle, HISTORY * usual) if usual else middle)
        factors = {id_: limit / norm for id_, norm in norms.items() if norm > limit}
        most = factor * median(statistics for _, statistics in both.values())
        for id_, (_, statistics) in both.items():
            if 0 < most < statistics:
                factors[id_] = min(factors.get(id_, 1.0), most / statistics)
        return fold_ordered(updates, size=size, factors=factors, checked=True)

    return Rule("norm-clip", "sum", fold)


def fltrust(root: npt.NDArray[np.float32] | None) -> Rule:
    """Return FLTrust: updates count by their agreement with the server's own update g_0 = `root` float32[M].

    Cao et al. 2021, "FLTrust: Byzantine-robust federated learning via trust bootstrapping", equations 2 to 4:

        T_k = max(0, cos(δ_k, g_0)),   mean = Σ_k T_k (‖g_0‖ / ‖δ_k‖) δ_k / Σ_k T_k

    The root update comes from training on the server's root set from the same base (`root_training.py`). Updates
    with T_k = 0 are dropped as no-trust; when none is trusted, or the root update is zero, the round is void.
    None as root makes a rule that can be named, but not folded with.
    """

    def fold(updates: Iterable[Update], size: int) -> Aggregate:
        if root is None or root.shape != (size,) or not np.isfinite(root).all():
            raise VoidError("fltrust: the root update is missing, not finite or of another size")
        g0 = root.astype(np.float64)
        reach = float(np.linalg.norm(g0))
        if reach == 0:
            raise VoidError("fltrust: the root update is zero")
        trust: dict[UpdateId, float] = {}
        factors: dict[UpdateId, float] = {}
        weights: list[float] = []
        dropped: dict[UpdateId, str] = {}
        for id_, delta, weight in updates:
            weights.append(weight)
            norm = length(delta.values)
            score = _dot(delta, g0) / (norm * reach) if norm else 0.0
            if score <= 0:
                dropped[id_] = "no-trust"
                continue
            trust[id_], factors[id_] = min(score, 1.0), reach / norm
        if not trust:
            raise VoidError("fltrust: no update agrees with the root set")
        trusted = ((id_, delta, trust[id_]) for id_, delta, _ in updates if id_ in trust)
        found = fold_ordered(trusted, size=size, factors=factors, checked=True)
        return Aggregate(found.mean, vote_weight(weights), found.count, dropped)

    return Rule("fltrust", "sum", fold)


def nonempty(updates: Iterable[Update]) -> Iterator[Update]:
    """Return the same updates; VoidError when there is none."""
    rest = iter(updates)
    first = next(rest, None)
    if first is None:
        raise VoidError("no update can be folded")
    return chain([first], rest)


def _enough(name: str, count: int, smallest: int) -> None:
    if count < smallest:
        raise VoidError(f"{name} needs at least {smallest} updates, got {count}")


def length(values: npt.NDArray[np.float32]) -> float:
    """Return the length (L2) of an update's values."""
    total = 0.0
    for start in range(0, values.size, _BLOCK):  # what is large costs more in new memory than in sums
        exact = values[start : start + _BLOCK].astype(np.float64)
        total += float(np.einsum("i,i->", exact, exact))  # by one thread, whatever the library would start
    return sqrt(total)


def lengths(delta: Delta, measured: npt.NDArray[np.bool_] | None) -> tuple[float, float]:
    """Return the length of what an update learned, and of its running statistics (`measured`)."""
    if measured is None:
        return length(delta.values), 0.0
    here = measured if delta.indices is None else measured[delta.indices]
    return length(delta.values[~here]), length(delta.values[here])


def _dot(delta: Delta, dense: npt.NDArray[np.float64]) -> float:
    values = delta.values.astype(np.float64)
    return float(values @ (dense if delta.indices is None else dense[delta.indices]))
