"""The databroker's client, against a databroker of the tests' own that speaks kuksa.val.v2 over gRPC."""

import json
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedfleet.vehicle_agent import kuksa
from fedfleet.vehicle_agent.conditions import Program
from fedfleet.vehicle_agent.eligibility import Rule, judge

SPEED, CHARGING, LINK = "Vehicle.Speed", "Vehicle.IsCharging", "Vehicle.Connectivity.Link"


def test_values_are_signals_and_what_is_none_is_null() -> None:
    values = [True, 3, 2.5, "wifi", None, float("nan"), [1, 2], b"x"]
    assert [kuksa.plain(value) for value in values] == [True, 3, 2.5, "wifi", None, None, None, None]
    updates = [{SPEED: SimpleNamespace(value=0.0)}, {SPEED: None, LINK: SimpleNamespace(value="wifi")}]
    lines = [json.loads(line) for line in kuksa.told(updates)]
    assert lines == [{SPEED: 0.0}, {SPEED: None, LINK: "wifi"}]


@pytest.mark.parametrize("address", ["nowhere", "host:", ":55", "host:port"])
def test_an_address_that_is_none_is_one_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kuksa.main(["--address", address, SPEED])
    assert capsys.readouterr().err.splitlines()[-1].endswith("expected HOST:PORT")


class Databroker:
    """Answers Subscribe with what a test puts into it; hears who asked for what, with which token."""

    def __init__(self) -> None:
        import grpc
        from kuksa.val.v2 import val_pb2_grpc

        self.updates: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.asked: list[tuple[tuple[str, ...], str]] = []
        servicer = type("Servicer", (val_pb2_grpc.VALServicer,), {"Subscribe": self._subscribe})()
        self.server = grpc.server(ThreadPoolExecutor(2))
        val_pb2_grpc.add_VALServicer_to_server(servicer, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def _subscribe(self, request: Any, context: Any) -> Iterator[Any]:
        from kuksa.val.v2 import types_pb2, val_pb2

        told = dict(context.invocation_metadata())
        self.asked.append((tuple(request.signal_paths), told.get("authorization", "")))
        while (update := self.updates.get()) is not None:
            points = {
                path: types_pb2.Datapoint(value=None if value is None else types_pb2.Value(**value))
                for path, value in update.items()
            }
            yield val_pb2.SubscribeResponse(entries=points)

    def stop(self) -> None:
        self.updates.put(None)
        self.server.stop(0).wait(10)


@pytest.fixture
def databroker() -> Iterator[Databroker]:
    pytest.importorskip("kuksa_client", reason="the optional package kuksa-client is not installed")
    made = Databroker()
    yield made
    made.stop()


def test_what_the_databroker_tells_decides_whether_a_vehicle_may_train(
    databroker: Databroker, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    token = tmp_path / "token"
    token.write_text("abc\n")
    address = f"127.0.0.1:{databroker.port}"
    command = [sys.executable, "-m", "fedfleet.vehicle_agent.kuksa", "--address", address]
    program = Program([*command, "--token-file", str(token), SPEED, CHARGING], vehicle="v01", stale_s=None)
    rules = (
        Rule(signal=SPEED, op="==", value=0, reason="not-parked"),
        Rule(signal=CHARGING, op="==", value=True, reason="not-charging"),
    )

    def says(*reasons: str) -> Callable[[], bool]:
        return lambda: judge(rules, program.at(0.0)).reasons == reasons

    databroker.updates.put({SPEED: {"float": 13.5}, CHARGING: {"bool": False}})
    wait_until(says("not-charging", "not-parked"), "both refuse", timeout_s=60)
    assert databroker.asked == [((SPEED, CHARGING), "Bearer abc")]
    databroker.updates.put({SPEED: {"float": 0.0}, CHARGING: {"bool": True}})
    wait_until(says(), "both permit")
    databroker.updates.put({CHARGING: None})
    wait_until(says("signal-missing"), "one is not known any more")
    # when the databroker goes
    databroker.updates.put(None)
    wait_until(lambda: program.at(0.0) == {}, "nothing is known")
    program.close()


def test_no_databroker_is_one_line(free_port: int) -> None:
    pytest.importorskip("kuksa_client", reason="the optional package kuksa-client is not installed")
    command = [
        sys.executable,
        "-m",
        "fedfleet.vehicle_agent.kuksa",
        "--address",
        f"127.0.0.1:{free_port}",
        SPEED,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"kuksa: databroker 127.0.0.1:{free_port}: ")
    assert len(ended.stderr.splitlines()) == 1
