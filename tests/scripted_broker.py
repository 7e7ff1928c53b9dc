"""A broker whose every packet the test writes: for what a real one does once in a thousand days."""

import socket
import struct
from dataclasses import dataclass
from typing import Self

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, DISCONNECT = 1, 2, 3, 4, 8, 14
PATIENCE_S = 15.0


@dataclass(frozen=True)
class Packet:
    kind: int
    flags: int
    body: bytes

    @property
    def mid(self) -> int:
        """The packet id; of a PUBLISH at QoS 1 it stands after the topic."""
        at = 2 + struct.unpack("!H", self.body[:2])[0] if self.kind == PUBLISH else 0
        return int(struct.unpack("!H", self.body[at : at + 2])[0])

    @property
    def payload(self) -> bytes:
        """The payload of a PUBLISH at QoS 1."""
        return self.body[4 + struct.unpack("!H", self.body[:2])[0] :]

    @property
    def duplicate(self) -> bool:
        return bool(self.flags & 8)


class Conversation:
    """One accepted connection, its CONNECT read and answered (code None: not answered)."""

    def __init__(self, connection: socket.socket, *, code: int | None, session_present: bool) -> None:
        self._connection = connection
        connection.settimeout(PATIENCE_S)
        self.connect = self.read()
        assert self.connect.kind == CONNECT
        if code is not None:
            self.send(CONNACK, bytes([session_present, code]))

    def send(self, kind: int, body: bytes, *, flags: int = 0) -> None:
        assert len(body) < 128
        self._connection.sendall(bytes([kind << 4 | flags, len(body)]) + body)

    def publish(self, mid: int, payload: bytes, *, duplicate: bool = False) -> None:
        body = struct.pack("!H", 1) + b"t" + struct.pack("!H", mid) + payload
        self.send(PUBLISH, body, flags=2 | (8 if duplicate else 0))

    def puback(self, mid: int) -> None:
        self.send(PUBACK, struct.pack("!H", mid))

    def read(self) -> Packet:
        first = self._exactly(1)[0]
        size, shift = 0, 0
        while True:
            digit = self._exactly(1)[0]
            size |= (digit & 127) << shift
            shift += 7
            if not digit & 128:
                return Packet(first >> 4, first & 15, self._exactly(size))

    def cut(self) -> None:
        self._connection.close()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._connection.recv(count - len(data))
            assert more, "the link closed the connection"
            data += more
        return data


class ScriptedBroker:
    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE_S)
        self.port = int(self._listener.getsockname()[1])
        self._open: list[Conversation] = []

    def accept(self, *, code: int | None = 0, session_present: bool = False) -> Conversation:
        connection, _ = self._listener.accept()
        self._open.append(Conversation(connection, code=code, session_present=session_present))
        return self._open[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for conversation in self._open:
            conversation.cut()
