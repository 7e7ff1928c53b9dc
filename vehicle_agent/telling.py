"""What a vehicle tells of itself: its status, and its figures. Counts and times, never data."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedfleet.protocol.messages import Metrics, Status
from fedfleet.vehicle_agent import troubles
from fedfleet.vehicle_agent.downlink import Downlink
from fedfleet.vehicle_agent.runtime import Replay
from fedfleet.vehicle_agent.state import State
from fedfleet.vehicle_agent.tuning import Tuning

__all__ = ["Counted", "metrics", "restored", "status"]


@dataclass(frozen=True)
class Counted:
    """What the shell counted: payload bytes, resident memory, refusals by reason."""

    bytes_up: int
    bytes_down: int
    rss_bytes: int
    refusals: Mapping[str, int]


def status(state: State, kind: str, at_s: float, *, epoch: int, process: int) -> Status:
    """Return the status; what was said last counts only while the vehicle is ONLINE."""
    said = state.said if kind == "ONLINE" else None
    return Status.model_validate(
        {
            "vehicle": state.settings.vehicle,
            "state": kind,
            "session": state.session,
            "at_s": at_s,
            "lease": said.lease if said else None,
            "eligible": said.eligible if said else False,
            "reason": said.reason if said else "",
            "active_version": state.active.version if state.active else 0,
            "epoch": epoch,
            "process": process,
        }
    )


def metrics(
    state: State, at_s: float, *, replay: Replay, downlink: Downlink, tuning: Tuning, counted: Counted
) -> Metrics:
    """Return the figures since the start; no scores while a head of the vehicle's own drives."""
    figures, active = replay.figures(), state.active
    return Metrics(
        vehicle=state.settings.vehicle,
        task=state.settings.task,
        at_s=at_s,
        session=state.session,
        active_version=active.version if active else 0,
        frames=figures.frames,
        missed=figures.missed,
        missed_in_swap=figures.missed_in_swap,
        swaps=figures.swaps,
        p50_ms=figures.p50_ms,
        p99_ms=figures.p99_ms,
        late=figures.late,
        guard_pauses=figures.pauses,
        guard_paused_s=figures.paused_s,
        shadow_answers=downlink.shadow_answers,
        shadow_disagreed=downlink.shadow_disagreed,
        variant=active.variant if active else "",
        personal=replay.is_overlaid,
        bytes_up=counted.bytes_up,
        bytes_down=counted.bytes_down,
        trainings=tuning.trainings,
        link_class=tuning.link_class,
        update_bytes=tuning.update_bytes,
        update_codec=tuning.update_codec,
        update_steps=tuning.update_steps,
        rss_bytes=counted.rss_bytes,
        scores={} if replay.is_overlaid else figures.scores,
        refusals=dict(counted.refusals),
        trouble=troubles.told(state)[1],
    )


def restored(last: int, used: int, *, epoch: int) -> str:
    """Return what to say of a journal that is an older copy of itself."""
    told = f"journal ends with update {last}, but this vehicle has sent {used}: an older copy took its place"
    return f"{told}; going on as epoch {epoch:x}, nothing is sent twice"
