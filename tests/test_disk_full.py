"""A full disk under a running server: nothing is acknowledged that is not stored, and it goes on by itself."""

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_site import ALL, TASK_ID, Site
from server_world import FLEET, Vehicle

from fedfleet.protocol import topics

JUNK = 400
Fill = Callable[[], None]


class Limit:
    """Files of the server's process may not grow beyond 1 MB: what any user can do to oneself."""

    before = ("bash", "-c", 'ulimit -S -f 1024; exec "$@"', "-")

    def __init__(self, folder: Path) -> None:
        del folder

    def fill(self, site: Site) -> None:
        site.server.send_signal(signal.SIGTERM)
        site.server.wait(10)
        site.start_server(before=self.before)

    def free(self, site: Site) -> None:
        resource.prlimit(site.server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    def close(self) -> None:
        """Nothing is left."""


class Disk:
    """The server's folder is a disk of 64 MB, and a file fills it up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "server"
        self.folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted: {done.stderr.strip()}")

    def fill(self, site: Site) -> None:
        del site
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017 - full is what it is to be

    def free(self, site: Site) -> None:
        del site
        (self.folder / "filler").unlink()

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True, timeout=30)


@pytest.fixture(params=[Limit, Disk])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param is Disk and os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    made = request.param(tmp_path)
    yield made
    made.close()


@pytest.fixture
def site(full: Any, tmp_path: Path, processes: Any, mosquitto_binary: Path) -> Iterator[Site]:
    assert full
    assert mosquitto_binary.exists()
    made = Site(tmp_path, processes, rounds=2)
    yield made
    made.close()
    made.server.kill()
    made.server.wait(10)


def flood(site: Site, quiet: Vehicle, full: Any) -> None:
    """Fill the disk, then send a good update and more junk than there is room for; none of it is taken."""
    full.fill(site)
    topic = topics.update(FLEET, quiet.name, TASK_ID, round_=1, number=0)
    for _ in range(JUNK):
        quiet.link.publish(topic, b"x" * 32_768)
    site.vehicles.append(quiet)
    site.run_until(
        lambda: "store cannot be written" in site.processes.log(site.server), "the server says it is full"
    )
    assert site.server.poll() is None


@pytest.fixture
def quiet(site: Site) -> Vehicle:
    """A vehicle that has sent nothing yet; the others' updates are stored."""
    site.drive()
    found = site.vehicles.pop()
    site.run_until(lambda: site.shown()["updates"] == len(ALL) - 1, "all but one are stored")
    return found


def all_is_there(site: Site) -> None:
    site.run_until(lambda: bool(site.shown()["is_done"]), "all rounds are done")
    site.run_until(
        lambda: site.shown()["counters"].get("refused:not-an-envelope", 0) >= JUNK,
        "what was sent once is all there",
    )
    assert site.shown()["updates"] == len(ALL) * 2


def test_it_goes_on_by_itself_when_there_is_room(site: Site, quiet: Vehicle, full: Any) -> None:
    flood(site, quiet, full)
    # when there is room again, then the same process takes everything, what was sent only once too
    full.free(site)
    all_is_there(site)
    assert "store can be written again" in site.processes.log(site.server)
    assert site.server.poll() is None


def test_what_it_did_not_store_it_did_not_acknowledge(site: Site, quiet: Vehicle, full: Any) -> None:
    flood(site, quiet, full)
    # when it is killed while the disk is full, and comes back with room
    site.server.kill()
    site.server.wait(10)
    if isinstance(full, Disk):
        full.free(site)
    site.start_server()
    # then the broker had kept it all for it
    all_is_there(site)
