"""The agent's decisions, one at a time: state and event in, state and actions out."""

from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from typing import Any

import agent_world as aw
import pytest

from fedfleet.protocol import messages as msg
from fedfleet.protocol import topics
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.selection import draw
from fedfleet.vehicle_agent import actions as act
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent.agent import step, training_seed
from fedfleet.vehicle_agent.eligibility import Rule
from fedfleet.vehicle_agent.state import Active, Base, Pending, Resumed, Settings, State, start

PARKED = Rule(signal="Vehicle.Speed", op="==", value=0, reason="not-parked")
STANDING, MOVING = ev.ConditionsRead({"Vehicle.Speed": 0}), ev.ConditionsRead({"Vehicle.Speed": 9})
SETTINGS = Settings(aw.FLEET, "v01", aw.TASK_ID, rules=(PARKED,), resend_min_s=4, resend_cap_s=30)
BASE = Base(3, sha256(aw.file_of(3)).hexdigest())
JOURNALED = ev.UpdateJournaled(1, "v01:0000000000000001:1", "a" * 64, 7)


def run(state: State, *events: ev.Event, now_s: float = 1000.0) -> tuple[State, list[act.Action]]:
    """Step through events; the actions of the last one."""
    actions: tuple[act.Action, ...] = ()
    for event in events:
        state, actions = step(state, event, now_s)
    return state, list(actions)


def kinds(actions: list[act.Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def of(actions: list[act.Action], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def fresh(**resumed: Any) -> State:
    told = {"session": 1, "enrolled": True, **resumed}
    return start(SETTINGS, Resumed(**told))


def ready(**resumed: Any) -> State:
    """Connected, in its region, standing, with version 3 as its base."""
    state = fresh(region=aw.REGION, base=BASE, **resumed)
    return run(state, STANDING, ev.LinkUp(session_present=False), ev.Assigned(aw.REGION, enrolled=False))[0]


def plan(round_: int = 7, **changes: Any) -> ev.PlanCame:
    return ev.PlanCame(aw.plan(round_, 3, **changes))


def besides_listening(actions: list[act.Action]) -> list[act.Action]:
    """Without subscribing anew, and saying why it waits, as a vehicle does that has heard nothing for long."""
    told = [each for each in of(actions, act.PublishStatus) if each.eligible and each.reason]
    left_out = (act.Subscribe, act.Unsubscribe, act.Report)
    return [each for each in actions if not isinstance(each, left_out) and each not in told]


# --- link and enrolment ---


def test_a_new_vehicle_subscribes_says_online_and_asks_to_enrol() -> None:
    state, actions = run(fresh(enrolled=False), ev.LinkUp(session_present=False))
    own = (topics.receipt(aw.FLEET, "v01"), topics.command(aw.FLEET, "v01"))
    assert actions[0] == act.Subscribe(own)
    assert of(actions, act.SendRequest) == [act.SendRequest("enrol")]
    assert of(actions, act.PublishStatus) == [act.PublishStatus(False, "conditions-unknown", 0, None)]
    # when the server answers
    state, actions = run(state, ev.Assigned(aw.REGION, enrolled=True))
    (subscribed,) = actions
    assert isinstance(subscribed, act.Subscribe)
    assert sorted(subscribed.filters) == sorted(topics.region_all(aw.FLEET, aw.REGION, aw.TASK_ID))
    assert state.ask_at_s is None
    # then it asks no more, and greets after the next connect
    _, actions = run(state, ev.Tick(), now_s=9e9)
    assert of(actions, act.SendRequest) == []
    _, actions = run(state, ev.LinkDown("gone"), ev.LinkUp(session_present=True))
    assert of(actions, act.SendRequest) == [act.SendRequest("hello")]
    assert of(actions, act.Subscribe) == []


def test_a_request_without_answer_is_repeated_with_growing_jittered_waits() -> None:
    state, _ = run(fresh(), ev.LinkUp(session_present=False), now_s=0.0)
    asked, now_s = [], 0.0
    while now_s < 200:
        now_s += 0.5
        state, actions = run(state, ev.Tick(), now_s=now_s)
        asked += [now_s for _ in of(actions, act.SendRequest)]
    waits = [later - earlier for earlier, later in zip([0.0, *asked], asked, strict=False)]
    assert 5 <= len(waits) <= 100
    assert all(2 <= wait <= 31 for wait in waits)
    assert len(set(waits)) > 2


def test_a_lost_broker_is_reported_once_until_it_is_back() -> None:
    state, actions = run(ready(), ev.LinkDown("broker x refuses"))
    assert actions == [
        act.Report("vehicle v01: broker x refuses; inference goes on, connecting again until it succeeds")
    ]
    state, actions = run(state, ev.LinkDown("broker x refuses"))
    assert actions == []
    state, actions = run(state, ev.LinkUp(session_present=True))
    assert of(actions, act.Report) == [act.Report("vehicle v01: connected to the broker again")]
    assert len(of(actions, act.PublishStatus)) == 1, "the will may have been published: say ONLINE again"


def test_another_region_drops_what_belonged_to_the_old_one() -> None:
    state, _ = run(ready(), plan())
    assert state.training is not None
    state, actions = run(state, ev.Assigned("south", enrolled=False))
    assert kinds(actions) == ["StopTraining", "Unsubscribe", "Subscribe", "PublishStatus"]
    assert (state.plan, state.training, state.base) == (None, None, BASE)


# --- models ---


def test_the_base_is_fetched_before_the_release_and_one_at_a_time() -> None:
    state, actions = run(ready(), ev.ReleaseCame(aw.release(1, 4)))
    assert of(actions, act.FetchRelease) == [act.FetchRelease(aw.release(1, 4))]
    state, actions = run(state, ev.PointerCame(aw.pointer(4)))
    assert actions == []
    # when it is here, it is tried beside the active model, and the base comes meanwhile, but no other release
    state, actions = run(state, ev.ReleaseFetched(1))
    assert actions == [act.Activate(aw.release(1, 4)), act.FetchBase(aw.pointer(4))]
    state, actions = run(state, ev.ReleaseCame(aw.release(2, 5)))
    assert actions == [act.HurryFetch()]
    state, _ = run(state, ev.ReleaseCame(aw.release(1, 4)))
    state, actions = run(state, ev.Activated(1, 4))
    assert state.active == Active(1, 4)
    state, actions = run(state, ev.BaseReady(4, aw.pointer(4).onnx_sha256))
    assert (state.pointer, state.release, actions) == (None, None, [])


def test_what_is_held_is_not_fetched_again() -> None:
    _, actions = run(ready(), ev.PointerCame(aw.pointer(3)))
    assert actions == []
    _, actions = run(ready(active=Active(2, 3)), ev.ReleaseCame(aw.release(2, 3)))
    assert actions == []


def test_a_newer_pointer_during_a_fetch_is_fetched_next() -> None:
    state, _ = run(ready(), ev.PointerCame(aw.pointer(4)), ev.PointerCame(aw.pointer(5)))
    _, actions = run(state, ev.BaseReady(4, aw.pointer(4).onnx_sha256))
    assert actions == [act.FetchBase(aw.pointer(5))]


def test_a_failed_fetch_is_tried_again_later_unless_it_is_lasting() -> None:
    state, actions = run(
        ready(), ev.PointerCame(aw.pointer(4)), ev.FetchFailed("base", 4, "blob-timeout", lasting=False)
    )
    assert actions == [act.Count("blob-timeout")]
    assert besides_listening(run(state, ev.Tick(), now_s=1031.0)[1]) == [act.FetchBase(aw.pointer(4))]
    state, actions = run(
        ready(), ev.PointerCame(aw.pointer(4)), ev.FetchFailed("base", 4, "wrong-task", lasting=True)
    )
    assert besides_listening(run(state, ev.Tick(), now_s=9e9)[1]) == []
    assert state.base == BASE


def test_a_refused_release_leaves_the_one_before() -> None:
    state = ready(active=Active(1, 3))
    state, actions = run(
        state,
        ev.ReleaseCame(aw.release(2, 3)),
        ev.ReleaseFetched(2),
        ev.ActivationRefused(2, "canary-mismatch"),
    )
    line = "vehicle v01: release 2 refused (canary-mismatch), the model before it drives on"
    assert actions == [act.Count("canary-mismatch"), act.Report(line)]
    assert (state.active, state.release) == (Active(1, 3), None)
    # and it is not tried again when the broker sends it again, only what comes after it
    state, actions = run(state, ev.ReleaseCame(aw.release(2, 3)))
    assert (actions, state.release) == ([], None)
    _, actions = run(state, ev.ReleaseCame(aw.release(3, 3)))
    assert [each.release.number for each in of(actions, act.FetchRelease)] == [3]


def test_a_release_that_was_not_at_hand_is_wanted_when_it_comes_again() -> None:
    came = ev.ReleaseCame(aw.release(2, 3))
    state, _ = run(
        ready(active=Active(1, 3)), came, ev.ReleaseFetched(2), ev.ActivationRefused(2, "not-fetched")
    )
    assert of(run(state, came)[1], act.FetchRelease)


# --- training ---


def test_a_plan_for_the_held_base_starts_a_training_with_a_lease() -> None:
    state, actions = run(ready(), plan())
    seed = training_seed(aw.TASK_ID, 7, "v01")
    lease = msg.Lease(task=aw.TASK_ID, round=7, until_s=1030.0)
    assert actions == [act.StartTraining(aw.plan(7, 3), seed), act.PublishStatus(True, "", 0, lease)]
    assert 0 <= seed < 2**63
    # when it takes longer than two thirds of the lease, the lease is renewed
    _, actions = run(state, ev.Tick(), now_s=1021.0)
    assert [status.lease.until_s for status in of(actions, act.PublishStatus)] == [1051.0]


@pytest.mark.parametrize("changes", [{"base_version": 2}, {"onnx_sha256": "0" * 64}, {"share": 0.0}])
def test_no_training_from_another_base_or_unselected(changes: dict[str, Any]) -> None:
    assert run(ready(), plan(**changes))[1] == []


def test_a_plan_waits_for_its_base() -> None:
    state, actions = run(replace(ready(), base=None), plan())
    assert actions == []
    _, actions = run(state, ev.BaseReady(BASE.version, BASE.onnx_sha256))
    assert kinds(actions) == ["StartTraining", "PublishStatus"]


def test_a_larger_share_selects_who_was_not() -> None:
    chance = draw(1, 7, "v01")
    state, actions = run(ready(), plan(share=chance))
    assert actions == []
    _, actions = run(state, plan(share=min(1.0, chance + 1e-9), revision=1))
    assert kinds(actions) == ["StartTraining", "PublishStatus"]


def test_an_ineligible_vehicle_refuses_with_its_reason_once_and_trains_when_it_may() -> None:
    state, actions = run(ready(), MOVING)
    assert actions == [act.PublishStatus(False, "not-parked", 0, None)]
    state, actions = run(state, plan())
    assert actions == [act.Count("ineligible-not-parked")]
    state, actions = run(state, ev.Tick())
    assert actions == []
    state, actions = run(state, STANDING)
    assert kinds(actions) == ["StartTraining", "PublishStatus"]
    # and gives up when it drives off
    state, actions = run(state, MOVING)
    assert kinds(actions)[:2] == ["StopTraining", "Count"]


def test_a_newer_round_stops_the_training_of_an_older_one() -> None:
    state, _ = run(ready(), plan(7))
    _, actions = run(state, plan(8))
    assert actions[0] == act.StopTraining(7)
    assert of(actions, act.StartTraining)[0].plan.round == 8
    assert run(state, plan(6))[1] == []


def test_a_result_is_submitted_once_sent_once_and_its_round_is_answered() -> None:
    state, actions = run(ready(), plan(), ev.TrainingProgress(7, 5), ev.TrainingDone(7, 10, 64))
    assert actions == [act.SubmitUpdate(aw.plan(7, 3), 10, 64)]
    assert run(state, ev.TrainingDone(7, 10, 64))[1] == []
    state, actions = run(state, JOURNALED)
    assert actions == [act.Send(1, 1), act.PublishStatus(True, "", 0, None)]
    assert run(state, plan(7, revision=3))[1] == []
    assert run(state, ev.TrainingDone(6, 1, 1))[1] == []


def test_a_failing_training_is_tried_three_times_a_round() -> None:
    state, starts = run(ready(), plan())[0], 1
    for _ in range(5):
        state, actions = run(state, ev.TrainingFailed(7, "trainer-died"))
        starts += len(of(actions, act.StartTraining))
    assert starts == 3
    assert kinds(run(state, plan(8))[1])[0] == "StartTraining"


def test_a_training_that_never_ends_is_given_up() -> None:
    state, _ = run(ready(), plan())
    _, actions = run(state, ev.Tick(), now_s=1601.0)
    assert besides_listening(actions)[:2] == [act.StopTraining(7), act.Count("training-timeout")]


def test_a_result_that_cannot_be_stored_is_given_up_and_counted() -> None:
    state, actions = run(ready(), plan(), ev.TrainingDone(7, 1, 1), ev.UpdateGivenUp(7, "disk-full"))
    assert actions == [act.Count("disk-full"), act.PublishStatus(True, "", 0, None)]
    assert run(state, ev.Tick())[1] == []


# --- outbox ---


def sent(**changes: Any) -> State:
    pending = replace(Pending(1, JOURNALED.update, JOURNALED.sealed_sha256, 7), **changes)
    return replace(ready(answered=frozenset({7})), outbox=(pending,))


def receipt(**changes: Any) -> ev.ReceiptCame:
    told = msg.Receipt(vehicle="v01", sealed_sha256=JOURNALED.sealed_sha256, outcome="stored")
    return ev.ReceiptCame(told.model_copy(update=changes))


def test_without_a_receipt_it_is_sent_again_with_growing_waits_and_not_while_offline() -> None:
    state = sent(due_s=1001.0)
    state, actions = run(state, ev.Tick(), now_s=1001.0)
    assert actions == [act.Send(1, 1)]
    assert 1003.0 <= state.outbox[0].due_s <= 1009.0
    offline, _ = run(state, ev.LinkDown("gone"))
    assert run(offline, ev.Tick(), now_s=9e9)[1] == []
    back, actions = run(offline, ev.LinkUp(session_present=True), now_s=2000.0)
    assert of(actions, act.Send) == []
    assert 2000.0 <= back.outbox[0].due_s <= 2004.0


def test_a_stored_update_is_kept_and_not_sent_again() -> None:
    state, actions = run(sent(), receipt())
    assert actions == []
    assert state.outbox[0].stored
    assert besides_listening(run(state, ev.Tick(), now_s=9e9)[1]) == []


@pytest.mark.parametrize(
    ("told", "fate"),
    [
        ({"outcome": "refused", "reason": "late"}, "returned"),
        ({"outcome": "refused", "reason": "round-unknown: round 7"}, "returned"),
        ({"outcome": "refused", "reason": "bad-signature"}, "dropped"),
        ({"fate": "folded"}, "folded"),
        ({"fate": "returned", "reason": "late"}, "returned"),
        ({"fate": "dropped", "reason": "norm"}, "dropped"),
    ],
)
def test_a_receipt_that_tells_the_fate_settles(told: dict[str, Any], fate: str) -> None:
    state, actions = run(sent(), receipt(**told))
    assert [(each.sequence, each.fate) for each in of(actions, act.Settle)] == [(1, fate)]
    assert state.outbox == ()
    assert run(state, receipt(**told))[1] == []


@pytest.mark.parametrize("fate", ["folded", "returned", "dropped"])
def test_a_settlement_settles_once_and_carried_stays(fate: msg.Fate) -> None:
    update = JOURNALED.update
    state, actions = run(
        sent(), ev.SettlementCame(aw.settlement(7, {update: "carried", "v02:0:1": "folded"}))
    )
    assert (actions, state.outbox[0].stored) == ([], True)
    told = ev.SettlementCame(aw.settlement(7, {update: fate}, reasons={update: "why"}))
    state, actions = run(state, told)
    assert of(actions, act.Settle) == [act.Settle(1, fate, "why")]
    assert run(state, told)[1] == []


def test_after_many_rounds_without_word_it_counts_as_folded_but_is_sent_again_first() -> None:
    # given a stored update of round 7
    state, actions = run(sent(stored=True), plan(10))
    assert state.outbox[0].stored
    # when its settlement may be retained no longer
    state, actions = run(state, plan(11))
    # then it is sent again, for the answer tells its fate
    assert not state.outbox[0].stored
    for number in range(3):
        state, actions = run(state, ev.Tick(), now_s=1100.0 + 100 * number)
        assert of(actions, act.Send) == [act.Send(1, number + 1)]
    # and silence for so long counts as folded
    state, actions = run(state, plan(26))
    assert of(actions, act.Settle) == []
    state, actions = run(state, plan(27))
    assert of(actions, act.Settle) == [act.Settle(1, "folded", "no-word")]
    assert act.Count("no-word") in actions


def test_a_vehicle_that_was_away_for_long_asks_before_it_forgets() -> None:
    # given an update that was stored fifty rounds ago
    state, actions = run(sent(stored=True), plan(57))
    assert of(actions, act.Settle) == []
    # when the server says that it waits to be folded
    state, _ = run(state, receipt(fate="carried", reason="late"))
    # then that is word of it, and it is not sent again before the next rounds have passed
    assert (state.outbox[0].stored, state.outbox[0].heard) == (True, 57)
    assert of(run(state, ev.Tick(), now_s=9e9)[1], act.Send) == []
    # and its fate settles it
    state, actions = run(state, plan(61), receipt(fate="returned", reason="too-stale"))
    assert of(actions, act.Settle) == [act.Settle(1, "returned", "too-stale")]


# --- rounds that follow each other fast ---


def test_a_download_does_not_wait_long_for_pieces_when_a_newer_version_is_wanted() -> None:
    # given a download under way, whose blobs the server has cleared meanwhile
    state, actions = run(ready(), ev.PointerCame(aw.pointer(4)))
    assert of(actions, act.FetchBase) == [act.FetchBase(aw.pointer(4))]
    assert run(state, ev.PointerCame(aw.pointer(4)))[1] == []
    # when a newer version comes
    state, actions = run(state, ev.PointerCame(aw.pointer(5)))
    assert actions == [act.HurryFetch()]
    # then it is fetched next
    state, _ = run(state, ev.FetchFailed("base", 4, "blob-timeout", lasting=False))
    _, actions = run(state, ev.Tick(), now_s=1100.0)
    assert of(actions, act.FetchBase) == [act.FetchBase(aw.pointer(5))]


def test_a_plan_whose_model_no_longer_exists_is_passed_over() -> None:
    # given a plan for version 4, and the word that its pieces cannot be had
    state, actions = run(ready(), ev.PointerCame(aw.pointer(4)), ev.PlanCame(aw.plan(7, 4)))
    assert of(actions, act.StartTraining) == []
    state, actions = run(state, ev.FetchFailed("base", 4, "blob-timeout", lasting=False))
    assert state.base == BASE, "what is held is kept"
    # when the next version and its plan come
    state, _ = run(state, ev.PlanCame(aw.plan(8, 5)))
    state, actions = run(state, ev.PointerCame(aw.pointer(5)))
    assert [each.pointer.version for each in of(actions, act.FetchBase)] == [5]
    # then it trains for that one
    _, actions = run(state, ev.BaseReady(5, sha256(aw.file_of(5)).hexdigest()))
    assert [each.plan.round for each in of(actions, act.StartTraining)] == [8]


@pytest.mark.parametrize("late", ["carry", "staleness-weighted"])
def test_a_plan_under_which_late_updates_count_lets_the_older_training_end(late: str) -> None:
    state, actions = run(ready(), plan(7, late=late), plan(8, late=late))
    assert of(actions, act.StopTraining) == []
    assert state.training is not None
    assert state.training.plan.round == 7


def test_a_buffered_plan_lets_the_training_of_the_older_one_end() -> None:
    state, _ = run(ready(), plan(7, mode="buffered"), plan(8, mode="buffered"))
    assert state.training is not None
    assert state.training.plan.round == 7
    state, actions = run(state, ev.TrainingDone(7, 10, 64))
    assert actions == [act.SubmitUpdate(aw.plan(7, 3, mode="buffered"), 10, 64)]
    # and the newest plan follows it
    state, actions = run(state, JOURNALED)
    assert kinds(actions)[:2] == ["Send", "StartTraining"]
    assert of(actions, act.StartTraining)[0].plan.round == 8


def answered(**changes: Any) -> State:
    """One that has answered round 7, opened at 1000 s, whose vehicles are to come back at 1600 s."""
    told = {"mode": "buffered", "next_round_at_s": 1600.0} | changes
    return run(ready(), plan(7, **told), ev.TrainingDone(7, 10, 64), JOURNALED)[0]


def test_it_comes_back_when_the_plan_told_it_to() -> None:
    state, actions = run(answered(), plan(8, mode="buffered", opened_at_s=1100.0), now_s=1100.0)
    assert of(actions, act.StartTraining) == []
    assert of(run(state, ev.Tick(), now_s=1599.0)[1], act.StartTraining) == []
    assert len(of(run(state, ev.Tick(), now_s=1600.0)[1], act.StartTraining)) == 1


@pytest.mark.parametrize("now_s", [900.0, 1700.0])
def test_a_clock_outside_the_rest_ends_it(now_s: float) -> None:
    _, actions = run(answered(), plan(8, mode="buffered", opened_at_s=1100.0), now_s=now_s)
    assert len(of(actions, act.StartTraining)) == 1


def test_a_plan_of_that_time_ends_the_rest_by_the_server_s_clock() -> None:
    _, actions = run(answered(mode="sync"), plan(8, opened_at_s=1600.0), now_s=1590.0)
    assert len(of(actions, act.StartTraining)) == 1


# --- a clock that is set anew ---


def test_what_is_dated_ahead_of_the_clock_is_read_again_later() -> None:
    # given a retained message that was refused, because one of the clocks is wrong
    state, actions = run(ready(), ev.MessageRefused("from-the-future"))
    assert actions == [act.Count("from-the-future")]
    assert run(state, ev.Tick(), now_s=1029.0)[1] == []
    # when some time has passed
    state, actions = run(state, ev.Tick(), now_s=1030.0)
    # then it subscribes anew, so that the broker sends it again
    filters = topics.region_all(aw.FLEET, aw.REGION, aw.TASK_ID)
    assert of(actions, act.Unsubscribe) == [act.Unsubscribe(filters)]
    assert [sorted(each.filters) for each in of(actions, act.Subscribe)] == [sorted(filters)]


def test_a_vehicle_that_hears_nothing_new_subscribes_anew_ever_more_rarely() -> None:
    # given a vehicle whose broker lost the plan that was published while it subscribed
    state, found = ready(), []
    # when days pass without a word
    for now_s in range(1000, 100_000, 10):
        state, actions = run(state, ev.Tick(), now_s=float(now_s))
        if of(actions, act.Subscribe):
            assert [kind for kind in kinds(actions) if kind != "PublishStatus"] == [
                "Unsubscribe",
                "Subscribe",
            ]
            found.append(now_s)
    # then it asks the broker again, first soon, later once in half an hour or an hour
    waits = [after - before for before, after in pairwise((1000, *found))]
    assert 30 <= waits[0] <= 70
    assert all(30 * 2**6 <= wait <= 2 * 30 * 2**6 + 10 for wait in waits[6:])
    # and soon again after a plan that is new
    state, _ = run(state, plan(8), now_s=100_000.0)
    assert not of(run(state, ev.Tick(), now_s=100_029.0)[1], act.Subscribe)
    assert of(run(state, ev.Tick(), now_s=100_061.0)[1], act.Subscribe)


def test_a_plan_that_came_before_does_not_count_as_new() -> None:
    state, _ = run(ready(), plan(8))
    due_s = state.reread_at_s
    state, _ = run(state, plan(8), now_s=1020.0)
    assert state.reread_at_s == due_s


@pytest.mark.parametrize("jump_s", [-900.0, 86_400.0])
def test_and_at_once_when_the_clock_was_set(jump_s: float) -> None:
    state, _ = run(ready(), ev.Tick(), ev.MessageRefused("from-the-future"))
    _, actions = run(state, ev.Tick(), now_s=1000.0 + jump_s)
    assert kinds(actions) == ["Unsubscribe", "Subscribe"]


@pytest.mark.parametrize("jump_s", [-900.0, 86_400.0])
def test_timers_move_with_a_clock_that_jumps(jump_s: float) -> None:
    # given a training under way and an update that waits for its receipt
    state, _ = run(sent(due_s=1004.0), ev.Tick())
    state, _ = run(state, plan(8))
    # when the clock is set
    state, actions = run(state, ev.Tick(), now_s=1001.0 + jump_s)
    # then neither is the training given up, nor does the update wait for a day
    assert kinds(besides_listening(actions)) == ["PublishStatus"], "the lease moved too"
    state, actions = run(state, ev.Tick(), now_s=1006.0 + jump_s)
    assert of(actions, act.Send) == [act.Send(1, 1)]
    assert of(actions, act.StopTraining) == []
    _, actions = run(state, ev.Tick(), now_s=1602.0 + jump_s)
    assert of(actions, act.StopTraining) == [act.StopTraining(8)]


# --- the rest ---


def test_refused_messages_and_requests_are_counted() -> None:
    assert run(ready(), ev.MessageRefused("stale"))[1] == [act.Count("stale")]
    _, actions = run(ready(), ev.EnrolmentRefused("wrong-code"))
    assert kinds(actions) == ["Count", "Report", "PublishStatus"]


def test_the_same_events_give_the_same_actions() -> None:
    events = [
        plan(),
        ev.TrainingDone(7, 1, 1),
        JOURNALED,
        ev.Tick(),
        ev.LinkDown("x"),
        ev.LinkUp(session_present=True),
    ]
    assert run(ready(), *events) == run(ready(), *events)


@pytest.mark.parametrize(
    "event",
    [
        plan(),
        ev.PointerCame(aw.pointer(2)),
        ev.ReleaseCame(aw.release(1, 2)),
        receipt(),
        MOVING,
        JOURNALED,
        ev.Tick(),
    ],
)
def test_an_event_survives_its_recording(event: ev.Event) -> None:
    line = ev.record(event, 12.5)
    assert "\n" not in line
    assert ev.replay(line) == (event, 12.5)


@pytest.mark.parametrize(
    "line",
    ["", "{}", '{"kind": "NoSuch", "event": {}, "now_s": 1}', '{"kind": "LinkUp", "event": {}, "now_s": 1}'],
)
def test_a_malformed_recording_is_refused(line: str) -> None:
    with pytest.raises(PeerError, match="malformed-log"):
        ev.replay(line)


def test_an_event_without_a_handler_is_an_error() -> None:
    with pytest.raises(KeyError):
        step(ready(), "surprise", 0.0)  # type: ignore[arg-type]
