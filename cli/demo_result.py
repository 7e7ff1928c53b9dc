"""What the demo measured, gathered after its last round: from the server's store, the vehicles and the test drives."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedfleet.cli.claims import Claim, Outcome
from fedfleet.cli.data import test_dir
from fedfleet.cli.demo_fleet import SABOTEUR, DemoFleet
from fedfleet.cli.demo_scenes import Intrusion, KilledServer, KilledVehicle, Scene
from fedfleet.cli.versions import versions
from fedfleet.fleet_server import store_updates
from fedfleet.fleet_server.store import open_reader
from fedfleet.models import prepared, scoring
from fedfleet.models import task as tasks

__all__ = ["Scenes", "collect", "write_json"]


@dataclass(frozen=True)
class Scenes:
    """The scenes that were played; None for those that were not."""

    vehicle: KilledVehicle | None
    intrusion: Intrusion | None
    server: KilledServer | None

    def present(self) -> list[Scene]:
        """Return those that are played."""
        return [scene for scene in (self.vehicle, self.intrusion, self.server) if scene is not None]


def collect(
    fleet: DemoFleet,
    end: Mapping[str, Any],
    scenes: Scenes,
    *,
    rounds: int,
    first_round_s: float,
    seconds: float,
) -> Outcome:
    """Return everything that the demo measured; ``end`` is the last snapshot."""
    task = tasks.load(fleet.settings.task)
    model = (fleet.server_dir / "model.onnx").read_bytes()
    scores, baseline = _test(fleet, task, model)
    folded = _folded(fleet, end)
    inference = end["inference"]
    vehicles = {name: one for name, one in end["vehicles"].items() if name != SABOTEUR}
    return Outcome(
        task=task.name,
        metric=task.metrics[0].name,
        unit=task.metrics[0].unit,
        lower_is_better=task.metrics[0].better == "lower",
        rounds_asked=rounds,
        rounds_run=end["rounds_run"],
        rounds_published=end["rounds_published"],
        seconds=seconds,
        first_round_s=first_round_s,
        scores=scores,
        baseline=baseline,
        updates=end["updates"],
        bytes_up=sum(region["bytes_up"] for region in end["regions"].values()),
        dense_bytes_up=end["updates"] * end["parameters"] * 4,
        bytes_down=sum(region["bytes_down"] for region in end["regions"].values()),
        frames=inference["frames"],
        missed=inference["missed"],
        missed_in_swap=inference["missed_in_swap"],
        swaps=inference["swaps"],
        p50_ms=inference["p50_ms"] or 0.0,
        p99_ms=inference["p99_ms"] or 0.0,
        vehicles=len(vehicles),
        on_last_release=sum(one["active_version"] == end["released"] for one in vehicles.values()),
        agent_rss_bytes=max(_rss_bytes(vehicles[name]) for name in fleet.agents),
        model_sha256=sha256(model).hexdigest(),
        released_sha256=end["released_sha256"],
        killed=scenes.vehicle.result() if scenes.vehicle else None,
        refused=scenes.intrusion.result(folded) if scenes.intrusion else (),
        resumed=scenes.server.result() if scenes.server else None,
        history=end["history"],
        rounds=end["rounds"],
        versions=versions(),
    )


def write_json(path: Path, outcome: Outcome, claims: Sequence[Claim]) -> None:
    """Write the report for programs."""
    content = {"format": 1, **outcome.as_json(), "claims": [asdict(claim) for claim in claims]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _rss_bytes(vehicle: Mapping[str, Any]) -> int:
    return int(vehicle.get("metrics", {}).get("rss_bytes", 0))


def _test(fleet: DemoFleet, task: tasks.Task, model: bytes) -> tuple[dict[str, float], dict[str, float]]:
    """Return the primary metric by region on the test drives, of the model and of the trivial baseline."""
    primary = task.metrics[0].name
    scores, baseline = {}, {}
    session = scoring.new_session(model)
    for region in fleet.regions:
        samples = prepared.open(test_dir(fleet.settings) / region, "test")
        total, count = scoring.score(session, task, samples)[primary]
        scores[region] = total / count
        total, count = task.score(task.baseline(samples.inputs), samples)[primary]
        baseline[region] = total / count
    return scores, baseline


def _folded(fleet: DemoFleet, end: Mapping[str, Any]) -> frozenset[str]:
    """Return the ids of all updates that are in a model."""
    store = open_reader(fleet.server_dir)
    try:
        with store.read() as connection:
            fates = [
                store_updates.settled(connection, round_=row["round"], region=row["region"])
                for row in end["rounds"]
            ]
    finally:
        store.close()
    return frozenset(str(name) for found in fates for name, (fate, _) in found.items() if fate == "folded")
