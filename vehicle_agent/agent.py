"""The vehicle's decisions: ``step(state, event, now_s) -> (state, actions)``. Pure: no clock, no chance, no I/O.

One table names the handler of each event; after every event ``_follow_up`` does what has become possible or due.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any, TypeAlias

from fedfleet.protocol import topics
from fedfleet.protocol.messages import Lease, Plan
from fedfleet.protocol.selection import draw
from fedfleet.vehicle_agent import actions as act
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent import following, outbox, troubles, versions
from fedfleet.vehicle_agent.eligibility import Verdict, judge
from fedfleet.vehicle_agent.state import Base, State, Training

__all__ = ["step", "training_seed"]

Result: TypeAlias = tuple[State, list[act.Action]]
KEEP_ANSWERED = 64
MOST_TICK_S = 600.0
"""Seconds between two ticks from which on the clock was set, or the whole machine slept."""


def step(state: State, event: ev.Event, now_s: float) -> tuple[State, tuple[act.Action, ...]]:
    """Return the state after an event and what is to be done, in order.

    An event type without a handler is a KeyError: nothing is ignored by accident.
    """
    state, actions = _HANDLERS[type(event)](state, event, now_s)
    for follow in _FOLLOW_UP:
        state, more = follow(state, now_s)
        actions += more
    return state, tuple(actions)


def training_seed(task: str, round_: int, vehicle: str) -> int:
    """Return the seed of a training, below 2^63: the same vehicle trains the same way for the same round."""
    return int.from_bytes(sha256(f"{task}:{round_}:{vehicle}".encode()).digest()[:8], "big") >> 1


# --- link and enrolment ---


def _link_up(state: State, event: ev.LinkUp, now_s: float) -> Result:
    del event  # the link renews what the broker has forgotten
    fleet, vehicle = state.settings.fleet, state.settings.vehicle
    own = (topics.receipt(fleet, vehicle), topics.command(fleet, vehicle))
    actions: list[act.Action] = [] if state.subscribed else [act.Subscribe(own)]
    if state.told_down and not troubles.is_shared(state):
        actions.append(act.Report(f"vehicle {state.settings.vehicle}: connected to the broker again"))
    state = replace(outbox.spread(state, now_s), up_at_s=now_s)
    state = replace(
        state, connected=True, told_down=False, subscribed=True, asked=0, ask_at_s=now_s, said=None
    )
    return following.listen(state, now_s), actions


def _link_down(state: State, event: ev.LinkDown, now_s: float) -> Result:
    if state.connected:
        state = troubles.dropped(state, event.reason, now_s)
    told = state.told_down or troubles.is_shared(state)
    state = replace(state, connected=False, told_down=True)
    line = f"vehicle {state.settings.vehicle}: {event.reason}; inference goes on, connecting again until it succeeds"
    return state, [] if told else [act.Report(line)]


def _assigned(state: State, event: ev.Assigned, now_s: float) -> Result:
    del now_s
    state = troubles.heard(replace(state, ask_at_s=None, enrolled=state.enrolled or event.enrolled))
    if event.region == state.region:
        return state, []
    actions: list[act.Action] = [act.StopTraining(state.training.plan.round)] if state.training else []
    state = replace(state, region=event.region, plan=None, pointer=None, release=None, training=None)
    state = replace(state, refused=None)  # there it may be another file
    return state, actions


def _enrolment_refused(state: State, event: ev.EnrolmentRefused, now_s: float) -> Result:
    return troubles.enrolment(state, event.reason, now_s), [act.Count("request-refused")]


def _message_refused(state: State, event: ev.MessageRefused, now_s: float) -> Result:
    """Count it; what is dated ahead of this clock is read again later, when one of the clocks may have been set."""
    if event.reason == "from-the-future":
        state = following.reread_soon(state, now_s)
        state = troubles.clock(state, event.ahead_s, now_s) if event.ahead_s else state
    else:
        state = troubles.refused(state, event.reason, now_s)
    return state, [act.Count(event.reason)]


def _ask(state: State, now_s: float) -> Result:
    if not state.connected or state.ask_at_s is None or now_s < state.ask_at_s:
        return state, []
    state, wait_s = outbox.wait(state, state.asked + 1)
    state = replace(state, asked=state.asked + 1, ask_at_s=now_s + wait_s)
    return state, [act.SendRequest("hello" if state.enrolled else "enrol")]


# --- training ---


def _plan(state: State, event: ev.PlanCame, now_s: float) -> Result:
    plan, known = event.plan, state.plan
    state = troubles.over(troubles.heard(state), troubles.CLOCK)
    if known and (plan.round, plan.revision) <= (known.round, known.revision):
        return state, []
    if known is None or plan.round > known.round:
        state = replace(state, failures=0)
    state, actions = outbox.forget(replace(following.listen(state, now_s), plan=plan), plan.round, now_s)
    training = state.training
    gives_up = plan.mode == "sync" and plan.late == "return"
    if training and training.plan.round < plan.round and not training.submitting and gives_up:
        actions.append(act.StopTraining(training.plan.round))
        state = replace(state, training=None)
    return state, actions


def _conditions(state: State, event: ev.ConditionsRead, now_s: float) -> Result:
    del now_s
    reasons = {*judge(state.settings.rules, event.signals).reasons, *state.settings.lacks}
    state = replace(state, verdict=Verdict(tuple(sorted(reasons))))
    if state.verdict.eligible or state.training is None or state.training.submitting:
        return state, []
    stop = act.StopTraining(state.training.plan.round)
    return replace(state, training=None), [stop, act.Count("training-interrupted")]


def _training_done(state: State, event: ev.TrainingDone, now_s: float) -> Result:
    del now_s
    if state.training is None or state.training.plan.round != event.round or state.training.submitting:
        return state, []
    state = replace(state, training=replace(state.training, submitting=True))
    return state, [
        act.SubmitUpdate(state.training.plan, event.steps, event.examples)
    ] if state.training else []


def _training_failed(state: State, event: ev.TrainingFailed, now_s: float) -> Result:
    if state.training is None or state.training.plan.round != event.round:
        return state, []
    state = troubles.note(state, "training", f"its trainings fail: {event.reason}", now_s)
    return replace(state, training=None, failures=state.failures + 1), [act.Count(event.reason)]


def _training_progress(state: State, event: ev.TrainingProgress, now_s: float) -> Result:
    del now_s
    if state.training is None or state.training.plan.round != event.round:
        return state, []
    return replace(state, training=replace(state.training, steps=event.steps)), []


def _training_held(state: State, event: ev.TrainingHeld, now_s: float) -> Result:
    """Allow for the time that a training stood still: it does not hang."""
    del now_s
    if state.training is None or state.training.plan.round != event.round:
        return state, []
    started_s = state.training.started_s + event.seconds
    return replace(state, training=replace(state.training, started_s=started_s)), []


def _update_journaled(state: State, event: ev.UpdateJournaled, now_s: float) -> Result:
    answered = frozenset(sorted({*state.answered, event.round})[-KEEP_ANSWERED:])
    if state.training is not None:
        plan = state.training.plan
        state = replace(state, rests=(plan.opened_at_s, plan.next_round_at_s))
    state = troubles.over(state, "training", "update")
    return outbox.add(replace(state, training=None, answered=answered), event, now_s)


def _update_given_up(state: State, event: ev.UpdateGivenUp, now_s: float) -> Result:
    state = troubles.note(state, "update", f"its updates cannot be made: {event.reason}", now_s)
    answered = frozenset(sorted({*state.answered, event.round})[-KEEP_ANSWERED:])
    return replace(state, training=None, answered=answered), [act.Count(event.reason)]


def _train(state: State, now_s: float) -> Result:
    """Answer the plan when it is for this vehicle, for the held base, and the vehicle is fit for it.

    A plan past its deadline is still answered: only the server says what is late, and nothing is lost by it.
    """
    plan, base, settings = state.plan, state.base, state.settings
    if plan is None or base is None or state.training or plan.round in state.answered:
        return state, []
    if not _fits(plan, base):
        return state, []
    if (
        draw(plan.seed, plan.round, settings.vehicle) >= plan.share
        or state.failures >= settings.training_attempts
    ):
        return state, []
    if not state.verdict.eligible:
        refusal = (plan.round, state.verdict.reasons)
        counts = [] if state.refused_for == refusal else [act.Count(f"ineligible-{r}") for r in refusal[1]]
        return replace(state, refused_for=refusal), [*counts]
    from_s, until_s = state.rests
    if from_s <= now_s < until_s and plan.opened_at_s < until_s:
        return state, []  # it comes back when the plan that it answered told it to
    training = Training(plan, now_s, now_s + plan.lease_s)
    seed = training_seed(settings.task, plan.round, settings.vehicle)
    return replace(state, training=training), [act.StartTraining(plan, seed)]


def _fits(plan: Plan, base: Base) -> bool:
    """Tell whether the plan trains from this base; the pointer that comes with common coordinates brings the step."""
    same = (plan.base_version, plan.onnx_sha256) == (base.version, base.onnx_sha256)
    return same and (base.step or plan.codec.coordinates != "common")


def _watch_training(state: State, now_s: float) -> Result:
    training = state.training
    if training is None or training.submitting:
        return state, []
    if now_s - training.started_s > state.settings.training_limit_s:
        state = replace(state, training=None, failures=state.failures + 1)
        state = troubles.note(state, "training", "its trainings do not end in time", now_s)
        return state, [act.StopTraining(training.plan.round), act.Count("training-timeout")]
    if training.lease_until_s - now_s < training.plan.lease_s / 3:
        state = replace(state, training=replace(training, lease_until_s=now_s + training.plan.lease_s))
    return state, []


# --- status ---


def _tick(state: State, event: ev.Tick, now_s: float) -> Result:
    """Move the timers with a clock that was set anew: back at all, or ahead by more than a tick can take."""
    del event
    before_s, state = state.ticked_s, replace(state, ticked_s=now_s)
    if before_s is None or 0 <= now_s - before_s <= MOST_TICK_S:
        return state, []
    by_s, training = now_s - before_s, state.training
    if training is not None:
        started_s, until_s = training.started_s + by_s, training.lease_until_s + by_s
        training = replace(training, started_s=started_s, lease_until_s=until_s)
    ask_at_s = None if state.ask_at_s is None else state.ask_at_s + by_s
    pending = tuple(replace(each, due_s=each.due_s + by_s) for each in state.outbox)
    again_s = None if state.reread_at_s is None else now_s  # what was too early then may be timely now
    state = replace(state, training=training, ask_at_s=ask_at_s, outbox=pending, reread_at_s=again_s)
    state = troubles.moved(state, by_s)
    return replace(state, fetch_at_s=state.fetch_at_s + by_s), []


def _say(state: State, now_s: float) -> Result:
    """Publish the status when it is not what was said last."""
    del now_s
    lease = _lease(state.training.plan, state.training.lease_until_s) if state.training else None
    version = state.active.version if state.active else 0
    reason = ",".join(state.verdict.reasons)[:300] or troubles.told(state)[0]
    status = act.PublishStatus(state.verdict.eligible, reason, version, lease)
    if not state.connected or status == state.said:
        return state, []
    return replace(state, said=status), [status]


def _lease(plan: Plan, until_s: float) -> Lease:
    return Lease(task=plan.task, round=plan.round, until_s=until_s)


_HANDLERS: Mapping[type, Callable[[State, Any, float], Result]] = {
    ev.LinkUp: _link_up,
    ev.LinkDown: _link_down,
    ev.Assigned: _assigned,
    ev.EnrolmentRefused: _enrolment_refused,
    ev.MessageRefused: _message_refused,
    ev.PlanCame: _plan,
    ev.PointerCame: versions.pointer,
    ev.ReleaseCame: versions.release,
    ev.SettlementCame: outbox.settlement,
    ev.ReceiptCame: outbox.receipt,
    ev.BaseReady: versions.base_ready,
    ev.ReleaseFetched: versions.release_fetched,
    ev.FetchFailed: versions.fetch_failed,
    ev.Activated: versions.activated,
    ev.ActivationRefused: versions.activation_refused,
    ev.TrainingDone: _training_done,
    ev.TrainingFailed: _training_failed,
    ev.TrainingProgress: _training_progress,
    ev.TrainingHeld: _training_held,
    ev.UpdateJournaled: _update_journaled,
    ev.UpdateGivenUp: _update_given_up,
    ev.ConditionsRead: _conditions,
    ev.Tick: _tick,
}
_FOLLOW_UP: tuple[Callable[[State, float], Result], ...] = (
    following.follow_region,
    following.reread,
    _ask,
    _watch_training,
    _train,
    versions.fetch,
    outbox.resend,
    troubles.tell,
    _say,
)
