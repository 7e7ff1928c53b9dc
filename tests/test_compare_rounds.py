"""How many rounds the budget of a comparison allows."""

import pytest

from fedfleet.cli.compare import chosen
from fedfleet.cli.compare_settings import ArmSettings, Rounds
from fedfleet.cli.config import Settings
from fedfleet.protocol.errors import UsageError


def arms(**changed: object) -> ArmSettings:
    """Arms whose vehicles train with batches of 8."""
    federated = ArmSettings().federated.model_copy(update={"training": {"batch_size": 8}})
    return ArmSettings.model_validate({"federated": federated, **changed})


def test_whole_passes_do_not_depend_on_the_data() -> None:
    assert arms(epochs=7, local_epochs=2).rounds([10, 1000]) == Rounds(3, 2)
    assert arms(epochs=7, local_epochs=2).local_training() == {"batch_size": 8, "epochs": 2}


def test_rounds_of_batches_fill_the_budget_of_all_samples_together() -> None:
    # 4 passes over 611 samples are 76 rounds in which two vehicles take 2 batches of 8; a round is a part of a pass
    found = arms(epochs=4, local_steps=2)
    assert found.rounds([487, 124]) == Rounds(76, 32 / 611)
    assert found.rounds([124, 487]).passes * 76 <= 4
    assert found.local_training() == {"batch_size": 8, "epochs": 4, "max_steps": 2}
    assert arms(epochs=4, local_steps=2, most_rounds=5).rounds([487, 124]) == Rounds(5, 32 / 611)


@pytest.mark.parametrize(("asked", "data"), [(77, [487, 124]), (None, [3, 3])])
def test_more_rounds_than_the_budget_are_refused(asked: int | None, data: list[int]) -> None:
    with pytest.raises(UsageError, match=f"expected at most .* in 4 passes over {sum(data)} samples"):
        arms(epochs=4, local_steps=2, most_rounds=asked).rounds(data)


@pytest.mark.parametrize(("training", "steps"), [({"batch_size": 8}, 1), ({"max_steps": 5}, 5)])
def test_a_configured_training_says_itself_how_many_batches_a_round_takes(
    training: dict[str, int], steps: int
) -> None:
    settings = Settings.model_validate({"task": "camera_steering", "server": {"training": training}})
    found = chosen(settings, rounds=None, epochs=3)
    assert (found.local_steps, found.epochs) == (steps, 3)
    assert found.local_training() == {**training, "epochs": 3, "max_steps": steps}
