"""One vehicle that publishes as fast as it can, in a process of its own: raw MQTT over one socket.

    python flooder.py PORT VEHICLE TOPIC QOS SIZE SECONDS [FILE]

The payload is the file's, or SIZE random bytes. Prints how many messages the socket took.
"""

import os
import select
import socket
import struct
import sys
import time
from pathlib import Path

CHUNK_BYTES = 1 << 17


def length(size: int) -> bytes:
    out = bytearray()
    while True:
        size, low = divmod(size, 128)
        out.append(low | (128 if size else 0))
        if not size:
            return bytes(out)


def connected(port: int, vehicle: str) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port))
    name = vehicle.encode()
    words = b"\x00\x04MQTT\x04\x82\x00\x00" + 2 * (struct.pack(">H", len(name)) + name)
    found.sendall(b"\x10" + length(len(words)) + words)
    answer = b""
    while len(answer) < 4:
        answer += found.recv(4)
    if answer[3]:
        raise SystemExit(f"flooder: the broker refuses {vehicle}: {answer.hex()}")
    found.setblocking(False)
    return found


def packets(topic: str, payload: bytes, qos: int, count: int) -> bytes:
    """Some publishes in a row, with packet ids from 1 on at QoS 1."""
    head = struct.pack(">H", len(topic)) + topic.encode()
    size = len(head) + len(payload) + (2 if qos else 0)
    first = bytes((0x30 | qos << 1,)) + length(size) + head
    return b"".join(first + (struct.pack(">H", n + 1) if qos else b"") + payload for n in range(count))


def main(words: list[str]) -> None:
    port, vehicle, topic, qos, size, seconds = words[:6]
    payload = Path(words[6]).read_bytes() if len(words) > 6 else os.urandom(int(size))
    count = max(1, min(500, CHUNK_BYTES // (len(payload) + 100)))
    block = packets(topic, payload, int(qos), count)
    link = connected(int(port), vehicle)
    end_s, sent, acked = time.monotonic() + float(seconds), 0, 0
    view = memoryview(block)
    while time.monotonic() < end_s:
        readable, writable, _ = select.select([link], [link], [], 0.1)
        if readable:
            data = link.recv(1 << 16)
            if not data:
                break
            acked += len(data) // 4
        if writable:
            view = view[link.send(view) :]
            if not view:
                sent, view = sent + count, memoryview(block)
    sys.stdout.write(f'{{"sent": {sent}, "acknowledged": {acked}, "bytes": {sent * len(payload)}}}\n')


if __name__ == "__main__":
    main(sys.argv[1:])
