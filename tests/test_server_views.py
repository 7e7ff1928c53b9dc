"""Looking at a server's store: rounds, vehicles, models and status, beside a running server and after it."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from child_processes import Processes
from crash_site import python_path
from server_world import configuration, key_of, sealed_update
from test_coordinator import World
from test_heads import HEADS, with_head
from typer.testing import CliRunner

from fedfleet.cli import live
from fedfleet.cli.main import app
from fedfleet.fleet_server import schema, store_models, views
from fedfleet.fleet_server.gauges import TABLE, read
from fedfleet.protocol import topics
from fedfleet.protocol.errors import UsageError


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a fleet whose three rounds are done, one message refused; its server still has the store."""
    place = tmp_path_factory.mktemp("fleet")
    is_file = request.param == "sqlite"
    store = {} if is_file else {"store": {"url": request.getfixturevalue("postgres").database()}}
    world = World(configuration(place, **store))
    world.drive("n-0", "n-1", "n-2", "s-0", "s-1")
    world.turn(30)
    thief = sealed_update("n-0", world.vehicles["n-0"].plans[3], key=key_of("thief"))
    world.vehicles["n-0"].link.publish(
        topics.update("test-fleet", "n-0", "linear-test", round_=3, number=0), thief
    )
    world.turn(3)
    (place / "fedfleet.toml").write_text(f'work_dir = "{place}"\n')
    yield place
    world.parts.close()


def run(folder: Path, *arguments: str) -> Any:
    """What a command prints, as JSON, while the server runs."""
    words = [*arguments, "--json"]
    group = words[0] == "server"
    config = ["--config", str(folder / "fedfleet.toml")]
    done = CliRunner().invoke(app, ["server", *config, *words[1:]] if group else [*words, *config])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def text(folder: Path, *arguments: str) -> list[str]:
    done = CliRunner().invoke(app, ["server", "--config", str(folder / "fedfleet.toml"), *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_rounds_are_shown_by_round_and_region(folder: Path) -> None:
    found = run(folder, "server", "rounds")
    assert [(one["round"], one["region"]) for one in found] == [
        (number, region) for number in (1, 2, 3) for region in ("north", "south")
    ]
    assert {one["state"] for one in found} == {"published"}
    first = found[0]
    assert first["contributors"] == ["n-0", "n-1", "n-2"]
    assert (first["asked"], first["stored"], first["fates"]) == (3, 3, {"folded": 3})
    assert first["stored_bytes"] > 0


def test_rounds_can_be_chosen_by_region_and_number(folder: Path) -> None:
    found = run(folder, "server", "rounds", "--region", "south", "--last", "2")
    assert [(one["round"], one["region"]) for one in found] == [(2, "south"), (3, "south")]


def test_vehicles_tell_what_they_sent(folder: Path) -> None:
    found = run(folder, "server", "vehicles")
    assert sorted(found) == ["n-0", "n-1", "n-2", "s-0", "s-1"]
    one = found["n-0"]
    assert (one["state"], one["updates"], one["folded"], one["last_round"]) == ("ONLINE", 3, 3, 3)
    assert sorted(run(folder, "server", "vehicles", "--region", "south")) == ["s-0", "s-1"]
    assert len(run(folder, "server", "vehicles", "--last", "2")) == 2


def test_models_tell_what_made_them_and_how_good_they_are(folder: Path) -> None:
    found = run(folder, "server", "models", "--last", "2")
    assert [(one["version"], one["round"], one["released"]) for one in found] == [(2, 2, True), (3, 3, True)]
    assert set(found[-1]["metrics"]) == {"north", "south"}
    assert found[-1]["delta_bytes"] > 0
    only = run(folder, "server", "models", "--region", "north")
    assert [one["version"] for one in only] == [0, 1, 2, 3]
    assert set(only[-1]["metrics"]) == {"north"}


def test_without_a_terminal_a_table_is_plain_aligned_lines(folder: Path) -> None:
    lines = text(folder, "rounds", "--last", "1")
    assert len(lines) == 3
    assert lines[0].split()[:3] == ["round", "region", "state"]
    assert lines[1].split()[:3] == ["3", "north", "published"]
    heading, *rows = text(folder, "models")
    end = heading.index("north") + len("north")  # numbers stand to the right, under the end of their heading
    assert [row[:end].split()[-1] for row in rows] == [row[: end + 1].split()[-1] for row in rows]
    assert len(text(folder, "vehicles", "-r", "north")) == 4


def test_status_is_one_plain_line_without_a_terminal(folder: Path) -> None:
    done = CliRunner().invoke(app, ["status", "--config", str(folder / "fedfleet.toml")])
    (line,) = done.stdout.strip().splitlines()
    assert line.startswith("server: no sign of life is kept here")
    assert "ALL 3 ROUNDS ARE DONE: 3 versions published · version 3 (drives: 3)" in line
    assert "5 of 5 vehicles were online" in line
    assert "north: published 3/3" in line
    assert line.endswith("refused: 1 bad-signature")


def test_on_a_terminal_there_are_tables(folder: Path) -> None:
    config = ["--config", str(folder / "fedfleet.toml")]
    terminal = {"FORCE_COLOR": "1", "COLUMNS": "160"}
    shown = CliRunner().invoke(app, ["status", *config], env=terminal).stdout
    assert "5 of 5 vehicles were online" in " ".join(shown.split())
    assert "refused: 1 bad-signature" in shown
    assert "┃" in CliRunner().invoke(app, ["server", *config, "models"], env=terminal).stdout


@pytest.mark.parametrize("is_json", [False, True])
def test_watching_in_a_pipe_gives_a_line_per_look_until_ctrl_c(
    folder: Path, *, is_json: bool, processes: Processes, wait_until: Callable[..., None]
) -> None:
    # given
    command = [sys.executable, "-m", "fedfleet.cli.main", "status", "--config", folder / "fedfleet.toml"]
    extra = ["--json"] if is_json else []
    watching = processes.start(
        [*command, "--watch", "--interval", "0.1", *extra], env={"PYTHONPATH": python_path()}
    )
    # when it has looked three times and is stopped
    wait_until(lambda: processes.log(watching).count("\n") >= 3, "three looks")
    watching.send_signal(signal.SIGINT)
    # then
    assert watching.wait(10) == 130
    first = processes.log(watching).splitlines()[0]
    assert (json.loads(first)["version"] == 3) if is_json else "version 3 (drives: 3)" in first


def test_status_tells_gains_and_refusals(folder: Path) -> None:
    shown = run(folder, "status")
    for region in shown["regions"].values():
        expected = 100 * (region["baseline"] - region["score"]) / region["baseline"]
        assert live.gain(region, "lower") == f"{expected:+.1f} %"
        assert live.gain(region, "higher") == f"{-expected:+.1f} %"
    assert live.gain({"score": None, "baseline": 1.0}, "lower") == "–"
    assert live.driving(shown) == "5 drive with version 0"
    assert live.refusals(shown) == "refused: 1 bad-signature"
    assert live.table(shown).row_count == 2


def test_the_rate_of_updates_is_that_of_the_last_minute(folder: Path) -> None:
    with views.begun(folder / "server") as (connection, _):
        times = list(connection.execute(schema.update.select()).mappings())
        last = max(row["stored_at_s"] for row in times)
        assert views.upload_rate(connection, last) == pytest.approx(len(times) / 60)
        assert views.upload_rate(connection, last + 61) == 0.0


def test_the_metrics_read_from_the_store_agree_with_the_views(folder: Path) -> None:
    with views.begun(folder / "server") as (connection, _):
        told = {(one.name, one.labels): one.value for one in read(connection, ("north", "south"))}
    assert {name for name, _ in told} <= set(TABLE)
    assert told["fedfleet_updates_stored_total", ()] == 15
    assert told["fedfleet_messages_refused_total", ("bad-signature",)] == 1
    for region, number in (("north", 3), ("south", 2)):
        assert told["fedfleet_vehicles_online", (region,)] == number
        assert told["fedfleet_round_updates", (region,)] == number
        assert told["fedfleet_rounds", (region, "published")] == 3
    newest = run(folder, "server", "models", "--last", "1")[0]
    assert told["fedfleet_model_version", ()] == newest["version"]
    assert told["fedfleet_validation_score", ("north", "distance")] == newest["metrics"]["north"]["distance"]


def test_an_unknown_region_is_one_line(folder: Path) -> None:
    done = CliRunner().invoke(
        app, ["server", "--config", str(folder / "fedfleet.toml"), "rounds", "-r", "east"]
    )
    assert str(done.exception) == "--region east: unknown region, expected one of north, south"


@pytest.mark.parametrize("command", ["rounds", "vehicles", "models"])
def test_no_store_is_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "fedfleet.toml").write_text(f'work_dir = "{tmp_path}"\n')
    done = CliRunner().invoke(app, ["server", "--config", str(tmp_path / "fedfleet.toml"), command])
    assert isinstance(done.exception, UsageError)
    assert "no fleet server has kept its store here" in str(done.exception)


def test_a_newer_store_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    # given the store of a server that has stopped, written by a newer fedfleet
    world = World(configuration(tmp_path))
    with world.parts.store.write() as connection:
        name = schema.property_.c.name
        connection.execute(schema.property_.update().where(name == "schema").values(value="999"))
    world.parts.close()
    # when it is looked at
    with pytest.raises(UsageError, match=r"has schema 999, this fedfleet knows up to \d+: start"):
        views.begun(tmp_path / "server").__enter__()


def test_regions_with_heads_of_their_own_have_models_of_their_own(tmp_path: Path) -> None:
    # given a server whose regions share all but the bias
    with_head(tmp_path)
    world = World(configuration(tmp_path, **HEADS))
    world.parts.close()
    (tmp_path / "fedfleet.toml").write_text(f'work_dir = "{tmp_path}"\n')
    # when its models are listed
    (first,) = run(tmp_path, "server", "models")
    # then each region's has its file and its size, and nobody fetches the shared one
    assert sorted(first["regions"]) == ["north", "south"]
    assert all(one["full_bytes"] > 0 and len(one["onnx_sha256"]) == 64 for one in first["regions"].values())
    assert text(tmp_path, "models")[1].endswith("one per region")
    (only,) = run(tmp_path, "server", "models", "--region", "south")
    assert list(only["regions"]) == ["south"]


def test_a_stopped_server_is_looked_at_too(tmp_path: Path) -> None:
    world = World(configuration(tmp_path))
    world.parts.close()
    with views.begun(tmp_path / "server") as (connection, told):
        assert store_models.newest_version(connection) == 0
        assert told["fleet"] == "test-fleet"
        assert views.rounds(connection, time.time()) == []
