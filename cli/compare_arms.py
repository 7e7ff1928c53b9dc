"""The arms of a comparison that need no federation, and how every arm is judged: model file in, metrics out.

Torch is imported by the functions that train, so that ``fedfleet --help`` stays quick.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedfleet.cli.compare_data import Data
from fedfleet.cli.compare_models import CENTRALISED, ON_SITE
from fedfleet.cli.compare_settings import ArmSettings
from fedfleet.fleet_server.initial import Export
from fedfleet.models import layout, scoring, slices
from fedfleet.models.bootstrap import Tally
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats, Metric, Samples, Sums, Task, added
from fedfleet.protocol.errors import UsageError

__all__ = [
    "Judged",
    "Learned",
    "Point",
    "Scores",
    "baseline",
    "centralised",
    "check_training",
    "judge",
    "loss",
    "on_site",
]

Scores = Mapping[str, Sums]
"""Region -> metric -> (sum, count)."""
Tell = Callable[[int, int, str], None]
"""Called with (passes done, passes to do, what is being done)."""
Keep = Callable[[str, bytes], None]
"""Called with the name of a model and its file."""


@dataclass(frozen=True)
class Judged:
    """Metrics on the test drives by region: of the judged samples, and of all; judged ones also by drive and slice.

    The drives of a task that tells none (trait `drive` of its samples) are its regions.
    """

    judged: Scores
    everything: Scores
    tally: Tally = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """A point of a learning curve: passes over the training data, and validation metrics by region."""

    epochs: float
    scores: Scores


@dataclass(frozen=True)
class Learned:
    """What an arm learned: metrics on the test drives, the curve, and the pass that validation chose (mean)."""

    test: Judged
    curve: tuple[Point, ...]
    chosen_epoch: float


@dataclass(frozen=True, eq=False)
class _Pupil:
    """Who learns what: the first model, its training samples, and the validation samples that choose the pass."""

    name: str
    task: Task
    first: Export
    samples: Samples
    validation: Mapping[str, Samples]


@dataclass(frozen=True, eq=False)
class _Best:
    """The best weights of one training, its curve, and where they were."""

    weights: Floats
    curve: tuple[Point, ...]
    epoch: int


def judge(model: bytes, task: Task, samples: Mapping[str, Samples], *, sliced: bool = False) -> Judged:
    """Run a model file with ONNX Runtime over the samples of each region, and score it; PeerError as ``scoring``."""
    session = scoring.new_session(model)
    scoring.check(session, task)
    answers = {region: scoring.infer(session, task, one.inputs) for region, one in samples.items()}
    return _judged(task, answers, samples, sliced=sliced)


def baseline(data: Data) -> Judged:
    """The task's trivial answer."""
    answers = {region: data.task.baseline(one.inputs) for region, one in data.test.items()}
    return _judged(data.task, answers, data.test, sliced=True)


def _judged(
    task: Task, answers: Mapping[str, Floats], samples: Mapping[str, Samples], *, sliced: bool
) -> Judged:
    judged = {region: task.score(answers[region], one) for region, one in samples.items()}
    everything = {region: task.score_all(answers[region], one) for region, one in samples.items()}
    tally = {}
    if sliced:
        for region, one in samples.items():
            labels = slices.cut(task, one, region=region)
            tally.update(slices.by_drive(task, answers[region], one, labels, otherwise=region))
    return Judged(judged, everything, tally)


def centralised(
    data: Data, first: Export, settings: ArmSettings, *, seed: int, tell: Tell, keep: Keep = lambda *_: None
) -> Learned:
    """One model trained on all vehicles' data together; validation chooses the pass."""
    everyone = _together([samples for _, samples in data.vehicles.values()])
    training = settings.centralised.model_copy(update={"epochs": settings.epochs})
    pupil = _Pupil("the centralised arm", data.task, first, everyone, data.validation)
    found = _train(pupil, training, seed=seed, tell=lambda done: tell(done, settings.epochs, f"pass {done}"))
    model = _file(first, found.weights)
    keep(CENTRALISED, model)
    return Learned(judge(model, data.task, data.test, sliced=True), found.curve, found.epoch)


def on_site(
    data: Data, first: Export, settings: ArmSettings, *, seed: int, tell: Tell, keep: Keep = lambda *_: None
) -> Learned:
    """Each vehicle's own model, chosen on its region's validation drives, judged on its region's test drives.

    A region's metrics are the mean over its vehicles; of a region without vehicles, the mean over all vehicles.
    """
    tests: dict[str, list[Judged]] = {region: [] for region in data.test}
    every: list[Judged] = []
    curves: list[tuple[Point, ...]] = []
    chosen = []
    homes = {region for region, _ in data.vehicles.values()}
    training = settings.on_site.model_copy(update={"epochs": settings.epochs})
    for number, (vehicle, (region, samples)) in enumerate(sorted(data.vehicles.items())):
        tell(number, len(data.vehicles), vehicle)
        pupil = _Pupil(f"vehicle {vehicle}", data.task, first, samples, {region: data.validation[region]})
        found = _train(pupil, training, seed=seed, tell=lambda _: None)
        wanted = {name: one for name, one in data.test.items() if name == region or name not in homes}
        model = _file(first, found.weights)
        keep(f"{ON_SITE}/{vehicle}", model)
        told = judge(model, data.task, wanted, sliced=True)
        for name in wanted:
            tests[name].append(told)
        every.append(told)
        curves.append(found.curve)
        chosen.append(found.epoch)
    tell(len(data.vehicles), len(data.vehicles), "all")
    mean = Judged(
        {region: _mean([one.judged[region] for one in found]) for region, found in tests.items()},
        {region: _mean([one.everything[region] for one in found]) for region, found in tests.items()},
        _mean_tally([one.tally for one in every]),
    )
    return Learned(mean, _mean_curve(curves), float(np.mean(chosen)))


def check_training(data: Data, first: Export, settings: ArmSettings, *, seed: int) -> None:
    """Raise UsageError, before hours of work, for a vehicle or a setting with which an arm cannot be trained."""
    from fedfleet.models.training import FineTuning, TrainingError

    federated = TrainSettings.model_validate(settings.local_training())
    vehicle, (_, samples) = min(data.vehicles.items(), key=lambda each: (len(each[1][1]), each[0]))
    for training in (settings.on_site, settings.centralised, federated):
        try:
            FineTuning(data.task, first.vector, samples, training, seed=seed)
        except TrainingError as error:
            raise UsageError(
                f"vehicle {vehicle} cannot be trained: {error}; choose fewer vehicles per region"
            ) from error


def mean(scores: Scores, metric: Metric) -> float | None:
    """The metric over all given regions together: every sample counts the same; None when it has no value."""
    return metric.value(added(scores.values()))


def _train(pupil: _Pupil, settings: TrainSettings, *, seed: int, tell: Callable[[int], None]) -> _Best:
    """Train from the first model; of its state before and after every pass take the best on validation."""
    from fedfleet.models.training import FineTuning, TrainingError

    best, best_value, chosen = pupil.first.vector, float("inf"), 0
    curve = []
    metric = pupil.task.metrics[0]
    try:
        tuning = FineTuning(pupil.task, pupil.first.vector, pupil.samples, settings, seed=seed)
    except TrainingError as error:
        raise UsageError(f"{pupil.name} cannot be trained: {error}") from error
    try:
        for number in range(settings.epochs + 1):
            for _ in range(tuning.steps // settings.epochs if number else 0):
                tuning.advance()
            found = judge(_file(pupil.first, tuning.weights), pupil.task, pupil.validation)
            curve.append(Point(number, found.judged))
            value = loss(found, metric)
            if value < best_value:
                best, best_value, chosen = tuning.weights, value, number
            tell(number)
    except TrainingError as error:
        raise UsageError(f"training diverged ({error}): choose a smaller learning rate") from error
    return _Best(best, tuple(curve), chosen)


def loss(found: Judged, metric: Metric) -> float:
    """The metric so that lower is better; of all samples where none is judged, infinite where there is none."""
    value = mean(found.judged, metric)
    value = mean(found.everything, metric) if value is None else value
    return float("inf") if value is None else value if metric.better == "lower" else -value


def _file(first: Export, weights: Floats) -> bytes:
    return layout.patch(first.onnx, layout.read(first.layout_json), weights)


def _together(parts: list[Samples]) -> Samples:
    return Samples(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.judged for part in parts]),
    )


def _mean(parts: list[Sums]) -> Sums:
    """The mean of sums over the same samples."""
    return {name: (sum(part[name][0] for part in parts) / len(parts), parts[0][name][1]) for name in parts[0]}


def _mean_tally(parts: list[Tally]) -> Tally:
    """The mean over the vehicles that were judged on a drive, by drive and slice."""
    found: dict[str, dict[str, Sums]] = {}
    for drive in sorted({drive for part in parts for drive in part}):
        same = [part[drive] for part in parts if drive in part]
        found[drive] = {name: _mean([each[name] for each in same]) for name in same[0]}
    return found


def _mean_curve(curves: list[tuple[Point, ...]]) -> tuple[Point, ...]:
    """One curve of all vehicles: each region the mean of its own."""
    points = []
    for same in zip(*curves, strict=True):
        regions = sorted({region for point in same for region in point.scores})
        means = {
            region: _mean([point.scores[region] for point in same if region in point.scores])
            for region in regions
        }
        points.append(Point(same[0].epochs, means))
    return tuple(points)
