from dataclasses import replace
from typing import Any

import agent_world as aw
import pytest

from fedfleet.protocol import messages as msg
from fedfleet.protocol import topics
from fedfleet.protocol.enrolment import server_proof
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.signing import SigningKey
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent.trusted import Seen, Trusted, admit

NOW_S = 1000.0
NONCE = "ab" * 16
TRUSTED = Trusted(aw.FLEET, "v01", aw.TASK_ID, server_key=aw.SERVER_KEY.public, region=aw.REGION, nonce=NONCE)
RECEIPT = msg.Receipt(vehicle="v01", sealed_sha256="0" * 64, outcome="stored")
ASSIGN = msg.Command(vehicle="v01", kind="assign", nonce=NONCE, region="south")


def take(trusted: Trusted, message: msg.Message, *, sealed: bytes | None = None, topic: str = "") -> Any:
    where = topics.parse(topic or aw.topic_of(message))
    return admit(trusted, where, aw.sealed(message) if sealed is None else sealed, now_s=NOW_S)


def refusal(trusted: Trusted, message: msg.Message, **how: Any) -> str:
    with pytest.raises(PeerError) as caught:
        take(trusted, message, **how)
    return caught.value.reason


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (aw.plan(1, 0), ev.PlanCame(aw.plan(1, 0))),
        (aw.pointer(1), ev.PointerCame(aw.pointer(1))),
        (aw.release(1, 1), ev.ReleaseCame(aw.release(1, 1))),
        (aw.settlement(1, {}), ev.SettlementCame(aw.settlement(1, {}))),
        (RECEIPT, ev.ReceiptCame(RECEIPT)),
        (ASSIGN, ev.Assigned("south", enrolled=True)),
    ],
)
def test_the_server_s_word_becomes_an_event(message: msg.Message, event: ev.Event) -> None:
    _, came = take(TRUSTED, message)
    assert came == event


@pytest.mark.parametrize(
    "message", [aw.plan(1, 0), aw.pointer(1), aw.release(1, 1), aw.settlement(1, {}), RECEIPT, ASSIGN]
)
def test_a_message_cut_or_altered_anywhere_is_refused(message: msg.Message) -> None:
    whole = aw.sealed(message)
    for end in range(0, len(whole), 7):
        assert refusal(TRUSTED, message, sealed=whole[:end])
    for at in range(0, len(whole), 11):
        altered = whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
        assert refusal(TRUSTED, message, sealed=altered)


def test_a_message_signed_by_another_is_refused() -> None:
    stranger = SigningKey(b"x" * 32)
    assert refusal(TRUSTED, aw.plan(1, 0), sealed=aw.sealed(aw.plan(1, 0), key=stranger)) == "bad-signature"
    own_name = aw.sealed(aw.plan(1, 0), key=stranger, sender="v02")
    assert refusal(TRUSTED, aw.plan(1, 0), sealed=own_name) == "unknown-sender"
    assert refusal(replace(TRUSTED, server_key=None), aw.plan(1, 0)) == "unknown-server"


@pytest.mark.parametrize(
    ("message", "topic", "reason"),
    [
        (aw.plan(1, 0, region="south"), "", "wrong-region"),
        (aw.plan(1, 0), topics.round_plan(aw.FLEET, "south", aw.TASK_ID), "wrong-region"),
        (aw.plan(1, 0), topics.model(aw.FLEET, aw.REGION, aw.TASK_ID), "wrong-kind"),
        (aw.plan(1, 0, task="other"), "", "wrong-task"),
        (aw.plan(1, 0), topics.round_plan("other-fleet", aw.REGION, aw.TASK_ID), "wrong-topic"),
        (aw.settlement(1, {}), topics.settlement(aw.FLEET, aw.REGION, aw.TASK_ID, 2), "wrong-topic"),
        (RECEIPT.model_copy(update={"vehicle": "v02"}), "", "wrong-vehicle"),
        (RECEIPT.model_copy(update={"vehicle": "v02"}), topics.receipt(aw.FLEET, "v01"), "wrong-vehicle"),
        (ASSIGN.model_copy(update={"nonce": "cd" * 16}), "", "replayed"),
        (aw.plan(1, 0, opened_at_s=NOW_S + 301), "", "from-the-future"),
        (aw.release(1, 1, released_at_s=NOW_S + 301), "", "from-the-future"),
        (aw.settlement(1, {}, closed_at_s=NOW_S + 301), "", "from-the-future"),
        (aw.pointer(1, parameters=2**30), "", "malformed-message"),
        (aw.pointer(1, full=msg.BlobRef(sha256="0" * 64, size_bytes=10**9, chunks=4000)), "", "too-large"),
    ],
)
def test_what_is_not_for_this_vehicle_here_and_now_is_refused(
    message: msg.Message, topic: str, reason: str
) -> None:
    assert refusal(TRUSTED, message, topic=topic) == reason


def test_what_is_older_than_the_newest_is_stale_and_the_trusted_value_stays() -> None:
    trusted, _ = take(TRUSTED, aw.plan(5, 0, revision=2))
    trusted, _ = take(trusted, aw.pointer(3))
    trusted, _ = take(trusted, aw.release(4, 3))
    before = replace(trusted)
    for old in (aw.plan(4, 0, revision=9), aw.plan(5, 0, revision=1), aw.pointer(2), aw.release(3, 3)):
        assert refusal(trusted, old) == "stale"
    assert trusted == before
    # the very same again is no harm: a server that starts again publishes it again
    assert take(trusted, aw.plan(5, 0, revision=2))[0] == trusted
    assert refusal(trusted, aw.plan(5, 0, revision=2, share=0.5)) == "conflicting"
    assert refusal(trusted, aw.pointer(3, onnx_sha256="1" * 64)) == "conflicting"


def test_the_newest_of_each_region_is_remembered() -> None:
    trusted = replace(TRUSTED, seen={"south": Seen(round=9)}, region="south")
    assert refusal(trusted, aw.plan(8, 0, region="south")) == "stale"
    assert take(replace(trusted, region=aw.REGION), aw.plan(8, 0))[0].seen["south"].round == 9


def enrolled(**changes: Any) -> msg.Command:
    key = aw.SERVER_KEY.public.hex()
    proof = server_proof(aw.CODE, fleet=aw.FLEET, vehicle="v01", nonce=NONCE, server_key=key)
    told = msg.Command(
        vehicle="v01", kind="enrolled", nonce=NONCE, region="south", server_key=key, proof=proof
    )
    return told.model_copy(update=changes)


def test_an_enrolment_pins_the_key_that_proves_the_code() -> None:
    fresh = replace(TRUSTED, server_key=None, code=aw.CODE, region="")
    trusted, event = take(fresh, enrolled())
    assert event == ev.Assigned("south", enrolled=True)
    assert (trusted.server_key, trusted.region, trusted.code) == (aw.SERVER_KEY.public, "south", None)
    for wrong in (enrolled(proof="0" * 64), enrolled(nonce="cd" * 16), enrolled(server_key="0" * 64)):
        assert refusal(fresh, wrong) == "wrong-code"
    assert refusal(replace(fresh, server_key=b"k" * 32), enrolled()) == "bad-signature"
    assert aw.CODE not in repr(fresh)


def test_a_refusal_is_believed_when_it_is_the_server_s() -> None:
    refused = msg.Command(vehicle="v01", kind="refused", nonce="0" * 32, reason="wrong-code")
    assert take(TRUSTED, refused)[1] == ev.EnrolmentRefused("wrong-code")
    assert take(replace(TRUSTED, code=aw.CODE), refused)[1] == ev.EnrolmentRefused("wrong-code")
