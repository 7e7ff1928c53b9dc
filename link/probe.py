"""Is there an MQTT broker that accepts us? One plain connection: CONNECT, CONNACK, DISCONNECT."""

import socket
import struct

from fedfleet.link.options import Options
from fedfleet.protocol.errors import UsageError

__all__ = ["check", "why", "why_refused"]

_REFUSALS = {
    1: "it does not speak MQTT 3.1.1",
    2: "it rejects the client id",
    3: "it is unavailable",
    4: "user name or password is wrong",
    5: "not authorized",
    132: "it does not speak this version of MQTT",
    133: "it rejects the client id",
    134: "user name or password is wrong",
    135: "not authorized",
    136: "it is unavailable",
    137: "it is busy",
    138: "it has banned this client",
    149: "it does not take packets of that size",
    151: "its quota is used up",
    159: "it takes no more connections for now",
}


def check(host: str, port: int, *, timeout_s: float, options: Options | None = None) -> None:
    """Return when a broker accepts an MQTT connection; UsageError says in one line why it does not.

    ``timeout_s`` bounds each of: connecting, the TLS handshake, waiting for the CONNACK (MQTT 3.1.1 §3.2).
    """
    options = options or Options()
    try:
        with socket.create_connection((host, port), timeout_s) as plain:
            if options.tls is None:
                code = _greet(plain, options)
            else:
                with options.tls.wrap_socket(plain, server_hostname=host) as secure:
                    code = _greet(secure, options)
    except OSError as error:
        raise UsageError(f"broker {host}:{port} refuses: {why(error)}") from error
    if code:
        raise UsageError(f"broker {host}:{port} refuses: {why_refused(code)}")


def why_refused(code: int) -> str:
    """Return the few words of a CONNACK's return code (MQTT 3.1.1) or reason code (MQTT 5)."""
    return _REFUSALS.get(code, f"code {code}")


def why(error: Exception) -> str:
    """Return the few words that say why a connection could not be made."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _greet(connection: socket.socket, options: Options) -> int:
    connection.sendall(_connect_packet("fleet-probe", options.username, options.password))
    answer = b""
    while len(answer) < 4:
        more = connection.recv(4 - len(answer))
        if not more:
            raise ConnectionError("it closed the connection instead of answering")
        answer += more
    if answer[:2] != b"\x20\x02":
        raise ConnectionError("it does not speak MQTT")
    connection.sendall(b"\xe0\x00")
    return answer[3]


def _connect_packet(client_id: str, username: str | None, password: str | None) -> bytes:
    def text(value: str) -> bytes:
        data = value.encode()
        return struct.pack("!H", len(data)) + data

    user = client_id if username is None else username
    flags = 0x02 | 0x80 | (0x40 if password is not None else 0)
    body = text("MQTT") + bytes([4, flags]) + struct.pack("!H", 10) + text(client_id) + text(user)
    if password is not None:
        body += text(password)
    if len(body) > 127:
        return b"\x10" + bytes([len(body) & 127 | 128, len(body) >> 7]) + body
    return b"\x10" + bytes([len(body)]) + body
