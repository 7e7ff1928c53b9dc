"""Regional heads: the arithmetic, and server and vehicles with regions that learn different things."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import server_world as sw
from both_sides import Both
from sqlalchemy import select

from fedfleet.codec.parts import Part, Parts
from fedfleet.codec.payload import decode
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server import schema, store_check, store_heads, store_models, store_vehicles
from fedfleet.fleet_server.announcements import pointer
from fedfleet.fleet_server.assembly import prepare
from fedfleet.fleet_server.downlink import step
from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.heads import Regional, begin, move
from fedfleet.fleet_server.strategies import fedavg
from fedfleet.models import bundle, layout
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.messages import Segment

Make = Callable[..., Both]
HEAD = sw.INPUTS * sw.OUTPUTS  # the bias is the head
PARTS = Parts(10, (Part("body", ((0, 4), (7, 10))), Part("head", ((4, 7),))))
SETTINGS = Settings("rice", "int8", 0.5)


# --- the arithmetic ---


def vectors(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=10)


def regional(**changes: object) -> Regional:
    error = np.random.default_rng(5).normal(size=10).astype(np.float32)
    one = Regional(vectors(1).astype(np.float32), error, {"momentum": np.ones(3)}, 4)
    return replace(one, **changes)  # type: ignore[arg-type]


def test_the_body_moves_as_shared_and_the_head_by_the_regions_own_aggregate() -> None:
    # given a shared update and what one region has folded
    one, shared, aggregate = regional(), vectors(2), Aggregate(vectors(3), weight=5.0, count=2)
    made = move(one, aggregate, shared, strategy=fedavg(2.0, 0.5), parts=PARTS, settings=SETTINGS)
    # then it is the step of both, and the momentum is the head's
    head = PARTS.coordinates("head")
    wanted = shared.copy()
    wanted[head] = 2.0 * (0.5 * np.ones(3) + aggregate.mean[head])
    expected = step(one.vector, one.error, wanted, SETTINGS, parts=PARTS)
    assert made.step.payload == expected.payload
    assert (made.step.x_next == expected.x_next).all()
    assert np.allclose(made.optimizer["momentum"], 0.5 + aggregate.mean[head])
    assert made.has_moved


def test_all_regions_bodies_are_one_to_the_last_bit() -> None:
    shared = vectors(2)
    regions = begin(
        ["b", "a"], vector=vectors(1).astype(np.float32), error=np.zeros(10, np.float32), optimizer={},
        parts=PARTS, version=0,
    )  # fmt: skip
    made = {
        name: move(
            one,
            Aggregate(vectors(i), weight=1.0, count=1),
            shared,
            strategy=fedavg(),
            parts=PARTS,
            settings=SETTINGS,
        )
        for i, (name, one) in enumerate(regions.items(), 10)
    }
    body = PARTS.coordinates("body")
    for what in ("x_next", "error_next"):
        a, b = (getattr(made[name].step, what) for name in "ab")
        assert a[body].tobytes() == b[body].tobytes()
        assert a.tobytes() != b.tobytes()


def test_a_region_without_an_aggregate_keeps_its_head_and_what_it_still_owes() -> None:
    one, head = regional(), PARTS.coordinates("head")
    made = move(one, None, vectors(2), strategy=fedavg(1.0, 0.5), parts=PARTS, settings=SETTINGS)
    assert (made.step.x_next[head] == one.vector[head]).all()
    assert (made.step.error_next[head] == one.error[head]).all()
    assert made.optimizer is one.optimizer
    assert not made.has_moved
    change = decode(made.step.payload, size=10, parts=PARTS).delta.dense()
    assert (one.vector + change).tobytes() == made.step.x_next.tobytes()


def test_heads_begin_with_the_shared_model_and_its_state() -> None:
    found = begin(
        ["south", "north"], vector=vectors(1).astype(np.float32), error=vectors(2).astype(np.float32),
        optimizer={"momentum": np.arange(10.0), "steps": np.array([3.0])}, parts=PARTS, version=7,
    )  # fmt: skip
    assert list(found) == ["north", "south"]
    assert found["north"].optimizer["momentum"].tolist() == [4.0, 5.0, 6.0]
    assert found["north"].optimizer["steps"].tolist() == [3.0]
    assert found["north"].head_version == 7


# --- server and vehicles ---

TRUTHS = {"north": sw.TRUTH, "south": sw.TRUTH + np.r_[np.zeros(HEAD), [4, -4, 2]].astype(np.float32)}
HEADS = {"regional_heads": ["b"], "gate": {"tolerance": 1.0}}


def target(vehicle: str) -> np.ndarray:
    return TRUTHS["north" if vehicle.startswith("n") else "south"]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Both] = []

    def one(*, heads: bool = True, **changes: object) -> Both:
        if heads:
            with_head(tmp_path)
        made.append(Both(tmp_path, target=target, **{"server": HEADS, **changes}))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for each in made:
        each.close()


def with_head(folder: Path) -> None:
    """Write the export with the bias as a head, as the export process does when asked for heads."""
    export = folder / "server" / "export"
    sw.write_export(export)
    told = layout.read((export / "layout.json").read_bytes())
    (export / "layout.json").write_bytes(
        told.model_copy(update={"rules": ("body:sparse", "head:sparse")}).to_json()
    )
    sw.write_validation(folder / "validation", sw.REGIONS)


def bases(both: Both) -> dict[str, np.ndarray]:
    return {v.name: v.parts.journal.base_vector for v in both.fleet.vehicles}  # type: ignore[misc]


def follows(both: Both) -> bool:
    """Whether every vehicle holds its region's published vector, and drives its region's file."""
    regions = both.parts.coordinator.model.regions
    return all(
        vector is not None
        and sha256(vector.tobytes()).hexdigest() == regions[both.vehicles[name].state.region].vector_sha256
        and drives(both, name) == regions[both.vehicles[name].state.region].onnx_sha256
        for name, vector in bases(both).items()
    )


def drives(both: Both, vehicle: str) -> str:
    released = both.vehicles[vehicle].parts.journal.released("active")
    return "" if released is None else released.onnx_sha256


def test_each_region_gets_the_shared_body_and_learns_its_own_head(make: Make) -> None:
    both = make()
    both.run_until(lambda: both.version == 3 and follows(both))
    model = both.parts.coordinator.model
    north, south = model.regions["north"].vector, model.regions["south"].vector
    # then the bodies are the same bits, as in the shared model, and the heads go their own ways
    assert north[:HEAD].tobytes() == south[:HEAD].tobytes() == model.vector[:HEAD].tobytes()
    for region, vector in (("north", north), ("south", south)):
        own, other = TRUTHS[region][HEAD:], TRUTHS["south" if region == "north" else "north"][HEAD:]
        assert np.abs(vector[HEAD:] - own).sum() < 0.5 * np.abs(vector[HEAD:] - other).sum()
    # and the store is whole, until a blob of a region holds another vector
    with both.parts.store.write() as connection:
        assert store_check.problems(connection) == []
        wrong = bundle.pack_vector(south)
        connection.execute(
            schema.blob.update()
            .where(schema.blob.c.sha256 == model.regions["north"].full_sha256)
            .values(data=wrong)
        )
        found = store_check.problems(connection)
        assert any("version 3 of north: the published blob holds another vector" in line for line in found)
        own = {"data": bundle.pack_vector(north)}
        connection.execute(
            schema.blob.update()
            .where(schema.blob.c.sha256 == model.regions["north"].full_sha256)
            .values(**own)
        )
    # and the files that each region's vehicles run are those that were scored
    assert not any(vehicle.refusals for vehicle in both.fleet.vehicles)
    files = {
        name: (both.folder / "server" / f"model-{name}.onnx").read_bytes() for name in ("north", "south")
    }
    assert {name: sha256(data).hexdigest() for name, data in files.items()} == {
        name: one.onnx_sha256 for name, one in model.regions.items()
    }


def test_pointers_name_the_segments_with_the_version_at_which_each_moved(make: Make) -> None:
    # given a south that is silent, so that its rounds are abandoned
    rounds = {"total": 3, "quorum": 2, "deadline_s": 5.0, "lease_s": 3.0, "start_wait_s": 2.0}
    both = make(server={**HEADS, "rounds": rounds})
    both.trainer.slow.update(("s-0", "s-1"))
    both.run_until(lambda: both.version == 3)
    # then its head stands still while the body moves on, and its vehicles follow
    with both.parts.store.read() as connection:
        told = {name: pointer(connection, task="t", region=name, version=3) for name in sw.REGIONS}
    size = sw.SIZE - HEAD
    for name, moved in (("north", 3), ("south", 0)):
        assert told[name].segments == (
            Segment(name="body", offset=0, size=HEAD, version=3),
            Segment(name=f"head:{name}", offset=HEAD, size=size, version=moved),
        )
        assert told[name].is_regional
    regions = both.parts.coordinator.model.regions
    assert (regions["south"].vector[HEAD:] == 0).all()
    assert (regions["south"].vector[:HEAD] == regions["north"].vector[:HEAD]).all()
    both.run_until(lambda: follows(both))


def test_a_refused_version_leaves_every_region_as_it_was(make: Make) -> None:
    # given a gate that takes nothing that is worse, and vehicles that learn the wrong way
    both = make(server={**HEADS, "gate": {"tolerance": 0.0}, "strategy": {"server_learning_rate": 40.0}})
    both.run_until(lambda: both.parts.coordinator.store is not None and rounds_over(both) == 3)
    model = both.parts.coordinator.model
    assert model.version == 0
    with both.parts.store.read() as connection:
        stored = store_models.newest_model(connection)
    assert stored is not None
    for one in stored.regions.values():
        assert not one.error.any()
        assert (one.vector == model.vector).all()


def rounds_over(both: Both) -> int:
    with both.parts.store.read() as connection:
        states = connection.execute(select(schema.round_.c.state)).scalars().all()
    return sum(state in {"published", "abandoned"} for state in states) // len(sw.REGIONS)


def test_a_server_that_starts_again_goes_on_with_the_same_heads(make: Make) -> None:
    both = make(
        server={**HEADS, "strategy": {"name": "fedavgm", "momentum": 0.5, "server_learning_rate": 1.0}}
    )
    both.run_until(lambda: both.version == 2)
    before = both.parts.coordinator.model
    both.parts.close()
    both.broker.kill("fleet-server")
    both.start_server()
    after = both.parts.coordinator.model
    for name, one in before.regions.items():
        again = after.regions[name]
        assert again.vector.tobytes() == one.vector.tobytes()
        assert again.error.tobytes() == one.error.tobytes()
        assert again.optimizer["momentum"].tobytes() == one.optimizer["momentum"].tobytes()
        assert (again.head_version, again.onnx_sha256) == (one.head_version, one.onnx_sha256)
    assert set(after.optimizer) == {"momentum"}
    both.run_until(lambda: both.version == 3 and follows(both))


def test_a_vehicle_that_moves_counts_where_its_plan_was_and_then_follows_its_new_region(make: Make) -> None:
    # given a vehicle that trains while it is put into another region
    rounds = {"total": 4, "quorum": 1, "deadline_s": 8.0, "lease_s": 8.0, "start_wait_s": 30.0}
    both = make(server={**HEADS, "rounds": rounds})
    both.trainer.slow.add("n-1")
    both.run_until(lambda: both.vehicles["n-1"].state.training)
    with both.parts.store.write() as connection:
        key = both.vehicles["n-1"].parts.journal.key.public
        store_vehicles.enrol(connection, "n-1", region="south", public_key=key, now_s=both.now_s)
    both.trainer.slow.clear()
    both.run_until(lambda: both.version >= 1)
    # then that update was folded in the region of its plan
    with both.parts.store.read() as connection:
        table = schema.update
        query = select(table.c.region, table.c.fate).where(table.c.vehicle == "n-1", table.c.round == 1)
        assert connection.execute(query).all() == [("north", "folded")]
    # and it follows its new region with that region's model
    both.run_until(
        lambda: both.vehicles["n-1"].state.region == "south" and both.version == 4 and follows(both)
    )


def test_a_store_with_one_model_for_all_gets_heads_that_begin_with_it(make: Make) -> None:
    both = make(server={"gate": {"tolerance": 1.0}, "rounds": total(2)})
    both.run_until(lambda: both.version == 2)
    shared = both.parts.coordinator.model
    assert not shared.regions
    both.parts.close()
    both.broker.kill("fleet-server")
    both.config = sw.configuration(both.folder, **{**HEADS, "rounds": total(4)})
    both.start_server()
    found = both.parts.coordinator.model.regions
    assert {name: one.vector.tobytes() for name, one in found.items()} == dict.fromkeys(
        sw.REGIONS, shared.vector.tobytes()
    )
    both.run_until(lambda: both.version == 4 and follows(both))
    # and there is no way back to one model
    both.parts.close()
    without = sw.configuration(both.folder, rounds=total(4))
    with pytest.raises(
        UsageError, match=r"has heads of its regions \(b\), got none; configure them again, or begin"
    ):
        prepare(without, now_s=0.0, draw=lambda n: b"k" * n)
    both.start_server()


def test_other_heads_than_the_stored_models_are_refused(make: Make) -> None:
    both = make(server={"gate": {"tolerance": 1.0}, "rounds": total(1)}, heads=False)
    both.run_until(lambda: both.version == 1)
    both.parts.close()
    both.broker.kill("fleet-server")
    with pytest.raises(UsageError, match="made with head tensors none, expected b; put the setting back"):
        prepare(sw.configuration(both.folder, **HEADS), now_s=0.0, draw=lambda n: b"k" * n)
    both.start_server()


def total(rounds: int) -> dict[str, object]:
    listed = {name: list(vehicles) for name, vehicles in sw.REGIONS.items()}
    return {"total": rounds, "quorum": 1, "contributors": listed}


def test_a_region_that_is_new_begins_with_the_shared_model(make: Make) -> None:
    both = make()
    both.run_until(lambda: both.version == 3)
    with both.parts.store.read() as connection:
        assert set(store_heads.digests(connection, 3)) == {"north", "south"}
    both.parts.close()
    both.broker.kill("fleet-server")
    sw.write_validation(both.folder / "other", ("east",))
    (both.folder / "other" / "east").rename(both.folder / "validation" / "east")
    regions = {**sw.REGIONS, "east": ("e-0",)}
    both.config = sw.configuration(
        both.folder, regions=regions, **{**HEADS, "rounds": {"total": 3, "quorum": 1}}
    )
    both.start_server()
    model = both.parts.coordinator.model
    assert model.regions["east"].vector.tobytes() == model.vector.tobytes()


def test_scaffold_and_regional_heads_do_not_go_together(tmp_path: Path) -> None:
    with_head(tmp_path)
    strategy = {"name": "scaffold"}
    with pytest.raises(ValueError, match="regional_heads: expected none with strategy scaffold"):
        sw.configuration(tmp_path, **{**HEADS, "strategy": strategy, "training": {"momentum": 0.0}})
