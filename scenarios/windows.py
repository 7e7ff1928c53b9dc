"""From observations of a whole drive to scenarios of a few seconds: the clock, the cuts and the kinds, for all readers.

A drive is cut every `seconds` from its first frame on, without overlap. What is shorter at the end is a shorter
scenario, so that nothing is lost; a window in which nothing was seen is none, and counted (`empty-window`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.records import MAX_FRAMES, Scenario, ScenarioError
from fedfleet.scenarios.stamps import PAUSE_S

__all__ = [
    "EMPTY_WINDOW",
    "JUDGED_S",
    "JUDGED_TYPES",
    "MAX_SPEED_MPS",
    "SECONDS",
    "LeftOut",
    "Observations",
    "check_speed",
    "clock",
    "cut",
    "kinds_of",
    "recordings",
    "single",
    "window_frames",
]

SECONDS: Final = 10.0
EMPTY_WINDOW: Final = "empty-window"
JUDGED_TYPES: Final = ("vehicle", "truck", "bus", "motorcycle")
JUDGED_S: Final = 5.0
MAX_SPEED_MPS: Final = 100.0
"""Nothing on a road is faster; a track that is, most of the time, was not recorded in metres and seconds."""
_ENOUGH_STEPS: Final = 4
_TOLERANCE: Final = 0.3
_MISSED: Final = 0.1

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Observations:
    """All observations of one drive: observation i is of track `track[i]` in frame `frame[i]`, at `xy[i]`.

    `track` int64[N] counts into `names` and `types`, `frame` int64[N] is from 0 on, `xy` is float64[N, 2] metres.
    `av` is the recording car's place in `names`; `targets` are the places of those the format wants judged, None where
    it names none. Frame 0 is at `t0_s` seconds. `where` names the file in messages, `prefix` (default: the drive)
    begins the scenarios' ids.
    """

    where: str
    region: str
    drive: str
    rate_hz: float
    t0_s: float
    names: Sequence[str]
    types: Sequence[str]
    track: Integers
    frame: Integers
    xy: Doubles
    av: int | None = None
    targets: Collection[int] | None = None
    prefix: str | None = None

    def check(self) -> None:
        """Raise ScenarioError naming file, track and frame for a NaN, and for two observations of one in a frame."""
        bad = np.asarray(~np.isfinite(self.xy).all(axis=1))
        if bad.any():
            self._fail("nan-value", int(bad.argmax()), f"expected finite x and y, got {self.xy[bad][0]}")
        order = np.lexsort((self.frame, self.track))
        track, frame = self.track[order], self.frame[order]
        twice = (track[1:] == track[:-1]) & (frame[1:] == frame[:-1])
        if twice.any():
            self._fail("duplicate-row", int(order[int(twice.argmax()) + 1]), "expected 1 observation, got 2")

    def _fail(self, reason: str, row: int, text: str) -> None:
        at = f"{self.where}: track {self.names[int(self.track[row])]} frame {int(self.frame[row])}"
        raise ScenarioError(reason, f"{at}: {text}")


@dataclass(frozen=True)
class LeftOut:
    """What was left out of the drives that were read so far; a drive that is read again counts once."""

    by_drive: dict[str, Counter[str]] = field(default_factory=dict)

    def of(self, drive: str) -> Counter[str]:
        """An empty count for a drive that is about to be read."""
        self.by_drive[drive] = Counter()
        return self.by_drive[drive]

    def total(self) -> dict[str, int]:
        """Of all drives, by reason."""
        return dict(sorted(sum(self.by_drive.values(), Counter()).items()))


def window_frames(rate_hz: float, seconds: float = SECONDS) -> int:
    """Frames of a window: of so many seconds, at least 1 and at most MAX_FRAMES."""
    return max(1, min(MAX_FRAMES, round(rate_hz * seconds)))


def recordings(frame: Integers, rate_hz: float, *, seconds: float = SECONDS) -> tuple[int, float]:
    """How many scenarios `cut` makes of these frames int64[N], and how many seconds they are together."""
    if not len(frame):
        return 0, 0.0
    size = window_frames(rate_hz, seconds)
    each = np.unique(frame // size)
    frames = len(each) * size - ((int(each[-1]) + 1) * size - int(frame.max()) - 1)
    return len(each), frames / rate_hz


def cut(
    seen: Observations, *, seconds: float = SECONDS, problems: Counter[str] | None = None
) -> Iterator[Scenario]:
    """The scenarios of a drive, `<prefix>-00000` and so on by the number of the window; tracks sorted by id.

    Empty windows between others are added to `problems`. Raises ScenarioError as `Observations.check`, and as Scenario.
    """
    seen.check()
    size = window_frames(seen.rate_hz, seconds)
    order = np.argsort(seen.frame, kind="stable")
    number = seen.frame[order] // size
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    if problems is not None and len(number):
        empty = int(number[-1]) + 1 - len(starts)
        problems.update({EMPTY_WINDOW: empty} if empty else {})
    frames = int(seen.frame.max()) + 1 if len(number) else 0
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        at = int(number[start])
        name = f"{seen.prefix or seen.drive}-{at:05d}"
        yield _scenario(seen, order[start:end], name, (at * size, min((at + 1) * size, frames)))


def single(seen: Observations, scenario_id: str, frames: int) -> Scenario:
    """All observations as one scenario of that name and so many frames, not cut; raises as `cut`."""
    seen.check()
    if not 1 <= frames <= MAX_FRAMES:
        text = f"{seen.where}: expected 1 to {MAX_FRAMES} frames, got {frames}"
        raise ScenarioError("bad-frame-count", text)
    return _scenario(seen, np.arange(len(seen.track)), scenario_id, (0, frames))


def _scenario(seen: Observations, rows: Integers, scenario_id: str, span: tuple[int, int]) -> Scenario:
    present, place = np.unique(seen.track[rows], return_inverse=True)
    names = [seen.names[int(i)] for i in present]
    by_id = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(by_id), dtype=np.int64)
    rank[by_id] = np.arange(len(by_id))
    xy = np.full((len(names), span[1] - span[0], 2), np.nan)
    xy[rank[place], seen.frame[rows] - span[0]] = seen.xy[rows]
    tracks = [int(present[i]) for i in by_id]
    types = tuple(seen.types[i] for i in tracks)
    ids = tuple(seen.names[i] for i in tracks)
    t0_s = seen.t0_s + span[0] / seen.rate_hz
    kinds = _kinds(seen, tracks, types, xy)
    try:
        return Scenario(scenario_id, seen.region, seen.drive, seen.rate_hz, t0_s, ids, kinds, xy, types)
    except ScenarioError as error:
        raise ScenarioError(error.reason, f"{seen.where}: {error.detail}") from None


def _kinds(seen: Observations, tracks: Sequence[int], types: Sequence[str], xy: Doubles) -> tuple[str, ...]:
    av = tracks.index(seen.av) if seen.av is not None and seen.av in tracks else None
    named = None if seen.targets is None else [i for i, track in enumerate(tracks) if track in seen.targets]
    return kinds_of(types, xy, seen.rate_hz, av=av, targets=named)


def kinds_of(
    types: Sequence[str],
    xy: Doubles,
    rate_hz: float,
    *,
    av: int | None = None,
    targets: Collection[int] | None = None,
) -> tuple[str, ...]:
    """The kind of each of the tracks of xy float64[tracks, frames, 2]: "AV" the one at `av`, "AGENT" the targets.

    Without targets an "AGENT" is every track of JUDGED_TYPES that was seen for JUDGED_S without a gap, in a shorter
    scenario in all of its frames.
    """
    if targets is None:
        enough = min(xy.shape[1], round(JUDGED_S * rate_hz))
        long = _longest_run(~np.isnan(xy[..., 0])) >= enough
        targets = {i for i, one in enumerate(types) if long[i] and one in JUDGED_TYPES}
    return tuple("AV" if i == av else "AGENT" if i in targets else "OTHERS" for i in range(len(types)))


def _longest_run(seen: NDArray[np.bool_]) -> Integers:
    """How many frames in a row are true at most, of each row of bool[tracks, frames]."""
    run = best = np.zeros(len(seen), dtype=np.int64)
    for frame in seen.T:
        run = np.where(frame, run + 1, 0)
        best = np.maximum(best, run)
    return best


def clock(stamps_s: Doubles, where: str, *, rate_hz: float | None = None) -> tuple[float, Integers]:
    """The rate and the frame number of each of rising time stamps float64[T], frame 0 first.

    The period is the median step, or that of `rate_hz`; a step is as many frames as periods fit, within 30 % of one.
    Raises ScenarioError (`two-rates`) when a step does not fit, or when more than a tenth of them are longer than one;
    `clock-set` for a step of more than PAUSE_S, which is not a number of missing frames: cut there before.
    """
    if len(stamps_s) == 0:
        raise ScenarioError("missing-frames", f"{where}: expected at least 1 frame, got none")
    steps = np.diff(stamps_s)
    if len(steps) == 0:
        return (rate_hz or 1.0), np.zeros(1, dtype=np.int64)
    if not np.isfinite(stamps_s).all() or (steps <= 0).any():
        raise ScenarioError(
            "shuffled-frames", f"{where}: expected rising time stamps, got a step back or a NaN"
        )
    if steps.max() > PAUSE_S:
        at = int(steps.argmax())
        text = f"{where}: expected one recording, got a step of {steps[at]:.6g} s after frame {at}"
        raise ScenarioError("clock-set", f"{text}: was the clock set, or the recording stopped?")
    period = 1.0 / rate_hz if rate_hz else float(np.median(steps))
    passed = np.rint(steps / period)
    off = np.asarray((np.abs(steps - passed * period) > _TOLERANCE * period) | (passed < 1))
    longer = np.asarray(passed > 1)
    if off.any() or longer.sum() > max(1.0, _MISSED * len(steps)):
        at = int((off if off.any() else longer).argmax())
        text = f"expected one rate, got steps of {period:.4g} s and after frame {at} one of {steps[at]:.4g} s"
        raise ScenarioError("two-rates", f"{where}: {text}")
    rate = rate_hz or _tidy((len(steps) if not longer.any() else float(passed.sum())) / float(steps.sum()))
    return rate, np.concatenate([[0], np.cumsum(passed)]).astype(np.int64)


def _tidy(rate_hz: float) -> float:
    """A rate within 2 % of a whole number is that: time stamps jitter."""
    whole = round(rate_hz)
    return float(whole) if whole and abs(rate_hz - whole) <= 0.02 * whole else rate_hz


def check_speed(scenario: Scenario) -> None:
    """Raise ScenarioError (`wrong-units`) for a track that is faster than 100 m/s in more than half of its steps."""
    xy = scenario.xy
    if xy.shape[1] <= _ENOUGH_STEPS:
        return
    step = xy[:, 1:] - xy[:, :-1]
    square = step[..., 0] ** 2 + step[..., 1] ** 2  # NaN where either frame was not seen
    fast = (square > (MAX_SPEED_MPS / scenario.rate_hz) ** 2).sum(axis=1)
    if not fast.any():
        return
    steps = (~np.isnan(square)).sum(axis=1)
    wrong = (2 * fast > steps) & (steps >= _ENOUGH_STEPS)
    if wrong.any():
        track = int(wrong.argmax())
        speed = float(np.sqrt(np.nanmedian(square[track])) * scenario.rate_hz)
        text = f"track {scenario.track_ids[track]!r} moves at {speed:.0f} m/s, limit {MAX_SPEED_MPS:g} m/s"
        raise ScenarioError("wrong-units", f"scenario {scenario.scenario_id!r}: {text}: are these metres?")
