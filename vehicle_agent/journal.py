"""What a vehicle must not forget, in one SQLite file: WAL, synchronous=FULL, every change one transaction.

Whatever kills the process, the outbox row, the residual and the sequence number fit together, and the active release
is one that passed its checks. A full disk is a JournalError: the transaction is void, the journal as before. A damaged
file is kept aside (``salvage.py``): a fresh journal takes its place, under a new epoch, so that no id comes twice.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedfleet.codec.delta import Delta
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import UpdateId
from fedfleet.vehicle_agent.entries import OutboxEntry
from fedfleet.vehicle_agent.journal_file import JournalError
from fedfleet.vehicle_agent.journal_models import ModelJournal
from fedfleet.vehicle_agent.state import Pending
from fedfleet.vehicle_agent.trusted import Seen

__all__ = ["Journal"]

Floats = NDArray[np.float32]
ANSWERED_KEPT = 64


class Journal(ModelJournal):
    """The journal of one vehicle for one task; one thread of one process at a time."""

    # --- identity ---

    def next_session(self) -> int:
        """Count a connection and return its number, from 1."""
        number = max(int(self._meta("session")), self.floors.now.session) + 1
        with self._change():
            self._set("session", str(number))
        self._raise(replace(self.floors.now, session=number))
        return number

    @property
    def region(self) -> str:
        """The region this vehicle was assigned last, or nothing."""
        return self._meta("region")

    @property
    def server_key(self) -> bytes | None:
        """The pinned key of the server."""
        text = self.floors.now.server_key or self._meta("server_key")
        return bytes.fromhex(text) if text else None

    @property
    def enrolled(self) -> bool:
        """Whether the server has ever assigned a region."""
        return self.floors.now.enrolled or self._meta("enrolled") == "1"

    def assign(
        self, region: str, server_key: bytes | None, *, forget: NDArray[np.int64] | None = None
    ) -> None:
        """Keep the region, and pin the server's key; a pinned key is never changed (UsageError).

        In another region than before the residual is zero at the coordinates to ``forget``.
        """
        if self.server_key is not None and self.server_key != server_key:
            pinned = self.server_key.hex()[:12]
            raise UsageError(
                f"journal {self._folder} is pinned to the server key {pinned}…; use a new work_dir"
            )
        with self._change():
            if forget is not None and self.region not in {"", region}:
                self._forget(forget)
            self._set("region", region)
            self._set("enrolled", "1")
            self._set("server_key", server_key.hex() if server_key else "")
        pin, own = server_key.hex() if server_key else "", self.key.public.hex()
        self._raise(replace(self.floors.now, enrolled=True, server_key=pin, vehicle_key=own))

    # --- outbox and residual ---

    @property
    def next_id(self) -> UpdateId:
        """The id that the next update must have."""
        return UpdateId(self._vehicle, self.epoch, self.sequence + 1)

    def commit_update(self, entry: OutboxEntry, residual: Floats) -> None:
        """Store outbox row, new residual float32[M], sequence number and answered round together, or nothing."""
        with self._change():
            if entry.id != self.next_id:
                raise ValueError(f"update {entry.id}: expected {self.next_id}")
            self._set("sequence", str(entry.id.sequence))
            self._db.execute(
                "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, 'waiting', 0, ?)",
                (
                    entry.id.sequence,
                    entry.sealed,
                    entry.sealed_sha256,
                    str(entry.id),
                    entry.round,
                    entry.region,
                    self._task,
                    None if entry.coordinates is None else entry.coordinates.astype("<u4").tobytes(),
                ),
            )
            self._set_residual(residual)
            self._db.execute("INSERT OR IGNORE INTO answered VALUES (?, ?)", (self._task, entry.round))
            self._db.execute(
                "DELETE FROM answered WHERE task = ? AND round <= ?",
                (self._task, entry.round - ANSWERED_KEPT),
            )
        with suppress(
            JournalError
        ):  # the update is committed; an older copy would be found out by its refusal
            self._raise(self.floors.now.counting(self.epoch, entry.id.sequence))

    def sealed(self, sequence: int) -> OutboxEntry | None:
        """Return an update of the outbox, None when it is settled."""
        row = self._row(
            "SELECT sealed, update_id, round, region, coordinates FROM outbox WHERE sequence = ?", sequence
        )
        if row is None:
            return None
        named = None if row[4] is None else np.frombuffer(row[4], dtype="<u4").astype(np.int64)
        return OutboxEntry(UpdateId.parse(row[1]), row[0], row[2], row[3], named)

    def mark(self, sequence: int, *, stored: bool, attempts: int) -> None:
        """Note how often an update was sent, and that the server has it."""
        with self._change():
            self._db.execute(
                "UPDATE outbox SET state = ?, attempts = ? WHERE sequence = ?",
                ("stored" if stored else "waiting", attempts, sequence),
            )

    def settle(self, sequence: int, *, returned: Delta | None, control: Delta | None = None) -> bool:
        """Take an update out of the outbox; ``returned`` re-enters the residual, exactly once.

        ``control`` moves the vehicle's control variate as the server's has been. False, and no change, when it is
        settled already.
        """
        with self._change():
            gone = self._db.execute("DELETE FROM outbox WHERE sequence = ?", (sequence,)).rowcount
            if gone and returned is not None:
                self._set_residual(self.residual(returned.size) + returned.dense())
            if gone and control is not None:
                moved = (self.controls(control.size)[0] + control.dense()).astype("<f4", copy=False)
                row = (self._task, moved.tobytes())
                self._db.execute("INSERT OR REPLACE INTO control VALUES (?, ?)", row)
        return bool(gone)

    def controls(self, size: int) -> Floats:
        """Return float32[2, size]: the vehicle's control variate, and the server's of the base; zeros for none."""
        found = np.zeros((2, size), dtype=np.float32)
        for row, query in enumerate(
            ("SELECT vector FROM control WHERE task = ?", "SELECT control FROM base WHERE task = ?")
        ):
            held = self._row(query, self._task)
            if held and held[0] is not None and len(held[0]) == 4 * size:
                found[row] = np.frombuffer(held[0], dtype="<f4")
        return found

    def residual(self, size: int) -> Floats:
        """Return the residual float32[size]: zeros when there is none, or not for this model."""
        row = self._row("SELECT vector FROM residual WHERE task = ?", self._task)
        if row is None or len(row[0]) != 4 * size:
            return np.zeros(size, dtype=np.float32)
        found = np.frombuffer(row[0], dtype="<f4").astype(np.float32)
        return found if np.isfinite(found).all() else np.zeros(size, dtype=np.float32)

    @property
    def outbox(self) -> tuple[Pending, ...]:
        """The updates whose fate is open, oldest first."""
        rows = self._rows(
            "SELECT sequence, update_id, sent_sha256, round, state, attempts FROM outbox WHERE task = ? ORDER BY 1",
            self._task,
        )
        return tuple(
            Pending(s, u, d, r, stored=state == "stored", attempts=a) for s, u, d, r, state, a in rows
        )

    @property
    def answered(self) -> frozenset[int]:
        """The rounds that were answered with an update, newest 64."""
        rows = self._rows("SELECT round FROM answered WHERE task = ?", self._task)
        return frozenset(round_ for (round_,) in rows)

    # --- freshness ---

    @property
    def seen(self) -> dict[str, Seen]:
        """The newest of each kind, by region; what the journal itself holds is no older, under no region."""
        known = self.floors.now
        for region, seen in self._seen_before():
            known = known.seeing(self._task, region, seen)
        base, active = self.base, self.active
        held = Seen(version=base.version if base else -1, release=active.number if active else -1)
        return {**known.seeing(self._task, "", held).seen[self._task]}

    def note_seen(self, region: str, seen: Seen) -> None:
        """Keep the newest of each kind of a region, apart from the journal."""
        self._raise(self.floors.now.seeing(self._task, region, replace(seen, plan_sha256="")))

    def _seen_before(self) -> Iterator[tuple[str, Seen]]:
        """Yield what an older program kept in the journal."""
        query = "SELECT region, round, revision, version, onnx_sha256, release FROM seen WHERE task = ?"
        for region, round_, revision, version, digest, release in self._rows(query, self._task):
            yield region, Seen(round_, revision, "", version, digest, release)

    # --- inside ---

    def _forget(self, coordinates: NDArray[np.int64]) -> None:
        row = self._row("SELECT vector FROM residual WHERE task = ?", self._task)
        if row is not None:
            vector = np.frombuffer(row[0], dtype="<f4").astype(np.float32)
            vector[coordinates[coordinates < vector.size]] = 0
            self._set_residual(vector)

    def _set_residual(self, vector: Floats) -> None:
        data = vector.astype("<f4", copy=False).tobytes()
        self._db.execute("INSERT OR REPLACE INTO residual VALUES (?, ?)", (self._task, data))
