"""Is there an MQTT broker that accepts us? One plain connection: CONNECT, CONNACK, DISCONNECT."""

import socket
import struct

from fedfleet.link.options import Options
from fedfleet.link.words import why, why_refused
from fedfleet.protocol.errors import UsageError

__all__ = ["check"]


def check(
    host: str, port: int, *, timeout_s: float, options: Options | None = None, greets: bool = True
) -> None:
    """Return when a broker accepts an MQTT connection; UsageError says in one line why it does not.

    ``timeout_s`` bounds each of: connecting, the TLS handshake, waiting for the CONNACK (MQTT 3.1.1 §3.2). Where a
    certificate tells the broker who we are, the session of that name is left as it is, but its connection is taken
    over: without ``greets`` only the handshake is made.
    """
    options = options or Options()
    try:
        with socket.create_connection((host, port), timeout_s) as plain:
            if options.tls is None:
                code = _greet(plain, options) if greets else 0
            else:
                with options.tls.wrap_socket(plain, server_hostname=host) as secure:
                    code = _greet(secure, options) if greets else 0
    except OSError as error:
        told = why(error, host, tls=options.tls is not None)
        raise UsageError(f"broker {host}:{port} refuses: {told}") from error
    if code:
        raise UsageError(f"broker {host}:{port} refuses: {why_refused(code)}")


def _greet(connection: socket.socket, options: Options) -> int:
    connection.sendall(_connect_packet("fleet-probe", options))
    answer = b""
    while len(answer) < 4:
        more = connection.recv(4 - len(answer))
        if not more:
            raise ConnectionResetError
        answer += more
    if answer[:2] != b"\x20\x02":
        raise ConnectionError("it does not speak MQTT: is it the right port?")
    connection.sendall(b"\xe0\x00")
    return answer[3]


def _connect_packet(client_id: str, options: Options) -> bytes:
    def text(value: str) -> bytes:
        data = value.encode()
        return struct.pack("!H", len(data)) + data

    password = options.password
    user = client_id if options.username is None else options.username
    flags = (0 if options.is_certified else 0x02) | 0x80 | (0x40 if password is not None else 0)
    body = text("MQTT") + bytes([4, flags]) + struct.pack("!H", 10) + text(client_id) + text(user)
    if password is not None:
        body += text(password)
    if len(body) > 127:
        return b"\x10" + bytes([len(body) & 127 | 128, len(body) >> 7]) + body
    return b"\x10" + bytes([len(body)]) + body
