"""What must hold in every simulated run, whatever happened: checked while it goes on, and at its end."""

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from server_world import SIZE
from sim_scenario import Scenario
from sim_world import Floats, Machine, Sim, Template

from fedfleet.codec import payload
from fedfleet.fleet_server import store_rounds
from fedfleet.protocol import update
from fedfleet.protocol.envelope import peek

__all__ = ["Outcome", "Violation", "simulate"]

FINAL = ("published", "abandoned", "carried")
MOST_S, CALM_S = 45.0, 400.0
STEPS_S = (0.1, 1.0, 2.0, 4.0)
ATOL = 2e-5


class Violation(AssertionError):  # noqa: N818 - what the reader looks for
    """An invariant does not hold."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to: a digest over everything that was stored, and how often what happened."""

    digest: str
    counts: Counter[str]


def demand(condition: object, what: str) -> None:
    """Raise Violation unless the condition holds."""
    if not condition:
        raise Violation(what)


@dataclass
class Watch:
    """Looks at the store after every step. Times are seconds of the simulation."""

    sim: Sim
    deadlines: dict[tuple[int, str], float] = field(default_factory=dict)
    alive_since_s: float | None = None
    ticks: Counter[tuple[int, str]] = field(default_factory=Counter)
    version: int = 0
    is_over: bool = False

    def look(self) -> None:
        """Check what must hold at every moment."""
        sim = self.sim
        if sim.parts is None:
            self.alive_since_s = None
            self.ticks.clear()
            return
        restarted = self.alive_since_s is None
        self.alive_since_s = sim.now_s if restarted else self.alive_since_s
        with sim.parts.store.read() as connection:
            rows = connection.exec_driver_sql(
                "select round, region, state from round order by round, region"
            ).all()
            for number, region, state in rows:
                one = None
                if state not in FINAL and (restarted or (number, region) not in self.deadlines):
                    one = store_rounds.find(connection, number=number, region=region)
                if one is not None:
                    left_s = one.plan.deadline_s - max(sim.server_s, one.plan.opened_at_s)
                    self.deadlines[number, region] = sim.now_s + left_s
            (version,) = connection.exec_driver_sql("select max(version) from model").one()
        demand(version >= self.version, f"version {version} after {self.version}")
        self.version = version
        for number, region, state in rows:
            key = (number, region)
            if state not in FINAL and key in self.deadlines and sim.now_s >= self.deadlines[key]:
                self.ticks[key] += 1
                what = f"round {number} of {region} is {state} {sim.now_s - self.deadlines[key]:.1f} s after its end"
                demand(self.ticks[key] < 3, what)
        self.is_over = self._over(rows)

    def next_s(self) -> float:
        """Return when the next deadline is."""
        return min((at_s for at_s in self.deadlines.values() if at_s > self.sim.now_s), default=float("inf"))

    def _over(self, rows: Any) -> bool:
        newest = {region: (number, state) for number, region, state in rows}
        total = self.sim.config.rounds.total
        return len(newest) == len(self.sim.config.regions) and all(
            number == total and state in FINAL for number, state in newest.values()
        )


def simulate(scenario: Scenario, template: Template, folder: Path) -> Outcome:
    """Run a scenario; Violation, naming the seed, when something that must hold does not."""
    sim = Sim(scenario, template, folder)
    try:
        watch = Watch(sim)
        _run(sim, watch)
        _final(sim)
        return Outcome(_digest(sim), sim.counts)
    except Violation as error:
        raise Violation(f"seed {scenario.seed}: {error}") from error
    finally:
        sim.close()


def _run(sim: Sim, watch: Watch) -> None:
    sim.start_server()
    while sim.now_s < MOST_S and not watch.is_over:
        sim.step(min(sim.chance.choice(STEPS_S), max(watch.next_s() - sim.now_s, 0.01)))
        watch.look()
    sim.calm()
    sim.step(0.01, is_calm=True)
    watch.look()
    ends_s = sim.now_s + CALM_S
    while not watch.is_over:
        sim.step(min(1.0, max(watch.next_s() - sim.now_s, 0.01)), is_calm=True)
        watch.look()
        demand(sim.now_s < ends_s, "the rounds come to a halt")
    for _ in range(30):
        sim.step(1.0, is_calm=True)
        if _all_current(sim, watch.version):
            break


def _all_current(sim: Sim, version: int) -> bool:
    """Tell whether every vehicle trains from the newest version, and nobody waits for a word about an update."""
    states = [
        machine.fleet.vehicles[0].state for machine in sim.machines.values() if machine.fleet is not None
    ]
    return all(
        state.base is not None
        and state.base.version == version
        and state.release is None
        and state.pointer is None
        and not state.outbox
        for state in states
    )


def _final(sim: Sim) -> None:
    demand(sim.parts is not None, "the server is not there at the end")
    assert sim.parts is not None
    with sim.parts.store.read() as connection:
        query = connection.exec_driver_sql
        updates = query('select id, vehicle, round, region, fate, reason from "update"').mappings().all()
        members = query(
            "select m.update_id, m.round, m.region, r.state from member m "
            "join round r on r.round = m.round and r.region = m.region"
        ).all()
        models = {row[0]: row[1] for row in query("select version, onnx_sha256 from model order by version")}
        releases = {row[0]: row[1] for row in query("select number, version from release order by number")}
        odd = query("select reason, detail from quarantine where reason != 'outlier'").all()
    demand(not odd, f"an honest vehicle was refused: {odd[:1]}")
    demand(list(models) == list(range(len(models))), f"versions {list(models)}")
    _check_fates(updates, members)
    fates = {row["id"]: row["fate"] for row in updates}
    for machine in sim.machines.values():
        sim.note(machine)
        _check_words(machine, fates)
        _check_residual(machine)
        _check_models(machine, models, releases)
    sim.counts.update(f"fate {row['fate']} {row['reason']}" for row in updates)
    rounds = {row["id"]: row["round"] for row in updates}
    sim.counts["folded when older"] = sum(
        state == "published" and rounds[id_] != number for id_, number, _, state in members
    )
    sim.counts["runs"] = 1
    sim.counts["updates"] = len(updates)
    sim.counts["versions"] = len(models) - 1


def _check_fates(updates: Any, members: Any) -> None:
    left_out = {row["id"] for row in updates if row["reason"] == "outlier"}
    folded: Counter[str] = Counter(
        id_ for id_, _, _, state in members if state == "published" and id_ not in left_out
    )
    claimed = {id_ for id_, _, _, _ in members}
    by_vehicle: Counter[tuple[str, int]] = Counter()
    for row in updates:
        id_, fate = row["id"], row["fate"]
        demand(fate in {"folded", "returned", "dropped"}, f"update {id_} has fate {fate} at the end")
        demand(
            folded[id_] == (fate == "folded"), f"update {id_} is {fate} and was folded {folded[id_]} times"
        )
        by_vehicle[row["vehicle"], row["round"]] += fate == "folded"
    demand(claimed <= {row["id"] for row in updates}, "a member is not stored")
    double = [key for key, times in by_vehicle.items() if times > 1]
    demand(not double, f"counted twice: {double}")
    votes = Counter((number, region, id_.partition(":")[0]) for id_, number, region, _ in members)
    many = [key for key, times in votes.items() if times > 1]
    demand(not many, f"several votes in one fold: {many}")


def _check_words(machine: Machine, fates: dict[str, str]) -> None:
    """What the vehicle believes of an update is what the server decided."""
    assert machine.fleet is not None
    open_ = {pending.update for pending in machine.fleet.vehicles[0].parts.journal.outbox}
    for id_ in machine.journaled:
        if id_ in open_:
            continue
        demand(id_ in machine.told, f"{machine.name}: update {id_} is gone without a word")
        fate, reason = machine.told[id_]
        if reason != "no-word":
            wanted = fates.get(id_, "returned")  # never stored: refused for a reason that returns it
            demand(
                fate == wanted,
                f"{machine.name}: update {id_} is {wanted}, the vehicle took it as {fate} ({reason})",
            )


def _check_residual(machine: Machine) -> None:
    """All that was learned was sent, or is in the residual; what was returned is there again, once.

    But for what the gate refused: the next training from the same version learns it again.
    """
    assert machine.fleet is not None
    journal = machine.fleet.vehicles[0].parts.journal
    open_ = {pending.update for pending in journal.outbox}
    wanted = np.zeros(SIZE)
    for id_, (round_, sealed) in machine.journaled.items():
        sent = _decoded(sealed, machine.name)
        wanted += machine.ledger[round_] - sent
        if id_ not in open_:
            fate, reason = machine.told[id_]
            wanted += sent if fate == "returned" and reason != "refused-by-gate" else 0
    off = float(np.abs(journal.residual(SIZE) - wanted).max())
    demand(off < ATOL, f"{machine.name}: the residual is off by {off:.2g}")


def _decoded(sealed: bytes, sender: str) -> Floats:
    header = peek(sealed, limit_bytes=len(sealed))
    _, body = update.unpack(sealed[header.body_start :], sender=sender)
    return payload.decode(body, size=SIZE).delta.dense()


def _check_models(machine: Machine, models: dict[int, str], releases: dict[int, int]) -> None:
    assert machine.fleet is not None
    journal = machine.fleet.vehicles[0].parts.journal
    released, base = journal.released("active"), journal.base
    demand(released is not None, f"{machine.name}: nothing drives")
    assert released is not None
    demand(releases.get(released.number) == released.version, f"{machine.name}: drives with no release")
    demand(models[released.version] == released.onnx_sha256, f"{machine.name}: drives with other bytes")
    demand(
        released.number == max(releases),
        f"{machine.name}: release {released.number} of {max(releases)} drives",
    )
    demand(base is not None and base.version == max(models), f"{machine.name}: base {base} of {max(models)}")
    demand(machine.bases == sorted(machine.bases), f"{machine.name}: bases {machine.bases}")
    demand(machine.releases == sorted(machine.releases), f"{machine.name}: releases {machine.releases}")


def _digest(sim: Sim) -> str:
    """SHA-256 over all rows of the store and of the journals."""
    assert sim.parts is not None
    digest = sha256()
    with sim.parts.store.read() as connection:
        names = connection.exec_driver_sql(
            "select name from sqlite_master where type = 'table' order by name"
        )
        for (name,) in names.all():
            rows = connection.exec_driver_sql(f'select * from "{name}"').all()  # noqa: S608 (our own table)
            digest.update(repr(sorted(repr(tuple(row)) for row in rows)).encode())
    for machine in sim.machines.values():
        assert machine.fleet is not None
        journal = machine.fleet.vehicles[0].parts.journal
        digest.update(journal.residual(SIZE).tobytes() + repr(journal.outbox).encode())
    return digest.hexdigest()
