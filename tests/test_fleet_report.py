"""A fleet whose vehicles differ: in data, kind and link; load runs; and what is told of them."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import agent_world as aw
import numpy as np
import pytest
from server_world import INPUTS, OUTPUTS, LinearTask
from test_fleet_equals_agent import yard

from fedfleet.cli import load_run
from fedfleet.cli.config import DataConfig, Settings
from fedfleet.fleet_server import store_vehicles
from fedfleet.fleet_server.store import open_store
from fedfleet.models import prepared
from fedfleet.models.task import Drive, Frames, Index, Samples
from fedfleet.protocol.errors import UsageError
from fedfleet.vehicle_agent.fleet_report import report, words

DRIVES = {"north": 20, "south": 9}


@dataclass(frozen=True)
class Listed(LinearTask):
    """A task of 29 drives in two regions."""

    def index(self, folder: Path) -> Index:
        del folder
        return Index(
            tuple(
                Drive(region, f"d{n:02d}", 1, 1.0) for region, count in DRIVES.items() for n in range(count)
            ),
            {},
        )

    def samples(self, folder: Path, drives: Sequence[str]) -> Samples:
        """One judged sample of every drive."""
        assert folder
        count = len(drives)
        inputs, targets = (np.zeros((count, width), np.float32) for width in (INPUTS, OUTPUTS))
        return Samples(inputs, targets, np.ones(count, dtype=np.bool_), traits={"drive": np.array(drives)})


TASK = Listed()


def settings(folder: Path) -> Settings:
    data = DataConfig(vehicles_per_region=2)
    return Settings(task="test_fleet_report:TASK", work_dir=folder, data=data)


def empty(folder: Path) -> Path:
    """Write a prepared folder of no sample and no frame: every scenario was left out."""
    meta = prepared.Meta(
        task=aw.TASK.name,
        task_version=1,
        drives=(f"{aw.REGION}/d1",),
        parts=("train", "frames"),
        counts={"train_samples": 0, "train_judged": 0, "frames": 0, "frames_inputs": 0},
        problems={"too-short": 9},
        rate_hz=10.0,
    )
    nothing = np.empty((0, 4), np.float32)
    samples = Samples(nothing, np.empty((0, 2), np.float32), np.empty(0, np.bool_))
    frames = Frames(nothing, np.zeros(1, np.int64), np.empty(0, np.int64), 10.0)
    prepared.write(folder, meta, samples={"train": samples}, frames=frames)
    return folder


def test_a_vehicle_without_a_sample_says_so_follows_the_model_and_never_trains(tmp_path: Path) -> None:
    with yard(tmp_path, vehicles=("v01", "v02")) as made:
        # given a vehicle none of whose scenarios can teach
        made.fleet.stop()
        made.server.statuses.clear()
        shutil.rmtree(tmp_path / "data" / "v02")
        empty(tmp_path / "data" / "v02")
        made.fleet = made.new_fleet()
        made.fleet.start()
        other, bare = made.fleet.vehicles

        # when there are a model and a round
        made.server.publish_model(0)
        made.server.publish(aw.plan(1, 0))
        made.run_until(lambda: ("v01", 1) in made.server.updates, "the other's update")
        made.run_until(lambda: bare.state.active and bare.state.base, "the model")

        # then it has the model, and told why it does not train
        assert bare.state.training is None
        assert bare.refusals["ineligible-no-samples"] == 1
        told = {status.vehicle: status for status in made.server.statuses if status.state == "ONLINE"}
        assert (told["v02"].eligible, told["v02"].reason) == (False, "no-samples")
        assert told["v01"].eligible
        assert ("v02", 1) not in made.server.updates
        assert other.parts.tuning.trainings == 1


def test_the_report_tells_what_each_vehicle_did_and_how_good_the_model_was(tmp_path: Path) -> None:
    with yard(tmp_path, profiles={"weak": {"vehicles": ["v02"], "link_class": "metered"}}) as made:
        made.server.publish_model(0)
        made.server.publish(aw.plan(1, 0))
        made.run_until(lambda: len(made.server.updates) == 3, "updates")
        figures = [vehicle.parts.replay.figures for vehicle in made.fleet.vehicles]
        made.run_until(lambda: all("error" in each().scores for each in figures), "scores")

        told = report(made.config, made.fleet.task, made.fleet.vehicles, rss_bytes=7, relay={"cuts": 1})

    assert (told["load_run"], told["rss_bytes"], told["relay"]) == (False, 7, {"cuts": 1})
    assert told["metrics"]["error"] > 0
    assert {name: told["total"][name] for name in ("vehicles", "trainings", "updates")} == {
        "vehicles": 3,
        "trainings": 3,
        "updates": 3,
    }
    assert [row["profile"] for row in told["vehicles"]] == ["", "weak", ""]
    assert all(row["base_version"] == row["active_version"] == 0 for row in told["vehicles"])
    assert words(told).startswith("3 vehicles, 3 trainings, 3 updates; error ")


def test_a_load_run_is_marked_and_tells_no_accuracy(tmp_path: Path) -> None:
    # given two vehicles with the same drives
    with yard(tmp_path) as made:
        made.fleet.stop()
        shared = [
            entry.model_copy(update={"sharers": 2}) if entry.vehicle != "v03" else entry
            for entry in made.config.vehicles
        ]
        made.config = made.config.model_copy(update={"vehicles": tuple(shared)})
        made.fleet = made.new_fleet()
        made.fleet.start()
        first, _, third = made.fleet.vehicles
        made.server.publish_model(0)

        # when they drive
        made.run_until(lambda: "error" in third.parts.replay.figures().scores, "scores of v03")
        made.run_until(lambda: first.parts.replay.figures().frames > 10, "frames of v01")
        told = report(made.config, made.fleet.task, made.fleet.vehicles, rss_bytes=1, relay={})

        # then who shares tells no score, and nothing is said of all
        assert first.parts.replay.figures().scores == {}
        assert (told["load_run"], told["vehicles_that_share_drives"], told["metrics"]) == (True, 2, None)
        assert [row["shares_drives_with"] for row in told["vehicles"]] == [1, 1, 0]
        assert words(told).endswith("load run: 2 share their drives, so no accuracy is told")


def test_as_many_vehicles_as_asked_are_dealt_evenly_and_share_only_where_drives_are_too_few(
    tmp_path: Path,
) -> None:
    # when there are more vehicles than training drives in the south (7 of 9) and fewer in the north (14 of 20)
    placed = load_run.deal(settings(tmp_path), tmp_path, 20)
    entries = load_run.entries(placed)
    jobs = load_run.jobs(placed)

    # then
    assert Counter(each.region for each in placed.values()) == {"north": 10, "south": 10}
    assert list(placed) == [f"v{number:02d}" for number in range(1, 21)]
    sharers = {entry.vehicle: entry.sharers for entry in entries}
    assert {sharers[name] for name, each in placed.items() if each.region == "north"} == {1}
    assert Counter(sharers[name] for name, each in placed.items() if each.region == "south") == {2: 6, 1: 4}
    assert len(jobs) == 17
    drives = [drive for job in jobs for drive in job.drives]
    assert len(drives) == len(set(drives))
    # and nobody has a drive that the server is validated on
    from fedfleet.cli.data import split

    held = split(settings(tmp_path), tmp_path)
    assert not set(drives) & {
        drive for each in (held.validation, held.test) for of in each.values() for drive in of
    }


@pytest.mark.parametrize(("text", "found"), [(None, None), ("v01,v02", None), ("v1", None), ("1000", 1000)])
def test_a_number_is_a_load_run_and_names_are_not(text: str | None, found: int | None) -> None:
    assert load_run.wanted(text) == found


@pytest.mark.parametrize("text", ["0", "2001"])
def test_too_many_vehicles_are_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=f"--vehicles {text}: expected 1 to 2000, or names"):
        load_run.wanted(text)


def test_a_load_run_enrols_its_vehicles_at_the_store_on_this_machine(tmp_path: Path) -> None:
    own = settings(tmp_path)
    placed = load_run.deal(own, tmp_path, 5)
    # given no server yet
    with pytest.raises(UsageError, match="start `fedfleet server` with this configuration first"):
        load_run.register(own, placed)

    # when there is one
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "server.pub").write_text("ab" * 32 + "\n")
    open_store(tmp_path / "server", fleet=own.fleet, task=own.task).close()
    assert load_run.register(own, placed) == "ab" * 32

    # then all are enrolled, each with a key of its own
    store = open_store(tmp_path / "server", fleet=own.fleet, task=own.task, exclusive=False)
    with store.read() as connection:
        found: Sequence[str] = [each.vehicle for each in store_vehicles.presences(connection)]
        rows = connection.exec_driver_sql("select count(distinct public_key) from vehicle").one()
    store.close()
    assert list(found) == sorted(placed)
    assert tuple(rows) == (5,)
