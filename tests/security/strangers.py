"""Clients that keep to no rule of ours: MQTT with any id, topic and filter; NATS' own protocol, line by line."""

import json
import queue
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

PATIENCE_S = 10.0


@dataclass(frozen=True)
class Heard:
    topic: str
    payload: bytes
    retain: bool


class Stranger:
    """A plain MQTT client. ``publish`` returns when the broker has acknowledged, or has ended the connection."""

    def __init__(
        self,
        port: int,
        client_id: str,
        *,
        tls: ssl.SSLContext | None = None,
        username: str | None = None,
        will: tuple[str, bytes] | None = None,
        clean: bool = True,
        protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311,
    ) -> None:
        is_5 = protocol == MQTTProtocolVersion.MQTTv5
        self._client = client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if is_5 else clean,
            protocol=protocol,
            reconnect_on_failure=False,
        )
        if tls is not None:
            client.tls_set_context(tls)
        if username is not None:
            client.username_pw_set(username)
        if will is not None:
            client.will_set(*will, qos=1, retain=True)
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        client.on_connect = lambda *_: self._answers.put("connected")
        client.on_disconnect = lambda *_: self._answers.put("gone")
        client.on_publish = lambda *_: self._answers.put("published")
        client.on_subscribe = lambda *_: self._answers.put("subscribed")
        client.on_message = self._on_message
        client.connect("localhost" if tls else "127.0.0.1", port)
        client.loop_start()
        self.is_in = self._answer() == "connected"

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        if self._client.publish(topic, payload, qos, retain).rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._answer()

    def subscribe(self, topic_filter: str, *, qos: int = 1) -> None:
        if self._client.subscribe(topic_filter, qos)[0] == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._answer()

    def heard(self, last: bytes) -> list[Heard]:
        """What came before the message with this payload, for which it waits."""
        found: list[Heard] = []
        while True:
            one = self._heard.get(timeout=PATIENCE_S)
            if one.payload == last:
                return found
            found.append(one)

    def silence(self) -> list[Heard]:
        """What has come by now."""
        found = []
        while not self._heard.empty():
            found.append(self._heard.get())
        return found

    def die(self) -> None:
        """Go without a goodbye: the broker publishes the will."""
        self._client.loop_stop()
        found = self._client.socket()
        if isinstance(found, socket.socket):
            found.shutdown(socket.SHUT_RDWR)
            found.close()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> str:
        return self._answers.get(timeout=PATIENCE_S)

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        self._heard.put(Heard(message.topic, bytes(message.payload), message.retain))


class NatsClient:
    """A client of NATS' own protocol; ``tls`` is shown where the server asks for it."""

    def __init__(self, port: int, *, user: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._socket: socket.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._socket.recv(1 << 16)  # INFO
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname="localhost")
        self._rest = b""
        options = {"verbose": False, "pedantic": False, "lang": "plain", "version": "1", "protocol": 1}
        if user is not None:
            options |= {"user": user, "pass": ""}
        self.say(f"CONNECT {json.dumps(options)}")

    def say(self, *lines: str) -> None:
        self._socket.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def publish(self, subject: str, payload: str) -> None:
        self.say(f"PUB {subject} {len(payload)}", payload)

    def answers(self) -> list[str]:
        """Return the lines up to the answer to a ping, or to the end of the connection."""
        lines: list[str] = []
        with suppress(OSError):
            self.say("PING")
            while "PONG" not in lines and (more := self._socket.recv(1 << 16)):
                whole, _, self._rest = (self._rest + more).rpartition(b"\r\n")
                lines += whole.decode().split("\r\n")
        return lines

    def close(self) -> None:
        self._socket.close()
