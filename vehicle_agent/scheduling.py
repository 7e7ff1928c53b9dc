"""How the kernel treats the trainer beside inference: nice, scheduling class, cores, who is killed first (Linux)."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from fedfleet.protocol.errors import UsageError

__all__ = ["Policy", "Scheduling", "apply", "check"]

Policy: TypeAlias = Literal["other", "batch", "idle"]
_CLASSES = {"other": os.SCHED_OTHER, "batch": os.SCHED_BATCH, "idle": os.SCHED_IDLE}
MOST_NICE = 19
FIRST_TO_GO = "800"


@dataclass(frozen=True)
class Scheduling:
    """``nice`` is added to the own one; ``cores`` are the numbers of those it may use, empty: as the parent."""

    policy: Policy = "batch"
    nice: int = 19
    cores: tuple[int, ...] = ()


def check(scheduling: Scheduling) -> None:
    """Raise UsageError when there are no such cores for this process."""
    there = os.sched_getaffinity(0)
    missing = sorted(set(scheduling.cores) - there)
    if missing:
        known = ", ".join(str(core) for core in sorted(there))
        raise UsageError(f"trainer_cores: no core {missing[0]} for this process, there are {known}")


def apply(pid: int, scheduling: Scheduling) -> None:
    """Treat this child so from now on; one that is gone is left alone.

    When memory runs out the kernel takes it before the process that drives.
    """
    with suppress(ProcessLookupError):
        os.setpriority(
            os.PRIO_PROCESS, pid, min(MOST_NICE, os.getpriority(os.PRIO_PROCESS, 0) + scheduling.nice)
        )
        os.sched_setscheduler(pid, _CLASSES[scheduling.policy], os.sched_param(0))
        if scheduling.cores:
            os.sched_setaffinity(pid, scheduling.cores)
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(FIRST_TO_GO, encoding="ascii")
