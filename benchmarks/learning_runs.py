"""One federated training in one process, with every update and every step downlink as the bytes that would travel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from learning_data import TASK, Split, ade

from fedfleet.codec.payload import decode, encode
from fedfleet.codec.residual import Feedback, encode_with_feedback
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.downlink import DivergedError, step
from fedfleet.fleet_server.merge import capped
from fedfleet.fleet_server.strategies import fedavg
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats, Samples
from fedfleet.models.training import TrainingError, fine_tune

DENSE = Settings("dense", "float32")
MERGE_CAP = 0.5
BATCH = 128
WHOLE = 65_536
"""A batch size that takes all samples of a vehicle at once."""


EQUAL_ROUNDS = 120
"""Rounds after which final accuracies are compared, whoever goes on."""


@dataclass(frozen=True)
class Remedy:
    """What is done about vehicles that take part rarely; all of it off by default.

    `step_ahead`: this share of the residual is added to the base before training (Xu et al. 2021). `masking`: the
    vehicle's own momentum over its updates, cleared with the residual where something was sent (Lin et al. 2018).
    """

    feedback: Feedback = field(default_factory=Feedback)
    step_ahead: float = 0.0
    masking: float = 0.0


@dataclass(frozen=True)
class Method:
    """How a federation learns and what it sends; `learning_rate` is a vehicle's, the same in all rounds.

    (On a cosine over the rounds, validation grew worse again as the rate fell, with every method.)
    """

    name: str
    up: Settings = DENSE
    down: Settings = DENSE
    rounds: int = 120
    learning_rate: float = 0.2
    server_rate: float = 1.0
    server_momentum: float = 0.0
    share: float = 1.0
    whole_batch: bool = False
    up_falls: float = 1.0
    """The last round's uplink density as a share of the mean one; the first has the rest (2 − that)."""
    remedy: Remedy = field(default_factory=Remedy)

    @property
    def training(self) -> TrainSettings:
        """One pass over a vehicle's samples; FedSGD: one step down the gradient of all of them."""
        if self.whole_batch:
            return TrainSettings(
                epochs=1, batch_size=WHOLE, learning_rate=self.learning_rate, momentum=0, clip_norm=0
            )
        return TrainSettings(
            epochs=1, batch_size=BATCH, learning_rate=self.learning_rate, augment="mirror-speed"
        )

    def up_at(self, round_: int) -> Settings:
        """The uplink's settings of a round."""
        if self.up_falls == 1.0:
            return self.up
        factor = 2 - self.up_falls - 2 * (1 - self.up_falls) * round_ / max(1, self.rounds - 1)
        return replace(self.up, density=self.up.density * factor)


class _Vehicle:
    """A vehicle's memory between rounds."""

    def __init__(self, size: int) -> None:
        self.residual = np.zeros(size, dtype=np.float32)
        self.momentum = np.zeros(size, dtype=np.float32)
        self.last: int | None = None

    def returns(self, round_: int) -> int:
        """Take part in this round; return the rounds since the last time (1 the first time)."""
        age = 1 if self.last is None else round_ - self.last
        self.last = round_
        return age


def train(data: Split, method: Method, *, seed: int, every: int = 1) -> dict[str, Any]:
    """Run all rounds.

    Returns `curve` (round, validation ADE, bytes up and down until then per vehicle that took part in every round),
    the test ADE of the last vector, of that after `EQUAL_ROUNDS` or the last before, and of the one that validation
    liked best. A training that diverges stays where it was, its rounds without a gain from there on. Same arguments,
    same result.
    """
    strategy = fedavg(method.server_rate, method.server_momentum)
    x, error, state = data.first, np.zeros_like(data.first), strategy.init(data.first.size)
    memory = {name: _Vehicle(x.size) for name in data.vehicles}
    draw = np.random.default_rng(seed)
    up = down = 0.0
    best, best_x, equal_x, curve = math.inf, x, x, []
    diverged = False
    for round_ in range(method.rounds):
        turn = _Turn(data, method, x, round_, seed)
        try:
            gradient, sent = turn.merged(memory, _chosen(sorted(data.vehicles), method.share, draw))
            state, update = strategy.apply(state, gradient)
            made = step(x, error, update, method.down)
        except (TrainingError, DivergedError):
            diverged = True
            break
        x, error = made.x_next, made.error_next
        up, down = up + sent, down + len(made.payload)
        equal_x = x if round_ < EQUAL_ROUNDS else equal_x
        if round_ % every == every - 1 or round_ == method.rounds - 1:
            value = ade(x, data.validation)
            curve.append([round_ + 1, value, round(up), round(down)])
            if value < best:
                best, best_x = value, x
    if diverged:
        start = ade(data.first, data.validation)
        points = range(every, method.rounds + 1, every)
        curve += [[number, start, round(up), round(down)] for number in points if number > round_]
    return {
        "curve": curve,
        "diverged": diverged,
        "test_last": ade(x, data.test),
        "test_equal": ade(equal_x, data.test),
        "test_chosen": ade(best_x, data.test),
    }


def _chosen(names: list[str], share: float, draw: np.random.Generator) -> list[str]:
    if share == 1.0:
        return names
    return sorted(draw.choice(names, max(1, round(share * len(names))), replace=False).tolist())


@dataclass(frozen=True, eq=False)
class _Turn:
    """A round: from `x`, with the settings of the method."""

    data: Split
    method: Method
    x: Floats
    round_: int
    seed: int

    def merged(
        self, memory: Mapping[str, _Vehicle], names: list[str]
    ) -> tuple[npt.NDArray[np.float64], float]:
        """Return the merged pseudo-gradient float64[M] of these vehicles and the mean bytes of their updates."""
        size = self.x.size
        sums: dict[str, npt.NDArray[np.float64]] = {}
        weights: dict[str, float] = {}
        total = 0
        for name in names:
            region, samples = self.data.vehicles[name]
            payload, examples = self._update(samples, memory[name], draw=self._draw(name))
            total += len(payload)
            found = decode(payload, size=size).delta
            found.add_to(sums.setdefault(region, np.zeros(size)), float(examples))
            weights[region] = weights.get(region, 0.0) + examples
        merged = np.zeros(size)
        for region, weight in capped(weights, cap=MERGE_CAP).items():
            merged += weight * sums[region] / weights[region]
        return merged, total / len(names)

    def _draw(self, name: str) -> int:
        return (self.seed * 1009 + self.round_) * 1009 + int(name[1:])

    def _update(self, samples: Samples, vehicle: _Vehicle, *, draw: int) -> tuple[bytes, int]:
        """Train, encode, and keep what was not sent."""
        remedy, age = self.method.remedy, vehicle.returns(self.round_)
        settings = remedy.feedback.settings(self.method.up_at(self.round_), age=age)
        vehicle.residual = remedy.feedback.entering(vehicle.residual, age=age)
        base = self.x
        if remedy.step_ahead:
            base = base + np.float32(remedy.step_ahead) * vehicle.residual
        trained = fine_tune(TASK, base, samples, self.method.training, seed=draw)
        told = {"steps": trained.steps, "examples": trained.examples}
        delta = trained.delta
        if settings.value in {"float32", "stochastic4"}:  # stateless
            return encode(delta, settings, seed=draw, **told), trained.examples
        if remedy.masking:
            vehicle.momentum = np.float32(remedy.masking) * vehicle.momentum + delta
            delta = vehicle.momentum
        payload, vehicle.residual = encode_with_feedback(delta, vehicle.residual, settings, **told)
        if remedy.masking:
            sent = decode(payload, size=self.x.size).delta
            vehicle.momentum[slice(None) if sent.indices is None else sent.indices] = 0
        return payload, trained.examples
