"""Signals from a program beside the agent: what it tells, what it leaves out, and what it does wrong."""

import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from fedfleet.vehicle_agent.conditions import MAX_LINE_BYTES, Program, read_line

Make = Callable[..., Program]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Program] = []

    def one(*command: str, stale_s: float | None = None) -> Program:
        made.append(Program(command, vehicle="v07", stale_s=stale_s))
        return made[-1]

    yield one
    for each in made:
        each.close()


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[str, Callable[[str], None]]]:
    """A named pipe, and what writes into it; its reader waits for more as long as the test runs."""
    path = tmp_path / "signals"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    yield str(path), lambda text: os.write(end, text.encode()) and None
    os.close(end)


def test_what_changes_is_told_and_null_takes_it_back(
    make: Make, pipe: tuple[str, Callable[[str], None]], wait_until: Callable[..., None]
) -> None:
    path, write = pipe
    program = make("cat", path, stale_s=10.0)
    assert program.at(0.0) == {}, "nothing is known before it was told"
    write('{"Vehicle.Speed": 3.5, "Vehicle.IsOn": true}\n{"Vehicle.Sp')
    wait_until(lambda: program.at(1.0) == {"Vehicle.Speed": 3.5, "Vehicle.IsOn": True}, "two signals")
    # half a line is no line
    write('eed": 0}\n\n{"Vehicle.IsOn": null}\n')
    wait_until(lambda: program.at(2.0) == {"Vehicle.Speed": 0}, "one of them is taken back")
    # and what is not told again in time is missing
    assert program.at(12.1) == {}
    pid = program.pid
    program.close()
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[1]",
        '{"Vehicle.Speed": [0]}',
        '{"Vehicle.Speed": NaN}',
        '{"Vehicle.Speed": 1e999}',
        "x" * (MAX_LINE_BYTES + 2),
        "[" * 5000,
    ],
)
def test_a_program_that_speaks_another_language_is_ended_and_what_it_told_is_gone(
    make: Make, pipe: tuple[str, Callable[[str], None]], wait_until: Callable[..., None], text: str
) -> None:
    path, write = pipe
    program = make("cat", path)
    program.at(0.0)
    write('{"Vehicle.Speed": 0}\n')
    wait_until(lambda: program.at(0.0) == {"Vehicle.Speed": 0}, "a sound line")
    write(text if len(text) > MAX_LINE_BYTES else text + "\n")
    wait_until(lambda: program.at(0.0) == {} and program.pid is None, "its end")


def test_a_program_that_ends_is_started_again_with_growing_pauses(
    make: Make, wait_until: Callable[..., None]
) -> None:
    program = make(sys.executable, "-c", "raise SystemExit(3)")
    starts, now_s = [], 0.0
    while len(starts) < 4:
        program.at(now_s)
        if program.pid is not None:
            starts.append(now_s)
            wait_until(lambda at=now_s: program.at(at) == {} and program.pid is None, "its end")
        now_s += 0.25
    pauses = [after - before for before, after in pairwise(starts)]
    assert pauses == [1.0, 2.0, 4.0]


def test_what_cannot_be_started_tells_nothing(make: Make) -> None:
    program = make("/no/such/program")
    assert program.at(0.0) == {}
    assert program.at(100.0) == {}


def test_it_knows_whose_signals_are_wanted(make: Make, wait_until: Callable[..., None]) -> None:
    told = "import json, os; print(json.dumps({'Vehicle.Name': os.environ['FEDFLEET_VEHICLE']}), flush=True); input()"
    program = make("sh", "-c", f'exec "{sys.executable}" -c "{told}" < /dev/zero')
    wait_until(lambda: program.at(0.0) == {"Vehicle.Name": "v07"}, "its name")


def test_a_line_is_signals_or_an_error() -> None:
    assert read_line(b'{"Vehicle.Speed": 1, "Vehicle.Link": "wifi", "Vehicle.IsOn": null}') == {
        "Vehicle.Speed": 1,
        "Vehicle.Link": "wifi",
        "Vehicle.IsOn": None,
    }
    with pytest.raises(ValueError, match=r"^conditions: b'\{}x': expected a JSON object"):
        read_line(b"{}x")
