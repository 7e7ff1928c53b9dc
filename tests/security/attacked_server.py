"""A server's process at a real Mosquitto, honest vehicles, and an attacker who has the key of one of them.

Round 1 stays open as long as anyone wants: one vehicle that it waits for says nothing.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from crash_site import TASK_ID, Site
from server_world import FLEET, Vehicle, key_of, pace, sealed_update
from strangers import Stranger

from fedfleet.protocol import envelope, topics
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.ids import UpdateId

__all__ = ["ATTACKER", "DENIED", "HONEST", "AttackedServer", "Courier"]

ATTACKER, DENIED, QUIET = "n-2", "s-1", "n-1"
HONEST = ("n-0", "s-0")
FLOODER = Path(__file__).parent / "flooder.py"
RESEND_S = 5.0


class AttackedServer(Site):
    """Connects all vehicles, answers nothing for them, and waits until round 1 is open."""

    strangers: list[Stranger]

    def begin(self) -> None:
        self.strangers = []
        self.allowed = 0
        self.drive()
        self.run_until(lambda: all(1 in each.plans for each in self.vehicles), "round 1 is open")

    def vehicle(self, name: str) -> Vehicle:
        return next(each for each in self.vehicles if each.name == name)

    def attacker(self, name: str = ATTACKER) -> Stranger:
        """A plain MQTT client in this vehicle's place: it has its name, and `sealed` its key."""
        for each in [each for each in self.vehicles if each.name == name]:
            each.link.close()
            self.vehicles.remove(each)
        made = Stranger(self.broker.port, name, username=name)
        self.strangers.append(made)
        return made

    def close(self) -> None:
        for stranger in self.strangers:
            stranger.close()
        super().close()

    def publish(self, attacker: Stranger, topic: str, payload: bytes) -> None:
        attacker.publish(topic, payload)

    def flood(
        self, *, qos: int, size: int, seconds: float, topic: str = "", payload: Path | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a process that publishes as the attacker as fast as it can."""
        self.vehicles = [each for each in self.vehicles if each.name != ATTACKER or each.link.close()]
        to = topic or topics.update(FLEET, ATTACKER, TASK_ID, round_=1, number=0)
        words = [self.broker.port, ATTACKER, to, qos, size, seconds, *([payload] if payload else [])]
        # in the world it has a machine of its own: here it gets what the broker and the server leave of this one
        return self.processes.start(["nice", "-n", "5", sys.executable, str(FLOODER), *map(str, words)])

    def told(self, process: "subprocess.Popen[bytes]") -> dict[str, int]:
        """What a flood has sent, once it is over."""
        process.wait(60)
        found: dict[str, int] = json.loads(self.processes.log(process).strip().splitlines()[-1])
        return found

    def is_well(self) -> bool:
        """Whether the server still runs and an honest vehicle's update gets its receipt."""
        courier = Courier(self.vehicle(HONEST[0]), first=int(time.monotonic() * 1000) % 10**9)
        courier.send()
        arrived = pace(lambda: bool(courier.latencies_s), courier.step, timeout_s=20)
        return arrived and self.server.poll() is None

    def memory_bytes(self) -> int:
        """Resident memory of the server's process now."""
        return _resident(self.server.pid, "VmRSS")

    def peak_bytes(self) -> int:
        """The most resident memory that it had."""
        return _resident(self.server.pid, "VmHWM")

    def log_bytes(self) -> int:
        return len(self.processes.log(self.server).encode())

    def reasons(self) -> dict[str, int]:
        """Counters of the store: what was refused, ignored and dropped, by its reason."""
        found: dict[str, int] = self.shown().get("counters", {})
        return found

    def kept_bytes(self) -> int:
        """What the server's folder takes on the disk."""
        files = [path for path in self.config.data_dir.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        self.run_until(condition, what)


def sealed(body: bytes, kind: Kind, vehicle: str = ATTACKER, *, key: str = "") -> bytes:
    """A message with the key of a vehicle, whatever is in it."""
    return envelope.seal(body, key_of(key or vehicle), kind=kind, sender=vehicle, fleet=FLEET)


def _resident(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


@dataclass
class Courier:
    """Sends updates of a vehicle for round 1, and measures the time to their receipts; sends again as an agent does."""

    vehicle: Vehicle
    first: int = 1000
    latencies_s: list[float] = field(default_factory=list)
    _sent: dict[str, tuple[float, float, bytes]] = field(default_factory=dict)
    _seen: int = 0

    def __post_init__(self) -> None:
        self._seen = len(self.vehicle.receipts)

    def send(self) -> None:
        self.first += 1
        plan = self.vehicle.plans[1]
        one = sealed_update(self.vehicle.name, plan, id=UpdateId(self.vehicle.name, 1, self.first))
        now = time.monotonic()
        self._sent[sha256(one).hexdigest()] = (now, now, one)
        self.vehicle.offer(one, 1)

    def step(self) -> None:
        self.vehicle.step()
        now = time.monotonic()
        for receipt in self.vehicle.receipts[self._seen :]:
            if receipt.sealed_sha256 in self._sent:
                self.latencies_s.append(now - self._sent.pop(receipt.sealed_sha256)[0])
        self._seen = len(self.vehicle.receipts)
        for digest, (begun, last, one) in self._sent.items():
            if now - last > RESEND_S:
                self._sent[digest] = (begun, now, one)
                self.vehicle.offer(one, 1)

    @property
    def waiting_s(self) -> list[float]:
        """How long those have waited that have no receipt yet."""
        return [time.monotonic() - begun for begun, _, _ in self._sent.values()]
