"""How models come to a vehicle: fetched, verified, journaled as training base, or tried and activated to drive."""

from collections.abc import Callable
from dataclasses import dataclass

from fedfleet.link.port import Link
from fedfleet.models import bundle
from fedfleet.models.task import Floats, Task
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import ModelPointer, Release
from fedfleet.protocol.topics import Topic
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent.assemble import Held, Model, Route, build, route
from fedfleet.vehicle_agent.entries import Released
from fedfleet.vehicle_agent.fetch import Fetch
from fedfleet.vehicle_agent.journal import Journal
from fedfleet.vehicle_agent.journal_file import JournalError
from fedfleet.vehicle_agent.runtime import Replay, Run
from fedfleet.vehicle_agent.state import Base
from fedfleet.vehicle_agent.swap import Candidate, Sessions, Swapper, Tried

__all__ = ["Downlink", "Limits"]

PASSING = frozenset({"blob-timeout"})
"""Reasons that may be gone the next time."""
CHAIN_FAILED = frozenset({"vector-mismatch", "model-mismatch"})
"""Reasons to leave the deltas and take the full vector."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a download."""

    max_model_bytes: int
    timeout_s: float


@dataclass
class _Under:
    """The download under way."""

    pointer: ModelPointer
    release: Release | None
    held: Held | None
    way: Route
    fetch: Fetch

    @property
    def purpose(self) -> ev.Purpose:
        return "base" if self.release is None else "release"

    @property
    def number(self) -> int:
        return self.pointer.version if self.release is None else self.release.number


class Downlink:
    """The way down of one vehicle; one download at a time. ``owner`` is the vehicle's number in the process."""

    def __init__(
        self, journal: Journal, replay: Replay, swapper: Swapper, *, owner: int, task: Task, limits: Limits
    ) -> None:
        self._journal, self._replay, self._swapper, self._owner = journal, replay, swapper, owner
        self._task, self._limits = task, limits
        self._under: _Under | None = None
        self._fetched: tuple[Release, Model, tuple[Floats, Floats]] | None = None
        self._given_up: set[str] = set()
        self.shadow_answers = self.shadow_disagreed = 0
        self._link: Link | None = None
        self._fleet = ""
        self._jitter: Callable[[], float] = lambda: 0.5

    def attach(self, link: Link, fleet: str, jitter: Callable[[], float]) -> None:
        """Use this link from now on."""
        self._link, self._fleet, self._jitter = link, fleet, jitter

    def resume(self, sessions: Sessions) -> list[ev.Event]:
        """Drive with the active release of the journal, the previous one at hand; with that one, where it must be."""
        events: list[ev.Event] = []
        runs: dict[str, Run] = {}
        for slot in ("active", "previous"):
            released = self._journal.released(slot)
            if released is None:
                continue
            try:
                runs[slot] = sessions.load(released.model, released.onnx_sha256)
            except PeerError as error:
                events.append(ev.MessageRefused(f"{slot}-{error.reason}"))
        if "active" not in runs and "previous" in runs and (before := self._journal.revert()) is not None:
            events.append(ev.Activated(before.number, before.version, before.onnx_sha256))
        ready = list(runs.values())
        if ready:
            self._replay.begin(ready[0], before=ready[1] if len(ready) > 1 else None)
        return events

    def fetch(self, pointer: ModelPointer, release: Release | None, now_s: float) -> list[ev.Event]:
        """Begin to fetch the published model, or a release."""
        return self._begin(pointer, release, now_s, full=False)

    def hurry(self) -> list[ev.Event]:
        """Give the download under way up soon when a piece of it does not come; a newer one is wanted."""
        if self._under is not None:
            self._under.fetch.hurry()
        return []

    def deliver(self, topic: Topic, payload: bytes, now_s: float) -> list[ev.Event]:
        """Take a chunk."""
        if self._under is None:
            return []
        self._under.fetch.deliver(topic, payload, now_s)
        return self._advance(self._under, now_s)

    def tick(self, now_s: float) -> list[ev.Event]:
        """Look at the timers of the download."""
        if self._under is None:
            return []
        self._under.fetch.tick(now_s)
        return self._advance(self._under, now_s)

    def activate(self, release: Release) -> list[ev.Event]:
        """Have the fetched release tried in the background; ``tried`` takes the answer."""
        if self._fetched is None or self._fetched[0].number != release.number:
            return [ev.ActivationRefused(release.number, "not-fetched")]
        _, model, canary = self._fetched
        if model.onnx_sha256 in self._given_up:
            return [ev.ActivationRefused(release.number, "failed-before")]
        self._replay.swap_begins()
        who = (self._owner, release.number, model.onnx_sha256)
        self._swapper.submit(Candidate(*who, model.onnx, canary, beside=self._replay))
        return []

    def tried(self, tried: Tried) -> list[ev.Event]:
        """Journal and drive with what passed; keep the model before it otherwise."""
        number, fetched = tried.candidate.number, self._fetched
        self.shadow_answers += tried.shadow.answers
        self.shadow_disagreed += tried.shadow.disagreed
        self._fetched = None
        if tried.run is None or fetched is None:
            self._replay.swap_ends(None)
            return [ev.ActivationRefused(number, tried.reason or "not-fetched")]
        version = fetched[1].version
        try:
            self._journal.activate(
                Released(number, version, tried.candidate.onnx_sha256, tried.candidate.model)
            )
        except JournalError as error:
            self._replay.swap_ends(None)
            return [ev.FetchFailed("release", number, error.reason, lasting=False)]
        self._replay.swap_ends(tried.run)
        return [ev.Activated(number, version, tried.candidate.onnx_sha256)]

    def fall_back(self) -> list[ev.Event]:
        """When the active model was left because it failed, keep to the one before, and never take it again."""
        reason, left = self._replay.failed(), self._journal.active
        if not reason or left is None:
            return []
        self._given_up.add(left.onnx_sha256)
        before = self._journal.revert()
        refused = ev.ActivationRefused(left.number, reason)
        if before is None:
            return [refused]
        return [ev.Activated(before.number, before.version, before.onnx_sha256), refused]

    def _begin(
        self, pointer: ModelPointer, release: Release | None, now_s: float, *, full: bool
    ) -> list[ev.Event]:
        if self._link is None:
            return []
        if self._under is not None:
            self._under.fetch.cancel()
            self._under = None
        held = self._held(pointer)
        way = route(pointer, held, full=full)
        besides = pointer.control if release is None else release.canary
        refs = way.refs if besides is None else (*way.refs, besides)
        number = pointer.version if release is None else release.number
        try:
            timeout_s = self._limits.timeout_s
            fetch = Fetch(self._link, self._fleet, refs, timeout_s=timeout_s, jitter=self._jitter)
        except PeerError as error:
            purpose: ev.Purpose = "base" if release is None else "release"
            return [ev.FetchFailed(purpose, number, error.reason, lasting=True)]
        self._under = _Under(pointer, release, held, way, fetch)
        fetch.start(now_s)
        return self._advance(self._under, now_s)

    def _held(self, pointer: ModelPointer) -> Held | None:
        base, vector, graph = self._journal.base, self._journal.base_vector, self._journal.graph
        if base is None or vector is None or graph is None:
            return None
        if base.region not in {"", pointer.region} and pointer.is_regional:
            return Held(-1, vector, graph)  # another region's chain leads on from other weights
        return Held(base.version, vector, graph, self._journal.base_step)

    def _advance(self, under: _Under, now_s: float) -> list[ev.Event]:
        try:
            blobs = under.fetch.done()
            if blobs is None:
                return []
            limit = self._limits.max_model_bytes
            model = build(under.way, blobs, under.held, task=self._task, limit_bytes=limit)
            self._under = None
            if under.release is None:
                named = under.pointer.control
                blob = None if named is None else blobs[named.sha256]
                control = None if blob is None else bundle.unpack_vector(blob, size=model.vector.size)
                return self._keep_base(model, under.pointer.region, control)
            canary = bundle.unpack_canary(blobs[under.release.canary.sha256], limit_bytes=limit)
        except PeerError as error:
            self._under = None
            if error.reason in CHAIN_FAILED and under.way.chain is not None:
                return self._begin(under.pointer, under.release, now_s, full=True)
            lasting = error.reason not in PASSING
            return [ev.FetchFailed(under.purpose, under.number, error.reason, lasting=lasting)]
        self._fetched = (under.release, model, canary)
        return [ev.ReleaseFetched(under.release.number)]

    def _keep_base(self, model: Model, region: str, control: Floats | None) -> list[ev.Event]:
        base = Base(model.version, model.onnx_sha256, region, step=model.step is not None)
        try:
            self._journal.set_base(base, model.vector, model.graph, step=model.step, control=control)
        except JournalError as error:
            return [ev.FetchFailed("base", model.version, error.reason, lasting=False)]
        return [ev.BaseReady(base.version, base.onnx_sha256, region, base.step)]
