"""Which models a vehicle wants, has and drives. Pure, a part of ``agent.step``: one download at a time."""

from dataclasses import replace
from typing import TypeAlias

from fedfleet.protocol.messages import Release, Variant
from fedfleet.vehicle_agent import actions as act
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent import outbox, troubles
from fedfleet.vehicle_agent.state import Active, Base, State

__all__ = [
    "activated",
    "activation_refused",
    "base_ready",
    "fetch",
    "fetch_failed",
    "pointer",
    "release",
    "release_fetched",
]

Result: TypeAlias = tuple[State, list[act.Action]]


def pointer(state: State, event: ev.PointerCame, now_s: float) -> Result:
    """Want the published model, unless it is held. One that was cut anew for another broker cannot come as it was."""
    del now_s
    new, held, state = event.pointer, state.base, troubles.heard(state)
    if (
        held is not None
        and (new.version, new.onnx_sha256) == (held.version, held.onnx_sha256)
        and (held.step or not new.keep_step)
    ):
        return replace(state, pointer=None), []
    known = state.pointer
    is_other = known is not None and (new.version > known.version or new.full.chunks != known.full.chunks)
    hurry: list[act.Action] = [act.HurryFetch()] if state.fetching and is_other else []
    return replace(state, pointer=new, fetch_failures=0, fetch_at_s=0.0), hurry


def release(state: State, event: ev.ReleaseCame, now_s: float) -> Result:
    """Want a release, unless it or a newer one of the own region drives, or it was refused: retained, it comes again.

    A vehicle that came from another region drives another file under the same number, and so does one that wants a
    variant which came after its release.
    """
    del now_s
    active, came, state = state.active, event.release, troubles.heard(state)
    if came.number == state.refused:
        return state, []
    same = active is not None and active.onnx_sha256 in {"", _file(state, came)}
    if active is not None and came.number <= active.number and same:
        return state, []
    is_newer = state.release is not None and came.number > state.release.number
    hurry: list[act.Action] = [act.HurryFetch()] if state.fetching and is_newer else []
    return replace(state, release=event.release, fetch_failures=0, fetch_at_s=0.0), hurry


def base_ready(state: State, event: ev.BaseReady, now_s: float) -> Result:
    """Note the new base."""
    del now_s
    pointer = None if state.pointer and state.pointer.version == event.version else state.pointer
    base = Base(event.version, event.onnx_sha256, event.region, event.step)
    state = troubles.over(state, "fetch-base")
    return replace(state, base=base, pointer=pointer, fetching=False, fetch_failures=0), []


def release_fetched(state: State, event: ev.ReleaseFetched, now_s: float) -> Result:
    """Have it tried, when it is still wanted."""
    del now_s
    state = troubles.over(state, "fetch-release")
    if state.release is None or state.release.number != event.number:
        return replace(state, fetching=False), []
    return replace(state, fetching=False, trying=True), [act.Activate(state.release)]


def activated(state: State, event: ev.Activated, now_s: float) -> Result:
    """Note what drives now; a variant of the same release that came meanwhile is still wanted."""
    del now_s
    release = state.release
    if release is not None and release.number <= event.number:
        wanted = _variant(state, release) if release.number == event.number else None
        release = release if wanted and wanted.onnx_sha256 != event.onnx_sha256 else None
    active = Active(event.number, event.version, event.onnx_sha256, event.variant)
    return replace(state, active=active, release=release, trying=False, fetch_failures=0), []


def activation_refused(state: State, event: ev.ActivationRefused, now_s: float) -> Result:
    """Want the refused release no more; the model before it drives on. Of a variant: want the release as it is."""
    del now_s
    if _is_variant(state, event.number, event.onnx_sha256):
        line = (
            f"vehicle {state.settings.vehicle}: release {event.number} refused as a variant ({event.reason})"
        )
        state = _without(replace(state, trying=False), event.onnx_sha256)
        return state, [act.Count(event.reason), act.Report(f"{line}, as it is instead")]
    release = None if state.release and state.release.number == event.number else state.release
    what = f"release {event.number} refused ({event.reason})"
    line = f"vehicle {state.settings.vehicle}: {what}, the model before it drives on"
    refused = state.refused if event.reason == "not-fetched" else event.number
    state = replace(state, release=release, trying=False, refused=refused)
    return state, [act.Count(event.reason), act.Report(line)]


def fetch_failed(state: State, event: ev.FetchFailed, now_s: float) -> Result:
    """Ask again later; not at all when asking again gives the same."""
    what = "published model" if event.purpose == "base" else "release"
    words = f"the {what} cannot be fetched: {event.reason}"
    state = troubles.note(state, f"fetch-{event.purpose}", words, now_s)
    state, wait_s = outbox.wait(state, state.fetch_failures + 1)
    state = replace(state, fetch_failures=state.fetch_failures + 1, fetch_at_s=now_s + wait_s)
    state = (
        replace(state, trying=False)
        if event.purpose == "release" and state.trying
        else replace(state, fetching=False)
    )
    if event.lasting and state.pointer and event.purpose == "base" and state.pointer.version == event.number:
        state = replace(state, pointer=None)
    if event.lasting and _is_variant(state, event.number, event.variant_sha256):
        return _without(state, event.variant_sha256), [act.Count(event.reason)]
    if (
        event.lasting
        and state.release
        and event.purpose == "release"
        and state.release.number == event.number
    ):
        state = replace(state, release=None)
    return state, [act.Count(event.reason)]


def fetch(state: State, now_s: float) -> Result:
    """One model at a time, the base first: a release is mostly the same version and then costs nothing.

    While a release is tried the next base may come, but no other release. On a new connection all that the broker
    has kept for this vehicle comes first, perhaps of weeks; the server's answer to the first request comes after it,
    so that the newest is wanted then. Without an answer in time it goes ahead.
    """
    waits = state.enrolled and state.ask_at_s is not None and state.asked == 1 and now_s < state.ask_at_s
    if state.fetching or now_s < state.fetch_at_s or not state.connected or waits:
        return state, []
    if state.pointer is not None:
        return replace(state, fetching=True), [act.FetchBase(state.pointer)]
    if state.release is not None and not state.trying:
        return replace(state, fetching=True), [
            act.FetchRelease(state.release, _variant(state, state.release))
        ]
    return state, []


def _variant(state: State, release: Release) -> Variant | None:
    """Return the form of a release that this vehicle wants; None: the release as it is."""
    found = release.variant(state.settings.variant) if state.settings.variant else None
    return None if found is None or found.onnx_sha256 in state.given_up else found


def _file(state: State, release: Release) -> str:
    found = _variant(state, release)
    return release.model.onnx_sha256 if found is None else found.onnx_sha256


def _is_variant(state: State, number: int, digest: str) -> bool:
    release = state.release
    if release is None or release.number != number:
        return False
    return any(each.onnx_sha256 == digest for each in release.variants)


def _without(state: State, digest: str) -> State:
    """Give a variant up; the release as it is is wanted, unless it drives already."""
    state, release, active = replace(state, given_up=state.given_up | {digest}), state.release, state.active
    drives = (
        release and active and (active.number, active.onnx_sha256) == (release.number, _file(state, release))
    )
    return replace(state, release=None) if drives else state
