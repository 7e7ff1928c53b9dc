"""How the kernel treats inference and the trainer beside it (Linux).

The trainer: nice, scheduling class, cores, who is killed first. Inference: before all else on its core, if allowed.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from fedfleet.protocol.errors import UsageError

__all__ = ["Policy", "Priority", "Scheduling", "apply", "check", "to_back", "to_front"]

Policy: TypeAlias = Literal["other", "batch", "idle"]
Priority: TypeAlias = Literal["normal", "realtime"]
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


def to_front() -> str:
    """Run the calling thread before all that is not real-time (SCHED_RR, lowest priority); say why not, or nothing.

    What the thread starts is not in that class. It needs root, CAP_SYS_NICE or RLIMIT_RTPRIO.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError as error:
        return os.strerror(error.errno or 0)
    return ""


def to_back(thread: int) -> None:
    """Let the thread with this number of the kernel's take turns with all others again, from any thread."""
    with suppress(ProcessLookupError):
        os.sched_setscheduler(thread, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
