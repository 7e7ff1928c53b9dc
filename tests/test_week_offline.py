"""Three hundred vehicles that were switched off for a week of virtual time, over the memory link."""

from pathlib import Path
from typing import Any

import pytest
from server_world import TRUTH, Floats
from sim_fleet import VirtualFleet, VirtualTrainers
from sim_world import Template

from fedfleet.vehicle_agent import actions as act
from fedfleet.vehicle_agent import events as ev

WEEK_S = 7 * 24 * 3600.0
STAY = tuple(f"stay-{number:02d}" for number in range(4))


def train(vehicle: str, base: Floats, seed: int) -> tuple[Floats, int]:
    del vehicle, seed
    return (TRUTH - base) / 50, 64


class Trainers(VirtualTrainers):
    """Notes which rounds are trained for; the slow ones take 50 s, as long as ``slow`` says so."""

    def __init__(self, slow: set[str]) -> None:
        super().__init__(train, lambda vehicle: 50.0 if vehicle in slow else 0.0)
        self.rounds: dict[str, list[int]] = {}

    def submit(self, job: Any) -> None:
        vehicle, _, rest = job.id.partition("/")
        self.rounds.setdefault(vehicle, []).append(int(rest.split("-")[0]))
        super().submit(job)


def batched(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Thirty vehicles to a process: what a week has kept for them fits into its inbox."""
    return [names[start : start + 30] for start in range(0, len(names), 30)]


def week(folder: Path, *, count: int, rounds: int) -> dict[str, Any]:
    """Let ``count`` vehicles be away for a week of so many rounds, a third with an update that was never sent."""
    away = tuple(f"away-{number:03d}" for number in range(count))
    template = Template(folder / "template", regions={"north": (*away, *STAY)})
    slow = set(away[::3])
    every_s = WEEK_S / rounds
    pace = {"deadline_s": 100.0, "lease_s": 90.0, "quorum": 2, "interval_s": every_s, "keep_settlements": 3}
    trainers = Trainers(slow)
    with VirtualFleet(folder / "run", template, trainers, rounds=pace, names=STAY) as made:
        fleets = [made.join(names, Trainers(slow)) for names in batched(away)]
        for _ in range(5):  # round 1: all but the slow ones answer
            made.step(1.0)
        # when all that are away vanish, the slow ones with an update that nobody has got
        made.now_s += 60.0
        for fleet in fleets * 3:
            fleet.turn(0.0)
        pending = {
            vehicle.name
            for fleet in fleets
            for vehicle in fleet.vehicles
            if vehicle.state.outbox and not vehicle.state.outbox[0].stored
        }
        for fleet in fleets:
            made.vanish(fleet)
        for _ in range(rounds):
            for dt_s in (1.0, 1.0, every_s - 2.0):
                made.step(dt_s)
        newest = made.parts.coordinator.model.version
        # and come back
        others = [Trainers(slow) for _ in batched(away)]
        fleets = [made.join(names, own) for names, own in zip(batched(away), others, strict=True)]
        back = [vehicle for fleet in fleets for vehicle in fleet.vehicles]
        fetched: dict[str, list[int]] = {vehicle.name: [] for vehicle in back}
        for vehicle in back:
            vehicle.observer = _noting(fetched[vehicle.name])
        for _ in range(12):
            made.step(1.0)
        return {
            "newest": newest,
            "now": made.parts.coordinator.model.version,
            "pending": pending,
            "slow": slow,
            "bases": {vehicle.name: vehicle.parts.journal.base.version for vehicle in back},
            "fetched": fetched,
            "waiting": {vehicle.name: {each.round for each in vehicle.state.outbox} for vehicle in back},
            "refusals": {vehicle.name: dict(vehicle.refusals) for vehicle in back},
            "trained": {vehicle: rounds for own in others for vehicle, rounds in own.rounds.items()},
            "rounds": _rounds(made),
            "updates": _updates(made),
            "bytes_down": {vehicle.name: vehicle.bytes_down for vehicle in back},
        }


def _noting(versions: list[int]) -> Any:
    def observe(_event: ev.Event, _now_s: float, actions: tuple[act.Action, ...]) -> None:
        versions.extend(action.pointer.version for action in actions if isinstance(action, act.FetchBase))

    return observe


def _rounds(made: VirtualFleet) -> dict[int, str]:
    with made.parts.store.read() as connection:
        return dict(connection.exec_driver_sql("select round, state from round").all())


def _updates(made: VirtualFleet) -> list[tuple[str, int, str]]:
    query = 'select vehicle, round, fate from "update"'
    with made.parts.store.read() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query).all()]


@pytest.mark.parametrize(
    ("count", "rounds"),
    [(9, 14), pytest.param(300, 28, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_vehicles_that_were_away_for_a_week_have_the_newest_model_in_one_exchange(
    tmp_path: Path, count: int, rounds: int
) -> None:
    found = week(tmp_path, count=count, rounds=rounds)

    # given a week of rounds, and updates that were never sent
    assert found["newest"] >= rounds - 1
    slow = found["slow"]
    assert found["pending"] == slow
    # then every vehicle has the newest model by the first download, and only what came out since by another
    assert set(found["bases"].values()) <= {found["newest"], found["now"]}
    for fetched in found["fetched"].values():
        assert fetched[0] >= found["newest"]
        assert len(fetched) == len(set(fetched)) <= 1 + found["now"] - found["newest"]
    # and none trained for a round that was over
    open_ = max(found["rounds"])
    assert all(set(rounds) <= {open_} for rounds in found["trained"].values())
    # and no update of the round before the week is folded after it: what it learned is in the residual again
    folded = {vehicle for vehicle, round_, fate in found["updates"] if round_ == 1 and fate == "folded"}
    assert folded
    assert not folded & slow
    assert {name for name, rounds in found["waiting"].items() if 1 in rounds} == set()
    assert {name for name in slow if "update-returned-late" in found["refusals"][name]} == slow
