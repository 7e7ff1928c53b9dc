"""kill -9 of the server and of a real broker at random points: nothing stored is lost, nothing counts twice."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from child_processes import Processes
from crash_site import ALL, Plan, Site, shake, tell


@pytest.fixture
def build(tmp_path: Path, processes: Processes) -> Iterator[Callable[..., Site]]:
    """Make sites that are closed at the end."""
    made: list[Site] = []

    def site(**arguments: Any) -> Site:
        made.append(Site(tmp_path / str(len(made)), processes, **arguments))
        return made[-1]

    yield site
    for each in made:
        each.close()


def check(build: Callable[..., Site], plan: Plan, *, rounds: int, kind: str, seed: int) -> None:
    """Run a fleet undisturbed and one with kills: the same updates are folded once, and every version is the same."""
    # given what an undisturbed fleet learns
    quiet = build(rounds=rounds, kind=kind)
    quiet.drive()
    quiet.finish()
    expected = tell(quiet)
    assert (expected.lost, expected.doubled) == (0, 0)
    assert expected.rounds == {"published": 2 * rounds}
    # when server and broker of another are killed again and again
    shaken = build(rounds=rounds, kind=kind, seed=seed)
    points = shake(shaken, plan)
    # then nothing is missing, nothing counts twice, and the bytes are the same
    assert points.total() == plan.total
    found = tell(shaken)
    assert (found.lost, found.doubled) == (0, 0)
    assert found == expected
    assert shaken.look().round == rounds
    assert shaken.shown()["updates"] == rounds * len(ALL)


@pytest.mark.mosquitto
def test_twenty_kills_lose_nothing(build: Callable[..., Site], mosquitto_binary: Path) -> None:
    assert mosquitto_binary.exists()
    check(build, Plan(server=14, broker=6), rounds=8, kind="mosquitto", seed=1)


@pytest.mark.nats
def test_the_benchmark_loses_nothing_at_nats_and_says_so(nats_binary: Path) -> None:
    assert nats_binary.exists()
    script = Path(__file__).parents[1] / "benchmarks" / "crash.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "4", "--broker", "nats", "--json"],
        capture_output=True,
        check=False,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["kills"], figures["broker_kills"], figures["broker"]) == (4, 2, "nats")
    assert (figures["lost"], figures["doubled"], figures["byte_equal"]) == (0, 0, True)
    assert sum(figures["points"].values()) == 6
    assert "6 of 6 kills" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["mosquitto", "nats"])
def test_sixty_kills_lose_nothing(
    build: Callable[..., Site], kind: str, request: pytest.FixtureRequest
) -> None:
    assert request.getfixturevalue(f"{kind}_binary").exists()
    check(build, Plan(server=40, broker=20), rounds=20, kind=kind, seed=2)
