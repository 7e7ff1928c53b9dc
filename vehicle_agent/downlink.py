"""How models come to a vehicle: fetched, verified, journaled as training base, or tried and activated to drive."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from fedfleet.link.port import Link
from fedfleet.models import bundle
from fedfleet.models.task import Floats, Task
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import BlobRef, ModelPointer, Release, Variant
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

PASSING = frozenset({"base-lost", "blob-timeout", "canary-lost"})
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
    """The download under way, from the version of the base that was held at its begin.

    The base itself is read again at the end: many vehicles of one process may wait at a time.
    """

    pointer: ModelPointer
    release: Release | None
    from_version: int | None
    way: Route
    fetch: Fetch
    variant: Variant | None

    @property
    def purpose(self) -> ev.Purpose:
        return "base" if self.release is None else "release"

    @property
    def number(self) -> int:
        return self.pointer.version if self.release is None else self.release.number

    @property
    def variant_sha256(self) -> str:
        return "" if self.variant is None else self.variant.onnx_sha256


@dataclass(frozen=True)
class _Fetched:
    """A verified release: its file, what that must answer, and how far off; None: as the same file elsewhere."""

    released: Released
    canary: tuple[Floats, Floats]
    tolerance: float | None = None


class Downlink:
    """The way down of one vehicle; one download at a time. ``owner`` is the vehicle's number in the process."""

    def __init__(
        self, journal: Journal, replay: Replay, swapper: Swapper, *, owner: int, task: Task, limits: Limits
    ) -> None:
        self._journal, self._replay, self._swapper, self._owner = journal, replay, swapper, owner
        self._task, self._limits = task, limits
        self._under: _Under | None = None
        self._fetched: _Fetched | None = None
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
            events.append(_activated(before))
        ready = list(runs.values())
        if ready:
            self._replay.begin(ready[0], before=ready[1] if len(ready) > 1 else None)
        return events

    def fetch(
        self, pointer: ModelPointer, release: Release | None, now_s: float, *, variant: Variant | None = None
    ) -> list[ev.Event]:
        """Begin to fetch the published model, or a release, or a variant of it."""
        return self._begin(pointer, release, now_s, full=False, variant=variant)

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
        fetched = self._fetched
        if fetched is None or fetched.released.number != release.number:
            return [ev.ActivationRefused(release.number, "not-fetched")]
        digest = fetched.released.onnx_sha256
        if digest in self._given_up:
            return [ev.ActivationRefused(release.number, "failed-before", digest)]
        self._replay.swap_begins()
        who, beside = (self._owner, release.number, digest), self._replay
        self._swapper.submit(
            Candidate(*who, fetched.released.model, fetched.canary, beside, fetched.tolerance)
        )
        return []

    def tried(self, tried: Tried) -> list[ev.Event]:
        """Journal and drive with what passed; keep the model before it otherwise."""
        number, fetched = tried.candidate.number, self._fetched
        self.shadow_answers += tried.shadow.answers
        self.shadow_disagreed += tried.shadow.disagreed
        self._fetched = None
        if tried.run is None or fetched is None:
            self._replay.swap_ends(None)
            reason = tried.reason or "not-fetched"
            return [ev.ActivationRefused(number, reason, tried.candidate.onnx_sha256)]
        try:
            self._journal.activate(fetched.released)
        except JournalError as error:
            self._replay.swap_ends(None)
            return [ev.FetchFailed("release", number, error.reason, lasting=False)]
        self._replay.swap_ends(tried.run)
        return [_activated(fetched.released)]

    def fall_back(self) -> list[ev.Event]:
        """When the active model was left because it failed, keep to the one before, and never take it again."""
        reason = self._replay.failed()
        if (
            not reason or (left := self._journal.active) is None
        ):  # asked rarely: the journal reads the file for it
            return []
        self._given_up.add(left.onnx_sha256)
        before = self._journal.revert()
        refused = ev.ActivationRefused(left.number, reason, left.onnx_sha256)
        if before is None:
            return [refused]
        return [_activated(before), refused]

    def _begin(
        self,
        pointer: ModelPointer,
        release: Release | None,
        now_s: float,
        *,
        full: bool,
        variant: Variant | None = None,
    ) -> list[ev.Event]:
        if self._link is None:
            return []
        if self._under is not None:
            self._under.fetch.cancel()
            self._under = None
        held = self._held(pointer)
        way = route(pointer, held, full=full)
        refs = way.refs if release is None else (*way.refs, *self._asked(release))
        if release is None and pointer.control is not None:
            refs = (*refs, pointer.control)
        if variant is not None:
            refs = (variant.file, *self._asked(variant))
        number = pointer.version if release is None else release.number
        try:
            timeout_s = self._limits.timeout_s
            fetch = Fetch(self._link, self._fleet, refs, timeout_s=timeout_s, jitter=self._jitter)
        except PeerError as error:
            purpose: ev.Purpose = "base" if release is None else "release"
            digest = "" if variant is None else variant.onnx_sha256
            return [ev.FetchFailed(purpose, number, error.reason, lasting=True, variant_sha256=digest)]
        self._under = _Under(pointer, release, _version(held), way, fetch, variant)
        fetch.start(now_s)
        return self._advance(self._under, now_s)

    def _asked(self, named: Release | Variant) -> tuple[BlobRef, ...]:
        """Return the blobs of a canary that are not held: its inputs mostly are, from the release before."""
        inputs = named.canary_inputs
        is_held = inputs is None or self._journal.canary_inputs(inputs.sha256) is not None
        return (named.canary,) if inputs is None or is_held else (named.canary, inputs)

    def _canary(self, named: Release | Variant, blobs: Mapping[str, bytes]) -> tuple[Floats, Floats]:
        """Return a canary, and hold its inputs for the next one."""
        ref, inputs = named.canary_inputs, None
        if ref is not None:
            inputs = blobs.get(ref.sha256)
            if inputs is None and (inputs := self._journal.canary_inputs(ref.sha256)) is None:
                raise PeerError(
                    "canary-lost", f"inputs {ref.sha256[:12]}… of the canary are not held any more"
                )
        limit_bytes = self._limits.max_model_bytes
        found = bundle.unpack_canary(blobs[named.canary.sha256], inputs, limit_bytes=limit_bytes)
        if ref is not None and inputs is not None and ref.sha256 in blobs:
            with suppress(JournalError):  # then they come again with the next release
                self._journal.keep_canary_inputs(ref.sha256, inputs)
        return found

    def _held(self, pointer: ModelPointer) -> Held | None:
        base, vector, graph = self._journal.base, self._journal.base_vector, self._journal.graph
        if base is None or vector is None or graph is None:
            return None
        if base.region not in {"", pointer.region} and pointer.is_regional:
            return Held(-1, vector, graph)  # another region's chain leads on from other weights
        return Held(base.version, vector, graph, self._journal.base_step)

    def _held_still(self, under: _Under) -> Held | None:
        """Return the base that the way began at; PeerError when it was lost or damaged meanwhile."""
        held = self._held(under.pointer)
        if (found := _version(held)) != under.from_version:
            raise PeerError("base-lost", f"base {found} is held, the way began at {under.from_version}")
        return held

    def _advance(self, under: _Under, now_s: float) -> list[ev.Event]:
        try:
            blobs = under.fetch.done()
            if blobs is None:
                return []
            limit = self._limits.max_model_bytes
            if under.release is not None and under.variant is not None:
                self._under = None
                canary = self._canary(under.variant, blobs)
                self._fetched = _unpacked(under.release, under.variant, blobs, canary)
                return [ev.ReleaseFetched(under.release.number)]
            model = build(under.way, blobs, self._held_still(under), task=self._task, limit_bytes=limit)
            self._under = None
            if under.release is None:
                named = under.pointer.control
                blob = None if named is None else blobs[named.sha256]
                control = None if blob is None else bundle.unpack_vector(blob, size=model.vector.size)
                return self._keep_base(model, under.pointer.region, control)
            canary = self._canary(under.release, blobs)
        except PeerError as error:
            self._under = None
            if error.reason in CHAIN_FAILED and under.way.chain is not None and under.variant is None:
                return self._begin(under.pointer, under.release, now_s, full=True)
            lasting = error.reason not in PASSING
            digest = under.variant_sha256
            return [
                ev.FetchFailed(
                    under.purpose, under.number, error.reason, lasting=lasting, variant_sha256=digest
                )
            ]
        released = Released(under.release.number, model.version, model.onnx_sha256, model.onnx)
        self._fetched = _Fetched(released, canary)
        return [ev.ReleaseFetched(under.release.number)]

    def _keep_base(self, model: Model, region: str, control: Floats | None) -> list[ev.Event]:
        base = Base(model.version, model.onnx_sha256, region, step=model.step is not None)
        try:
            self._journal.set_base(base, model.vector, model.graph, step=model.step, control=control)
        except JournalError as error:
            return [ev.FetchFailed("base", model.version, error.reason, lasting=False)]
        return [ev.BaseReady(base.version, base.onnx_sha256, region, base.step)]


def _version(held: Held | None) -> int | None:
    return None if held is None else held.version


def _activated(released: Released) -> ev.Activated:
    return ev.Activated(released.number, released.version, released.onnx_sha256, released.variant)


def _unpacked(
    release: Release, variant: Variant, blobs: Mapping[str, bytes], canary: tuple[Floats, Floats]
) -> _Fetched:
    """Return a release in the form of a variant; PeerError when its file is not what was signed."""
    file = bundle.unpack_file(blobs[variant.file.sha256], size_bytes=variant.size_bytes)
    if (found := sha256(file).hexdigest()) != variant.onnx_sha256:
        told = f"SHA-256 {found[:12]}…, expected {variant.onnx_sha256[:12]}…"
        raise PeerError("model-mismatch", f"{variant.kind} of release {release.number} has {told}")
    version = release.model.version
    released = Released(release.number, version, variant.onnx_sha256, file, variant.kind)
    return _Fetched(released, canary, variant.tolerance)
