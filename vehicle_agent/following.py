"""Which retained messages the vehicle follows, and when it has the broker send them again. Pure.

A broker may lose what was published while a subscription was being made, and one of two clocks may have been wrong
when a message came. Retained messages come again with every new subscription, so a vehicle that hears nothing new
subscribes anew, ever more rarely.
"""

from dataclasses import replace
from typing import TypeAlias

from fedfleet.protocol import topics
from fedfleet.protocol.selection import draw
from fedfleet.vehicle_agent import actions as act
from fedfleet.vehicle_agent.state import State

__all__ = ["follow_region", "listen", "reread", "reread_soon"]

Result: TypeAlias = tuple[State, list[act.Action]]
MOST_DOUBLINGS = 6
"""With `resend_cap_s` of 60: from one or two minutes to one or two hours."""
_DRAWS = 2**40
"""Numbers of these draws, far from those of the outbox."""


def listen(state: State, now_s: float) -> State:
    """Wait for news from now on: retained messages are read again if nothing new comes."""
    return _later(replace(state, rereads=0), now_s)


def reread_soon(state: State, now_s: float) -> State:
    """Read them again, when a wrong clock may have been set."""
    at_s = now_s + state.settings.resend_cap_s
    return replace(state, reread_at_s=at_s if state.reread_at_s is None else min(at_s, state.reread_at_s))


def reread(state: State, now_s: float) -> Result:
    """Subscribe anew when it is time, so that the retained messages come again."""
    if state.reread_at_s is None or now_s < state.reread_at_s or not state.following:
        return state, []
    if not state.connected or state.following != state.region:
        return replace(state, reread_at_s=None), []  # they come anyway
    filters = topics.region_all(state.settings.fleet, state.following, state.settings.task)
    state = _later(replace(state, rereads=state.rereads + 1), now_s)
    return state, [act.Unsubscribe(filters), act.Subscribe(_in_order(filters))]


def follow_region(state: State, now_s: float) -> Result:
    """Follow the region that the vehicle is in, and none it was in."""
    if not state.connected or state.following == state.region:
        return state, []
    fleet, task = state.settings.fleet, state.settings.task
    actions: list[act.Action] = []
    if state.following:
        actions.append(act.Unsubscribe(topics.region_all(fleet, state.following, task)))
    if state.region:
        actions.append(act.Subscribe(_in_order(topics.region_all(fleet, state.region, task))))
    return listen(replace(state, following=state.region), now_s), actions


def _in_order(filters: tuple[str, ...]) -> tuple[str, ...]:
    """The base first: then a release of the same version needs no download."""
    release, *others = filters
    return (*others, release)


def _later(state: State, now_s: float) -> State:
    """The draw, apart from those of the outbox, spreads the vehicles that a broker's restart has brought together."""
    chance = draw(state.session, _DRAWS + state.rereads, state.settings.vehicle)
    wait_s = state.settings.resend_cap_s * 2.0 ** min(state.rereads, MOST_DOUBLINGS) * (1 + chance)
    return replace(state, reread_at_s=now_s + wait_s)
