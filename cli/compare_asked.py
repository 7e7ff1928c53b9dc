"""What a comparison does not do though it is asked for: each such key of the configuration is noted or refused. Pure.

A comparison makes its own fleet, so that the same seed gives the same model. Whoever configures a fleet for the road
and compares with the same file has to know which of its keys had no effect.
"""

from collections.abc import Mapping
from typing import Final

from fedfleet.cli.config import Settings
from fedfleet.cli.unheeded import BROKER, notes
from fedfleet.protocol.errors import UsageError

__all__ = ["check_asked", "unheeded"]

_WAITS: Final = "every round waits for all whom it asks, so that the same seed gives the same model"
_OUT: Final = "--out says where"
_OWN: Final = "the comparison makes and enrols its own vehicles"
_INSIDE: Final = "without --broker everything runs in this process"
_SPLIT: Final = "data.split_file says who has which drives"

_NEVER: Final[Mapping[str, str]] = {
    "work_dir": _OUT,
    "server.enrolment": _OWN,
    "server.rounds.total": "--rounds and --epochs say how many",
    "server.rounds.seed": "data.seed and --seed say it",
    "server.rounds.contributors": _OWN,
    **{
        f"server.rounds.{name}": _WAITS
        for name in (
            *("quorum", "deadline_s", "lease_s", "start_wait_s", "mode", "buffer", "max_staleness", "late"),
            *("below_quorum", "regions", "interval_s"),
        )
    },
    "server.training.epochs": "--epochs and --rounds say it",
    "agent.inference": "vehicles only train",
    "agent.personal": "heads of vehicles are not judged",
    "agent.variant": "the float32 model is judged",
}
_WITHOUT_BROKER: Final[Mapping[str, str]] = {
    "broker": _INSIDE,
    "server.metrics": _INSIDE,
    "server.logs": _INSIDE,
    **{
        f"agent.{name}": _INSIDE
        for name in (
            *(
                "nice",
                "trainer_policy",
                "trainer_cores",
                "trainer_memory_mb",
                "trainer_hang_s",
                "trainer_idle_s",
            ),
            *("training_budget_s", "training_limit_s", "checkpoint_s", "max_warm_trainers", "guard"),
            "inference_priority",
        )
    },
}
_WITH_BROKER: Final[Mapping[str, str]] = {
    f"broker.{name}": "--broker starts a broker of its own" for name in BROKER
}
_BY_SPLIT_FILE: Final[Mapping[str, str]] = {
    f"data.{name}": _SPLIT for name in ("vehicles_per_region", "partition", "regions", "validation", "test")
}


def check_asked(settings: Settings) -> None:
    """Raise UsageError for what would make the comparison's answer another one than it seems."""
    if settings.server.regional_heads:
        raise UsageError(
            "server.regional_heads: compare judges one model for all regions; leave the key out to compare, or measure "
            "heads with `fedfleet demo`"
        )


def unheeded(settings: Settings, *, broker: bool, test_folder: bool) -> tuple[str, ...]:
    """Name each key that is set and has no effect, with the reason: one line for all keys of one reason."""
    reasons = dict(_NEVER) | (dict(_WITH_BROKER) if broker else dict(_WITHOUT_BROKER))
    if settings.data.split_file is not None:
        reasons |= _BY_SPLIT_FILE
    elif settings.data.partition == "data":
        reasons["data.vehicles_per_region"] = "data.partition makes a vehicle of each region of the data"
    if test_folder:
        reasons["data.test"] = "all drives of --test are the test"
    return notes(settings, reasons)
