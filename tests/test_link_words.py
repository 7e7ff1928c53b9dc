"""Every way in which a broker does not take us is said in words, by the command that asks and by the link."""

import datetime as dt
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Authority
from cryptography.hazmat.primitives import serialization

from fedfleet.link.config import BrokerConfig
from fedfleet.link.inbox import Inbox
from fedfleet.link.options import Backoff, Options, options_for
from fedfleet.link.paho import Loop
from fedfleet.link.port import Disconnected, Event
from fedfleet.link.probe import check
from fedfleet.protocol.errors import UsageError

RAW = re.compile(r"_ssl\.c|\[ssl|\[SSL|\[X509|\[Errno|Errno|Traceback|None")
DAY = dt.timedelta(days=1)
Serve = Callable[[Callable[[socket.socket], object]], int]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    for name, file in (("localhost", "broker"), ("broker.example", "elsewhere"), ("v01", "v01")):
        made.issue(name, file)
    made.issue("localhost", "expired", valid=(-3 * DAY, -DAY))
    made.issue("localhost", "early", valid=(DAY, 3 * DAY))
    return made


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    (tmp_path / "stranger").mkdir()
    made = Authority(tmp_path / "stranger")
    made.issue("localhost", "broker")
    return made


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(talk)`: a server on loopback that talks so to everyone; returns its port."""
    opened: list[socket.socket] = []

    def start(talk: Callable[[socket.socket], object]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        opened.append(listener)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        talk(connection)

        threading.Thread(target=accept, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in opened:
        listener.close()


def broker(authority: Authority, file: str, *, wants_ours: bool = False) -> Callable[[socket.socket], object]:
    """A broker on TLS with this certificate, that takes everyone with a certificate."""

    def talk(connection: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.folder / f"{file}.pem", authority.folder / f"{file}.key")
        if wants_ours:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(authority.folder / "ca.pem")
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1000)
            secure.sendall(b"\x20\x02\x00\x00")
            secure.recv(1000)

    return talk


def said(port: int, options: Options, *, host: str = "localhost") -> str:
    """What `check` says, without the broker's name."""
    with pytest.raises(UsageError) as caught:
        check(host, port, timeout_s=2.0, options=options)
    text = str(caught.value)
    assert not RAW.search(text), text
    assert len(text.splitlines()) == 1
    assert text.startswith(f"broker {host}:{port} refuses: ")
    return text.partition(" refuses: ")[2]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it does not speak MQTT: is it the right port?"),
        (b"SSH-2.0-OpenSSH\r\n", "it does not speak MQTT: is it the right port?"),
        (b"", "it closed the connection instead of answering: does it expect TLS (ca_file)?"),
        (b"\x20\x02\x00\x04", "user name or password is wrong: see username and password_file"),
        (
            b"\x20\x02\x00\x05",
            "not authorized: it knows no such user name (username), or wants a password or a certi",
        ),
        (b"\x20\x02\x00\x03", "it is unavailable"),
        (b"\x20\x02\x00\x63", "code 99"),
    ],
)
def test_what_answers_is_said(serve: Serve, answer: bytes, words: str) -> None:
    port = serve(lambda connection: (connection.recv(1000), connection.sendall(answer)))
    assert said(port, Options(), host="127.0.0.1").startswith(words)


def test_who_does_not_answer_is_said(free_port: int) -> None:
    nobody = "connection refused: nothing listens there; `fedfleet broker` starts a broker on this machine"
    assert said(free_port, Options(), host="127.0.0.1") == nobody
    assert said(1883, Options(), host="no-such-host.invalid") == "no machine of this name is known here"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (
            "elsewhere",
            "its certificate is not for localhost: set host to a name that stands in the certificate",
        ),
        ("expired", "its certificate has expired"),
        ("early", "its certificate is not valid yet: is the clock of this machine right?"),
    ],
)
def test_what_is_wrong_with_its_certificate_is_said(
    authority: Authority, serve: Serve, file: str, words: str
) -> None:
    assert said(serve(broker(authority, file)), authority.options("v01")) == words


def test_who_does_not_trust_whom_is_said(authority: Authority, stranger: Authority, serve: Serve) -> None:
    # given a broker of one authority, and of another
    ours, theirs = serve(broker(authority, "broker", wants_ours=True)), serve(broker(stranger, "broker"))
    trusting = ssl.create_default_context(cafile=str(authority.folder / "ca.pem"))
    # then
    assert said(theirs, authority.options("v01")) == "its certificate is not from the authority in ca_file"
    assert said(ours, Options(tls=trusting)) == "it wants a certificate of ours: set cert_file and key_file"
    trusting.load_cert_chain(stranger.folder / "broker.pem", stranger.folder / "broker.key")
    foreign = "it does not accept our certificate (cert_file): it trusts another authority"
    assert said(ours, Options(tls=trusting)) == foreign


def test_tls_against_a_plain_broker_and_the_other_way_is_said(authority: Authority, serve: Serve) -> None:
    plain = serve(lambda connection: (connection.recv(1000), connection.sendall(b"\x20\x02\x00\x00")))
    assert said(plain, authority.options("v01")) == "it does not speak TLS on this port: is it the right one?"
    expected = "it closed the connection instead of answering: does it expect TLS (ca_file)?"
    assert said(serve(broker(authority, "broker")), Options()) == expected


@pytest.mark.parametrize("file", ["elsewhere", "expired"])
def test_the_link_says_the_same(authority: Authority, serve: Serve, file: str) -> None:
    # given a broker with a certificate that is no good
    port = serve(broker(authority, file))
    words = said(port, authority.options("v01"))
    # when a link tries it
    loop, inbox = Loop().start(), Inbox[Event](100)
    try:
        options = replace(authority.options("v01"), backoff=Backoff(base_s=0.01, cap_s=0.1))
        loop.connect("localhost", port, client_id="v01", sink=inbox.put, options=options)
        event = inbox.get(20.0)
    finally:
        loop.stop()
    # then
    assert event == Disconnected(f"broker localhost:{port} refuses: {words}")


def test_files_that_cannot_be_used_are_said(authority: Authority, tmp_path: Path) -> None:
    folder = authority.folder
    (tmp_path / "junk").write_bytes(b"junk")
    key = serialization.load_pem_private_key((folder / "v01.key").read_bytes(), None)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = serialization.BestAvailableEncryption(b"secret")
    (tmp_path / "locked.key").write_bytes(key.private_bytes(pem, pkcs8, secret))
    ca = {"ca_file": folder / "ca.pem"}
    ours = {**ca, "cert_file": folder / "v01.pem"}
    for given, words in (
        ({"ca_file": tmp_path / "none"}, "cannot be used: no such file or directory"),
        ({"ca_file": tmp_path / "junk"}, "cannot be used: expected certificates of authorities, as PEM"),
        ({"ca_file": tmp_path}, "cannot be used: is a directory"),
        (
            {**ours, "key_file": folder / "broker.key"},
            "cannot be used: the key belongs to another certificate",
        ),
        (
            {**ours, "key_file": tmp_path / "junk"},
            "cannot be used: expected a certificate and its key, as PEM",
        ),
        (
            {**ours, "key_file": tmp_path / "locked.key"},
            "as PEM, got an encrypted key: store it without a password, readable by this user only",
        ),
        ({"password_file": tmp_path}, "cannot be read: is a directory"),
        ({"password_file": tmp_path / "none"}, "cannot be read: no such file or directory"),
    ):
        with pytest.raises(UsageError) as caught:
            options_for(BrokerConfig.model_validate(given))
        assert str(caught.value).endswith(words)
        assert not RAW.search(str(caught.value))


def test_asking_a_broker_leaves_the_session_of_a_certificate_alone(
    authority: Authority, serve: Serve
) -> None:
    # given a broker that takes the name from the certificate
    heard: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        heard.append(connection.recv(1000))
        connection.sendall(b"\x20\x02\x00\x00")

    port, options = serve(talk), replace(authority.options("v01"), tls=None)
    # when it is asked, and when it is only looked at
    check("127.0.0.1", port, timeout_s=2.0, options=options)
    check("127.0.0.1", port, timeout_s=2.0, options=options, greets=False)
    check("127.0.0.1", port, timeout_s=2.0, options=Options())
    # then the session is not given up, and nobody's connection is taken
    flags = [packet[9] & 0x02 for packet in heard if packet]
    assert flags == [0, 0x02]
