"""What becomes of updates that were journaled: sent, sent again, received, settled. Pure, a part of ``agent.step``.

The sealed bytes stay in the journal until the server has told their fate; after ``forget_after_rounds`` rounds
without word an update counts as folded.
"""

from dataclasses import replace
from typing import TypeAlias

from fedfleet.protocol.messages import Fate, Receipt, Settlement
from fedfleet.protocol.selection import draw
from fedfleet.vehicle_agent import troubles
from fedfleet.vehicle_agent.actions import Action, BeginEpoch, Count, Report, Send, Settle
from fedfleet.vehicle_agent.events import ReceiptCame, SettlementCame, UpdateJournaled
from fedfleet.vehicle_agent.state import Pending, State

__all__ = ["RETURNED_REASONS", "add", "forget", "receipt", "resend", "settlement", "spread", "wait"]

Result: TypeAlias = tuple[State, list[Action]]
ASK_AFTER_ROUNDS = 3
"""Rounds without word after which a stored update is sent again: its settlement may be retained no longer."""
ASKED_TIMES = 3
"""So often at least it is sent again before silence counts as an answer."""
USED = "replayed-id"
"""The server holds another update under this one's id: this journal is an older copy, or one of two."""
RETURNED_REASONS = frozenset(
    {"late", "round-unknown", "from-the-future", "wrong-base", "wrong-region", "internal-error", USED}
)
"""Refusals that say nothing against the update itself: it re-enters the residual."""
_MOST_DOUBLINGS = 20


def wait(state: State, attempt: int) -> tuple[State, float]:
    """Return a wait in seconds before attempt ``attempt`` + 1, with full jitter above a floor, and the state after it.

    The draw follows from session, vehicle and a counter, so that a recorded run repeats.
    """
    settings = state.settings
    reach_s = min(settings.resend_cap_s, settings.resend_min_s * 2.0 ** min(attempt, _MOST_DOUBLINGS))
    chance = draw(state.session, state.draws, settings.vehicle)
    floor_s = min(settings.resend_min_s, settings.resend_cap_s) / 2
    return replace(state, draws=state.draws + 1), floor_s + chance * (reach_s - floor_s)


def add(state: State, event: UpdateJournaled, now_s: float) -> Result:
    """Send a journaled update for the first time."""
    state, wait_s = wait(state, 1)
    pending = Pending(
        event.sequence, event.update, event.sealed_sha256, event.round, attempts=1, due_s=now_s + wait_s
    )
    return replace(state, outbox=(*state.outbox, pending)), [Send(event.sequence, 1)]


def spread(state: State, now_s: float) -> State:
    """After a reconnect, spread what waits for a receipt over the first seconds: all vehicles return at once."""
    waiting = []
    for pending in state.outbox:
        chance = draw(state.session, state.draws, state.settings.vehicle)
        state = replace(state, draws=state.draws + 1)
        waiting.append(replace(pending, due_s=now_s + chance * state.settings.resend_min_s))
    return replace(state, outbox=tuple(waiting))


def resend(state: State, now_s: float) -> Result:
    """Send again what has had no receipt for too long."""
    if not state.connected:
        return state, []
    actions: list[Action] = []
    kept = []
    for pending in state.outbox:
        if pending.stored or now_s < pending.due_s:
            kept.append(pending)
            continue
        attempt = pending.attempts + 1
        state, wait_s = wait(state, attempt)
        kept.append(replace(pending, attempts=attempt, due_s=now_s + wait_s))
        actions.append(Send(pending.sequence, attempt))
    return replace(state, outbox=tuple(kept)), actions


def receipt(state: State, event: ReceiptCame, now_s: float) -> Result:
    """Stop sending what is stored; settle what is refused or whose fate is already recorded.

    Who is not in that region any more asks where it is.
    """
    told: Receipt = event.receipt
    pending = next((each for each in state.outbox if each.sealed_sha256 == told.sealed_sha256), None)
    if pending is None:
        return state, []
    if told.fate is not None:
        return _settle(state, pending, told.fate, told.reason, now_s)
    if told.outcome == "stored":
        return _keep(state, _heard(state, pending)), []
    if told.reason.partition(":")[0] == "wrong-region":
        state = replace(state, asked=0, ask_at_s=now_s)
    fate: Fate = "returned" if told.reason.partition(":")[0] in RETURNED_REASONS else "dropped"
    if told.reason.partition(":")[0] != USED:
        return _settle(state, pending, fate, told.reason, now_s)
    state, actions = _settle(state, pending, fate, told.reason, now_s)
    return state, [*actions, BeginEpoch(pending.update), Report(_used(state, pending))]


def settlement(state: State, event: SettlementCame, now_s: float) -> Result:
    """Settle every update whose fate this settlement tells."""
    told: Settlement = event.settlement
    actions: list[Action] = []
    for pending in state.outbox:
        found = told.told(pending.update, pending.sealed_sha256)
        if found is not None:
            state, more = _settle(state, pending, *found, now_s)
            actions += more
    return state, actions


def forget(state: State, round_: int, now_s: float) -> Result:
    """Ask again about what has had no word for some rounds before ``round_``; after many more take it as folded."""
    actions: list[Action] = []
    for pending in state.outbox:
        silent = round_ - pending.heard
        if silent >= state.settings.forget_after_rounds and pending.asked and pending.attempts >= ASKED_TIMES:
            state, more = _settle(state, pending, "folded", "no-word", now_s)
            actions += [*more, Count("no-word")]
        elif silent > ASK_AFTER_ROUNDS and not pending.asked:
            state, wait_s = wait(state, 1)
            again = replace(pending, asked=True, stored=False, attempts=0, due_s=now_s + wait_s)
            state = _keep(state, again)
    return state, actions


def _settle(state: State, pending: Pending, fate: Fate, reason: str, now_s: float) -> Result:
    if fate == "carried":
        return _keep(state, _heard(state, pending)), []
    if fate == "folded":
        state = troubles.over(state, "dropped")
    rest = tuple(each for each in state.outbox if each.sequence != pending.sequence)
    actions: list[Action] = [Settle(pending.sequence, fate, reason)]
    if fate in {"dropped", "returned"}:
        actions.append(Count(f"update-{fate}-{reason.partition(':')[0]}"[:80]))
    if fate == "dropped":
        what = f"the server drops its updates: {reason.partition(':')[0] or 'no reason given'}"
        state = troubles.note(state, "dropped", what, now_s)
    return replace(state, outbox=rest), actions


def _used(state: State, pending: Pending) -> str:
    what = f"vehicle {state.settings.vehicle}: round {pending.round}: the server has another update as {pending.update}"
    why = "an older copy of this vehicle's folder was put back, or a second vehicle uses its identity"
    return f"{what}: {why}; what was learned is kept, and goes on under a new epoch"


def _heard(state: State, pending: Pending) -> Pending:
    word = state.plan.round if state.plan else pending.word
    return replace(pending, stored=True, asked=False, word=max(word, pending.word))


def _keep(state: State, changed: Pending) -> State:
    kept = (changed if each.sequence == changed.sequence else each for each in state.outbox)
    return replace(state, outbox=tuple(kept))
