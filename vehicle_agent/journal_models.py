"""The models that a vehicle holds: the base of its trainings, the releases that drive and drove, its own head."""

from hashlib import sha256
from io import BytesIO
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fedfleet.vehicle_agent.entries import Graph, Released
from fedfleet.vehicle_agent.journal_file import JournalFile
from fedfleet.vehicle_agent.personal import Head, Record
from fedfleet.vehicle_agent.state import Active, Base

__all__ = ["ModelJournal"]

Floats = NDArray[np.float32]


class ModelJournal(JournalFile):
    """The part of a journal that holds models."""

    @property
    def base(self) -> Base | None:
        """The published model that trainings start from."""
        row = self._row(
            "SELECT version, onnx_sha256, region, step IS NOT NULL FROM base WHERE task = ?", self._task
        )
        return Base(row[0], row[1], row[2], step=bool(row[3])) if row else None

    @property
    def base_vector(self) -> Floats | None:
        """The base's weights, float32[M]."""
        row = self._row("SELECT vector FROM base WHERE task = ?", self._task)
        whole = row is not None and len(row[0]) % 4 == 0
        return np.frombuffer(row[0], dtype="<f4").astype(np.float32) if row and whole else None

    @property
    def base_step(self) -> bytes | None:
        """The delta that led to the base, as a payload; empty when there was none, None when it is not held."""
        row = self._row("SELECT step FROM base WHERE task = ?", self._task)
        return row[0] if row else None

    @property
    def graph(self) -> Graph | None:
        """The graph of the base."""
        row = self._row("SELECT sha256, layout, onnx FROM graph WHERE task = ?", self._task)
        return Graph(*row) if row else None

    def set_base(
        self,
        base: Base,
        vector: Floats,
        graph: Graph,
        *,
        step: bytes | None = None,
        control: Floats | None = None,
    ) -> None:
        """Replace the base, its graph, the delta that led to it, and the server's control variate."""
        data = vector.astype("<f4", copy=False).tobytes()
        told = None if control is None else control.astype("<f4", copy=False).tobytes()
        with self._change():
            row = (self._task, base.version, base.onnx_sha256, data, graph.sha256, base.region, step, told)
            self._db.execute("INSERT OR REPLACE INTO base VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            held = self._row("SELECT sha256 FROM graph WHERE task = ?", self._task)
            if held != (graph.sha256,):
                row_graph = (self._task, graph.sha256, graph.layout, graph.onnx)
                self._db.execute("INSERT OR REPLACE INTO graph VALUES (?, ?, ?, ?)", row_graph)

    def drop_base(self) -> None:
        """Hold no base any more, nor its graph: the next pointer brings both anew."""
        with self._change():
            self._db.execute("DELETE FROM base WHERE task = ?", (self._task,))
            self._db.execute("DELETE FROM graph WHERE task = ?", (self._task,))

    def activate(self, released: Released) -> None:
        """Make a release that passed its checks the active one; the active one becomes the previous."""
        with self._change():
            self._db.execute("DELETE FROM release WHERE task = ? AND slot = 'previous'", (self._task,))
            self._db.execute("UPDATE release SET slot = 'previous' WHERE task = ?", (self._task,))
            of = (released.number, released.version, released.onnx_sha256, released.model, released.variant)
            self._db.execute("INSERT INTO release VALUES (?, 'active', ?, ?, ?, ?, ?)", (self._task, *of))

    def revert(self) -> Released | None:
        """Make the previous release the active one again, and forget the active one; None when there is none."""
        before = self.released("previous")
        if before is not None:
            with self._change():
                self._db.execute("DELETE FROM release WHERE task = ? AND slot = 'active'", (self._task,))
                self._db.execute("UPDATE release SET slot = 'active' WHERE task = ?", (self._task,))
        return before

    def released(self, slot: str) -> Released | None:
        """Return the ``active`` or the ``previous`` release; None when absent or its bytes are not its digest's."""
        row = self._row(
            "SELECT number, version, onnx_sha256, model, variant FROM release WHERE task = ? AND slot = ?",
            self._task,
            slot,
        )
        found = Released(*row) if row else None
        return found if found and sha256(found.model).hexdigest() == found.onnx_sha256 else None

    @property
    def active(self) -> Active | None:
        """The release that drives, or drove last; the previous one when its bytes are damaged."""
        found = self.released("active") or self.released("previous")
        return Active(found.number, found.version, found.onnx_sha256, found.variant) if found else None

    def canary_inputs(self, digest: str) -> bytes | None:
        """Return the blob of canary inputs with this SHA-256 (hex); None when it is not held, or damaged."""
        row = self._row("SELECT blob FROM canary_inputs WHERE task = ? AND sha256 = ?", self._task, digest)
        return bytes(row[0]) if row and sha256(row[0]).hexdigest() == digest else None

    def keep_canary_inputs(self, digest: str, blob: bytes) -> None:
        """Hold this blob of canary inputs, in the place of the one before."""
        with self._change():
            self._db.execute(
                "INSERT OR REPLACE INTO canary_inputs VALUES (?, ?, ?)", (self._task, digest, blob)
            )

    def keep_personal(self, record: Record) -> None:
        """Record a head of the vehicle's own that passed its checks, in the place of the one before."""
        packed = BytesIO()
        np.savez(packed, allow_pickle=False, places=record.head.places, values=record.head.values)
        told = (record.release_sha256, record.onnx_sha256, packed.getvalue(), record.canary)
        row = (self._task, *told, record.data, record.scores)
        with self._change():
            self._db.execute("INSERT OR REPLACE INTO personal VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    @property
    def personal(self) -> Record | None:
        """The head of the vehicle's own; None when there is none, or it cannot be read."""
        query = "SELECT release_sha256, onnx_sha256, head, canary, data, scores FROM personal WHERE task = ?"
        row = self._row(query, self._task)
        if row is None:
            return None
        try:
            with np.load(BytesIO(row[2]), allow_pickle=False) as file:
                head = Head(file["places"], file["values"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None
        return Record(row[0], row[1], head, *row[3:])

    def drop_personal(self) -> None:
        """Forget the head of the vehicle's own."""
        with self._change():
            self._db.execute("DELETE FROM personal WHERE task = ?", (self._task,))
