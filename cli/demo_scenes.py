"""The faults of the demo, each a scene with its own small script: it waits for its cue, acts once, then watches.

``step`` is called with every new snapshot. A scene that is done has written down what happened, for the claims.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fedfleet.cli import demo_intruder
from fedfleet.cli.claims import Killed, Refused, Resumed
from fedfleet.cli.demo_fleet import SABOTEUR, DemoFleet
from fedfleet.fleet_server import store_updates
from fedfleet.fleet_server.store import open_reader
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.signing import SigningKey

__all__ = ["Intrusion", "KilledServer", "KilledVehicle", "Scene"]

Snapshot = Mapping[str, Any]
Tell = Callable[[str], None]
STRANGER = "stranger"
_SERVER_PAUSE_S = 1.0
_TRIES = 3


class Scene(Protocol):
    """A fault with its script."""

    is_done: bool

    def step(self, snapshot: Snapshot) -> None:
        """Look at the newest snapshot and go on with the script when it is time."""


class KilledVehicle:
    """Kill -9 of one agent process in mid-round; it is started again after that round has closed without it.

    Rounds can be shorter than a second: when its update was already on its way, the scene is played again; so it
    is when a busy machine kept the other vehicles of the region from making a quorum.
    """

    def __init__(self, fleet: DemoFleet, vehicle: str, *, cue_round: int, tell: Tell) -> None:
        self._fleet, self._vehicle, self._cue, self._tell = fleet, vehicle, cue_round, tell
        self._region = fleet.region_of(vehicle)
        self._spare = fleet.settings.server.rounds.quorum  # without the vehicle there must still be a quorum
        self._exit_status: int | None = None
        self._round = 0
        self._closed: Mapping[str, Any] | None = None
        self._back_in: int | None = None
        self._tries_left = _TRIES
        self.is_done = False

    def step(self, snapshot: Snapshot) -> None:
        """Kill, wait for the close, start again, wait for the next update that is folded."""
        rows = [row for row in snapshot["rounds"] if row["region"] == self._region]
        if self._exit_status is None:
            self._kill_when_open(rows, snapshot)
        elif self._closed is None:
            self._restart_when_closed(rows)
        else:
            later = [
                row["round"]
                for row in rows
                if row["round"] > self._round and self._vehicle in row["contributors"]
            ]
            self._back_in = min(later, default=None)
            self.is_done = self._back_in is not None

    def result(self) -> Killed:
        """Return what happened; a scene that never came to its end has no exit status -9 to show."""
        closed = self._closed or {"reason": "never", "contributors": ()}
        return Killed(
            self._vehicle,
            self._exit_status or 0,
            self._round,
            closed["reason"],
            self._vehicle in closed["contributors"],
            self._back_in,
        )

    def _kill_when_open(self, rows: Sequence[Mapping[str, Any]], snapshot: Snapshot) -> None:
        row = next((row for row in rows if row["state"] == "open" and row["round"] >= self._cue), None)
        region = snapshot["regions"][self._region]
        if row is None or self._vehicle in region["received_from"] or region["target"] <= self._spare:
            return
        self._round = row["round"]
        self._exit_status = self._fleet.kill(self._vehicle)
        self._tell(
            f"killed (-9) the process of {self._vehicle} in round {self._round}: the round must close without it"
        )

    def _restart_when_closed(self, rows: Sequence[Mapping[str, Any]]) -> None:
        row = next((row for row in rows if row["round"] == self._round and row["state"] != "open"), None)
        if row is None:
            return
        self._fleet.start_agent(self._vehicle)
        is_early, is_void = self._vehicle in row["contributors"], row["state"] == "abandoned"
        if (is_early or is_void) and self._tries_left:
            self._tries_left -= 1
            self._exit_status, self._cue = None, self._round + 2
            why = "its update was already on its way" if is_early else "too few others were done in time"
            self._tell(f"round {self._round} proves nothing, {why}; {self._vehicle} is started again")
            return
        self._closed = row
        self._tell(f"round {self._round} closed by {row['reason']}; {self._vehicle} is started again")


class Intrusion:
    """A corrupt update of an enrolled vehicle, and a perfectly signed one of a stranger, through the broker."""

    def __init__(self, fleet: DemoFleet, *, cue_round: int, stranger: SigningKey, tell: Tell) -> None:
        self._fleet, self._cue, self._stranger, self._tell = fleet, cue_round, stranger, tell
        self._sent: dict[str, UpdateId] = {}
        self._found: dict[str, str] = {}
        self.is_done = False

    def step(self, snapshot: Snapshot) -> None:
        """Send both once a round is open, then wait for the reasons that the server records."""
        if not self._sent:
            region = self._fleet.regions[0]
            row = next(
                (r for r in snapshot["rounds"] if r["region"] == region and r["state"] == "open"), None
            )
            if row is not None and row["round"] >= self._cue:
                self._send(row, snapshot)
            return
        self._found = {row["vehicle"]: row["reason"] for row in snapshot["quarantine"]}
        self.is_done = {SABOTEUR, STRANGER} <= set(self._found)

    def result(self, folded: frozenset[str]) -> tuple[Refused, ...]:
        """Return what was recorded; ``folded`` are the update ids that are in any model."""
        what = {
            SABOTEUR: "a corrupt update of an enrolled vehicle",
            STRANGER: "a stranger's perfectly signed update",
        }
        expected = {SABOTEUR: "digest-mismatch", STRANGER: "unknown-sender"}
        return tuple(
            Refused(what[who], expected[who], self._found.get(who, ""), str(self._sent.get(who)) in folded)
            for who in what
        )

    def _send(self, row: Mapping[str, Any], snapshot: Snapshot) -> None:
        settings = self._fleet.settings
        target = demo_intruder.target(settings.fleet, row, snapshot)
        for who, key in ((SABOTEUR, self._fleet.saboteur), (STRANGER, self._stranger)):
            self._sent[who], sealed = demo_intruder.sealed_update(who, key, target)
            bad = demo_intruder.corrupt(sealed) if who == SABOTEUR else sealed
            demo_intruder.send(settings.broker, who, bad, target)
        self._tell(
            f"sent a corrupt update and a stranger's update in round {row['round']}: both must be refused"
        )


class KilledServer:
    """Kill -9 of the server while a round is open and holds some, but not all, of its updates."""

    def __init__(self, fleet: DemoFleet, *, cue_round: int, tell: Tell) -> None:
        self._fleet, self._cue, self._tell = fleet, cue_round, tell
        self._exit_status: int | None = None
        self._round = 0
        self._round_after: int | None = None
        self._stored: tuple[str, ...] = ()
        self._restarted = False
        self._killed_at = 0.0
        self.is_done = False

    def step(self, snapshot: Snapshot) -> None:
        """Kill on the cue, start again a moment later, see that the same round goes on and is published."""
        if self._exit_status is None:
            self._kill_when_half_full(snapshot)
        elif not self._restarted:
            if time.monotonic() - self._killed_at > _SERVER_PAUSE_S:
                self._fleet.start_server()
                self._restarted = True
                self._tell("the server is started again: it must resume the same round")
        elif self._round_after is None:
            if snapshot["server_started_at_s"] > self._killed_wall:
                self._round_after = snapshot["resumed_round"]
        else:
            rows = [row for row in snapshot["rounds"] if row["round"] == self._round]
            self.is_done = bool(rows) and all(row["state"] in {"published", "abandoned"} for row in rows)

    def result(self) -> Resumed:
        """Return what happened; a scene that never began has no exit status -9 to show."""
        folded = [name for region in self._fleet.regions for name in self._updates(region, settled=True)]
        return Resumed(self._exit_status or 0, self._round, self._round_after, self._stored, tuple(folded))

    def _kill_when_half_full(self, snapshot: Snapshot) -> None:
        rows = [row for row in snapshot["rounds"] if row["round"] == snapshot["round"]]
        regions = snapshot["regions"].values()
        received, target = sum(r["received"] for r in regions), sum(r["target"] for r in regions)
        is_mid_round = (
            snapshot["round"] >= self._cue
            and any(row["state"] == "open" for row in rows)
            and 0 < received < target
        )
        if not is_mid_round:
            return
        self._round = snapshot["round"]
        self._exit_status = self._fleet.kill("server")
        self._killed_at, self._killed_wall = time.monotonic(), time.time()
        self._stored = tuple(
            name for region in self._fleet.regions for name in self._updates(region, settled=False)
        )
        self._tell(f"killed (-9) the server in round {self._round} with {len(self._stored)} updates stored")

    def _updates(self, region: str, *, settled: bool) -> list[str]:
        """Return the ids of the killed round's updates in the store: all that are there, or those that were folded."""
        store = open_reader(self._fleet.server_dir)
        try:
            with store.read() as connection:
                fates = store_updates.settled(connection, round_=self._round, region=region)
                done = [str(name) for name, (fate, _) in fates.items() if fate == "folded"]
                if settled:
                    return done
                return done + [
                    str(name) for name in store_updates.pending(connection, round_=self._round, region=region)
                ]
        finally:
            store.close()
