"""Task `motion_forecast`: from 2 s of a track, where it will be in the next 3 s.

Specification, features and metrics, in numpy. Each track is put into its own frame: origin at the last observed point,
x axis along its heading. The network is in `nets_motion_forecast`; recordings are read by `scenarios.reading`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.slices_motion_forecast import NEAR_M, OF_ALL, SLICES
from fedfleet.models.task import Floats, Frames, Index, Metric, Numbers, Samples, Slicer, Specification, Sums
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios import labels
from fedfleet.scenarios.reading import open_recordings, stream
from fedfleet.scenarios.records import Scenario
from fedfleet.scenarios.resample import at_rate

__all__ = ["TASK", "MotionForecast", "agent_frame", "constant_velocity", "windows"]

PAST: Final = 20
FUTURE: Final = 30
WINDOW: Final = PAST + FUTURE
SLIDE: Final = WINDOW // 2
"""Windows of a longer scenario overlap by half: 10 s give three samples of a track, not one."""
RATE_HZ: Final = 10.0
BACK: Final = 5
"""Velocity and heading look at the last BACK steps, 0.5 s: one step of 0.1 s is mostly noise."""
STANDING_M: Final = 0.2
MISS_M: Final = 2.0

SPECIFICATION: Final = Specification("history", (PAST, 2), "future", (FUTURE, 2))

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class MotionForecast:
    """The task; see `models.task.Task` for what each member promises."""

    name: str = "motion_forecast"
    version: int = 1
    specification: Specification = SPECIFICATION
    metrics: tuple[Metric, ...] = (
        Metric("ADE", "m", "lower"),
        Metric("FDE", "m", "lower"),
        Metric("miss_rate", "share", "lower"),
    )
    network: str = "fedfleet.models.nets_motion_forecast:network"
    loss: str = "fedfleet.models.nets_motion_forecast:loss"
    plot: str = "fedfleet.models.plot_motion_forecast:draw"
    augment: str = "fedfleet.models.augment_motion_forecast:augment"
    noun: str = "tracks"
    reads_tracks: bool = True
    trivial: str = "constant velocity"

    slices_of_all: tuple[str, ...] = OF_ALL

    @property
    def slices(self) -> Mapping[str, Slicer]:
        """Manoeuvre, speed band, density and agent type; what stands, judged or not."""
        return SLICES

    def index(self, folder: Path) -> Index:
        """List the drives of a folder; the tracks that cannot teach are counted where all of it is read anyway."""
        recordings = open_recordings(folder)
        drives = tuple(recordings.drives.values())
        if recordings.is_lazy:
            return Index(drives, {}, is_counted=False, account=recordings.account)
        problems: Counter[str] = sum(
            (verdict.problems for scenario in _scenarios(folder) for _, verdict in windows(scenario)),
            Counter(),
        )
        return Index(drives, dict(sorted(problems.items())), account=recordings.account)

    def samples(self, folder: Path, drives: Sequence[str]) -> Samples:
        """One sample per track and window of 50 frames in which it was seen throughout; judged = kind AGENT.

        Windows of a longer scenario begin every SLIDE frames. Traits: drive, scenario, track, type, x_m and y_m (last
        known place), neighbours (other tracks within NEAR_M).
        """
        inputs, targets, judged = [_none(PAST)], [_none(FUTURE)], [np.empty(0, dtype=np.bool_)]
        traits = [_no_traits()]
        problems: Counter[str] = Counter()
        each = ((one, *window) for one in _scenarios(folder, drives) for window in windows(one))
        for scenario, start, verdict in each:
            problems += verdict.problems
            chosen = verdict.labelled
            if not chosen.any():
                continue
            window = scenario.xy[chosen, start : start + WINDOW]
            local = agent_frame(window[:, :PAST], window)
            inputs.append(local[:, :PAST])
            targets.append(local[:, PAST:])
            judged.append(np.array(scenario.kinds)[chosen] == "AGENT")
            traits.append(_traits(scenario, chosen, start))
        left_out = dict(sorted(problems.items()))
        known = {name: np.concatenate([each[name] for each in traits]) for name in traits[0]}
        return Samples(
            np.concatenate(inputs), np.concatenate(targets), np.concatenate(judged), left_out, known
        )

    def frames(self, folder: Path, drives: Sequence[str]) -> Frames:
        """Every frame that has 2 s of past in its scenario, with all tracks seen throughout these 2 s."""
        inputs, counts, sample = [_none(PAST)], [], [np.empty(0, dtype=np.int64)]
        rows = 0
        for scenario in _scenarios(folder, drives):
            if scenario.frames < PAST:
                continue
            past = np.lib.stride_tricks.sliding_window_view(scenario.xy, PAST, axis=1).transpose(1, 0, 3, 2)
            judged = [*windows(scenario)]
            visible = ~np.isnan(past).any(axis=(2, 3)) & judged[0][1].sound  # [frames, tracks]
            truth = np.full(visible.shape, -1, dtype=np.int64)
            for start, verdict in judged:
                truth[start, verdict.labelled] = np.arange(rows, rows + int(verdict.labelled.sum()))
                rows += int(verdict.labelled.sum())
            inputs.append(agent_frame(past[visible], past[visible]))
            counts.append(visible.sum(axis=1))
            sample.append(truth[visible])
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), *counts]).cumsum(dtype=np.int64)
        return Frames(np.concatenate(inputs), offsets, np.concatenate(sample), RATE_HZ)

    def score(self, outputs: Floats, samples: Samples) -> Sums:
        """ADE, FDE and miss rate (FDE above 2 m) over AGENT tracks."""
        judged = np.asarray(samples.judged)
        return _sums(outputs[judged], samples.targets[judged])

    def score_all(self, outputs: Floats, samples: Samples) -> Sums:
        """The same over all tracks."""
        return _sums(outputs, samples.targets)

    def baseline(self, inputs: Numbers) -> Floats:
        """Constant velocity."""
        return constant_velocity(np.asarray(inputs, dtype=np.float32))


TASK: Final = MotionForecast()


def constant_velocity(history: Floats) -> Floats:
    """From f32[N, 20, 2] the future f32[N, 30, 2] at the mean velocity of the last 0.5 s."""
    if history.shape[1:] != (PAST, 2):
        raise UsageError(f"history: expected float32[N, {PAST}, 2], got {history.dtype}{list(history.shape)}")
    last = history[:, -1:]
    step = (last - history[:, -1 - BACK, None]) / np.float32(BACK)
    ahead = np.arange(1, FUTURE + 1, dtype=np.float32)[:, None]
    return np.asarray(last + step * ahead, dtype=np.float32)


def agent_frame(history: Doubles, points: Doubles) -> Floats:
    """`points` float64[N, T, 2] in the frame of `history` float64[N, 20, 2], as f32[N, T, 2] metres.

    The heading is the direction of the last 0.5 s; of a track that moved less than 0.2 m in them, the direction from
    the farthest of its earlier points; of a track that stood all the time, along the axis x east.
    """
    last = history[:, -1]
    way = last[:, None] - history  # [N, 20, 2]
    metres = np.hypot(way[..., 0], way[..., 1])
    recent = metres[:, -1 - BACK] >= STANDING_M
    back = np.where(recent, PAST - 1 - BACK, metres.argmax(axis=1))
    each = np.arange(len(history))
    length = metres[each, back]
    moved = length >= STANDING_M
    safe = np.where(moved, length, 1.0)
    cos = np.where(moved, way[each, back, 0] / safe, 1.0)[:, None]
    sin = np.where(moved, way[each, back, 1] / safe, 0.0)[:, None]
    east, north = np.moveaxis(points - last[:, None], -1, 0)
    return np.stack([cos * east + sin * north, cos * north - sin * east], axis=-1).astype(np.float32)


def _scenarios(folder: Path, drives: Sequence[str] | None = None) -> Iterator[Scenario]:
    """Recordings of more than 10 Hz are taken at 10 Hz; of less, they are counted as of the wrong rate."""
    return at_rate(stream(folder, drives), RATE_HZ)


def windows(scenario: Scenario) -> Iterator[tuple[int, labels.Verdict]]:
    """The windows of a scenario: the first frame of each, and which tracks can teach there. One at least."""
    for start in range(0, max(1, scenario.frames - WINDOW + 1), SLIDE):
        yield start, labels.judge(scenario, frames=WINDOW, rate_hz=RATE_HZ, start=start)


def _no_traits() -> dict[str, NDArray[Any]]:
    text, metres = np.empty(0, dtype="<U1"), np.empty(0, dtype=np.float64)
    return {
        "drive": text,
        "scenario": text,
        "track": text,
        "type": text,
        "x_m": metres,
        "y_m": metres,
        "neighbours": np.empty(0, dtype=np.int32),
    }


def _traits(scenario: Scenario, chosen: NDArray[np.bool_], start: int) -> dict[str, NDArray[Any]]:
    """What is known of the chosen tracks at the last frame of their past, in the window from frame `start` on."""
    count = int(chosen.sum())
    now = scenario.xy[:, start + PAST - 1]
    own = now[chosen]
    away = np.hypot(*np.moveaxis(own[:, None] - now[None], -1, 0))  # [chosen, tracks]; NaN: not seen now
    return {
        "drive": np.full(count, f"{scenario.region}/{scenario.drive}"),
        "scenario": np.full(count, scenario.scenario_id),
        "track": np.array(scenario.track_ids)[chosen],
        "type": np.array(scenario.types)[chosen],
        "x_m": own[:, 0],
        "y_m": own[:, 1],
        "neighbours": ((away <= NEAR_M).sum(axis=1) - 1).astype(np.int32),
    }


def _none(points: int) -> NDArray[Any]:
    return np.empty((0, points, 2), dtype=np.float32)


def _sums(outputs: Floats, targets: Floats) -> Sums:
    miss = np.subtract(outputs, targets, dtype=np.float64)
    metres = np.hypot(miss[..., 0], miss[..., 1])
    final = metres[:, -1]
    each = {"ADE": metres.mean(axis=1), "FDE": final, "miss_rate": final > MISS_M}
    return {name: (float(values.sum(dtype=np.float64)), len(values)) for name, values in each.items()}
