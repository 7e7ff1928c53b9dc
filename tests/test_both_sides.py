"""What server and vehicles must agree about, with both sides real: coordinates by plan, budgets, catching up."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import server_world as sw
from both_sides import Both
from sqlalchemy import select

from fedfleet.codec.payload import decode
from fedfleet.fleet_server import schema
from fedfleet.protocol.errors import PeerError

Make = Callable[..., Both]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Both] = []

    def one(**changes: object) -> Both:
        made.append(Both(tmp_path, **changes))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for each in made:
        each.close()


def payloads(both: Both) -> list[bytes]:
    with both.parts.store.read() as connection:
        return list(connection.execute(select(schema.update.c.payload)).scalars())


def same_base(both: Both) -> bool:
    """Whether every vehicle holds the published vector, to the last bit."""
    expected = both.parts.coordinator.model
    return all(
        (base := vehicle.parts.journal.base) is not None
        and base.version == expected.version
        and sha256((vehicle.parts.journal.base_vector).tobytes()).hexdigest() == expected.vector_sha256  # type: ignore[union-attr]
        for vehicle in both.fleet.vehicles
    )


@pytest.mark.parametrize("value", ["int8", "float32"])
def test_coordinates_by_plan_are_the_same_on_both_sides_and_do_not_travel(make: Make, value: str) -> None:
    # given plans that name a fifth of the coordinates, anew each round
    both = make(server={"codec": {"index": "common", "value": value, "density": 0.2, "seeded": 0.4}})
    # when three rounds ran
    both.run_until(lambda: both.version == 3)
    both.run_until(lambda: same_base(both))
    # then every update was folded, and none can be read without the plan
    assert not any(vehicle.refusals for vehicle in both.fleet.vehicles)
    stored = payloads(both)
    assert len(stored) == 3 * 5
    for data in stored:
        with pytest.raises(PeerError, match="unexpected-mode"):
            decode(data, size=sw.SIZE)
    # and the model learned
    learned = np.linalg.norm(both.parts.coordinator.model.vector - sw.TRUTH)
    assert learned < 0.9 * np.linalg.norm(sw.TRUTH)


def test_a_server_that_turns_to_common_coordinates_lets_vehicles_fetch_the_step(
    make: Make, tmp_path: Path
) -> None:
    # given a version that vehicles took in full: no delta was cheaper
    own = {"downlink": {"value": "float32"}, "rounds": rounds(total=2)}
    both = make(server=own)
    both.run_until(lambda: both.version == 2)
    both.run_until(lambda: same_base(both))
    assert not any(vehicle.parts.journal.base_step for vehicle in both.fleet.vehicles)
    # when the server starts again with other plans
    both.parts.close()
    both.broker.kill("fleet-server")
    codec = {"index": "common", "value": "int8", "density": 0.3}
    both.config = sw.configuration(tmp_path, **{**own, "rounds": rounds(total=4), "codec": codec})
    both.start_server()
    # then its rounds go on
    both.run_until(lambda: both.version == 4)
    assert not any(vehicle.refusals for vehicle in both.fleet.vehicles)


def rounds(*, total: int) -> dict[str, object]:
    listed = {name: list(vehicles) for name, vehicles in sw.REGIONS.items()}
    return {"total": total, "quorum": 1, "contributors": listed}


def test_a_late_update_by_plan_comes_back_whole(make: Make) -> None:
    # given a vehicle whose training ends when its round is over and it holds the next base
    free = {"total": 1, "quorum": 2, "deadline_s": 9.0, "lease_s": 9.0, "start_wait_s": 30.0}
    both = make(server={"rounds": free, "codec": {"index": "common", "value": "int8", "density": 0.3}})
    both.trainer.slow.add("n-2")
    both.run_until(lambda: both.version == 1)
    late = both.vehicles["n-2"].parts
    both.run_until(lambda: late.journal.base is not None and late.journal.base.version == 1)
    # when it comes
    both.trainer.slow.clear()
    both.run_until(lambda: late.tuning.trainings == 1 and not late.journal.outbox)
    # then what its plan's coordinates carried is in the residual again, with the rest
    assert np.allclose(late.journal.residual(sw.SIZE), sw.TRUTH * 0.5, atol=1e-6)


@pytest.mark.parametrize("links", [{"metered": {"budget_bytes": 256}}])
def test_a_budget_holds_for_the_sealed_update(make: Make, links: dict[str, object]) -> None:
    both = make(
        server={"codec": {"index": "dense", "value": "float32", "links": links}},
        agent={"link_classes": {"n-0": "metered"}},
    )
    both.run_until(lambda: both.version == 1)
    assert 0 < both.vehicles["n-0"].parts.tuning.update_bytes <= 256
    assert both.vehicles["n-1"].parts.tuning.update_bytes > 256
    assert both.vehicles["n-0"].parts.tuning.update_codec.startswith("dense int8")
