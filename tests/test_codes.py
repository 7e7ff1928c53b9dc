"""One-time codes made by command: enough bits, once, for a while, kept as a digest, and guessing is bounded."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from server_world import FLEET, SIZE, code, key_of
from test_ingest import NONCE, NOW_S, SERVER_KEY, TASK, commanded, request
from typer.testing import CliRunner

from fedfleet.cli.main import app
from fedfleet.cli.server_codes import seconds
from fedfleet.fleet_server import registry, store_codes, store_updates, store_vehicles
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.config import EnrolmentCode
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.registry import Place
from fedfleet.fleet_server.requests import Code, Party
from fedfleet.fleet_server.store import Store, open_store
from fedfleet.protocol import enrolment
from fedfleet.protocol.enrolment import MIN_BITS, bits_of, make_code, secret_of
from fedfleet.protocol.errors import UsageError
from fedfleet.vehicle_agent.config import AgentConfig

LOCKED_S = 900.0
MADE = make_code(lambda count: bytes(range(count)))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An enrolled vehicle v-1 in the north."""
    made = open_store(tmp_path, fleet=FLEET, task="linear_test")
    with made.write() as connection:
        store_vehicles.enrol(connection, "v-1", region="north", public_key=key_of("v-1").public, now_s=1.0)
    yield made
    made.close()


@pytest.fixture
def ingest(store: Store) -> Ingest:
    party = Party(FLEET, TASK, SERVER_KEY, {"v-9": Code(code("v-9"), "south")})
    return Ingest(store, party, Limits(100_000, SIZE, 100))


def made_for(folder: Path, vehicle: str, *, region: str | None = "north", ttl_s: float = 3600.0) -> str:
    """Make a code as the command does; what both sides prove of it."""
    secret = secret_of(make_code(lambda count: key_of(f"{vehicle}{ttl_s}").public[:count]))
    place = Place(folder, FLEET, "linear_test")
    registry.make_code(place, vehicle, region=region, secret=secret, now_s=NOW_S, expires_at_s=NOW_S + ttl_s)
    return secret


def key_in(store: Store, vehicle: str) -> bytes | None:
    with store.read() as connection:
        return store_vehicles.keyring(connection).keys.get(vehicle)


# --- what a code is ---


def test_a_made_code_has_a_hundred_bits_and_is_kept_as_a_digest_only() -> None:
    assert re.fullmatch(r"[a-z2-7]{4}(-[a-z2-7]{4}){4}", MADE)
    assert len({make_code(lambda count, n=n: key_of(str(n)).public[:count]) for n in range(200)}) == 200
    secret = secret_of(MADE)
    assert re.fullmatch(r"[0-9a-f]{64}", secret)
    assert MADE.replace("-", "") not in secret
    # as a person may type it
    assert secret_of(f" {MADE.upper()} ") == secret
    # what was chosen otherwise is proven as it is
    assert secret_of("a code that somebody chose") == "a code that somebody chose"


@pytest.mark.parametrize(
    "short",
    ["", "12345678", "correct-horse", "a" * 40, "ab" * 11, "0123456789abcdef", "1" * 100, "q7Xp2LmZ9v"],
)
def test_a_code_with_too_few_bits_is_refused_and_not_shown(short: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EnrolmentCode.model_validate({"vehicle": "v01", "region": "north", "code": short})
    told = caught.value.errors(include_input=False)[0]["msg"]
    assert "code of v01: expected at least 80 bits" in told
    assert "`fedfleet server code v01` makes one" in told
    assert not short or short not in told


@pytest.mark.parametrize("good", [MADE, "8f3b5d8e2c7a4b19aa60", "one-time code of v-1", "q7Xp2LmZ9vRt4WsY"])
def test_a_code_with_enough_bits_is_taken(good: str) -> None:
    assert bits_of(good) >= MIN_BITS
    assert EnrolmentCode.model_validate({"vehicle": "v01", "region": "north", "code": good})


# --- enrolling with it ---


def test_a_vehicle_enrols_with_a_made_code_once(ingest: Ingest, store: Store, tmp_path: Path) -> None:
    secret = made_for(tmp_path, "v-7", region="south")
    # when it enrols, and asks again because the answer was lost
    asked = request("v-7", "enrol", secret=secret)
    first, again = ingest.receive([asked], NOW_S), ingest.receive([asked], NOW_S + 5000)
    # then both answers prove the code, also when its time is over
    for outgoing in (first, again):
        command = enrolment.open_enrolled(
            outgoing[0].payload, secret, fleet=FLEET, vehicle="v-7", nonce=NONCE
        )
        assert (command.region, command.server_key) == ("south", SERVER_KEY.public.hex())
    # and a thief of the code comes too late
    thief = ingest.receive([request("v-7", "enrol", secret=secret, key=key_of("thief"))], NOW_S)
    assert commanded(thief)[0].kind == "refused"
    assert key_in(store, "v-7") == key_of("v-7").public


def test_a_code_is_no_good_after_its_time(ingest: Ingest, store: Store, tmp_path: Path) -> None:
    secret = made_for(tmp_path, "v-7", ttl_s=60.0)
    late = ingest.receive([request("v-7", "enrol", secret=secret)], NOW_S + 60.0)
    assert commanded(late)[0].reason == "unknown-sender"
    assert key_in(store, "v-7") is None


def test_a_new_code_makes_the_one_before_void(ingest: Ingest, store: Store, tmp_path: Path) -> None:
    old, new = made_for(tmp_path, "v-7", ttl_s=60.0), made_for(tmp_path, "v-7", ttl_s=70.0)
    assert commanded(ingest.receive([request("v-7", "enrol", secret=old)], NOW_S))[0].reason == "wrong-code"
    assert commanded(ingest.receive([request("v-7", "enrol", secret=new)], NOW_S))[0].kind == "enrolled"
    assert key_in(store, "v-7") == key_of("v-7").public


def test_a_vehicle_with_a_new_key_takes_a_made_code_and_stays_where_it_is(
    ingest: Ingest, store: Store, tmp_path: Path
) -> None:
    # given an enrolled vehicle that lost its key
    new = key_of("v-1 after its disk died")
    plain = ingest.receive([request("v-1", "enrol", secret="no code at all", key=new)], NOW_S)
    assert commanded(plain)[0].reason == "bad-signature"
    # when the operator makes a code for it, without a region
    secret = made_for(tmp_path, "v-1", region=None)
    (command,) = commanded(ingest.receive([request("v-1", "enrol", secret=secret, key=new)], NOW_S))
    # then it has the new key, in its region
    assert (command.kind, command.region) == ("enrolled", "north")
    assert key_in(store, "v-1") == new.public


def test_a_code_of_the_configuration_that_was_used_stays_used(
    ingest: Ingest, store: Store, tmp_path: Path
) -> None:
    # given a vehicle that enrolled by the configuration's code, then again by a made one
    ingest.receive([request("v-9", "enrol", secret=code("v-9"))], NOW_S)
    new = key_of("v-9 again")
    secret = made_for(tmp_path, "v-9")
    ingest.receive([request("v-9", "enrol", secret=secret, key=new)], NOW_S)
    # when a thief has the first code
    thief = ingest.receive([request("v-9", "enrol", secret=code("v-9"), key=key_of("thief"))], NOW_S)
    assert commanded(thief)[0].kind == "refused"
    assert key_in(store, "v-9") == new.public


# --- guessing ---


def test_after_five_wrong_codes_not_even_the_right_one_is_looked_at_for_a_while(
    ingest: Ingest, store: Store, tmp_path: Path
) -> None:
    secret = made_for(tmp_path, "v-7")
    for number in range(5):
        asked = request("v-7", "enrol", secret=f"guess {number}", key=key_of("thief"))
        assert commanded(ingest.receive([asked], NOW_S))[0].reason == "wrong-code"
    # then it is locked, also for a server that was started again
    again = Ingest(store, ingest.party, ingest.limits)
    right = request("v-7", "enrol", secret=secret)
    assert commanded(again.receive([right], NOW_S + 1))[0].reason == "locked-out"
    with store.read() as connection:
        counted = store_updates.counters(connection)
    assert (counted["refused:wrong-code"], counted["refused:locked-out"]) == (5, 1)
    # but neither are others, nor for ever; one more wrong one locks again, the right one frees
    assert (
        commanded(again.receive([request("v-9", "enrol", secret=code("v-9"))], NOW_S + 1))[0].kind
        == "enrolled"
    )
    wrong = request("v-7", "enrol", secret="guess 6", key=key_of("thief"))
    assert commanded(again.receive([wrong], NOW_S + LOCKED_S))[0].reason == "wrong-code"
    assert commanded(again.receive([right], NOW_S + LOCKED_S + 1))[0].reason == "locked-out"
    assert commanded(again.receive([right], NOW_S + 2 * LOCKED_S))[0].kind == "enrolled"


def test_a_fresh_code_frees_a_vehicle_that_is_locked(ingest: Ingest, tmp_path: Path) -> None:
    made_for(tmp_path, "v-7")
    for number in range(5):
        ingest.receive([request("v-7", "enrol", secret=f"guess {number}")], NOW_S)
    fresh = made_for(tmp_path, "v-7", ttl_s=90.0)
    assert commanded(ingest.receive([request("v-7", "enrol", secret=fresh)], NOW_S))[0].kind == "enrolled"


def test_guesses_at_many_vehicles_lock_all_codes_for_a_while(store: Store) -> None:
    with store.write() as connection:
        for number in range(100):
            assert store_codes.locked_until(connection, "w-x", NOW_S) is None
            store_codes.note_wrong(connection, f"w-{number}", now_s=NOW_S + number)
        assert store_codes.locked_until(connection, "w-x", NOW_S + 99) == NOW_S + 99 + 600
        assert store_codes.locked_until(connection, "w-x", NOW_S + 700) is None
        # a clock that was set back makes the lock no longer than it was meant
        assert store_codes.locked_until(connection, "w-x", NOW_S - 10_000) is None


def test_wrong_codes_that_are_far_apart_lock_nobody_else(store: Store) -> None:
    with store.write() as connection:
        for number in range(300):
            store_codes.note_wrong(connection, f"w-{number}", now_s=NOW_S + 10 * number)
            assert store_codes.locked_until(connection, "w-x", NOW_S + 10 * number) is None


def test_an_enrolled_vehicle_is_not_locked_by_what_others_send(ingest: Ingest, tmp_path: Path) -> None:
    # given guesses at a fresh code of an enrolled vehicle, under another key
    made_for(tmp_path, "v-1", region=None)
    for number in range(9):
        ingest.receive([request("v-1", "enrol", secret=f"guess {number}", key=key_of("thief"))], NOW_S)
    # then its own requests, by its key, are answered
    (command,) = commanded(ingest.receive([request("v-1", "hello")], NOW_S))
    assert (command.kind, command.region) == ("assign", "north")


# --- the command ---


def place(tmp_path: Path) -> list[str]:
    (tmp_path / "fedfleet.toml").write_text(
        f'fleet = "{FLEET}"\ntask = "linear_test"\nwork_dir = "{tmp_path}/work"\n', encoding="utf-8"
    )
    return ["--config", str(tmp_path / "fedfleet.toml")]


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    return f"{done.exit_code} {done.output} {done.exception if done.exit_code else ''}"


def test_the_command_shows_the_code_once_and_keeps_a_digest(tmp_path: Path) -> None:
    config = place(tmp_path)
    store = open_store(tmp_path / "work" / "server", fleet=FLEET, task="linear_test")
    shown = run("server", "code", "v01", "--region", "north", "--ttl", "30m", *config)
    assert "v01 may enrol in region north, once, until " in shown
    found = re.search(r"fedfleet agent v01 --code ([a-z2-7-]{24})", shown)
    assert found is not None
    with store.read() as connection:
        kept = store_codes.find(connection, "v01")
    assert kept is not None
    assert kept.secret == secret_of(found[1])
    store.close()
    files = b"".join(path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file())
    assert found[1].encode() not in files
    assert found[1].replace("-", "").encode() not in files


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["v01"], "--region: expected the region of v01; it is not enrolled yet"),
        (["V01", "--region", "north"], "vehicle id 'V01': expected 1 to 36 of a-z, 0-9 and '-'"),
        (["fleet-server", "--region", "north"], "is the server's own name"),
        (["v01", "--region", "No"], "region id 'No'"),
        (["v01", "--region", "north", "--ttl", "soon"], "--ttl: expected a time up to 366d"),
        (["v01", "--region", "north", "--ttl", "0h"], "--ttl: expected a time up to 366d"),
        (["v01", "--region", "north", "--ttl", "400d"], "--ttl: expected a time up to 366d"),
        (["gone"], "vehicle gone is on the deny-list: `fedfleet server deny gone --undo` first"),
    ],
)
def test_a_code_that_cannot_be_made_is_one_line(tmp_path: Path, words: list[str], told: str) -> None:
    config = place(tmp_path)
    store = open_store(tmp_path / "work" / "server", fleet=FLEET, task="linear_test")
    with store.write() as connection:
        store_vehicles.enrol(connection, "gone", region="north", public_key=key_of("gone").public, now_s=1.0)
        store_vehicles.deny(connection, "gone")
    assert told in run("server", "code", *words, *config)
    with store.read() as connection:
        assert store_codes.vehicles(connection) == []
    store.close()


def test_a_code_for_a_fleet_that_is_not_there_makes_none(tmp_path: Path) -> None:
    told = run("server", "code", "v01", "--region", "north", *place(tmp_path))
    assert "no fleet server has kept its store here" in told
    assert not (tmp_path / "work" / "server").exists()


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("30m", 1800), ("24h", 86_400), (" 7d", 604_800)]
)
def test_times_are_read(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "h", "-1h", "1.5h", "24", "24 h", "1w", "999999999999d", "٣h"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--ttl: expected a time"):
        seconds(text)


def test_the_example_of_the_documentation_has_enough_bits() -> None:
    text = (Path(__file__).parent.parent / "examples" / "fleet.toml").read_text(encoding="utf-8")
    for entry in tomllib.loads(text)["server"]["enrolment"]:
        assert bits_of(entry["code"]) >= MIN_BITS
    assert AgentConfig.model_fields["enrolment_code"].default is None
