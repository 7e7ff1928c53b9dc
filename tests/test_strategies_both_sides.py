"""Strategies from the vehicle's training to the next version: the real server and real vehicles, in memory."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import server_world as sw
from both_sides import Both, Pull

from fedfleet.fleet_server import store_updates
from fedfleet.fleet_server.schema import update
from fedfleet.models.task import Floats
from fedfleet.protocol.ids import UpdateId
from fedfleet.vehicle_agent.jobs import Job, Told
from fedfleet.vehicle_agent.vehicle import Vehicle

NAMES = tuple(f"v{n}" for n in range(9))
HOSTILE = ("v2", "v5")
ROUNDS = {"total": 4, "quorum": 7, "contributors": {"north": list(NAMES)}}


def lie(vehicle: str) -> Floats:
    """What the data of a vehicle say: the truth, or far from it."""
    return -20 * sw.TRUTH if vehicle in HOSTILE else sw.TRUTH


def world(folder: Path, *, target: Callable[[str], Floats] = lie, **server: object) -> Both:
    told: Mapping[str, object] = {
        "rounds": ROUNDS,
        "codec": {"index": "dense", "value": "int8"},
        "downlink": {"value": "float32"},
        "gate": {"tolerance": 1.0},
        **server,
    }
    return Both(folder, regions={"north": NAMES}, target=target, server=told)


def stored(both: Both) -> list[UpdateId]:
    with both.parts.store.read() as connection:
        return store_updates.pending(connection, round_=1, region="north")


def error(both: Both) -> float:
    vector = both.parts.coordinator.model.vector
    return float(np.linalg.norm(vector - sw.TRUTH) / np.linalg.norm(sw.TRUTH))


@pytest.mark.parametrize("index", ["dense", "common"])
@pytest.mark.parametrize("rule", ["median", "bulyan", "nnm-trimmed-mean", "multi-krum", "geometric-median"])
def test_two_liars_of_nine_cannot_keep_a_robust_rule_from_the_truth(
    tmp_path: Path, rule: str, index: str
) -> None:
    # given two vehicles that pull far away
    strategy = {"rule": rule, "server_learning_rate": 1.0, "hostile": 0.25}
    both = world(tmp_path, strategy=strategy, codec={"index": index, "value": "int8", "density": 0.5})
    # when four rounds are run
    both.run_until(lambda: both.version == 4)
    # then the model is near to what the others know
    assert error(both) < (0.15 if index == "dense" else 0.75)
    both.close()


def test_the_same_liars_do_not_stop_the_rule_that_is_the_default(tmp_path: Path) -> None:
    both = world(tmp_path, strategy={"server_learning_rate": 1.0}, gate={"tolerance": 1.0})
    both.run_until(lambda: both.version == 4)
    both.close()


def test_the_same_liars_are_left_out_of_the_mean_by_the_gate(tmp_path: Path) -> None:
    both = world(tmp_path, strategy={"rule": "mean", "server_learning_rate": 1.0}, gate={"tolerance": 1.0})
    for _ in range(100):
        both.turn()
    # the gate refuses what they make of the model, and takes what the others make
    with both.parts.store.read() as connection:
        query = "select distinct vehicle from \"update\" where fate = 'folded'"
        folded = set(connection.exec_driver_sql(query).scalars())
    assert folded == {*NAMES} - {*HOSTILE}
    both.close()


def test_who_a_rule_leaves_out_is_dropped_with_its_reason_and_the_others_are_folded(tmp_path: Path) -> None:
    # given Multi-Krum, which keeps seven of nine
    both = world(tmp_path, strategy={"rule": "multi-krum", "server_learning_rate": 1.0, "hostile": 0.25})
    both.run_until(lambda: both.version == 1)
    # then the settlement of the round tells of both, and the vehicles have heard it
    with both.parts.store.read() as connection:
        fates = store_updates.settled(connection, round_=1, region="north")
    found = {id_.vehicle: fate for id_, fate in fates.items()}
    assert {name: found[name] for name in HOSTILE} == dict.fromkeys(HOSTILE, ("dropped", "not-selected"))
    assert {found[name] for name in NAMES if name not in HOSTILE} == {("folded", "")}
    both.run_until(lambda: both.version == 4)
    liar, honest = both.vehicles["v2"], both.vehicles["v0"]
    assert liar.refusals["update-dropped-not-selected"] >= 3
    assert not [reason for reason in honest.refusals if reason.startswith("update-dropped")]
    both.close()


def test_a_server_that_dies_between_fold_and_merge_folds_to_the_same_bytes(tmp_path: Path) -> None:
    # given one run without, and one with the death of the server after every fourth turn
    strategy = {"rule": "nnm-trimmed-mean", "server_learning_rate": 1.0, "hostile": 0.25}
    undisturbed = world(tmp_path / "a", strategy=strategy)
    undisturbed.run_until(lambda: undisturbed.version == 4)
    killed = world(tmp_path / "b", strategy=strategy)
    deaths = 0
    while killed.version < 4 and deaths < 100:
        for _ in range(4):
            killed.turn()
        killed.broker.kill("fleet-server")
        killed.parts.close()
        killed.start_server()
        deaths += 1
    # then both end at the same bytes
    one, two = (each.parts.coordinator.model for each in (undisturbed, killed))
    assert (one.version, one.vector.tobytes()) == (two.version, two.vector.tobytes())
    assert deaths > 3
    undisturbed.close()
    killed.close()


@pytest.mark.parametrize("rotten", [2, 3])
def test_bytes_that_rot_in_the_store_are_dropped_and_too_few_for_the_rule_end_the_round(
    tmp_path: Path, rotten: int
) -> None:
    # given Bulyan, which needs seven updates, and nine stored ones of which some rot before the round closes
    strategy = {"rule": "bulyan", "server_learning_rate": 1.0}
    both = world(tmp_path, strategy=strategy, rounds=ROUNDS | {"total": 1})
    both.trainer.slow.add("v8")
    both.run_until(lambda: len(stored(both)) == 8)
    chosen = stored(both)[:rotten]
    with both.parts.store.write() as connection:
        for id_ in chosen:
            connection.execute(update.update().where(update.c.id == str(id_)).values(payload=b"rot"))
    # when the round closes
    both.trainer.slow.clear()
    both.run_until(lambda: not both.vehicles["v0"].state.outbox)
    # then the rotten ones are dropped; with seven left there is a version, with six the others are returned
    with both.parts.store.read() as connection:
        fates = store_updates.settled(connection, round_=1, region="north")
    assert sum(fate == ("dropped", "truncated") for fate in fates.values()) == rotten
    others = {fate for fate, why in fates.values() if why not in {"truncated", "not-selected"}}
    assert (both.version, others) == ((1, {"folded"}) if rotten == 2 else (0, {"returned"}))
    both.close()


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "fednova"])
def test_every_optimizer_comes_nearer_to_the_truth_and_its_state_survives_a_restart(
    tmp_path: Path, name: str
) -> None:
    more = {
        "fedavgm": {"momentum": 0.5, "server_learning_rate": 0.5},
        "fednova": {"server_learning_rate": 1.0},
    }
    strategy = {"name": name} | more.get(name, {"server_learning_rate": 0.3})
    both = world(tmp_path, target=lambda _: sw.TRUTH, strategy=strategy)
    first = error(both)
    both.run_until(lambda: both.version == 2)
    state = both.parts.coordinator.model.optimizer
    # when the server dies
    both.broker.kill("fleet-server")
    both.parts.close()
    both.start_server()
    # then its state is what it was, and the rounds go on
    again = both.parts.coordinator.model.optimizer
    assert {key: value.tobytes() for key, value in state.items()} == {
        key: value.tobytes() for key, value in again.items()
    }
    both.run_until(lambda: both.version == 4)
    assert error(both) < first
    both.close()


def errors_of_the_last_two_rounds(folder: Path, cooldown: float) -> tuple[float, float]:
    """How far from the truth a model is after the third and the fourth round of four."""
    strategy = {"server_learning_rate": 0.2, "cooldown": cooldown}
    both = world(folder, target=lambda _: sw.TRUTH, strategy=strategy)
    both.run_until(lambda: both.version == 3)
    third = error(both)
    both.run_until(lambda: both.version == 4)
    fourth = error(both)
    both.close()
    return third, fourth


def test_the_server_s_steps_become_smaller_in_the_cooldown_only(tmp_path: Path) -> None:
    # when the last two rounds are a cooldown, the first of them still makes a whole step
    plain = errors_of_the_last_two_rounds(tmp_path / "plain", 0.0)
    cooled = errors_of_the_last_two_rounds(tmp_path / "cooled", 0.5)
    # then only the last comes less near to the truth
    assert cooled[0] == plain[0]
    assert plain[1] < cooled[1] < cooled[0]


# --- SCAFFOLD ---


class Drifting(Pull):
    """A trainer that goes a part of the way to its vehicle's target, corrected as SCAFFOLD's steps are.

    The gradient of ½ ‖w − target‖² is w − target; the new control variate is the mean of those seen.
    """

    steps, rate = 8, 0.2

    def submit(self, job: Job) -> None:
        base, (own, server) = np.load(job.base), np.load(job.control)
        w, seen = base.astype(np.float64), np.zeros(base.size)
        for _ in range(self.steps):
            gradient = w - self.target(job.id.partition("/")[0])
            seen += gradient
            w -= self.rate * (gradient - own + server)
        found = np.stack([w - base, seen / self.steps - own]).astype(np.float32)
        np.save(job.out, found)
        self.told.append(Told(kind="done", id=job.id, steps=self.steps, examples=10))


def mean_of_controls(both: Both) -> Floats:
    """The mean of the vehicles' own control variates."""
    found = [each.parts.journal.controls(sw.SIZE)[0] for each in both.vehicles.values()]
    mean: Floats = np.mean(found, axis=0)
    return mean


def held_version(vehicle: Vehicle) -> int:
    base = vehicle.parts.journal.base
    return -1 if base is None else base.version


def scaffold(folder: Path, *, total: int, value: str) -> Both:
    targets = {name: sw.TRUTH + 3 * (-1) ** n * sw.TRUTH for n, name in enumerate(NAMES[:8])}
    both = Both(
        folder,
        regions={"north": NAMES[:8]},
        target=lambda name: targets[name],
        server={
            "strategy": {"name": "scaffold", "server_learning_rate": 1.0},
            "training": {"momentum": 0.0},
            "rounds": {"total": total, "quorum": 2, "contributors": {"north": list(NAMES[:8])}},
            "codec": {"index": "dense", "value": value},
            "downlink": {"value": "float32"},
            "gate": {"tolerance": 1.0},
        },
    )
    both.trainer = Drifting(lambda name: targets[name])
    both.fleet.stop()
    both.fleet = both.start_fleet()
    return both


@pytest.mark.parametrize("value", ["float32", "int8"])
def test_control_variates_of_server_and_vehicles_stay_in_step(tmp_path: Path, value: str) -> None:
    # given eight vehicles, half of which pull the other way
    both = scaffold(tmp_path, total=4, value=value)
    both.run_until(lambda: both.version == 4)
    both.run_until(lambda: not any(each.state.outbox for each in both.vehicles.values()))
    both.run_until(lambda: all(held_version(each) == 4 for each in both.vehicles.values()))
    # then the server's variate is the mean of theirs, as far as was carried, and is not zero
    control = both.parts.coordinator.model.optimizer["control"]
    assert np.allclose(control, mean_of_controls(both), atol=1e-5)
    assert np.abs(both.vehicles["v0"].parts.journal.controls(sw.SIZE)[0]).max() > 0.1
    # and what the vehicles hold of it is what the server has published
    for vehicle in both.vehicles.values():
        held = vehicle.parts.journal.controls(sw.SIZE)[1]
        assert held.tobytes() == control.astype(np.float32).tobytes()
    both.close()


def test_the_controls_survive_the_death_of_both_sides(tmp_path: Path) -> None:
    # given a run without, and one in which server and fleet die in every round
    undisturbed = scaffold(tmp_path / "a", total=3, value="int8")
    undisturbed.run_until(lambda: undisturbed.version == 3)
    killed = scaffold(tmp_path / "b", total=3, value="int8")
    for version in (1, 2, 3):
        killed.run_until(lambda version=version: killed.version == version)  # type: ignore[misc]
        killed.broker.kill("fleet-server")
        killed.parts.close()
        killed.start_server()
        killed.fleet.stop()
        killed.fleet = killed.start_fleet()
    one, two = (each.parts.coordinator.model for each in (undisturbed, killed))
    assert one.vector.tobytes() == two.vector.tobytes()
    assert one.optimizer["control"].tobytes() == two.optimizer["control"].tobytes()
    undisturbed.close()
    killed.close()


def test_updates_that_the_gate_refuses_move_no_control_variate(tmp_path: Path) -> None:
    # given a gate that takes no loss, and vehicles that all pull away from the truth
    both = scaffold(tmp_path, total=2, value="float32")
    both.trainer.target = lambda _: -50 * sw.TRUTH
    both.run_until(lambda: both.vehicles["v0"].refusals.get("update-returned-refused-by-gate", 0) == 2)
    # then neither side has moved
    assert not both.parts.coordinator.model.optimizer.get("control", np.zeros(1)).any()
    assert not mean_of_controls(both).any()
    both.close()
