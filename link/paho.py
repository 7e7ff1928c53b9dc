"""Links over real MQTT brokers: the only file that imports paho.

MQTT 5 where the broker speaks it, for what it says there: how large a packet may be, and why it ends a connection;
else MQTT 3.1.1. Nothing else differs.


paho parses and builds packets and remembers QoS-1 messages in flight, nothing else: no thread, loop, queue or
reconnect of its own, no callback that does more than append. Each of its clients is used by one thread at a time:
the reactor's, or while a connection is opened the reactor's second one.
"""

import random
import socket as sockets
import ssl
import time
from collections.abc import Callable
from typing import Literal

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, error_string
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from fedfleet.link.live import LiveLink
from fedfleet.link.options import Options
from fedfleet.link.port import MAX_PAYLOAD_BYTES, Sink, Will
from fedfleet.link.reactor import Reactor
from fedfleet.link.sieve import Sieve, length_at
from fedfleet.link.windows import Pending
from fedfleet.link.wire import Accepted, Acknowledged, Answered, Arrived, End, Packet, Refused
from fedfleet.link.words import why_refused

__all__ = ["Loop"]

_V5, _V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
_FAILURE = 128  # and above
_VERSION_UNKNOWN, _TAKEN_OVER, _TOO_LARGE = 132, 142, 149  # reason codes of MQTT 5
_ENDINGS = {_TAKEN_OVER: End.TAKEN_OVER, _TOO_LARGE: End.TOO_LARGE}
_FOR_EVER = 0xFFFFFFFF
_AROUND_BYTES = 4096
_READ_BYTES = 1 << 16
_SIFTED_BYTES = 1 << 18
_MID_BYTES = 2
_PUBACK = 0x40
_SUCCESS = ReasonCode(PacketTypes.PUBACK)
_NO_PROPERTIES = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]


class _Client(Client):
    """paho's client, reading ahead: by itself it asks the socket for a byte, a length and a body one by one."""

    puback_code = 0  # of the PUBACK that is handled: MQTT 5's reason code
    _ahead = b""
    _at = 0
    dial: Callable[[tuple[str, int], float], sockets.socket] | None = None
    sieve: Sieve | None = None

    @property
    def _read_bytes(self) -> int:
        return _READ_BYTES if self.sieve is None else _SIFTED_BYTES

    def _create_socket_connection(self) -> sockets.socket:
        if self.dial is not None:
            return self.dial((self._host, self._port), self._connect_timeout)
        return super()._create_socket_connection()

    def _sock_recv(self, bufsize: int) -> bytes:
        if self._at >= len(self._ahead):
            self._ahead, self._at = self._sifted(super()._sock_recv(max(bufsize, self._read_bytes))), 0
        data = self._ahead[self._at : self._at + bufsize]
        self._at += len(data)
        if not self.has_more():
            self.forget()
        return data

    def _sifted(self, data: bytes) -> bytes:
        if self.sieve is None or not data:
            return data
        kept = self.sieve.feed(data)
        if due := self.sieve.acknowledgements():
            self._packet_queue(_PUBACK, due, 0, 0)
        if not kept:
            raise BlockingIOError  # as when nothing had come
        return kept

    def release(self, mid: int) -> MQTTErrorCode:
        """Acknowledge a QoS-1 message of this connection."""
        if self.sieve is not None:
            self.sieve.released(mid)
        return self.ack(mid, 1)

    def speak(self, version: MQTTProtocolVersion, *, clean: bool) -> None:
        """Use this version of MQTT from the next connection on; messages in flight stay."""
        self._protocol, self._clean_session, self._clean_start = version, clean, clean

    def drop(self, mid: int) -> None:
        """Forget a message in flight."""
        with self._out_message_mutex:
            self._out_messages.pop(mid, None)

    def _handle_publish(self) -> MQTTErrorCode:
        """Take a PUBLISH; one of MQTT 5 as one of 3.1.1, for what its sender put into the properties is not read."""
        if self._protocol != _V5:
            return super()._handle_publish()
        packet, header = self._in_packet["packet"], self._in_packet["command"]
        at = 2 + int.from_bytes(packet[:2], "big") + (2 if header & 6 else 0)
        size, start = length_at(packet, at)
        if not start or start + size > len(packet):
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        del packet[at : start + size]
        self._protocol = _V311
        try:
            return super()._handle_publish()
        finally:
            self._protocol = _V5

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        """Take a PUBACK. paho makes a code and properties anew for each, and fails at codes that it does not expect."""
        packet = self._in_packet["packet"]
        if cmd != "PUBACK" or len(packet) < _MID_BYTES:
            return super()._handle_pubackcomp(cmd)
        mid = int.from_bytes(packet[:_MID_BYTES], "big")
        self.puback_code = packet[_MID_BYTES] if len(packet) > _MID_BYTES else 0
        with self._out_message_mutex:
            if mid in self._out_messages:
                return self._do_on_publish(mid, _SUCCESS, _NO_PROPERTIES)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def has_more(self) -> bool:
        """Whether bytes are here that no packet was made of."""
        return self._at < len(self._ahead)

    def forget(self) -> None:
        """Drop what was read ahead: it belongs to a connection that has ended."""
        self._ahead, self._at = b"", 0

    def begin(self) -> None:
        """Forget what belongs to the connection before."""
        self.forget()
        if self.sieve is not None:
            self.sieve.reset()


def _properties(options: Options) -> Properties:
    """Return what CONNECT says in MQTT 5: keep the session, as MQTT 3.1.1 does, and what we take at once."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 0 if options.clean else _FOR_EVER
    properties.ReceiveMaximum = min(options.receive_window, 65_535)
    properties.MaximumPacketSize = MAX_PAYLOAD_BYTES + _AROUND_BYTES
    return properties


class Loop:
    """One epoll loop in one thread for any number of links. ``clock`` counts seconds; ``rng`` gives jitter."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, rng: random.Random | None = None
    ) -> None:
        self._rng = rng or random.Random()
        self._reactor = Reactor(clock)
        self._links: list[LiveLink] = []

    def start(self) -> "Loop":
        """Start the thread; returns the loop."""
        self._reactor.start()
        return self

    def connect(
        self,
        host: str,
        port: int,
        *,
        client_id: str,
        sink: Sink,
        will: Will | None = None,
        options: Options | None = None,
    ) -> LiveLink:
        """Return a link that connects, and connects again, by itself; failures come as Disconnected events.

        The ``client_id`` is stable and unique: the session at the broker hangs on it.
        """
        options = options or Options()
        wire = _Wire((host, port), options, client_id=client_id, will=will)
        link = LiveLink(wire, self._reactor, options, sink=sink, client_id=client_id, rng=self._rng)
        self._links = [known for known in self._links if not known.gone.is_set()]
        self._links.append(link)
        self._reactor.wake(link)
        return link

    def stop(self) -> None:
        """Close every link with a goodbye and end the thread. Not from inside a sink."""
        for link in self._links:
            link.leave(goodbye=True)
        for link in self._links:
            link.close()
        self._reactor.stop()


class _Wire:
    """The ``Wire`` over paho's external-loop interface."""

    def __init__(
        self, where: tuple[str, int], options: Options, *, client_id: str, will: Will | None
    ) -> None:
        self.name, self.host = f"broker {where[0]}:{where[1]}", where[0]
        self.trouble = ""
        self.ending = End.BROKER
        self._packets: list[Packet] = []
        self._reading = False
        self._options = options
        self._version = _V311 if options.mqtt == "3.1.1" else _V5
        self._was_answered = True
        client = self._client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=_V5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.max_inflight_messages = 0  # no queue inside paho: the window is ours
        client.connect_timeout = options.connect_timeout_s
        client.dial = options.dial
        client.sieve = Sieve(options.admits) if options.admits is not None else None
        client.username_pw_set(client_id if options.username is None else options.username, options.password)
        if options.tls is not None:
            client.tls_set_context(options.tls)
        if will is not None:
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.on_disconnect = self._on_disconnect
        client.connect_async(
            *where, keepalive=options.keepalive_s, clean_start=options.clean, properties=_properties(options)
        )
        client.speak(self._version, clean=options.clean)

    def open(self) -> None:
        """Connect and send CONNECT (see ``Wire.open``)."""
        self.trouble, self.ending = "ended the connection", End.BROKER
        self._packets.clear()
        self._client.begin()
        if not self._was_answered and self._options.mqtt == "auto":  # perhaps it does not know this version
            self._version = _V311 if self._version == _V5 else _V5
            self._client.speak(self._version, clean=self._options.clean)
        self._was_answered = True
        code = self._client.reconnect()
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise ConnectionError(error_string(code))
        self._was_answered = False

    def socket(self) -> sockets.socket | None:
        """Return the open socket."""
        found = self._client.socket()
        return found if isinstance(found, sockets.socket) else None

    def want_write(self) -> bool:
        """Whether bytes wait for the socket to become writable."""
        return self._client.want_write()

    def read(self) -> list[Packet]:
        """Read what one call to the socket brings, and what TLS has decrypted already (epoll does not see it)."""
        self._reading = True
        try:
            self._note(self._client.loop_read())
            while self._has_more():
                self._note(self._client.loop_read())
        finally:
            self._reading = False
        packets, self._packets = self._packets, []
        return packets

    def _has_more(self) -> bool:
        found = self._client.socket()
        if found is None:
            return False
        return self._client.has_more() or (isinstance(found, ssl.SSLSocket) and found.pending() > 0)

    def write(self) -> None:
        """Write what waits."""
        self._note(self._client.loop_write())

    def tick(self) -> None:
        """Ping; a ping without answer for the time of the keepalive ends the connection."""
        if self._client.socket() is not None:
            self._client.loop_misc()
            if self._client.socket() is None:
                self.trouble = f"did not answer within {self._client.keepalive} s (keepalive)"
                self.ending = End.SILENCE

    def publish(self, message: Pending) -> int:
        """Send a message. Whatever paho's return code says about the connection, paho has it from now on."""
        while True:
            info = self._client.publish(message.topic, message.payload, message.qos, message.retain)
            if info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # else the packet id is in flight: take the next
                self._note(info.rc)
                return info.mid

    def drop(self, mid: int) -> None:
        """Do not send a message again that was not acknowledged."""
        self._client.drop(mid)

    def puback(self, mid: int) -> None:
        """Acknowledge a QoS-1 message of this connection."""
        self._note(self._client.release(mid))

    def subscribe(self, filters: list[tuple[str, int]]) -> int:
        """Send SUBSCRIBE; 0 when the connection has ended."""
        if self._version == _V5:
            code, mid = self._client.subscribe([(name, SubscribeOptions(qos=qos)) for name, qos in filters])
        else:
            code, mid = self._client.subscribe(filters)
        self._note(code)
        return mid or 0

    def unsubscribe(self, filters: list[str]) -> int:
        """Send UNSUBSCRIBE; 0 when the connection has ended."""
        code, mid = self._client.unsubscribe(filters)
        self._note(code)
        return mid or 0

    def end(self, *, goodbye: bool) -> None:
        """Disconnect if asked; then close the socket under paho and let it notice."""
        if goodbye:
            self._client.disconnect()
        found = self.socket()
        if found is not None:
            found.close()
            self._client.forget()
            self._client.loop_read()

    def _note(self, code: MQTTErrorCode) -> None:
        is_told = self.ending not in {End.BROKER, End.SILENCE}
        if not is_told and code not in {MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN}:
            self.trouble = f"ended the connection: {error_string(code).rstrip('.').lower()}"

    # paho's callbacks only append.

    def _on_connect(
        self, _c: Client, _u: object, flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        is_unknown = code.value == _VERSION_UNKNOWN
        self._was_answered = not is_unknown
        if code.is_failure:
            self._packets.append(
                Refused(why_refused(code.value), again=is_unknown and self._options.mqtt == "auto")
            )
            return
        size, window = (getattr(properties, name, None) for name in ("MaximumPacketSize", "ReceiveMaximum"))
        self._packets.append(Accepted(flags.session_present, size, window))

    def _on_disconnect(
        self, _c: Client, _u: object, flags: DisconnectFlags, code: ReasonCode, _p: object
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self.ending = _ENDINGS.get(code.value, End.TOLD)
            self.trouble = f"ended the connection: {str(code).lower()}"

    def _on_message(self, _c: Client, _u: object, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = "\ufffd"  # no topic of anyone; the receiver drops it as malformed, and acknowledges it
        payload = bytes(message.payload)
        arrived = Arrived(message.mid, topic, payload, message.qos, message.retain, message.dup)
        self._packets.append(arrived)

    def _on_publish(self, _c: Client, _u: object, mid: int, _r: ReasonCode, _p: object) -> None:
        if self._reading:  # else QoS 0 was written: its packet id means nothing
            code = self._client.puback_code
            refusal = why_refused(code) if code >= _FAILURE else ""
            self._packets.append(Acknowledged(mid, refusal, too_large=code == _TOO_LARGE))

    def _on_subscribe(self, _c: Client, _u: object, mid: int, codes: list[ReasonCode], _p: object) -> None:
        self._packets.append(Answered(mid, tuple(code.is_failure for code in codes)))

    def _on_unsubscribe(self, _c: Client, _u: object, mid: int, _r: list[ReasonCode], _p: object) -> None:
        self._packets.append(Answered(mid, ()))
