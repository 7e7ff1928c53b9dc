"""A vehicle that does nothing says why: in its output once, in its status and metrics as long as it lasts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import agent_world as aw
import pytest
from both_sides import Both
from test_agent import BASE, MOVING, STANDING, fresh, of, plan, ready, receipt, run, sent

from fedfleet.fleet_server import views
from fedfleet.fleet_server.requests import Code
from fedfleet.protocol.errors import UsageError
from fedfleet.vehicle_agent import actions as act
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent.crowd import Crowd
from fedfleet.vehicle_agent.fleet import Fleet, World
from fedfleet.vehicle_agent.journal import Journal
from fedfleet.vehicle_agent.state import State
from fedfleet.vehicle_agent.troubles import told

AHEAD = ev.MessageRefused("from-the-future", 3590.0)


def wait(state: State, from_s: float, until_s: float, step_s: float = 1.0) -> tuple[State, list[str]]:
    """Let time go by; what was reported."""
    lines, now_s = [], from_s
    while now_s < until_s:
        now_s += step_s
        state, actions = run(state, ev.Tick(), now_s=now_s)
        lines += [report.text for report in of(actions, act.Report)]
    return state, lines


def after(state: State, *events: ev.Event, seconds: float = 200.0) -> tuple[list[str], str]:
    """What is said after events, with the time that follows, and the status at its end."""
    lines: list[str] = []
    for event in events:
        state, actions = run(state, event)
        lines += [report.text for report in of(actions, act.Report)]
    state, more = wait(state, 1000.0, 1000.0 + seconds)
    assert state.said is not None
    return [*lines, *more], state.said.reason


@pytest.mark.parametrize(
    ("state", "events", "words", "reason"),
    [
        (
            ready(),
            [AHEAD],
            "clock 1 h behind the server's: plans and releases are dated ahead",
            "clock-behind",
        ),
        (ready(), [ev.MessageRefused("stale")], "its store may have gone back in time", "refused-stale"),
        (
            ready(),
            [ev.MessageRefused("bad-signature")],
            "if the server's key was replaced",
            "refused-bad-sign",
        ),
        (ready(), [], "no round is open for region north: waiting for the server", "no-plan"),
        (fresh(), [STANDING, ev.LinkUp(False)], "the server does not answer: does it run", "no-answer"),
        (ready(), [MOVING, plan()], "does not train now: not-parked", "not-parked"),
        (
            ready(),
            [plan(), ev.TrainingFailed(7, "trainer-died")],
            "its trainings fail: trainer-died",
            "training",
        ),
        (
            ready(),
            [plan(), ev.TrainingDone(7, 1, 1), ev.UpdateGivenUp(7, "update-too-large")],
            "its updates cannot be made: update-too-large",
            "update",
        ),
        (
            sent(),
            [receipt(outcome="refused", reason="norm: 9 m"), plan(8, share=0.0)],
            "the server drops its updates: norm",
            "dropped",
        ),
        (
            ready(),
            [
                ev.PointerCame(aw.pointer(4)),
                ev.FetchFailed("base", 4, "too-large", lasting=True),
                plan(8, share=0.0),
            ],
            "the published model cannot be fetched: too-large",
            "fetch-base",
        ),
        (
            replace(ready(), base=BASE),
            [plan(base_version=2)],
            "a version of the model that the server",
            "no-base",
        ),
        (ready(), [ev.EnrolmentRefused("denied-sender")], "on the deny-list", "enrolment"),
        (
            ready(),
            [ev.EnrolmentRefused("bad-signature: x")],
            "the server knows another key for v01",
            "enrolment",
        ),
        (ready(), [ev.EnrolmentRefused("some\x1b[2J")], "the server refuses: some\\x1b[2J", "enrolment"),
    ],
)
def test_every_reason_is_told_once_and_stands_in_the_status(
    state: State, events: list[ev.Event], words: str, reason: str
) -> None:
    lines, status = after(state, *events)
    (line,) = [line for line in lines if words in line]
    assert line.startswith("vehicle v01: ")
    assert reason in status


def test_a_vehicle_whose_recordings_teach_nothing_says_so() -> None:
    state = ready()
    state = replace(state, settings=replace(state.settings, lacks=("no-samples",)))
    lines, reason = after(state, STANDING, plan(share=0.0))
    assert lines == ["vehicle v01: does not train now: no sample of its recordings could teach"]
    assert reason == "no-samples"


def test_what_passes_soon_is_not_told() -> None:
    state, _ = run(ready(), ev.MessageRefused("stale"), MOVING)
    state, lines = wait(state, 1000.0, 1015.0)
    state, _ = run(state, plan(share=0.0), STANDING, now_s=1015.0)
    assert lines + wait(state, 1015.0, 1200.0)[1] == []


def test_the_end_is_told_and_the_same_reason_again_only_after_an_hour() -> None:
    # given a vehicle that stood in the way of its training for a while, and drives again and again
    state, _ = run(ready(), plan(share=0.0, deadline_s=9e9))
    lines, now_s = [], 1000.0
    for _ in range(60):
        state, _ = run(state, MOVING, now_s=now_s)
        state, more = wait(state, now_s, now_s + 60, 5.0)
        state, actions = run(state, STANDING, now_s=now_s + 60)
        ended = [report.text for report in of(actions, act.Report)]
        lines, now_s = lines + more + ended, now_s + 120
    # then two hours bring two pairs of lines
    assert lines == ["vehicle v01: does not train now: not-parked", "vehicle v01: that is over"] * 2


def test_the_clock_is_told_once_though_it_is_found_behind_again_and_again_and_until_it_is_set() -> None:
    state, lines = ready(), []
    for seconds in range(0, 3000, 50):
        event = ev.MessageRefused("from-the-future", 3600.0 - seconds / 10)
        state, actions = run(state, event, now_s=1000.0 + seconds)
        lines += [report.text for report in of(actions, act.Report)]
    assert len(lines) == 1
    assert told(state)[0] == "clock-behind"
    # when the clock was set, and a plan is taken
    state, actions = run(state, plan(share=0.0), now_s=4600.0)
    assert [report.text for report in of(actions, act.Report)] == ["vehicle v01: that is over"]
    assert told(state) == ("", "")


@pytest.mark.parametrize(
    ("behind_s", "words"), [(400, "7 min"), (3600, "1 h"), (5400, "1.5 h"), (86_400 * 3, "3 days")]
)
def test_how_far_it_is_behind_is_told_in_a_unit_to_read(behind_s: float, words: str) -> None:
    state, _ = run(ready(), ev.MessageRefused("from-the-future", behind_s))
    assert told(state)[1].startswith(f"clock {words} behind the server's")


def test_who_shares_its_identity_says_so_instead_of_each_lost_connection() -> None:
    state, lines, now_s = ready(), [], 1000.0
    for _ in range(20):
        now_s += 5.0
        for event in (ev.LinkDown("the connection was lost"), ev.LinkUp(session_present=True)):
            state, actions = run(state, event, now_s=now_s)
            lines += [report.text for report in of(actions, act.Report)]
    shared = [line for line in lines if "another client uses the id v01" in line]
    assert len(shared) == 1
    assert len(lines) < 8
    assert state.said is not None
    assert "identity-shared" in state.said.reason
    # when it has the connection for itself again
    state, lines = wait(state, now_s, now_s + 130)
    assert lines[-1] == "vehicle v01: that is over" or "identity-shared" not in told(state)[0]
    # and a broker that names it is believed at once
    reason = "ended the connection: " + "another client came with the id v01; waiting longer each time"
    state, actions = run(ready(), ev.LinkDown(reason), now_s=5000.0)
    assert "another client uses the id v01" in of(actions, act.Report)[0].text


def test_a_broker_that_goes_and_comes_is_no_second_vehicle() -> None:
    state, now_s = ready(), 1000.0
    for _ in range(10):
        now_s += 100.0
        state, _ = run(state, ev.LinkDown("the connection was lost"), ev.LinkUp(True), now_s=now_s)
    assert "identity-shared" not in told(state)[0]


def test_what_is_told_has_an_end() -> None:
    state = ready()
    for number in range(50):
        state, _ = run(
            state, ev.EnrolmentRefused("x" * 300), ev.MessageRefused("from-the-future", 400.0 * 2**number)
        )
    codes, words = told(state)
    assert (len(codes) <= 300, len(words) <= 300) == (True, True)
    assert len(state.troubles) <= 4


# --- a key that is lost ---


def journal(folder: Path, *, seed: bytes = b"k" * 32, has_code: bool = False) -> Journal:
    return Journal(folder / "truck-7", vehicle="truck-7", task="t", epoch=7, seed=seed, has_code=has_code)


@pytest.fixture
def enrolled(tmp_path: Path) -> Path:
    made = journal(tmp_path)
    made.assign("north", b"s" * 32)
    made.close()
    return tmp_path / "truck-7" / "vehicle.key"


def test_a_lost_key_is_not_replaced_in_silence(enrolled: Path, tmp_path: Path) -> None:
    enrolled.unlink()
    with pytest.raises(
        UsageError, match=r"the key of vehicle truck-7 is gone, .* fresh code \(fedfleet server code"
    ):
        journal(tmp_path, seed=b"z" * 32)
    assert not enrolled.exists()


def test_another_key_is_not_taken_in_silence(enrolled: Path, tmp_path: Path) -> None:
    enrolled.write_text("ab" * 32)
    with pytest.raises(UsageError, match="not the key that vehicle truck-7 enrolled with"):
        journal(tmp_path)


@pytest.mark.parametrize("text", ["", "6b6b", "6b" * 31 + "6", "no key", "6b" * 33])
def test_half_a_key_is_one_line_that_says_what_to_do(enrolled: Path, tmp_path: Path, text: str) -> None:
    enrolled.write_text(text)
    with pytest.raises(
        UsageError, match="restore it from a copy, or remove it and ask the operator for a fresh code"
    ):
        journal(tmp_path)
    assert enrolled.read_text() == text


def test_with_a_fresh_code_a_new_key_takes_its_place_and_is_the_known_one_once_it_is_enrolled(
    enrolled: Path, tmp_path: Path
) -> None:
    enrolled.unlink()
    made = journal(tmp_path, seed=b"z" * 32, has_code=True)
    assert made.rekeyed
    made.close()
    # until the server has answered, it is still to enrol
    with pytest.raises(UsageError, match="not the key that vehicle truck-7 enrolled with"):
        journal(tmp_path)
    again = journal(tmp_path, has_code=True)
    assert again.rekeyed
    again.assign("north", b"s" * 32)
    assert not again.rekeyed
    again.close()
    assert not journal(tmp_path).rekeyed


def test_a_key_that_was_lost_before_floors_were_kept_is_known_to_be_another(
    enrolled: Path, tmp_path: Path
) -> None:
    (enrolled.parent / "floors").unlink()
    (enrolled.parent / "server.pin").write_text((b"s" * 32).hex())
    enrolled.unlink()
    made = journal(tmp_path, has_code=True)
    assert made.rekeyed
    made.close()


# --- with both sides ---


class Behind(Both):
    """Vehicles whose clocks are ``behind_s`` seconds behind the server's."""

    start_s, behind_s = 10_000.0, 3600.0

    def start_fleet(self) -> Fleet:
        self.said: list[str] = []
        return super().start_fleet()

    def world(self, world: World) -> World:
        return replace(world, now_s=lambda: self.now_s - self.behind_s, report=self.said.append)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Behind]:
    made = Behind(tmp_path, regions={"north": ("v01",)}, server={"rounds": {"total": 3, "quorum": 1}})
    yield made
    made.close()


def shown(both: Both) -> dict[str, Any]:
    with both.parts.store.read() as connection:
        return views.vehicles(connection).get("v01", {})


def test_a_clock_an_hour_behind_is_told_on_both_sides(both: Behind) -> None:
    # given a server whose plans are dated an hour ahead of the vehicle's clock
    words = "clock 1 h behind the server's: plans and releases are dated ahead of it and wait"
    both.run_until(lambda: words in shown(both).get("metrics", {}).get("trouble", ""))
    # then the vehicle says so once, and the server's operator sees it
    assert len([line for line in both.said if words in line]) == 1
    assert shown(both)["reason"] == "clock-behind"
    assert both.version == 0
    # when the clock is set, it learns
    both.behind_s = 0.0
    both.run_until(lambda: both.version == 3, turns=2000)
    both.run_until(lambda: shown(both)["metrics"]["trouble"] == "")
    assert "vehicle v01: that is over" in both.said


def test_a_vehicle_that_lost_its_key_enrols_anew_with_a_fresh_code_only(tmp_path: Path) -> None:
    # given a vehicle that learns, whose key is lost
    made = Both(tmp_path, regions={"north": ("v01",)}, server={"rounds": {"total": 0, "quorum": 1}})
    made.run_until(lambda: made.version == 1)
    made.fleet.stop()
    made.broker.kill("v01")
    (tmp_path / "vehicles" / "v01" / "vehicle.key").unlink()
    # when it starts with the code that it has used already
    made.fleet = made.start_fleet()
    made.run_until(lambda: "enrolment" in told(made.vehicles["v01"].state)[0])
    # then it says that the server knows another key
    words = told(made.vehicles["v01"].state)[1]
    assert "the server knows another key for v01" in words
    assert "ask the operator for a fresh code (fedfleet server code v01)" in words
    made.fleet.stop()
    made.broker.kill("v01")
    # when it has a fresh code
    made.codes["v01"] = "a fresh code of many characters"
    codes = {"v01": Code(made.codes["v01"], "north")}
    made.parts.ingest.party = replace(made.parts.ingest.party, codes=codes)
    made.fleet, version = made.start_fleet(), made.version
    # then it is enrolled by its new key, and goes on
    made.run_until(lambda: made.version > version)
    assert not made.vehicles["v01"].parts.journal.rekeyed
    made.close()


def test_many_vehicles_of_one_process_do_not_all_say_the_same() -> None:
    lines: list[str] = []
    now_s = [0.0]
    crowd = Crowd(lines.append, lambda: now_s[0])
    for number in range(100):
        crowd(f"vehicle v{number:03}: the broker is gone")
        crowd(f"vehicle v{number:03}: another client uses the id v{number:03}")
    crowd("vehicle v001: the broker is gone")
    crowd("a line of the process")
    assert len(lines) == 2 * 4 + 2
    assert "more vehicles: the broker is gone" in lines
    assert "more vehicles: another client uses the id …" in lines
    now_s[0] = 700.0
    crowd("vehicle v050: the broker is gone")
    assert lines[-1] == "vehicle v050: the broker is gone"
