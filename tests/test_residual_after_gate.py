"""What the gate refused does not come back twice: updates of a vehicle stay as long as what it learns."""

from pathlib import Path

import server_world as sw
from both_sides import Both

NAMES = ("v0", "v1", "v2", "v3")


def test_a_round_that_the_gate_refused_makes_no_later_update_longer(tmp_path: Path) -> None:
    # given vehicles that send all that they learn, which always leads away from the truth, and is refused
    both = Both(
        tmp_path,
        regions={"north": NAMES},
        target=lambda _: -50 * sw.TRUTH,
        server={
            "strategy": {"name": "fedavg", "server_learning_rate": 1.0},
            "rounds": {"total": 4, "quorum": 2, "contributors": {"north": list(NAMES)}},
            "codec": {"index": "dense", "value": "float32"},
            "downlink": {"value": "float32"},
            "gate": {"tolerance": 1.0},
        },
    )
    # when several rounds are over
    both.run_until(lambda: both.vehicles["v0"].refusals.get("update-returned-refused-by-gate", 0) >= 3)
    # then nothing of what was sent waits to be sent again, on top of what the next training learns anew
    for vehicle in both.vehicles.values():
        assert not vehicle.parts.journal.residual(sw.TRUTH.size).any()
    both.close()
