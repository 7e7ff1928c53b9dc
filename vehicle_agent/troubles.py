"""Why a vehicle does nothing, in words: each reason is told once it has lasted, and again when it changes. Pure.

Reasons come from events (``note``, ``over``) or are read off the state. What was told is in the status (codes) and in
the metrics (words), so that the server's operator sees what the vehicle's own output says.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, TypeAlias

from fedfleet.protocol.printable import printable
from fedfleet.vehicle_agent import actions as act
from fedfleet.vehicle_agent.state import UNKNOWN, State, Trouble

__all__ = [
    "CLOCK",
    "NO_SAMPLES",
    "SHARED",
    "SHORT_S",
    "clock",
    "dropped",
    "enrolment",
    "heard",
    "is_shared",
    "moved",
    "note",
    "over",
    "refused",
    "tell",
    "told",
]

Result: TypeAlias = tuple[State, list[act.Action]]
NO_SAMPLES = "no-samples"
"""Why a vehicle without a scenario that could teach does not train."""
CLOCK: Final = "clock-behind"
SHARED: Final = "identity-shared"
RIVALS: Final = ("another client", "taken over")
"""Words of the link, when a broker says or shows that someone else has come with the same id."""
TOO_LARGE: Final = "after a message of"
"""What the link says when a broker hung up on a large message: nobody else is to blame for that."""
LASTS_S: Final = 20.0
"""So long a reason must have lasted before it is told: most pass by themselves."""
LASTING: Final = {CLOCK: 0.0, "enrolment": 0.0, SHARED: 0.0, "no-plan": 120.0, "no-base": 120.0}
AGAIN_S: Final = 3600.0
"""A reason that comes and goes is told so often at most."""
MOST_CHARACTERS: Final = 300
UNANSWERED: Final = 3
SILENT_S: Final = 600.0
"""So long after a round's deadline no other has come."""
SHORT_S: Final = 60.0
DROPS: Final = 3
"""So many connections in a row that were this short: someone else uses the same id."""
CODE = "ask the operator for a fresh code (fedfleet server code {vehicle}) and start again with it"
ENROLMENT: Final = {
    "bad-signature": f"the server knows another key for {{vehicle}}: restore vehicle.key from a copy, or {CODE}",
    "unknown-sender": f"the server does not know {{vehicle}}: {CODE}, or have its key enrolled (fedfleet server enrol)",
    "wrong-code": f"its enrolment code is not the one that the server has: {CODE}",
    "denied-sender": "the operator has put {vehicle} on the deny-list (fedfleet server deny {vehicle} --undo ends it)",
}
"""What a refused request means, and what to do."""
REFUSED: Final = {
    "bad-signature": "messages come that the server {vehicle} is pinned to has not signed: if the server's key was "
    "replaced on purpose, give the vehicle a new work_dir and a fresh code; else someone pretends to be the server",
    "stale": "the server offers what is older than what it has signed before: its store may have gone back in time "
    "(fedfleet server check), or the broker hands out old messages",
    "conflicting": "the server gives another model or plan under a number that is taken: its store may have gone back",
    "unknown-server": "messages come before it knows the server's key: it has to enrol first",
    "not-an-enrolment": "the server does not confirm the enrolment: the code may be wrong, used, or expired",
    "wrong-code": "the answer to its enrolment does not prove the code: it is not the one that the server has",
    "wrong-task": "the server's models are for another task or another version of it",
    "too-large": "a model is larger than agent.max_model_bytes allows",
    "wrong-region": "messages of another region come: the server has moved it, and has not answered yet",
}
"""What it means when nothing of the server is acceptable."""


def note(state: State, code: str, words: str, now_s: float) -> State:
    """Return the state with a reason; when it is known already, with these words for it."""
    known = next((one for one in state.troubles if one.code == code), None)
    if known is not None and known.words == words:
        return state
    since_s = now_s if known is None else known.since_s
    others = tuple(one for one in state.troubles if one.code != code)
    return replace(state, troubles=(*others, Trouble(code, words, since_s)))


def over(state: State, *codes: str) -> State:
    """Return the state without these reasons."""
    if not any(one.code in codes for one in state.troubles):
        return state
    return replace(state, troubles=tuple(one for one in state.troubles if one.code not in codes))


def moved(state: State, by_s: float) -> State:
    """Return the state with the times of its reasons moved, as the clock was."""
    found = tuple(replace(one, since_s=one.since_s + by_s) for one in state.troubles)
    return replace(state, troubles=found, up_at_s=state.up_at_s + by_s)


def clock(state: State, ahead_s: float, now_s: float) -> State:
    """Note that the server dates its messages so far ahead of this clock; what differs little is the same."""
    known = next((one for one in state.troubles if one.code == CLOCK), None)
    if known is not None and state.behind_s / 1.5 < ahead_s < state.behind_s * 1.5:
        return state
    what = f"clock {_long(ahead_s)} behind the server's: plans and releases are dated ahead of it and wait"
    return note(
        replace(state, behind_s=ahead_s), CLOCK, f"{what}; set the clock, nothing else is needed", now_s
    )


def refused(state: State, reason: str, now_s: float) -> State:
    """Note that a message of the server was not acceptable: of interest if nothing else comes."""
    words = REFUSED.get(reason)
    if words is None:
        return state
    return note(state, f"refused-{reason}", words.format(vehicle=state.settings.vehicle), now_s)


def enrolment(state: State, reason: str, now_s: float) -> State:
    """Note that the server refuses a request of this vehicle."""
    code = reason.partition(":")[0]
    words = ENROLMENT.get(code, "the server refuses: {reason}").format(
        vehicle=state.settings.vehicle, reason=printable(reason)
    )
    return note(state, "enrolment", f"{words}; asking again later", now_s)


def dropped(state: State, reason: str, now_s: float) -> State:
    """Count connections that end soon after they were made: a broker ends one when another has the same id."""
    is_short = 0 <= now_s - state.up_at_s < SHORT_S and TOO_LARGE not in reason
    state = replace(state, drops=state.drops + 1 if is_short else 0)
    if state.drops < DROPS and not any(words in reason for words in RIVALS):
        return state
    name = state.settings.vehicle
    what = f"another client uses the id {name} and ends this connection, again and again"
    return note(
        state, SHARED, f"{what}: is there a copy of this vehicle? Stop one, or enrol it by another id", now_s
    )


def is_shared(state: State) -> bool:
    """Tell whether another client uses this vehicle's id."""
    return any(one.code == SHARED for one in state.troubles)


def heard(state: State) -> State:
    """Note that the server said something acceptable: what was refused before was not all that it says."""
    gone = (one.code for one in state.troubles if one.code.startswith(("refused-", "enrolment")))
    return over(state, *gone)


def told(state: State) -> tuple[str, str]:
    """Return codes and words of what was told and is not over, at most 300 characters each."""
    found = [one for one in state.troubles if one.told]
    codes, words = ",".join(one.code for one in found), "; ".join(one.words for one in found)
    return codes[:MOST_CHARACTERS], words[:MOST_CHARACTERS]


def tell(state: State, now_s: float) -> Result:
    """Report what has lasted, once; and that nothing is left of it, when something had been told."""
    derived = dict(_derived(state, now_s))
    settled = {SHARED} if state.connected and now_s - state.up_at_s > 2 * SHORT_S else set()
    state = over(state, *(_DERIVED - derived.keys()), *settled)
    for code, words in derived.items():
        state = note(state, code, words, now_s)
    if not state.troubles and not state.troubled:
        return state, []
    name, said, actions = state.settings.vehicle, dict(state.said_troubles), list[act.Action]()
    troubles = []
    for one in state.troubles:
        is_told = one.told or not 0 <= now_s - one.since_s < LASTING.get(one.code, LASTS_S)
        if is_told and not one.told:
            words, at_s = said.get(one.code, ("", 0.0))
            if words != one.words or not 0 <= now_s - at_s < AGAIN_S:
                said[one.code] = (one.words, now_s)
                actions.append(act.Report(f"vehicle {name}: {one.words}"))
        troubles.append(replace(one, told=is_told))
    is_over = state.troubled and not any(one.told for one in troubles)
    if is_over:
        actions.append(act.Report(f"vehicle {name}: that is over"))
    troubled = (state.troubled or bool(actions)) and not is_over
    return replace(state, troubles=tuple(troubles), said_troubles=said, troubled=troubled), actions


_DERIVED: Final = frozenset({"not-eligible", "no-answer", "no-plan", "no-newer-plan", "no-base"})


def _derived(state: State, now_s: float) -> Iterator[tuple[str, str]]:
    """Yield the reasons that the state itself shows."""
    reasons = state.verdict.reasons
    if reasons and state.verdict != UNKNOWN:
        what = ", ".join("no sample of its recordings could teach" if r == NO_SAMPLES else r for r in reasons)
        yield "not-eligible", f"does not train now: {what}"
    if not state.connected:
        return  # that is told already, and nobody hears
    explained = {one.code for one in state.troubles if one.code.startswith(("refused-", "enrol", CLOCK))}
    if not state.region:
        if state.asked >= UNANSWERED and not explained:
            yield (
                "no-answer",
                "the server does not answer: does it run, with this fleet's name, at this broker?",
            )
        return
    plan = state.plan
    if plan is None:
        if state.following and not explained:
            yield "no-plan", f"no round is open for region {state.region}: waiting for the server"
    elif now_s > plan.deadline_s + SILENT_S:
        yield (
            "no-newer-plan",
            f"no round after round {plan.round}: the server has run all of its rounds, or is down",
        )
    elif state.base is not None and state.pointer is None and plan.base_version != state.base.version:
        yield (
            "no-base",
            "rounds train from a version of the model that the server does not offer to this vehicle",
        )


def _long(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 55 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{round(seconds / 3600, 1):g} h"
    return f"{seconds / 86_400:.0f} days"
