"""What a real server process shows while it runs: metrics that a Prometheus can scrape, and its log."""

import http.client
import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import structlog
from child_processes import Processes
from crash_site import ALL, TASK_ID, Site
from prometheus_client.parser import text_string_to_metric_families
from server_world import FLEET, REGIONS, code, configuration, key_of, sealed_update
from test_coordinator import World
from test_disk_full import JUNK, Limit

from fedfleet.fleet_server import logs, schema, store_updates
from fedfleet.fleet_server.config_observe import LogsConfig, MetricsConfig
from fedfleet.fleet_server.gauges import OTHER, REASONS, STEPS, TABLE, read
from fedfleet.fleet_server.stopwatch import stopwatch
from fedfleet.fleet_server.telemetry import Telemetry
from fedfleet.link.port import Connected, Delivery, Disconnected
from fedfleet.protocol import topics
from fedfleet.protocol.errors import UsageError

ROUNDS = 2
Values = Mapping[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def build(tmp_path: Path, processes: Processes, mosquitto_binary: Path) -> Iterator[Callable[..., Site]]:
    """Make sites that are closed at the end."""
    assert mosquitto_binary.exists()
    made: list[Site] = []

    def site(**changes: Any) -> Site:
        made.append(Site(tmp_path / str(len(made)), processes, rounds=ROUNDS, **changes))
        return made[-1]

    yield site
    for each in made:
        each.close()


def get(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()
    finally:
        connection.close()


def values(text: str) -> Values:
    """Every sample of a scrape, by its name and the values of its labels in the order of the table."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            known = TABLE.get(sample.name)
            names = known.labels if known else sorted(sample.labels)
            found[sample.name, tuple(sample.labels[name] for name in names)] = sample.value
    return found


def bad_update(site: Site) -> None:
    """Let the first vehicle send an update that someone else signed."""
    vehicle = site.vehicles[0]
    forged = sealed_update(vehicle.name, vehicle.plans[1], key=key_of("thief"))
    vehicle.link.publish(topics.update(FLEET, vehicle.name, TASK_ID, round_=1, number=0), forged)


def test_a_running_server_can_be_scraped(build: Callable[..., Site], free_port: int) -> None:
    # given a fleet whose rounds are done, with one message refused
    site = build(metrics={"port": free_port})
    site.drive()
    site.finish()
    bad_update(site)
    site.run_until(lambda: site.shown()["counters"].get("refused:bad-signature") == 1, "it is refused")
    # when it is scraped
    text = get(free_port)
    found = values(text)
    # then it tells how many updates are stored, what was refused, where rounds and vehicles are
    assert found["fedfleet_updates_stored_total", ()] == len(ALL) * ROUNDS
    assert found["fedfleet_messages_refused_total", ("bad-signature",)] == 1
    assert found["fedfleet_quarantine_messages", ()] == 1
    for region, names in REGIONS.items():
        assert found["fedfleet_rounds", (region, "published")] == ROUNDS
        assert found["fedfleet_round_number", (region,)] == ROUNDS
        assert found["fedfleet_round_updates", (region,)] == len(names)
        assert found["fedfleet_vehicles_online", (region,)] == len(names)
        assert found["fedfleet_vehicles_enrolled", (region,)] == len(names)
        score = found["fedfleet_validation_score", (region, "distance")]
        assert 0 < score < found["fedfleet_baseline_score", (region, "distance")]
    assert found["fedfleet_model_version", ()] == found["fedfleet_release_version", ()] == ROUNDS
    # and what the process measured itself
    assert found["fedfleet_received_messages_total", ("update",)] >= len(ALL) * ROUNDS + 1
    assert found["fedfleet_received_bytes_total", ("update",)] > 100 * len(ALL) * ROUNDS
    assert found["fedfleet_fold_seconds_count", ()] == len(REGIONS) * ROUNDS
    assert found["fedfleet_gate_seconds_count", ()] == ROUNDS
    assert found["fedfleet_store_commit_seconds_count", ()] > ROUNDS
    assert 0 < found["fedfleet_store_commit_seconds_sum", ()] < 60
    assert found["fedfleet_broker_connected", ()] == found["fedfleet_store_readable", ()] == 1
    assert found["process_resident_memory_bytes", ()] > 1e6
    # and nothing names a vehicle, and nothing is there that the table does not know
    assert not any(name in text for name in ALL)
    ours = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE fedfleet")}
    assert ours <= set(TABLE)


def test_every_metric_of_the_table_is_there_from_the_start(
    build: Callable[..., Site], free_port: int
) -> None:
    site = build(metrics={"port": free_port})
    site.drive()
    site.run_until(lambda: site.shown()["round"] == 1, "the first round is open")
    site.run_until(lambda: 1 in site.vehicles[0].plans, "the plan has come")
    bad_update(site)
    site.run_until(lambda: bool(site.shown()["counters"].get("refused:bad-signature")), "it is refused")
    told = {line.split()[2] for line in get(free_port).splitlines() if line.startswith("# TYPE fedfleet")}
    assert set(TABLE) <= told


def test_a_full_disk_can_be_seen(build: Callable[..., Site], tmp_path: Path, free_port: int) -> None:
    # given a server whose files cannot grow, and more than there is room for
    site = build(metrics={"port": free_port})
    site.drive()
    quiet = site.vehicles.pop()
    site.run_until(lambda: site.shown()["updates"] == len(ALL) - 1, "all but one are stored")
    assert values(get(free_port))["fedfleet_store_writable", ()] == 1
    limit = Limit(tmp_path)
    limit.fill(site)
    for _ in range(JUNK):
        quiet.link.publish(topics.update(FLEET, quiet.name, TASK_ID, round_=1, number=0), b"x" * 32_768)
    full = ("fedfleet_store_writable", ())
    site.run_until(lambda: "store cannot be written" in site.processes.log(site.server), "it is full")
    # then the gauge says so, until there is room
    site.run_until(lambda: values(get(free_port))[full] == 0, "the gauge says so")
    limit.free(site)
    site.run_until(lambda: values(get(free_port))[full] == 1, "the gauge says that it is over")


def test_no_port_means_no_endpoint(build: Callable[..., Site]) -> None:
    site = build()
    site.drive()
    site.run_until(lambda: site.shown()["round"] == 1, "the server runs")
    table = Path(f"/proc/{site.server.pid}/net/tcp").read_text().splitlines()[1:]
    inodes = {line.split()[9] for line in table if line.split()[3] == "0A"}
    sockets = {
        path.readlink().name for path in Path(f"/proc/{site.server.pid}/fd").iterdir() if path.is_symlink()
    }
    assert not {f"socket:[{inode}]" for inode in inodes} & sockets


def test_a_port_that_is_taken_is_one_line_and_code_2(build: Callable[..., Site]) -> None:
    site = build()
    site.server.send_signal(signal.SIGTERM)
    site.server.wait(120)
    site.config = site.config.model_copy(update={"metrics": MetricsConfig(port=site.broker.port)})
    told = json.loads(site.file.read_text()) | {"metrics": {"port": site.broker.port}}
    site.file.write_text(json.dumps(told))
    process = site.start_server()
    assert process.wait(120) == 2
    last = site.processes.log(process).strip().splitlines()[-1]
    assert (
        last
        == f"fedfleet server: metrics: cannot listen on 127.0.0.1:{site.broker.port}: Address already in use"
    )


# --- from the store ---


def told_by(world: World) -> dict[tuple[str, tuple[str, ...]], float]:
    with world.parts.store.read() as connection:
        return {(one.name, one.labels): one.value for one in read(connection, ("north", "south"))}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(configuration(tmp_path))
    yield made
    made.parts.close()


def test_a_store_without_a_round_has_all_regions(world: World) -> None:
    found = told_by(world)
    for region, names in REGIONS.items():
        assert found["fedfleet_vehicles_enrolled", (region,)] == len(names)
        assert found["fedfleet_vehicles_online", (region,)] == 0
        assert found["fedfleet_round_number", (region,)] == 0
    assert found["fedfleet_updates_stored_total", ()] == 0


def test_reasons_and_regions_are_bounded(world: World) -> None:
    # given more reasons than are told apart, and a vehicle of a region that the server does not serve
    with world.parts.store.write() as connection:
        counts = {f"refused:r{number:03d}": 1000 - number for number in range(REASONS + 10)}
        store_updates.count_all(connection, counts)
        connection.execute(schema.vehicle.update().where(schema.vehicle.c.id == "n-0").values(region="moon"))
        connection.execute(schema.vehicle.update().where(schema.vehicle.c.id == "n-1").values(denied=True))
    # when
    found = told_by(world)
    # then the rarest are one, and so are foreign regions; the sum is right
    refused = {labels[0]: value for (name, labels), value in found.items() if "refused" in name and labels}
    assert len(refused) == REASONS + 1
    assert refused[OTHER] == sum(1000 - number for number in range(REASONS, REASONS + 10))
    assert sum(refused.values()) == sum(counts.values())
    assert found["fedfleet_vehicles_enrolled", (OTHER,)] == 1
    assert found["fedfleet_vehicles_enrolled", ("north",)] == 1
    assert found["fedfleet_vehicles_denied", ()] == 1


def test_a_store_that_cannot_be_read_leaves_the_rest(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path / "nowhere", ("north",), waiting=lambda: 3, overflows=lambda: 4)
    telemetry.received([Connected(session_present=False)])
    telemetry.writable(is_writable=False)
    families = {m.name: m for m in telemetry.registry.collect()}
    assert families["fedfleet_store_writable"].samples[0].value == 0
    assert families["fedfleet_store_readable"].samples[0].value == 0
    assert families["fedfleet_queue_depth"].samples[0].value == 3
    assert families["fedfleet_queue_refused"].samples[0].value == 4
    assert families["fedfleet_broker_connected"].samples[0].value == 1


def test_messages_are_counted_by_kind_whatever_their_topic_says(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, ("north",), waiting=lambda: 0, overflows=lambda: 0)
    names = [
        topics.update(FLEET, "n-0", TASK_ID, round_=1, number=0),
        topics.status(FLEET, "n-0"),
        topics.metrics(FLEET, "n-0"),
        topics.request(FLEET, "n-0"),
        "fl/v1/f/v/00/n-0/surprise",
        "x",
    ]
    telemetry.received([Delivery(topic, b"12", 1, retain=False, duplicate=False, token=1) for topic in names])
    telemetry.received([Connected(session_present=True), Disconnected("gone")])
    counted = {
        sample.labels["kind"]: sample.value
        for family in telemetry.registry.collect()
        for sample in family.samples
        if sample.name == "fedfleet_received_bytes_total"
    }
    assert counted == {"update": 2, "status": 2, "metrics": 2, "request": 2, "other": 4}


def test_a_stopwatch_notes_every_step_even_one_that_fails() -> None:
    clock = iter([1.0, 1.5, 2.0, 5.0])
    noted: list[tuple[str, float]] = []
    watch = stopwatch(lambda: next(clock), lambda step, seconds: noted.append((step, seconds)))
    with watch("fold"):
        pass
    with pytest.raises(ZeroDivisionError), watch("gate"):
        math.fsum([1 / 0])
    assert noted == [("fold", 0.5), ("gate", 3.0)]
    assert set(STEPS) == {"commit", "fold", "gate"}


# --- the log ---


def lines(site: Site) -> list[dict[str, Any]]:
    return [json.loads(line) for line in site.processes.log(site.server).splitlines()]


def test_the_log_of_a_run_names_round_region_and_vehicle(build: Callable[..., Site]) -> None:
    # given a run at full detail, with a refused message
    site = build(logs={"level": "debug"})
    site.drive()
    site.finish()
    bad_update(site)
    site.run_until(lambda: bool(site.shown()["counters"].get("refused:bad-signature")), "it is refused")
    # when its log is read: JSON, for it is no terminal
    found = lines(site)
    # then lines about rounds name round and region, lines about vehicles those too
    of = {event: [line for line in found if line["event"] == event] for event in {x["event"] for x in found}}
    for event in ("round open", "round closing", "region folded"):
        told = {(line["round"], line["region"]) for line in of[event]}
        assert told == {(number, region) for number in (1, 2) for region in REGIONS}, event
    stored = {(line["round"], line["region"], line["vehicle"]) for line in of["update stored"]}
    assert stored == {
        (n, region, name) for n in (1, 2) for region, names in REGIONS.items() for name in names
    }
    (refused,) = of["message refused"]
    assert (refused["round"], refused["region"], refused["vehicle"]) == (1, "north", "n-0")
    assert (refused["level"], refused["reason"]) == ("warning", "bad-signature")
    assert all(line["timestamp"].endswith("Z") for line in found)
    # and no secret is in it
    text = site.processes.log(site.server)
    secret = (site.config.data_dir / "server.key").read_bytes()
    assert secret.hex() not in text
    assert not any(code(name) in text for name in ALL)


def written(config: LogsConfig, **line: object) -> str:
    stream = StringIO()
    logs.configure(config, stream)
    try:
        structlog.get_logger().info("something happened", **line)
    finally:
        structlog.reset_defaults()
    return stream.getvalue()


def test_a_secret_by_its_name_is_not_written() -> None:
    text = written(LogsConfig(format="json"), enrolment_code="hunter22", password="hunter23", region="north")
    assert json.loads(text)["enrolment_code"] == logs.HIDDEN
    assert "hunter" not in text
    assert json.loads(text)["region"] == "north"


def test_text_is_one_line_whatever_is_in_it() -> None:
    text = written(LogsConfig(format="text"), detail="two\nlines \x1b[31m", vehicle="v01", round=3)
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "something happened  round=3 vehicle=v01 detail='two\\nlines \\x1b[31m'" in text


def test_debug_lines_are_not_written_by_default() -> None:
    stream = StringIO()
    logs.configure(LogsConfig(), stream)
    try:
        structlog.get_logger().debug("detail")
    finally:
        structlog.reset_defaults()
    assert stream.getvalue() == ""


def test_a_port_out_of_reach_is_one_line(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, ("north",), waiting=lambda: 0, overflows=lambda: 0)
    with pytest.raises(UsageError, match=r"metrics: cannot listen on 203\.0\.113\.1:9: "):
        telemetry.serve(MetricsConfig(host="203.0.113.1", port=9))
