"""Blobs taken from retained topics: a few chunks at a time, checked for size and digest before anyone reads them.

No clock and no chance in here: the time and the jitter are arguments.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from fedfleet.link.port import Link
from fedfleet.protocol import topics
from fedfleet.protocol.chunks import CHUNK_BYTES, blob_piece
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import BlobRef
from fedfleet.protocol.topics import Topic

__all__ = ["PARALLEL", "Fetch"]

PARALLEL, MOST_PARALLEL = 4, 32
"""Chunks asked for at a time: the largest, and smaller ones."""
ATTEMPTS, HURRIED_ATTEMPTS = 6, 2
MOST_TIMES = 8.0
BLOB_ATTEMPTS = 3


@dataclass
class _Asked:
    due_s: float
    attempts: int = 1
    came: int = 0  # bytes of a piece of another length


@dataclass
class _Blob:
    ref: BlobRef
    attempts: int = 1
    pieces: dict[int, bytes] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.pieces) == self.ref.chunks


class Fetch:
    """One download of some blobs over one link; ``jitter`` gives numbers in [0, 1).

    Raises PeerError ``malformed-blob`` for references that cannot be true. Failures come from ``done``.
    """

    def __init__(
        self,
        link: Link,
        fleet: str,
        refs: Sequence[BlobRef],
        *,
        timeout_s: float,
        jitter: Callable[[], float],
    ) -> None:
        self._link, self._fleet, self._timeout_s, self._jitter = link, fleet, timeout_s, jitter
        self._blobs = {ref.sha256: _Blob(ref) for ref in refs}
        self._piece = {ref.sha256: blob_piece(ref.size_bytes, ref.chunks) for ref in refs}
        self._parallel = min(MOST_PARALLEL, PARALLEL * CHUNK_BYTES // min(self._piece.values(), default=1))
        self._waiting = deque(
            (blob.ref.sha256, n) for blob in self._blobs.values() for n in range(blob.ref.chunks)
        )
        self._asked: dict[tuple[str, int], _Asked] = {}
        self._error: PeerError | None = None
        self._most = ATTEMPTS

    def start(self, now_s: float) -> None:
        """Ask for the first chunks."""
        while self._waiting and len(self._asked) < self._parallel:
            key = self._waiting.popleft()
            if key not in self._asked:
                self._asked[key] = _Asked(self._due(now_s, 0))
                self._link.subscribe(topics.blob(self._fleet, *key))

    def deliver(self, topic: Topic, payload: bytes, now_s: float) -> None:
        """Take a chunk; what was not asked for, has another length, or clears a topic is ignored."""
        key = (topic.digest, topic.number)
        if key not in self._asked or not payload or self._error is not None:
            return
        if len(payload) != self._size_of(key):
            self._asked[key].came = len(
                payload
            )  # of another cut: the right one follows when the server changed it
            return
        del self._asked[key]
        self._link.unsubscribe(topics.blob(self._fleet, *key))
        blob = self._blobs[topic.digest]
        blob.pieces[topic.number] = payload
        if blob.complete:
            self._check(blob)
        if self._error is None:
            self.start(now_s)

    def _size_of(self, key: tuple[str, int]) -> int:
        blob, piece = self._blobs[key[0]].ref, self._piece[key[0]]
        return min(piece, blob.size_bytes - key[1] * piece)

    def _missing(self, key: tuple[str, int], asked: _Asked) -> PeerError:
        name = f"chunk {key[1]} of blob {key[0][:12]}…"
        if asked.came:
            told = f"{name} has {asked.came} bytes, expected {self._size_of(key)}"
            return PeerError("digest-mismatch", f"{told}, asked {asked.attempts} times")
        return PeerError("blob-timeout", f"{name} did not come, asked {asked.attempts} times")

    def hurry(self) -> None:
        """Wait less long for what does not come."""
        self._most = HURRIED_ATTEMPTS

    def tick(self, now_s: float) -> None:
        """Ask again for what has not come."""
        for key, asked in list(self._asked.items()):
            waits = now_s < asked.due_s <= now_s + self._timeout_s * MOST_TIMES  # else the clock was set back
            if waits or self._error is not None:
                continue
            if asked.attempts >= self._most:
                self._fail(self._missing(key, asked))
                continue
            topic = topics.blob(self._fleet, *key)
            self._link.unsubscribe(topic)
            self._link.subscribe(topic)
            due_s = self._due(now_s, asked.attempts)
            self._asked[key] = _Asked(due_s, asked.attempts + 1, asked.came)

    def done(self) -> Mapping[str, bytes] | None:
        """Return the blobs by digest when all are here, None before; PeerError when they cannot be had."""
        if self._error is not None:
            raise self._error
        if not all(blob.complete for blob in self._blobs.values()):
            return None
        return {
            sha: b"".join(blob.pieces[n] for n in range(blob.ref.chunks)) for sha, blob in self._blobs.items()
        }

    def cancel(self) -> None:
        """Ask for nothing any more."""
        for key in self._asked:
            self._link.unsubscribe(topics.blob(self._fleet, *key))
        self._asked.clear()
        self._waiting.clear()

    def _due(self, now_s: float, attempts: int) -> float:
        reach_s = self._timeout_s * min(2.0**attempts, MOST_TIMES)
        return now_s + self._timeout_s / 2 + self._jitter() * (reach_s - self._timeout_s / 2)

    def _check(self, blob: _Blob) -> None:
        size = sum(len(piece) for piece in blob.pieces.values())
        digest = sha256()
        for number in range(blob.ref.chunks):
            digest.update(blob.pieces[number])
        if size == blob.ref.size_bytes and digest.hexdigest() == blob.ref.sha256:
            return
        blob.pieces.clear()
        blob.attempts += 1
        if blob.attempts > BLOB_ATTEMPTS:
            got = f"{size} bytes with SHA-256 {digest.hexdigest()[:12]}…"
            wanted = f"{blob.ref.size_bytes} bytes with {blob.ref.sha256[:12]}…"
            self._fail(
                PeerError("digest-mismatch", f"blob: got {got}, expected {wanted}, {BLOB_ATTEMPTS} times")
            )
            return
        self._waiting.extend((blob.ref.sha256, number) for number in range(blob.ref.chunks))

    def _fail(self, error: PeerError) -> None:
        self.cancel()
        self._error = error
