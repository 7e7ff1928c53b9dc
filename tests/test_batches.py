"""How a pass is cut into batches, and what a batch norm needs of them."""

import pytest
from test_tensors import samples, task

from fedfleet.fleet_server.export import export
from fedfleet.models import batches
from fedfleet.models.settings import TrainSettings
from fedfleet.models.training import TrainingError, fine_tune
from fedfleet.protocol.errors import UsageError


@pytest.mark.parametrize(
    ("size", "most", "wanted"),
    [
        (36, 35, [(0, 36)]),
        (71, 35, [(0, 35), (35, 71)]),
        (72, 35, [(0, 35), (35, 70), (70, 72)]),
        (35, 35, [(0, 35)]),
        (1, 35, [(0, 1)]),
        (3, 2, [(0, 3)]),
        (3, 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_a_rest_of_one_joins_the_batch_before(size: int, most: int, wanted: list[tuple[int, int]]) -> None:
    found = [batches.bounds(number, size, most) for number in range(batches.count(size, most))]
    assert found == wanted
    assert batches.seen(len(found), size, most) == size
    assert (batches.smallest(size, most) == 1) == (min(end - start for start, end in wanted) == 1)


@pytest.mark.parametrize("count", [33, 65, 2, 3, 34])
def test_a_batch_norm_trains_on_any_number_of_samples_but_one(count: int) -> None:
    made = export(task("Norm"), seed=0)
    trained = fine_tune(task("Norm"), made.initial, samples(count), TrainSettings(batch_size=32), seed=1)
    assert trained.examples == count
    assert trained.steps == 2 * batches.count(count, 32)


def test_one_sample_and_batches_of_one_are_refused_in_words() -> None:
    made = export(task("Norm"), seed=0)
    needs = r"expected at least 2 in a batch for norm \(BatchNorm1d\)"
    with pytest.raises(TrainingError, match=f"1 sample to train on, {needs}"):
        fine_tune(task("Norm"), made.initial, samples(1), TrainSettings(), seed=1)
    with pytest.raises(UsageError, match=f"batch_size 1: {needs}"):
        fine_tune(task("Norm"), made.initial, samples(9), TrainSettings(batch_size=1), seed=1)
    with pytest.raises(TrainingError, match="no samples to train on"):
        fine_tune(task("Norm"), made.initial, samples(0), TrainSettings(), seed=1)
    # a network without statistics of batches takes what there is
    plain = export(task("Plain"), seed=0)
    fine_tune(task("Plain"), plain.initial, samples(1), TrainSettings(batch_size=1), seed=1)


def test_batches_that_memory_makes_smaller_leave_no_rest_of_one() -> None:
    assert [batches.fitting(10, most) for most in (4, 3, 9, 12)] == [4, 2, 8, 12]
    assert batches.fitting(7, 1) == 1
