"""The broker that we start ourselves: it starts, stops, is killed, comes back, and says in one line when it cannot."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedfleet.link import embedded
from fedfleet.link.probe import check
from fedfleet.protocol.errors import UsageError

KINDS = [
    pytest.param("mosquitto", marks=pytest.mark.mosquitto),
    pytest.param("nats", marks=pytest.mark.nats),
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> embedded.Kind:
    request.getfixturevalue(f"{request.param}_binary")
    found: embedded.Kind = request.param
    return found


def test_broker_runs_inside_the_block_and_not_after(kind: embedded.Kind, tmp_path: Path) -> None:
    # when
    with embedded.start(tmp_path / "new" / "folder", kind=kind) as broker:
        # then
        assert (broker.kind, broker.host) == (kind, "127.0.0.1")
        check(broker.host, broker.port, timeout_s=5.0)
        os.kill(broker.pid, 0)
    assert not broker.running()
    broker.stop()
    with pytest.raises(UsageError, match="connection refused"):
        check(broker.host, broker.port, timeout_s=5.0)


def test_killed_broker_restarts_on_its_port(kind: embedded.Kind, tmp_path: Path) -> None:
    # given
    with embedded.start(tmp_path, kind=kind) as broker:
        port, pid = broker.port, broker.pid
        # when
        broker.kill()
        assert not broker.running()
        broker.restart()
        # then
        assert broker.port == port
        assert broker.pid != pid
        check(broker.host, port, timeout_s=5.0)


def test_port_in_use_is_one_clear_line(kind: embedded.Kind, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UsageError, match=f"^cannot start a broker on 127.0.0.1:{port}: address already in use$"
        ):
            embedded.start(tmp_path, kind=kind, port=port)


def test_broker_that_does_not_start_is_named_with_the_last_line_of_its_log(
    kind: embedded.Kind, tmp_path: Path
) -> None:
    # given data that is not data
    (tmp_path / "mosquitto.db").write_bytes(b"\x00not a database" * 10)
    (tmp_path / "jetstream").write_text("not a folder")
    # when
    with pytest.raises(UsageError, match=rf"^{kind} does not start on 127.0.0.1:\d+: exit code \d+: .+$"):
        embedded.start(tmp_path, kind=kind)


def test_broker_listens_on_loopback_only(kind: embedded.Kind, tmp_path: Path) -> None:
    with embedded.start(tmp_path, kind=kind) as broker:
        listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
        locals_ = [line.split()[1] for line in listening if line.split()[3] == "0A"]
        mine = [a for a in locals_ if int(a.split(":")[1], 16) == broker.port]
        assert mine == [f"0100007F:{broker.port:04X}"]


def test_broker_ends_with_the_process_that_started_it(
    kind: embedded.Kind, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    # given another process with a broker
    script = (
        "import sys; from pathlib import Path; from fedfleet.link import embedded\n"
        "broker = embedded.start(Path(sys.argv[1]), kind=sys.argv[2]); print(broker.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path), kind]
    for way in (signal.SIGKILL, None):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            pid = int(process.stdout.readline())
            # when it is killed, or simply ends
            if way is not None:
                process.send_signal(way)
            else:
                process.stdin.close()
            process.wait(20)
        # then
        wait_until(lambda pid=pid: not alive(pid), f"{kind} ends")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_auto_prefers_mosquitto_and_takes_nats_without_it(
    nats_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    assert nats_binary.is_file()
    expected = "mosquitto" if embedded.find("mosquitto") else "nats"
    # then
    with embedded.start(tmp_path) as broker:
        assert broker.kind == expected
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find("nats") == nats_binary


def test_missing_broker_is_a_usage_error_that_names_both(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^no broker to start: expected mosquitto .* or nats-server .*$"):
        embedded.start(tmp_path, finder=lambda _: None)
    with pytest.raises(UsageError, match=r"^no broker to start: expected nats-server .*$"):
        embedded.start(tmp_path, kind="nats", finder=lambda _: None)
