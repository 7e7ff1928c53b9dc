"""Augmentation: mirrored and faster traffic is sound traffic, drawn from the seed, and never trained on by surprise."""

from typing import Literal

import numpy as np
import pytest
import tiny_task
import torch

from fedfleet.cli.compare_settings import ArmSettings
from fedfleet.models import training
from fedfleet.models.augment_motion_forecast import augment
from fedfleet.models.motion_forecast import TASK as MOTION
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats, Samples, Task
from fedfleet.models.training import fine_tune
from fedfleet.protocol.errors import UsageError

MIRROR = torch.tensor([1.0, -1.0])
Kind = Literal["mirror", "mirror-speed"]
KINDS: tuple[Kind, ...] = ("mirror", "mirror-speed")


def _chance(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _tracks(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    chance = _chance(1)
    return torch.randn(count, 20, 2, generator=chance), torch.randn(count, 30, 2, generator=chance)


@pytest.fixture
def base() -> Floats:
    return training.vector(training.network(MOTION, seed=0))


@pytest.fixture
def samples() -> Samples:
    histories, futures = _tracks()
    return Samples(histories.numpy(), futures.numpy(), np.ones(len(histories), dtype=np.bool_))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_types_stay_and_the_given_samples_too(kind: Kind) -> None:
    histories, futures = _tracks()
    copies = histories.clone(), futures.clone()
    varied, ahead = augment(histories, futures, kind=kind, chance=_chance())
    assert (varied.shape, ahead.shape) == (histories.shape, futures.shape)
    assert (varied.dtype, ahead.dtype) == (torch.float32, torch.float32)
    assert torch.equal(histories, copies[0])
    assert torch.equal(futures, copies[1])


def test_each_sample_is_itself_or_its_exact_mirror_about_half_of_them_each() -> None:
    histories, futures = _tracks()
    varied, ahead = augment(histories, futures, kind="mirror", chance=_chance())
    mirrored = (varied == histories * MIRROR).flatten(1).all(1)
    same = (varied == histories).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    assert 60 < int(mirrored.sum()) < 140
    assert torch.equal(ahead[mirrored], (futures * MIRROR)[mirrored])
    assert torch.equal(ahead[same], futures[same])


def test_a_mirrored_sample_mirrored_again_is_the_first() -> None:
    histories, futures = _tracks()
    once = augment(histories, futures, kind="mirror", chance=_chance())
    twice = augment(*once, kind="mirror", chance=_chance())
    assert torch.equal(twice[0], histories)
    assert torch.equal(twice[1], futures)


def test_speed_scales_history_and_future_by_one_factor_within_a_tenth() -> None:
    histories, futures = _tracks()
    varied, ahead = augment(histories, futures, kind="mirror-speed", chance=_chance())
    factor = varied[:, :1, :1] / histories[:, :1, :1]
    assert 0.9 <= float(factor.min()) < 0.92
    assert 1.08 < float(factor.max()) <= 1.1 + 1e-6
    torch.testing.assert_close(varied.abs(), (histories * factor).abs())
    torch.testing.assert_close(ahead.abs(), (futures * factor).abs())


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_train_to_equal_bytes_and_other_kinds_to_others(
    base: Floats, samples: Samples, kind: Kind
) -> None:
    settings = TrainSettings(epochs=2, augment=kind)
    first, again = (fine_tune(MOTION, base, samples, settings, seed=7) for _ in range(2))
    plain = fine_tune(MOTION, base, samples, TrainSettings(epochs=2), seed=7)
    assert first.delta.tobytes() == again.delta.tobytes()
    assert fine_tune(MOTION, base, samples, settings, seed=8).delta.tobytes() != first.delta.tobytes()
    assert plain.delta.tobytes() != first.delta.tobytes()
    assert first.loss_before == plain.loss_before


@pytest.mark.parametrize("kind", ["mirror-light", "mirror-shift"])
def test_tracks_are_not_varied_as_images_are(kind: Literal["mirror-light", "mirror-shift"]) -> None:
    with pytest.raises(
        UsageError, match=f"task motion_forecast offers no augmentation {kind}: expected mirror"
    ):
        augment(*_tracks(), kind=kind, chance=_chance())


def test_a_task_without_augmentation_refuses_it_in_one_line() -> None:
    tiny = tiny_task.TASK
    start = training.vector(training.network(tiny, seed=0))
    shapes = tiny.specification.input_shape, tiny.specification.output_shape
    inputs, targets = (np.zeros((8, *shape), dtype=np.float32) for shape in shapes)
    few = Samples(inputs, targets, np.ones(8, dtype=np.bool_))
    with pytest.raises(UsageError, match=r"^task \S+ offers no augmentation, asked for mirror$"):
        fine_tune(tiny, start, few, TrainSettings(augment="mirror"), seed=1)


@pytest.mark.parametrize(("task", "kinds"), [(MOTION, {"mirror"}), (tiny_task.TASK, {"none"})])
def test_a_comparison_augments_every_arm_where_the_task_offers_it(task: Task, kinds: set[str]) -> None:
    training = {**ArmSettings().federated.training, "augment": "mirror"}
    federated = ArmSettings().federated.model_copy(update={"training": training})
    alone = TrainSettings(augment="mirror")
    arms = ArmSettings(centralised=alone, on_site=alone, federated=federated).offered(task)
    sent = TrainSettings.model_validate(dict(arms.federated.training))
    assert {arms.centralised.augment, arms.on_site.augment, sent.augment} == kinds
