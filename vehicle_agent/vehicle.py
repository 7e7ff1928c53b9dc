"""The shell of one vehicle: what arrives becomes events, ``agent.step`` decides, this performs the actions."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fedfleet.link.port import Connected, Delivery, Disconnected, Event, Link, Notice, Will
from fedfleet.protocol import messages as msg
from fedfleet.protocol import topics
from fedfleet.protocol.enrolment import vehicle_proof
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.selection import draw
from fedfleet.vehicle_agent import actions as act
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent import telling
from fedfleet.vehicle_agent.agent import step
from fedfleet.vehicle_agent.downlink import Downlink
from fedfleet.vehicle_agent.eligibility import Conditions
from fedfleet.vehicle_agent.jobs import Told
from fedfleet.vehicle_agent.journal import Journal
from fedfleet.vehicle_agent.journal_file import JournalError
from fedfleet.vehicle_agent.personal_head import Personal
from fedfleet.vehicle_agent.runtime import Replay
from fedfleet.vehicle_agent.state import State
from fedfleet.vehicle_agent.swap import Sessions, Tried
from fedfleet.vehicle_agent.trusted import AheadError, Trusted, admit
from fedfleet.vehicle_agent.tuning import Tuning
from fedfleet.vehicle_agent.uplink import Uplink, will

__all__ = ["Observer", "Parts", "Vehicle"]

Observer = Callable[[ev.Event, float, tuple[act.Action, ...]], None]
MOST_REASONS = 90


@dataclass(frozen=True)
class Parts:
    """What a vehicle is made of; ``lost`` has the reason of each thing that its journal had to forget."""

    journal: Journal
    replay: Replay
    downlink: Downlink
    tuning: Tuning
    conditions: Conditions
    personal: Personal
    lost: tuple[str, ...] = ()


class Vehicle:
    """One vehicle, driven by one thread: ``connect``, then ``on_…`` and ``tick`` with the time, at last ``close``.

    ``nonce`` draws 32 hex digits, ``report`` shows one line to a person, ``rss_bytes`` measures the process.
    """

    def __init__(
        self,
        state: State,
        trusted: Trusted,
        parts: Parts,
        *,
        nonce: Callable[[], str],
        report: Callable[[str], None],
        rss_bytes: Callable[[], int],
    ) -> None:
        self.state, self.trusted, self.parts = state, trusted, parts
        self.name = state.settings.vehicle
        self.observer: Observer | None = None
        self.refusals: Counter[str] = Counter()
        self.bytes_down = 0
        self._nonce, self._report, self._rss_bytes = nonce, report, rss_bytes
        self._link: Link
        self._uplink: Uplink
        self._signals: Mapping[str, Any] | None = None
        self._metrics_at_s = 0.0
        self._told_journal = False
        self._draws = 0
        self._process = int(nonce()[:12], 16)
        self._perform: Mapping[type, Callable[[Any, float], Iterable[ev.Event]]] = {
            act.Subscribe: self._subscribe,
            act.Unsubscribe: self._unsubscribe,
            act.PublishStatus: self._status,
            act.SendRequest: self._request,
            act.FetchBase: lambda a, now_s: parts.downlink.fetch(a.pointer, None, now_s),
            act.HurryFetch: lambda _, __: parts.downlink.hurry(),
            act.FetchRelease: lambda a, now_s: parts.downlink.fetch(
                a.release.model, a.release, now_s, variant=a.variant
            ),
            act.Activate: lambda a, _: parts.downlink.activate(a.release),
            act.StartTraining: lambda a, _: parts.tuning.start(a.plan, a.seed),
            act.StopTraining: self._stop_training,
            act.SubmitUpdate: lambda a, _: parts.tuning.submit(a),
            act.Send: self._send,
            act.Settle: self._settle,
            act.BeginEpoch: self._begin_epoch,
            act.Count: self._refuse,
            act.Report: self._say,
        }

    @property
    def will(self) -> Will:
        """What the broker says when this vehicle is gone."""
        fleet = self.state.settings.fleet
        return will(self._told("CONNECTIONBROKEN", 0.0), self.parts.journal.key, fleet=fleet)

    @property
    def bytes_up(self) -> int:
        """Payload bytes published since the start."""
        return self._uplink.bytes_up

    def resume(self, sessions: Sessions, now_s: float) -> None:
        """Drive with what the journal holds, and count what it holds no more."""
        journal = self.parts.journal
        if journal.salvaged is not None:
            told = f"journal is damaged, kept as {journal.salvaged.name}; beginning anew"
            self._report(f"vehicle {self.name}: {told}, as epoch {journal.epoch:x}")
        if journal.restored is not None:
            self._report(f"vehicle {self.name}: {telling.restored(*journal.restored, epoch=journal.epoch)}")
        if journal.floors.damaged is not None:
            kept = f"floors are damaged, kept as {journal.floors.damaged.name}"
            self._report(f"vehicle {self.name}: {kept}; what the journal holds is the floor now")
        found = {
            "journal-corrupt": journal.salvaged is not None,
            "journal-restored": journal.restored is not None,
            "floors-corrupt": journal.floors.damaged is not None,
        }
        for reason in (*(reason for reason, is_so in found.items() if is_so), *self.parts.lost):
            self.handle(ev.MessageRefused(reason), now_s)
        self._advance(lambda: self.parts.downlink.resume(sessions), now_s)

    def connect(self, link: Link) -> None:
        """Speak and listen over this link; its events come through ``on_link``."""
        fleet = self.state.settings.fleet
        self._link = link
        self._uplink = Uplink(link, self.parts.journal.key, fleet=fleet, vehicle=self.name)
        self.parts.downlink.attach(link, fleet, self._jitter)

    def on_link(self, event: Event, now_s: float) -> None:
        """Take an event of the link; a delivery is acknowledged after it was handled."""
        match event:
            case Connected(present):
                self.handle(ev.LinkUp(present), now_s)
            case Disconnected(reason):
                self.handle(ev.LinkDown(reason), now_s)
            case Delivery():
                self.bytes_down += len(event.payload)
                self._deliver(event, now_s)
                self._link.ack(event)
            case Notice(text):
                self._report(f"vehicle {self.name}: {text}")
            case _:
                self._uplink.retry()

    def on_told(self, told: Told, now_s: float) -> None:
        """Take a trainer's word about this vehicle's job."""
        self._advance(lambda: (*self.parts.tuning.told(told), *self.parts.personal.told(told)), now_s)

    def on_tried(self, tried: Tried, now_s: float) -> None:
        """Take the answer about a release; the metrics tell it at once."""
        part = self.parts.personal if tried.candidate.is_personal else self.parts.downlink
        for event in part.tried(tried):
            self.handle(event, now_s)
        self._metrics_at_s = 0.0

    def tick(self, now_s: float, *, scenario_s: float, metrics_interval_s: float) -> None:
        """Look at the conditions and at all timers."""
        signals = dict(self.parts.conditions.at(scenario_s))
        if signals != self._signals:
            self._signals = signals
            self.handle(ev.ConditionsRead(signals), now_s)
        self._advance(self.parts.downlink.fall_back, now_s)
        self._advance(lambda: self.parts.downlink.tick(now_s), now_s)
        self.handle(ev.Tick(), now_s)
        may_train = self.state.verdict.eligible and self.state.training is None
        personal = partial(self.parts.personal.tick, self.state.active, may_train=may_train)
        self._advance(personal, now_s)
        self._uplink.retry()
        waits = now_s < self._metrics_at_s <= now_s + metrics_interval_s  # else the clock was set back
        if self.state.connected and self.state.region and not waits:
            self._metrics_at_s = now_s + metrics_interval_s
            self._uplink.metrics(self._figures(now_s))

    def close(self, now_s: float) -> int | None:
        """Say OFFLINE, give the training up, let the journal go. The link is closed by who made it.

        Returns the ticket of the last status, None when there is no connection to take it.
        """
        self.parts.tuning.stop()
        self.parts.personal.stop()
        self.parts.conditions.close()
        ticket = self._uplink.farewell(self._told("OFFLINE", now_s))
        self.parts.journal.close()
        return ticket if self.state.connected else None

    def handle(self, event: ev.Event, now_s: float) -> None:
        """Step, perform, and step on with what that brings, until nothing follows."""
        waiting = deque([event])
        while waiting:
            current = waiting.popleft()
            self.state, actions = step(self.state, current, now_s)
            if self.observer is not None:
                self.observer(current, now_s, actions)
            for action in actions:
                try:
                    waiting.extend(self._perform[type(action)](action, now_s))
                except JournalError as error:
                    self._journal_failed(error)
            if isinstance(current, ev.TrainingFailed | ev.UpdateGivenUp):
                trouble = self.parts.tuning.trouble
                self._report(f"vehicle {self.name}: round {current.round}: {current.reason}: {trouble}"[:400])

    def _advance(self, downlink: Callable[[], Iterable[ev.Event]], now_s: float) -> None:
        """Let the way down do its work, and take what comes of it."""
        events: Iterable[ev.Event] = ()
        try:
            events = downlink()
        except JournalError as error:
            self._journal_failed(error)
        for event in events:
            self.handle(event, now_s)

    # --- what arrives ---

    def _deliver(self, delivery: Delivery, now_s: float) -> None:
        try:
            topic = topics.parse(delivery.topic)
            if topic.kind == "blob":
                self._advance(lambda: self.parts.downlink.deliver(topic, delivery.payload, now_s), now_s)
                return
            if not delivery.payload:  # a retained topic was cleared
                return
            trusted, came = admit(self.trusted, topic, delivery.payload, now_s=now_s)
        except PeerError as error:
            ahead_s = error.ahead_s if isinstance(error, AheadError) else 0.0
            self.handle(ev.MessageRefused(error.reason, ahead_s), now_s)
            return
        try:
            self._remember(trusted, came)
        except JournalError as error:
            self._journal_failed(error)
        self.trusted = trusted
        self.handle(came, now_s)

    def _remember(self, trusted: Trusted, came: ev.Event) -> None:
        """Journal what must outlive this process before anything is done about it."""
        if isinstance(came, ev.Assigned):
            journal = self.parts.journal
            is_known = (journal.region, journal.server_key) == (trusted.region, trusted.server_key)
            if not is_known or not journal.enrolled or journal.rekeyed:
                head = self.parts.tuning.head()
                journal.assign(trusted.region, trusted.server_key, forget=head)
        newest = trusted.seen.get(trusted.region)
        if newest is not None and newest != self.trusted.seen.get(trusted.region):
            self.parts.journal.note_seen(trusted.region, newest)

    # --- what is to be done ---

    def _subscribe(self, action: act.Subscribe, now_s: float) -> Iterable[ev.Event]:
        del now_s
        for topic_filter in action.filters:
            self._link.subscribe(topic_filter)
        return ()

    def _unsubscribe(self, action: act.Unsubscribe, now_s: float) -> Iterable[ev.Event]:
        del now_s
        for topic_filter in action.filters:
            self._link.unsubscribe(topic_filter)
        return ()

    def _status(self, action: act.PublishStatus, now_s: float) -> Iterable[ev.Event]:
        del action  # it is what the state says
        self._uplink.status(self._told("ONLINE", now_s))
        return ()

    def _request(self, action: act.SendRequest, now_s: float) -> Iterable[ev.Event]:
        del now_s
        nonce, fleet, code = self._nonce(), self.state.settings.fleet, self.trusted.code
        request = msg.Request(vehicle=self.name, kind=action.kind, nonce=nonce)
        if action.kind == "enrol" and code is not None:
            key = self.parts.journal.key.public.hex()
            proof = vehicle_proof(code, fleet=fleet, vehicle=self.name, nonce=nonce, public_key=key)
            request = msg.Request(vehicle=self.name, kind="enrol", nonce=nonce, public_key=key, proof=proof)
        self.trusted = replace(self.trusted, nonce=nonce)
        self._uplink.request(request)
        return ()

    def _send(self, action: act.Send, now_s: float) -> Iterable[ev.Event]:
        del now_s
        entry = self.parts.journal.sealed(action.sequence)
        if entry is not None and not self._uplink.update(entry, self.state.settings.task):
            self._count("link-full")
        return ()

    def _stop_training(self, action: act.StopTraining, now_s: float) -> Iterable[ev.Event]:
        del action, now_s
        self.parts.tuning.stop()
        return ()

    def _settle(self, action: act.Settle, now_s: float) -> Iterable[ev.Event]:
        del now_s
        self.parts.tuning.settle(action)
        return ()

    def _begin_epoch(self, action: act.BeginEpoch, now_s: float) -> Iterable[ev.Event]:
        journal = self.parts.journal
        if UpdateId.parse(action.update).epoch == journal.epoch:
            journal.begin_epoch(int(self._nonce(), 16) % 2**53)
            if self.state.said is not None:  # the server tells epochs apart by the status
                self._uplink.status(self._told("ONLINE", now_s))
        return ()

    def _refuse(self, action: act.Count, now_s: float) -> Iterable[ev.Event]:
        del now_s
        self._count(action.reason)
        return ()

    def _say(self, action: act.Report, now_s: float) -> Iterable[ev.Event]:
        del now_s
        self._report(action.text)
        return ()

    # --- what it tells ---

    def _told(self, kind: str, at_s: float) -> msg.Status:
        return telling.status(self.state, kind, at_s, epoch=self.parts.journal.epoch, process=self._process)

    def _figures(self, now_s: float) -> msg.Metrics:
        parts = self.parts
        counted = telling.Counted(
            self._uplink.bytes_up, self.bytes_down, self._rss_bytes(), dict(self.refusals)
        )
        return telling.metrics(
            self.state,
            now_s,
            replay=parts.replay,
            downlink=parts.downlink,
            tuning=parts.tuning,
            counted=counted,
        )

    def _count(self, reason: str) -> None:
        known = reason in self.refusals or len(self.refusals) < MOST_REASONS
        self.refusals[reason[:80] if known else "other"] += 1

    def _journal_failed(self, error: JournalError) -> None:
        self._count(error.reason)
        if not self._told_journal:
            self._told_journal = True
            self._report(str(error))

    def _jitter(self) -> float:
        self._draws += 1
        return draw(self.state.session, -self._draws, self.name)
