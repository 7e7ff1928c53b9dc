"""Which version of the federated model a comparison judges: the best on validation, as the server itself scored it.

The other arms choose their pass on the same drives. Version 0, the first model, takes part; the earlier wins a tie.
"""

from pathlib import Path

from fedfleet.cli.compare_arms import Judged, loss
from fedfleet.fleet_server import store_models, store_rounds
from fedfleet.fleet_server.store import open_reader
from fedfleet.models.task import Task

__all__ = ["Choice", "last_refusal"]


def last_refusal(folder: Path) -> str:
    """Return why the newest round that published nothing did not, in the server's words; empty without one."""
    store = open_reader(folder)
    try:
        with store.read() as connection:
            settled = store_rounds.live_settlements(connection)
    finally:
        store.close()
    return next((one.reason for one in reversed(settled) if one.outcome == "abandoned" and one.reason), "")


class Choice:
    """Looks at the server's folder from time to time and keeps the best model file; ``look`` misses no version.

    (The server keeps the files of its newest versions, so many may come between two looks.)
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self._folder, self._task = folder, task
        self._next = 0
        self._best = float("inf")
        self.version = 0
        self.model = b""

    def look(self) -> None:
        """Take account of the versions that have come since the last look."""
        store = open_reader(self._folder)
        try:
            with store.read() as connection:
                newest = store_models.newest_version(connection)
                scores = store_models.all_scores(connection)
        finally:
            store.close()
        while newest is not None and self._next <= newest:
            file = self._folder / "models" / f"{self._next}.onnx"
            if not file.is_file():
                return  # stored and scored, but not yet written
            value = loss(Judged(scores[self._next], {}), self._task.metrics[0])
            if value < self._best or not self.model:
                self._best, self.version, self.model = value, self._next, file.read_bytes()
            self._next += 1
