"""FedProx and SCAFFOLD on the vehicle, against plain gradient descent written from the papers."""

from pathlib import Path

import numpy as np
import pytest
import tiny_task
import torch

from fedfleet.models import prepared, training
from fedfleet.models.correction import Control
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats, Samples
from fedfleet.models.training import fine_tune
from fedfleet.protocol.errors import UsageError
from fedfleet.vehicle_agent.jobs import Job
from fedfleet.vehicle_agent.trainer import perform

TINY = tiny_task.TASK
PLAIN = TrainSettings(epochs=5, batch_size=65536, learning_rate=0.05, momentum=0, clip_norm=0)
"""Five steps, each on all samples: no chance in it."""
SCAFFOLD = PLAIN.model_copy(update={"correction": "scaffold"})


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    tiny_task.generate(tmp_path)
    return TINY.samples(tmp_path, [drive.key for drive in TINY.index(tmp_path).drives])


@pytest.fixture
def base() -> Floats:
    return training.vector(training.network(TINY, seed=0))


def gradient(weights: np.ndarray, samples: Samples) -> np.ndarray:
    """The gradient float64[M] of the task's loss at these weights, on all samples."""
    model = training.network(TINY, seed=0)
    training.load_vector(model, weights.astype(np.float32))
    outputs = model(torch.from_numpy(np.array(samples.inputs)))
    tiny_task.loss(outputs, torch.from_numpy(np.array(samples.targets))).backward()
    parts = [p.grad.reshape(-1).numpy() for p in model.parameters() if p.grad is not None]
    return np.concatenate(parts).astype(np.float64)


def some(seed: int, size: int, scale: float = 0.05) -> Floats:
    return np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)


# --- FedProx ---


@pytest.mark.parametrize("mu", [0.0, 0.3, 4.0])
def test_fedprox_descends_the_loss_and_the_pull_to_the_base(
    base: Floats, samples: Samples, mu: float
) -> None:
    # given gradient descent on loss + μ/2 ‖w − base‖², by hand
    w = base.astype(np.float64)
    for _ in range(5):
        w -= 0.05 * (gradient(w, samples) + mu * (w - base))
    # when
    trained = fine_tune(TINY, base, samples, PLAIN.model_copy(update={"proximal_mu": mu}), seed=1)
    # then
    assert np.allclose(trained.delta, w - base, rtol=1e-3, atol=2e-6)
    assert trained.control is None


def test_a_larger_mu_stays_nearer_to_the_base(base: Floats, samples: Samples) -> None:
    settings = TrainSettings(epochs=10, learning_rate=0.05)
    far, near = (
        np.linalg.norm(
            fine_tune(TINY, base, samples, settings.model_copy(update={"proximal_mu": mu}), seed=1).delta
        )
        for mu in (0.0, 2.0)
    )
    assert near < 0.8 * far


def test_the_pull_is_part_of_what_is_clipped(base: Floats, samples: Samples) -> None:
    # given a pull that would throw the weights far, and gradients bounded to 0.1
    settings = PLAIN.model_copy(update={"proximal_mu": 1e4, "clip_norm": 0.1})
    trained = fine_tune(TINY, base, samples, settings, seed=1)
    assert np.linalg.norm(trained.delta) <= 5 * 0.05 * 0.1 * (1 + 1e-5)


# --- SCAFFOLD ---


def test_scaffold_corrects_every_step_and_returns_option_two(base: Floats, samples: Samples) -> None:
    # given control variates, and the paper's algorithm by hand
    own, server = some(1, base.size), some(2, base.size)
    x, y = base.astype(np.float64), base.astype(np.float64)
    for _ in range(5):
        y -= 0.05 * (gradient(y, samples) - own + server)
    fresh = own - server + (x - y) / (5 * 0.05)
    # when
    trained = fine_tune(TINY, base, samples, SCAFFOLD, seed=1, control=Control(own, server))
    # then
    assert trained.control is not None
    assert np.allclose(trained.delta, y - x, rtol=1e-3, atol=2e-6)
    assert np.allclose(trained.control, fresh - own, rtol=1e-3, atol=2e-5)


def test_the_new_control_variate_is_the_mean_gradient_also_with_clipping_and_a_schedule(
    base: Floats, samples: Samples
) -> None:
    # given one step only, with a bounded gradient
    settings = SCAFFOLD.model_copy(update={"max_steps": 1, "clip_norm": 0.01, "schedule": "cosine"})
    own, server = some(1, base.size), some(2, base.size)
    trained = fine_tune(TINY, base, samples, settings, seed=1, control=Control(own, server))
    # then c⁺ is that gradient, whatever the variates were
    g = gradient(base, samples)
    clipped = g * 0.01 / np.linalg.norm(g)
    assert trained.control is not None
    assert np.allclose(own + trained.control, clipped, atol=1e-5)


def test_without_control_variates_the_steps_are_those_of_plain_sgd(base: Floats, samples: Samples) -> None:
    zero = np.zeros_like(base)
    plain = fine_tune(TINY, base, samples, PLAIN, seed=1)
    corrected = fine_tune(TINY, base, samples, SCAFFOLD, seed=1, control=Control(zero, zero))
    assert corrected.delta.tobytes() == plain.delta.tobytes()


def test_no_step_moves_no_control_variate(base: Floats, samples: Samples) -> None:
    control = Control(some(1, base.size), some(2, base.size))
    trained = fine_tune(TINY, base, samples, SCAFFOLD, seed=1, control=control, should_stop=lambda: True)
    assert trained.control is not None
    assert not trained.control.any()


@pytest.mark.parametrize(
    ("changes", "given", "text"),
    [
        ({}, False, "control variate: correction is scaffold, got none"),
        ({"correction": "none"}, True, "control variate: correction is none, got one"),
        ({"momentum": 0.5}, True, "expected sgd with momentum 0, got sgd with momentum 0.5"),
        ({"optimizer": "adam"}, True, "expected sgd with momentum 0, got adam"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    base: Floats, samples: Samples, changes: dict[str, object], given: bool, text: str
) -> None:
    control = Control(some(1, base.size), some(2, base.size)) if given else None
    with pytest.raises(UsageError, match=text):
        fine_tune(TINY, base, samples, SCAFFOLD.model_copy(update=changes), seed=1, control=control)


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.full(49, np.nan, np.float32)])
def test_a_control_variate_of_another_size_or_not_finite_is_refused(
    base: Floats, samples: Samples, wrong: Floats
) -> None:
    with pytest.raises(UsageError, match=r"own control variate: expected finite float32\[49\]"):
        fine_tune(TINY, base, samples, SCAFFOLD, seed=1, control=Control(wrong, np.zeros_like(base)))


def test_scaffold_removes_the_drift_between_unlike_vehicles(base: Floats, samples: Samples) -> None:
    # given two vehicles with the two halves of the samples by their target, so that each drifts its own way
    order = np.argsort(samples.targets[:, 0])
    halves = [
        Samples(samples.inputs[rows], samples.targets[rows], samples.judged[rows])
        for rows in np.array_split(order, 2)
    ]
    settings = SCAFFOLD.model_copy(update={"epochs": 30, "learning_rate": 0.1})

    def run(rounds: int, *, corrected: bool) -> Floats:
        x, c = base.copy(), np.zeros_like(base)
        own = [np.zeros_like(base) for _ in halves]
        for _ in range(rounds):
            trained = [
                fine_tune(TINY, x, half, settings, seed=1, control=Control(mine, c))
                for half, mine in zip(halves, own, strict=True)
            ]
            x = x + sum(each.delta for each in trained) / 2
            if corrected:
                own = [mine + each.control for mine, each in zip(own, trained, strict=True)]
                c = sum(own) / 2
        return x

    # when both run as long
    plain, corrected = run(60, corrected=False), run(60, corrected=True)
    # then the gradient over all samples is smaller where SCAFFOLD ends
    assert np.linalg.norm(gradient(corrected, samples)) < 0.5 * np.linalg.norm(gradient(plain, samples))


# --- the trainer's job ---


def test_a_job_with_control_variates_writes_the_delta_and_the_step(tmp_path: Path, samples: Samples) -> None:
    # given a prepared folder, the base, and both control variates as files
    meta = prepared.Meta(
        task=TINY.name,
        task_version=TINY.version,
        drives=("somewhere/d0",),
        parts=("train",),
        counts={"train_samples": len(samples), "train_judged": len(samples)},
        problems={},
    )
    prepared.write(tmp_path / "data", meta, samples={"train": samples})
    weights = training.vector(training.network(TINY, seed=0))
    controls = np.stack([some(1, weights.size), some(2, weights.size)])
    np.save(tmp_path / "base.npy", weights)
    np.save(tmp_path / "control.npy", controls)
    job = Job(
        id="a",
        task="tiny_task:TASK",
        data_dir=str(tmp_path / "data"),
        base=str(tmp_path / "base.npy"),
        settings=SCAFFOLD.model_dump(),
        seed=1,
        out=str(tmp_path / "out.npy"),
        control=str(tmp_path / "control.npy"),
    )
    # when the trainer does it
    told = perform(job, lambda _: None)
    # then the file has both
    assert (told.kind, told.reason) == ("done", "")
    expected = fine_tune(TINY, weights, samples, SCAFFOLD, seed=1, control=Control(*controls))
    assert expected.control is not None
    assert np.load(tmp_path / "out.npy").tobytes() == np.stack([expected.delta, expected.control]).tobytes()
    # and without them it fails with one clear word
    told = perform(job.model_copy(update={"control": ""}), lambda _: None)
    assert (told.kind, told.reason) == ("failed", "bad-job")
    assert "correction is scaffold, got none" in told.detail
