"""A link over the network: connects, sends, hands on, reconnects. Knows a ``Wire``, no MQTT library."""

import enum
import logging
import random
import threading
from collections import Counter, deque

from fedfleet.link.limits import AROUND_BYTES, SizeLimit, Takeovers, learn
from fedfleet.link.options import Options
from fedfleet.link.outlet import Outlet
from fedfleet.link.port import (
    MAX_PAYLOAD_BYTES,
    Connected,
    Delivery,
    Disconnected,
    Event,
    Notice,
    Published,
    Sink,
    TooLarge,
    check_filter,
    check_payload,
    check_topic,
)
from fedfleet.link.reactor import Reactor
from fedfleet.link.windows import Incoming, Outgoing, Subscriptions
from fedfleet.link.wire import Accepted, Acknowledged, Answered, Arrived, Packet, Refused, Wire
from fedfleet.link.words import why
from fedfleet.protocol.chunks import MIN_MESSAGE_BYTES
from fedfleet.protocol.errors import UsageError

__all__ = ["LiveLink"]

_log = logging.getLogger(__name__)
_CONNACK_S = 10.0
_CLOSE_S = 5.0
_FILTERS_PER_PACKET = 50
_RETRY_S = 0.1
_BACKLOG_BYTES = 16_000_000


class _State(enum.Enum):
    WAITING = "waiting"  # for the time of the next attempt
    OPENING = "opening"  # TCP and TLS, in the reactor's second thread
    GREETING = "greeting"  # CONNECT is sent, CONNACK is not here
    ONLINE = "online"
    CLOSED = "closed"


class LiveLink:
    """A ``Link`` over a Wire, with its own windows, pending queue, subscriptions and reconnect.

    ``counts``: connects, sink_errors, stale_acks, repeated (the broker sent again what we still hold),
    refused_filters, refused_publishes, too_large (messages dropped), takeovers, defects. While the sink refuses an
    event, it is offered again every 0.1 s: no other event passes before it, nothing new is sent.
    """

    def __init__(
        self,
        wire: Wire,
        reactor: Reactor,
        options: Options,
        *,
        sink: Sink,
        client_id: str,
        rng: random.Random,
    ) -> None:
        self.client_id = client_id
        self.counts: Counter[str] = Counter()
        self.gone = threading.Event()
        self._wire, self._reactor, self._options = wire, reactor, options
        self._outlet = Outlet(client_id, sink, self.counts)
        self._rng = rng
        self._size = SizeLimit(min(options.max_message_bytes, MAX_PAYLOAD_BYTES))
        self._takeovers = Takeovers()
        self._lock = threading.Lock()  # guards the next four, which other threads fill
        self._outgoing = Outgoing(
            max_count=options.max_pending, max_bytes=options.max_pending_bytes, window=options.send_window
        )
        self._subscriptions = Subscriptions()
        self._acks: deque[int] = deque()
        self._leaving: bool | None = None
        self._incoming = Incoming(options.receive_window)
        self._state = _State.WAITING
        self._opened: deque[Exception | None] = deque()
        self._reason = ""  # why we give the connection up
        self._again = False  # at once, in another version of MQTT
        self._told_refusal = ""
        self._attempt = 0
        self._due = self._since = reactor.clock()
        self._retry_due = self._since
        self._descriptor = -1

    # The port: any thread.

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload that the broker takes, as far as it is known now."""
        return self._size.limit

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Take a message over and return its ticket; see ``Link.publish``."""
        check_topic(topic)
        check_payload(topic, payload, qos)
        if len(payload) > self._size.limit:
            raise TooLarge(f"{len(payload)} bytes for {topic}, {self._wire.name} takes {self._size.limit}")
        with self._lock:
            if self._leaving is not None:
                raise UsageError(f"link {self.client_id} is closed")
            ticket = self._outgoing.add(topic, bytes(payload), qos=qos, retain=retain)
        self._reactor.wake(self)
        return ticket

    def subscribe(self, topic_filter: str, *, qos: int = 1) -> None:
        """Subscribe now and after every reconnect without session; see ``Link.subscribe``."""
        check_filter(topic_filter)
        with self._lock:
            self._subscriptions.want(topic_filter, min(qos, 1))
        self._reactor.wake(self)

    def unsubscribe(self, topic_filter: str) -> None:
        """Take a subscription back; see ``Link.unsubscribe``."""
        with self._lock:
            self._subscriptions.drop(topic_filter)
        self._reactor.wake(self)

    def ack(self, delivery: Delivery) -> None:
        """Release a QoS-1 delivery at the broker; see ``Link.ack``."""
        if delivery.qos:
            with self._lock:
                self._acks.append(delivery.token)
            self._reactor.wake(self)

    def close(self) -> None:
        """Say goodbye and wait until it is said (inside a sink it does not wait); see ``Link.close``."""
        self.leave(goodbye=True)
        if not self._reactor.inside() and self._reactor.running():
            self.gone.wait(_CLOSE_S)

    def leave(self, *, goodbye: bool) -> None:
        """Stop without waiting. Without goodbye it looks like a kill -9: the will is published."""
        with self._lock:
            if self._leaving is None:
                self._leaving = goodbye
        self._reactor.wake(self)

    # The reactor's side: its thread only.

    def run(self) -> None:
        """Do what other threads asked for and what is due."""
        if self._state is _State.CLOSED:
            if self._opened:
                self._wire.end(goodbye=True)  # it opened too late
            return
        if self._state is _State.OPENING and self._opened:
            self._adopt(self._opened.popleft())
        with self._lock:
            acks, self._acks = self._acks, deque()
            leaving = self._leaving
        self._release(acks)
        if leaving is not None:
            self._close(goodbye=leaving)
            return
        if self._state is _State.WAITING and self._reactor.clock() >= self._due:
            self._open()
        self._send()
        self._settle()

    def ready(self, *, readable: bool, writable: bool) -> None:
        """Read and write what the socket allows and hand on what arrived."""
        if writable:
            self._wire.write()
        for packet in self._wire.read() if readable else ():
            self._handle(packet)
        self._send()
        self._settle()

    def tick(self) -> None:
        """Ping, and notice a broker that does not answer."""
        if self._state is _State.GREETING and self._reactor.clock() - self._since > _CONNACK_S:
            self._reason = f"did not answer CONNECT within {_CONNACK_S:.0f} s"
        elif self._state is _State.ONLINE:
            self._takeovers.stands(self._reactor.clock() - self._since)
        self._wire.tick()
        self._settle()

    def failed(self, error: Exception) -> None:
        """Give the connection up after a defect; what is not acknowledged comes again."""
        self.counts["defects"] += 1
        self._reason = f"was left after {type(error).__name__}: {error}"
        self._settle()

    def _open(self) -> None:
        if not self._outlet.settle():
            self._wait()
            return
        self._state = _State.OPENING
        self._reactor.blocking(self._open_blocking)

    def _open_blocking(self) -> None:
        try:
            self._wire.open()
        except Exception as error:  # noqa: BLE001 - becomes the reason of a Disconnected event
            self._opened.append(error)
        else:
            self._opened.append(None)
        self._reactor.wake(self)

    def _adopt(self, error: Exception | None) -> None:
        if error is not None:
            self._takeovers.unreachable()
            self._lost(f"refuses: {self._why(error)}")
            return
        self._state, self._reason = _State.GREETING, ""
        self._since = self._reactor.clock()
        self._incoming.begin()
        self._reactor.enter(self)

    def _handle(self, packet: Packet) -> None:
        match packet:
            case Accepted():
                self._accepted(packet)
            case Refused(reason, again):
                self._reason, self._again = f"refuses: {reason}", again
            case Acknowledged():
                self._acknowledged(packet)
            case Answered(mid, failures):
                self._answered(mid, failures)
            case Arrived():
                self._arrived(packet)

    def _accepted(self, packet: Accepted) -> None:
        if not self._size.told(packet.max_packet_bytes):
            needs = MIN_MESSAGE_BYTES + AROUND_BYTES
            self._reason = f"takes packets of at most {packet.max_packet_bytes} bytes: fedfleet needs {needs}"
            return
        self._state, self._since = _State.ONLINE, self._reactor.clock()
        self.counts["connects"] += 1
        self._told_refusal = ""
        with self._lock:
            self._outgoing.window = min(self._options.send_window, packet.window or self._options.send_window)
            self._subscriptions.connected(session_present=packet.session_present)
        self._drop_large()
        self._emit(Connected(packet.session_present))

    def _acknowledged(self, packet: Acknowledged) -> None:
        with self._lock:
            message = self._outgoing.acknowledged(packet.mid)
        if message is None:
            return
        if packet.too_large:
            self.counts["too_large"] += 1
            self._shrink(len(message.payload))
            return
        if packet.refusal:
            self.counts["refused_publishes"] += 1
            if packet.refusal != self._told_refusal:  # once per connection: it goes on, as with MQTT 3.1.1
                self._told_refusal = packet.refusal
                _log.warning("%s: the broker refuses %s: %s", self.client_id, message.topic, packet.refusal)
        else:
            self._size.took(len(message.payload))
        self._emit(Published(message.ticket))

    def _shrink(self, size: int) -> None:
        """Send less than ``size`` bytes at once from now on, and say so."""
        told = f"{self._wire.name} does not take messages of {size} bytes"
        if self._size.refused(size):
            self._drop_large()
            self._emit(Notice(f"{told}: sending at most {self._size.limit} bytes at once from now on"))
        else:
            self._emit(Notice(f"{told}: fedfleet needs {MIN_MESSAGE_BYTES}"))

    def _drop_large(self) -> None:
        with self._lock:
            number, mids = self._outgoing.drop_above(self._size.limit)
        self.counts["too_large"] += number
        for mid in mids:
            self._wire.drop(mid)

    def _answered(self, mid: int, failures: tuple[bool, ...]) -> None:
        with self._lock:
            filters = self._subscriptions.confirmed(mid)
        for topic_filter, failure in zip(filters, failures, strict=False):
            if failure:
                self.counts["refused_filters"] += 1
                _log.warning("%s: the broker refuses the subscription to %s", self.client_id, topic_filter)

    def _arrived(self, packet: Arrived) -> None:
        token = 0 if packet.qos else self._incoming.next_token()
        delivery = Delivery(
            packet.topic, packet.payload, packet.qos, packet.retain, packet.duplicate, token=token
        )
        if packet.qos == 0:
            self._outlet.emit(delivery)
        elif self._incoming.arrived(packet.mid, delivery):
            self._hand_on()
        else:
            self.counts["repeated"] += 1

    def _hand_on(self) -> None:
        self._outlet.settle()
        while not self._outlet.owes() and (delivery := self._incoming.take()) is not None:
            self._emit(delivery)
        self._retry()

    def _emit(self, event: Event) -> None:
        self._outlet.emit(event)
        self._retry()

    def _retry(self) -> None:
        if self._outlet.owes() and self._reactor.clock() >= self._retry_due:
            self._retry_due = self._reactor.clock() + _RETRY_S
            self._reactor.at(self._retry_due, self)

    def _release(self, tokens: deque[int]) -> None:
        for token in tokens:
            mids = self._incoming.ack(token)
            if mids is None:
                self.counts["stale_acks"] += 1
            for mid in mids or ():
                self._wire.puback(mid)
        self._hand_on()

    def _send(self) -> None:
        while self._may_send():
            with self._lock:
                subscribe, unsubscribe = self._subscriptions.take(_FILTERS_PER_PACKET)
            if not subscribe and not unsubscribe:
                break
            if subscribe:
                self._subscriptions.sent(self._wire.subscribe(subscribe), subscribe, [])
            if unsubscribe:
                self._subscriptions.sent(self._wire.unsubscribe(unsubscribe), [], unsubscribe)
        while self._may_send():
            with self._lock:
                message = self._outgoing.take()
            if message is None:
                break
            mid = self._wire.publish(message)
            with self._lock:
                self._outgoing.sent(mid, message)
            if message.qos == 0:
                self._emit(Published(message.ticket))

    def _may_send(self) -> bool:
        online = self._state is _State.ONLINE and not self._reason and not self._outlet.owes()
        return online and self._wire.socket() is not None and not self._wire.want_write()

    def _settle(self) -> None:
        """Leave every entry with the socket watched as it must be, or the next attempt scheduled."""
        if self._state not in {_State.GREETING, _State.ONLINE}:
            return
        if self._reason:
            self._wire.end(goodbye=True)
        connection = self._wire.socket()
        if connection is None:
            self._lost(self._reason or self._wire.trouble)
        else:
            self._descriptor = connection.fileno()
            has_room = self._incoming.backlog_bytes < _BACKLOG_BYTES  # else the broker is to wait
            self._reactor.watch(self._descriptor, self, read=has_room, write=self._wire.want_write())

    def _lost(self, reason: str) -> None:
        again, self._again = self._again, False
        if self._state is _State.ONLINE:
            reason = self._blame(reason)
        elif self._state is _State.GREETING and not self._reason:
            is_known = self.counts["connects"] > 0
            closed = f"refuses: {self._why(ConnectionResetError())}"
            reason = "ended the connection before it answered" if is_known else closed
        self._part()
        self._state = _State.WAITING
        if again:
            self._due = self._reactor.clock()
            self._reactor.at(self._due, self)
            return
        self._wait()
        self._emit(Disconnected(f"{self._wire.name} {reason}"))

    def _why(self, error: Exception) -> str:
        return why(error, self._wire.host, tls=self._options.tls is not None)

    def _blame(self, reason: str) -> str:
        """Learn from the end of a connection: a rival with our id, or a message that was too large. Return why."""
        lasted_s = self._reactor.clock() - self._since
        self._attempt = 0 if lasted_s >= self._options.backoff.stable_s else self._attempt
        if self._reason:  # we ended it
            self._takeovers.stands(lasted_s)
            return reason
        with self._lock:
            sizes = self._outgoing.sizes()
        lesson = learn(self._size, self._takeovers, self._wire.ending, lasted_s=lasted_s, in_flight=sizes)
        if lesson.guilty_bytes:
            self._shrink(lesson.guilty_bytes)
        if lesson.is_takeover:
            self.counts["takeovers"] += 1
            return self._takeovers.words(reason, self.client_id)
        return reason + lesson.reason

    def _wait(self) -> None:
        delay_s = self._options.backoff.delay_s(self._attempt, self._rng)
        if self._takeovers.times:
            rival_s = self._options.backoff.rival_delay_s(self._takeovers.times, self._rng)
            delay_s = max(delay_s, rival_s)
        self._due = self._reactor.clock() + delay_s
        self._attempt += 1
        self._reactor.at(self._due, self)

    def _part(self) -> None:
        self._reactor.forget(self._descriptor)
        self._reactor.leave(self)
        self._descriptor = -1
        self._incoming.begin()
        self._outlet.connection_lost()
        self._reason = ""

    def _close(self, *, goodbye: bool) -> None:
        if self._state in {_State.GREETING, _State.ONLINE}:
            self._wire.end(goodbye=goodbye)
        self._part()
        self._state = _State.CLOSED
        self.gone.set()
