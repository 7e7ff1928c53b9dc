"""What can be chosen about the arms of a comparison, and how many rounds fit into their budget."""

from collections.abc import Collection
from dataclasses import dataclass
from math import floor
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field

from fedfleet.fleet_server.config import (
    CodecConfig,
    DownlinkConfig,
    RoundsConfig,
    ServerSettings,
    StrategyConfig,
)
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Task
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.messages import Setting

__all__ = ["ArmSettings", "Rounds"]

# Chosen on validation drives of motion forecasting, other splits than those that are reported: `benchmarks/search.py`.
_CENTRALISED: Final = TrainSettings(batch_size=64, learning_rate=0.05, schedule="cosine", augment="mirror")
_ON_SITE: Final = TrainSettings(batch_size=64, learning_rate=0.15, schedule="cosine", augment="mirror")
_FEDERATED: Final = ServerSettings(
    rounds=RoundsConfig(total=1),  # the budget says how many
    codec=CodecConfig(density=0.05),
    downlink=DownlinkConfig(density=0.2),
    strategy=StrategyConfig(server_learning_rate=1.0),
    training={"batch_size": 64, "learning_rate": 0.2, "augment": "mirror-speed"},
    learning_rate_schedule="cosine",
)


@dataclass(frozen=True)
class Rounds:
    """The rounds of the federated arm, and how many passes over all training samples together each of them takes."""

    count: int
    passes: float


class ArmSettings(BaseModel):
    """Everything about the arms that can be chosen: one frozen value, so that a search can vary it.

    ``epochs`` E is the budget of every arm: it learns from at most E times as many samples as there are training
    samples. A round takes ``local_epochs`` passes of every vehicle over its own, or ``local_steps`` batches of each,
    whatever its data: then vehicles with few samples pass over theirs more often than E times and those with many
    less often, and ``most_rounds``, if given, says how many of the rounds that the budget allows are run. ``epochs``
    of the TrainSettings inside is ignored. A round asks all vehicles, or a share of them all (``participation``), or
    ``share_wanted`` of each region: always as many of each region, at least one, drawn anew for each round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=60, ge=1, le=10_000)
    local_epochs: int = Field(default=1, ge=1, le=1000)
    local_steps: int = Field(default=0, ge=0, le=100_000)
    most_rounds: int | None = Field(default=None, ge=1, le=1_000_000)
    participation: float | None = Field(default=None, gt=0, le=1)
    share_wanted: int | None = Field(default=None, ge=1)
    centralised: TrainSettings = _CENTRALISED
    on_site: TrainSettings = _ON_SITE
    federated: ServerSettings = _FEDERATED

    def local_training(self) -> dict[str, Setting]:
        """Return what a vehicle is told of its training in each round."""
        if self.local_steps:
            return {**self.federated.training, "epochs": self.epochs, "max_steps": self.local_steps}
        return {**self.federated.training, "epochs": self.local_epochs}

    def wanted(self, regions: Collection[int]) -> int | None:
        """Return how many vehicles of each region a round asks, for regions of so many; None: all."""
        if self.participation is None or self.participation == 1:
            return self.share_wanted if self.participation is None else None
        return max(1, round(self.participation * sum(regions) / len(regions)))

    def rounds(self, samples: Collection[int], *, asked: int | None = None) -> Rounds:
        """Return the rounds that fit into the budget of vehicles with so many training samples each.

        ``asked`` of them take part in a round (None: all); their samples are then counted as the mean. Raises
        UsageError when ``most_rounds`` do not fit.
        """
        every, asked = sum(samples), len(samples) if asked is None else asked
        if self.local_steps:
            batch = TrainSettings.model_validate(self.local_training()).batch_size
            passes = self.local_steps * batch * asked / every
        else:
            passes = self.local_epochs * asked / len(samples)
        fit = floor(self.epochs / passes + 1e-9)
        count = fit if self.most_rounds is None else self.most_rounds
        if not 0 < count <= fit:
            told = f"{every} samples, of which {asked} vehicles train on {passes * every:.0f} a round"
            raise UsageError(
                f"{max(count, 1)} rounds: expected at most {fit} in {self.epochs} passes over {told}"
            )
        return Rounds(count, passes)

    def offered(self, task: Task) -> Self:
        """Return the same, without augmentation when the task offers none."""
        if hasattr(task, "augment"):
            return self
        plain = {"augment": "none"}
        training = {name: value for name, value in self.federated.training.items() if name != "augment"}
        return self.model_copy(
            update={
                "centralised": self.centralised.model_copy(update=plain),
                "on_site": self.on_site.model_copy(update=plain),
                "federated": self.federated.model_copy(update={"training": training}),
            }
        )
