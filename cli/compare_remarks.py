"""What a reader of a comparison has to know besides the figures, and when there is nothing to compare. Pure."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from fedfleet.cli.compare_data import Data
from fedfleet.cli.compare_federation import Federated
from fedfleet.fleet_server.initial import Export
from fedfleet.models import layout
from fedfleet.protocol.errors import UsageError

__all__ = ["check_published", "remarks"]


def check_published(end: Mapping[str, Any], *, why: str) -> None:
    """Raise UsageError when no round of the federated arm has published a version: then nothing was federated.

    ``why`` is the server's reason for the last of these rounds.
    """
    if end["rounds_published"]:
        return
    told = f"; the last was refused: {why}" if why else ""
    raise UsageError(
        f"the federated arm published no version in {end['rounds_run']} rounds, so there is nothing to compare{told}. "
        "Try a smaller learning rate, more --epochs, or a larger server.gate.tolerance"
    )


def remarks(data: Data, first: Export, together: Federated, *, asked: int) -> list[str]:
    """Return what is remarkable about how the federated arm went."""
    found = []
    told: Mapping[str, str] = getattr(data.task, "tensors", {})
    names = [
        name
        for name in layout.read(first.layout_json).statistics
        if not any(fnmatchcase(name, pattern) for pattern in told)
    ]
    if names:
        found.append(f"{', '.join(names)}: running statistics, sent whole in every update and averaged")
    if asked < len(data.vehicles):
        found.append(
            f"{asked} of {len(data.vehicles)} vehicles were asked in each round, as many of each region"
        )
    refused = together.end["rounds_run"] - together.end["rounds_published"]
    if refused:
        found.append(
            f"{refused} of {together.end['rounds_run']} rounds of the federated arm published no version: the gate "
            "refused them, or too few updates came"
        )
    if together.version == 0:
        found.append(
            "the federated model that is judged is version 0, the first model: no version that was published is "
            "better on the validation drives"
        )
    return found
