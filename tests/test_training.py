"""Fine-tuning: learns, repeats itself to the byte, stops when asked, never hands on what is not finite."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_task
import torch
import traffic
from pydantic import ValidationError

from fedfleet.models import training
from fedfleet.models.motion_forecast import TASK as MOTION
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats, Samples
from fedfleet.models.training import FineTuning, TrainingError, fine_tune
from fedfleet.protocol.errors import UsageError

TINY = tiny_task.TASK
SETTINGS = TrainSettings(epochs=4, batch_size=32, learning_rate=0.02, optimizer="adam")


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    tiny_task.generate(tmp_path)
    return TINY.samples(tmp_path, [drive.key for drive in TINY.index(tmp_path).drives])


@pytest.fixture
def base() -> Floats:
    return training.vector(training.network(TINY, seed=0))


def test_the_loss_falls_and_the_counts_are_true(base: Floats, samples: Samples) -> None:
    before = base.copy()
    trained = fine_tune(TINY, base, samples, SETTINGS, seed=1)
    assert trained.loss_after < 0.3 * trained.loss_before
    assert (trained.steps, trained.examples) == (4 * 768 // 32, 768)
    assert (trained.delta.dtype, trained.delta.shape) == (np.float32, (49,))
    np.testing.assert_array_equal(base, before)


@pytest.mark.parametrize(
    "settings", [SETTINGS, TrainSettings(optimizer="sgd", momentum=0.9, learning_rate=0.05, clip_norm=1.0)]
)
def test_equal_arguments_give_equal_bytes_and_another_seed_does_not(
    base: Floats, samples: Samples, settings: TrainSettings
) -> None:
    first, again = (fine_tune(TINY, base, samples, settings, seed=7) for _ in range(2))
    assert first.delta.tobytes() == again.delta.tobytes()
    assert (first.loss_before, first.loss_after) == (again.loss_before, again.loss_after)
    assert fine_tune(TINY, base, samples, settings, seed=8).delta.tobytes() != first.delta.tobytes()


def test_delta_and_base_make_the_trained_network(base: Floats, samples: Samples) -> None:
    trained = fine_tune(TINY, base, samples, SETTINGS, seed=1)
    later = fine_tune(TINY, base + trained.delta, samples, SETTINGS, seed=1)
    assert later.loss_before == pytest.approx(trained.loss_after, rel=1e-4)


def test_it_stops_between_batches_and_what_was_done_counts(base: Floats, samples: Samples) -> None:
    answers = iter([False, False, False, True])
    trained = fine_tune(TINY, base, samples, SETTINGS, seed=1, should_stop=lambda: next(answers))
    assert (trained.steps, trained.examples) == (3, 96)
    assert np.any(trained.delta)


def test_stopped_at_once_nothing_has_changed(base: Floats, samples: Samples) -> None:
    trained = fine_tune(TINY, base, samples, SETTINGS, seed=1, should_stop=lambda: True)
    assert (trained.steps, trained.examples, bool(np.any(trained.delta))) == (0, 0, False)
    assert trained.loss_after == trained.loss_before


def test_max_steps_is_an_upper_bound_and_progress_is_told(base: Floats, samples: Samples) -> None:
    tuning = FineTuning(TINY, base, samples, TrainSettings(epochs=9, batch_size=100, max_steps=10), seed=1)
    told = list(iter(tuning.advance, None))
    assert [progress.step for progress in told] == list(range(1, 11))
    assert {progress.steps for progress in told} == {10}
    assert tuning.result().examples == 768


def test_a_target_that_is_not_a_number_ends_in_an_error(base: Floats, samples: Samples) -> None:
    targets = samples.targets.copy()
    targets[5] = np.nan
    with pytest.raises(TrainingError, match="the loss after 0 steps is nan"):
        fine_tune(TINY, base, replace(samples, targets=targets), SETTINGS, seed=1)


def test_a_training_that_explodes_ends_in_an_error(base: Floats, samples: Samples) -> None:
    wild = TrainSettings(optimizer="sgd", learning_rate=10, momentum=0.99, clip_norm=0, epochs=100)
    with pytest.raises(TrainingError, match=r"(the loss|weights)"):
        fine_tune(TINY, base, replace(samples, targets=samples.targets * 1e6), wild, seed=1)


def test_no_samples_end_in_an_error(base: Floats) -> None:
    none = Samples(np.zeros((0, 4), "f4"), np.zeros((0, 1), "f4"), np.zeros(0, bool))
    with pytest.raises(TrainingError, match="no samples to train on"):
        fine_tune(TINY, base, none, SETTINGS, seed=1)


def test_a_base_of_another_model_is_refused(samples: Samples) -> None:
    with pytest.raises(UsageError, match=r"base vector: expected float32\[49\], got float32\[7\]"):
        fine_tune(TINY, np.zeros(7, "f4"), samples, SETTINGS, seed=1)


def test_samples_of_another_task_are_refused(base: Floats) -> None:
    other = Samples(np.zeros((2, 20, 2), "f4"), np.zeros((2, 30, 2), "f4"), np.ones(2, bool))
    with pytest.raises(UsageError, match=r"do not match task tiny: expected \[4\] -> \[1\], got \[20, 2\]"):
        fine_tune(TINY, base, other, SETTINGS, seed=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"learning_rate": float("nan")},
        {"optimizer": "lion"},
        {"epoch": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainSettings.model_validate(wrong)


# --- motion_forecast ---


def test_version_0_is_constant_velocity_exactly() -> None:
    inputs = np.random.default_rng(0).normal(0, 20, (100, 20, 2)).astype(np.float32)
    model = training.network(MOTION, seed=3)
    with torch.no_grad():
        outputs = model(torch.from_numpy(inputs)).numpy()
    np.testing.assert_array_equal(outputs, MOTION.baseline(inputs))


def test_motion_forecasting_has_about_100_k_parameters_and_beats_constant_velocity(tmp_path: Path) -> None:
    # given cars on circles, trained on some drives and scored on others
    folder = traffic.write_folder(tmp_path, drives=30)
    drives = [drive.key for drive in MOTION.index(folder).drives]
    train, test = MOTION.samples(folder, drives[10:]), MOTION.samples(folder, drives[:10])
    base = training.vector(training.network(MOTION, seed=0))
    assert 90_000 <= base.size <= 110_000
    # when
    trained = fine_tune(MOTION, base, train, TrainSettings(epochs=20), seed=0)
    # then
    assert trained.loss_after < 0.3 * trained.loss_before
    assert _ade(base + trained.delta, test) < 0.7 * _ade(base, test)


def _ade(weights: Floats, samples: Samples) -> float:
    model = training.network(MOTION, seed=0)
    training.load_vector(model, weights)
    with torch.no_grad():
        outputs = model(torch.from_numpy(samples.inputs)).numpy()
    total, count = MOTION.score(outputs, samples)["ADE"]
    return total / count
