"""Strategies from the vehicle's training to the next version: the real server and real vehicles, in memory."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import server_world as sw
from both_sides import Both

from fedfleet.fleet_server import store_updates
from fedfleet.fleet_server.schema import update
from fedfleet.models.task import Floats
from fedfleet.protocol.ids import UpdateId

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


def test_the_same_liars_ruin_the_mean(tmp_path: Path) -> None:
    both = world(tmp_path, strategy={"server_learning_rate": 1.0}, gate={"tolerance": 1.0})
    for _ in range(100):
        both.turn()
    # the gate refuses what they make of the model
    assert both.version == 0
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
