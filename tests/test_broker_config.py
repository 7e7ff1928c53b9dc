"""Holds the brokers' files against protocol/topics.py: each topic described, no ACL wider or narrower."""

import re
from importlib import resources
from pathlib import Path

import pytest

from fedfleet.link import embedded, production
from fedfleet.link.port import MAX_PAYLOAD_BYTES, matches
from fedfleet.protocol import chunks, envelope, ids, topics
from fedfleet.protocol.errors import UsageError

FILES = resources.files("fedfleet.broker_config")
ME, OTHER = "v-example", "v-2"
SERVER = ids.SERVER


def by_kind(vehicle: str, *, fleet: str = "f") -> dict[topics.Kind, str]:
    """One topic of each kind, those of a vehicle for this one."""
    return {
        "round": topics.round_plan(fleet, "r1", "motion"),
        "settlement": topics.settlement(fleet, "r1", "motion", 7),
        "model": topics.model(fleet, "r1", "motion"),
        "release": topics.release(fleet, "r1", "motion"),
        "blob": topics.blob(fleet, "ab" * 32, 3),
        "status": topics.status(fleet, vehicle),
        "update": topics.update(fleet, vehicle, "motion", round_=7, number=0),
        "metrics": topics.metrics(fleet, vehicle),
        "request": topics.request(fleet, vehicle),
        "receipt": topics.receipt(fleet, vehicle),
        "command": topics.command(fleet, vehicle),
    }


READS = {"round", "settlement", "model", "release", "blob", "receipt", "command"}
WRITES: set[topics.Kind] = {"status", "update", "metrics", "request"}
REGIONAL = {"round", "settlement", "model", "release", "blob"}


# --- the ACLs as text ---

Rule = tuple[str | None, str, str]  # user (None: everyone), "read" | "write" | "readwrite", filter


def mosquitto_rules(text: str) -> list[Rule]:
    rules: list[Rule] = []
    user: str | None = None
    for line in text.splitlines():
        words = line.split()
        match words:
            case ["user", user]:
                pass
            case ["pattern", access, topic_filter]:
                rules.append((None, access, topic_filter))
            case ["topic", access, topic_filter]:
                assert user, "a rule for anonymous clients"
                rules.append((user, access, topic_filter))
            case _:
                assert not words or line.startswith("#"), line
    return rules


def emqx_rules(text: str) -> list[Rule]:
    lines = [x for x in text.splitlines() if x and x[0] != "%"]
    assert lines[-1] == "{deny, all}."
    words = {"all": "readwrite", "subscribe": "read", "publish": "write"}
    rules: list[Rule] = []
    for line in lines[:-1]:
        found = re.fullmatch(r'\{allow, (all|\{user, "(.+)"\}), (\w+), \["(.+)"\]\}\.', line)
        assert found, line
        rules.append((found[2], words[found[3]], found[4]))
    return rules


def nats_rules(text: str) -> list[Rule]:
    rules: list[Rule] = []
    for user in re.split(r'user: "CN=', text)[1:]:
        name = user.split('"')[0]
        for word, access in (("publish", "write"), ("subscribe", "read")):
            listed = re.search(word + r": \[(.*?)\]", user, re.DOTALL)
            assert listed
            for subject in re.findall(r'"(.+?)"', listed[1]):
                plain = subject.replace(".", "/").replace("*", "+").replace(">", "#")
                rules.append((name, access, plain))
    return rules


def allowed(rules: list[Rule], client: str, access: str, topic: str) -> bool:
    def filled(topic_filter: str) -> str:
        return re.sub(r"%c|%u|\$\{clientid\}", client, topic_filter)

    return any(
        user in {None, client} and access in given and matches(filled(topic_filter), topic)
        for user, given, topic_filter in rules
    )


def written(name: str, **more: tuple[str, ...]) -> str:
    return production.rules(name, fleet="f", **more)


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(mosquitto_rules(written("mosquitto-loopback.acl")), id="mosquitto-loopback"),
        pytest.param(mosquitto_rules(written("mosquitto-production.acl")), id="mosquitto-production"),
        pytest.param(
            mosquitto_rules(written("mosquitto-production.acl", vehicles=(ME,))), id="mosquitto-by-name"
        ),
        pytest.param(emqx_rules(written("emqx-acl.conf")), id="emqx"),
        pytest.param(emqx_rules(written("emqx-acl.conf", vehicles=(ME,))), id="emqx-by-name"),
        pytest.param(nats_rules(written("nats-production.conf", vehicles=(ME,))), id="nats-production"),
    ],
)
def test_acl_gives_a_vehicle_its_own_topics_and_the_server_all(rules: list[Rule]) -> None:
    for kind, topic in by_kind(ME).items():
        assert allowed(rules, ME, "read", topic) == (kind in READS), kind
        assert allowed(rules, ME, "write", topic) == (kind in WRITES), kind
        assert allowed(rules, SERVER, "read", topic), kind
        assert allowed(rules, SERVER, "write", topic), kind
    for kind, topic in by_kind(OTHER).items():
        assert allowed(rules, ME, "read", topic) == (kind in REGIONAL), kind
        assert not allowed(rules, ME, "write", topic), kind
    for who in (ME, SERVER):
        for topic in by_kind(ME, fleet="g").values():
            assert not allowed(rules, who, "read", topic), topic
            assert not allowed(rules, who, "write", topic), topic
    # NATS delivers what has QoS 1 under this subject; no other name of a broker's own is in any rule
    own = {rule for rule in rules if rule[2].startswith("$")}
    assert own <= {(who, "read", "$MQTT/sub/#") for who in (ME, SERVER)}


@pytest.mark.parametrize("name", ["mosquitto-production.acl", "emqx-acl.conf", "nats-production.conf"])
def test_rules_as_shipped_let_nobody_do_anything(name: str) -> None:
    reader = {"m": mosquitto_rules, "e": emqx_rules, "n": nats_rules}[name[0]]
    rules = reader(FILES.joinpath(name).read_text())
    for who in (ME, SERVER):
        assert not any(allowed(rules, who, "write", topic) for topic in by_kind(ME).values())


def test_rules_by_name_let_no_other_vehicle_in() -> None:
    for name, reader in (("mosquitto-production.acl", mosquitto_rules), ("emqx-acl.conf", emqx_rules)):
        rules = reader(written(name, vehicles=(ME,)))
        assert not any(allowed(rules, OTHER, "write", topic) for topic in by_kind(OTHER).values())
        assert not any(allowed(rules, OTHER, "read", topic) for topic in by_kind(OTHER).values())


@pytest.mark.parametrize("bad", ["Fleet", "a/b", "+", "#", "", "f\ntopic readwrite #"])
def test_rules_for_no_fleet_are_refused(bad: str) -> None:
    with pytest.raises(UsageError, match=r"^fleet id .*: expected 1 to 36 of a-z, 0-9 and '-'$"):
        production.rules("mosquitto-production.acl", fleet=bad)
    with pytest.raises(UsageError, match=r"^vehicle id "):
        production.rules("nats-production.conf", fleet="f", vehicles=(bad,))


def test_nats_is_not_written_without_vehicles(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^the rules of NATS name each vehicle: expected --vehicles"):
        production.write("nats", tmp_path, fleet="f")


def test_cookies_of_two_brokers_differ(tmp_path: Path) -> None:
    cookies = set()
    for name in ("a", "b"):
        production.write("emqx", tmp_path / name, fleet="f")
        cookies |= set(re.findall(r'node.cookie = "(\w+)"', (tmp_path / name / "emqx.conf").read_text()))
    assert len(cookies) == 2
    assert all(len(cookie) == 64 for cookie in cookies)


def test_largest_message_of_the_protocol_fits_the_link_and_every_broker() -> None:
    largest = chunks.CHUNK_BYTES + envelope.OVERHEAD_BYTES + 1024
    assert largest <= MAX_PAYLOAD_BYTES
    for name in ("mosquitto-loopback.conf", "mosquitto-production.conf"):
        limit = re.search(r"^message_size_limit (\d+)$", FILES.joinpath(name).read_text(), re.MULTILINE)
        assert limit
        assert int(limit[1]) > MAX_PAYLOAD_BYTES


def test_embedded_broker_and_protocol_agree_on_the_server_name() -> None:
    assert embedded.SERVER_USER == SERVER


# --- asyncapi.yaml ---


def asyncapi() -> dict[str, str]:
    """The scalars of the file by their path: enough YAML for a file of maps and scalars."""
    found: dict[str, str] = {}
    open_keys: list[tuple[int, str]] = []
    for line in FILES.joinpath("asyncapi.yaml").read_text().splitlines():
        key = re.match(r"( *)([$\w-]+):(?: (.*))?$", line)
        if key is None:
            continue  # the second line of a folded text
        while open_keys and open_keys[-1][0] >= len(key[1]):
            open_keys.pop()
        open_keys.append((len(key[1]), key[2]))
        found["#/" + "/".join(k for _, k in open_keys)] = (key[3] or "").strip('"')
    return found


def test_asyncapi_describes_exactly_our_topics() -> None:
    # given
    document = asyncapi()
    pattern = re.compile(r"#/channels/(\w+)/address")
    addresses = {k[1]: v for p, v in document.items() if (k := pattern.fullmatch(p))}
    values = {
        "{fleet}": "f",
        "{region}": "r1",
        "{task}": "motion",
        "{round}": "7",
        "{sha256}": "ab" * 32,
        "{shard}": ids.shard(ME),
        "{vehicle}": ME,
    }
    # when
    filled = {}
    for kind, address in addresses.items():
        for name, value in values.items():
            address = address.replace(name, value)  # noqa: PLW2901
        filled[kind] = address.replace("{n}", "3" if kind == "blob" else "0")
    # then
    assert filled == by_kind(ME)
    for kind, topic in filled.items():
        assert topics.parse(topic).kind == kind
        names = set(re.findall(r"{(\w+)}", addresses[kind]))
        prefix = f"#/channels/{kind}/parameters/"
        assert {p.removeprefix(prefix).split("/")[0] for p in document if p.startswith(prefix)} == names


def test_asyncapi_says_who_sends_and_its_references_resolve() -> None:
    document = asyncapi()
    for path, value in document.items():
        if path.endswith("/$ref"):
            assert value in document, path
    for kind in by_kind(ME):
        by, to = ("vehicle", "server") if kind in WRITES else ("server", "vehicle")
        assert document[f"#/operations/{by}-send-{kind}/action"] == "send"
        assert document[f"#/operations/{to}-receive-{kind}/action"] == "receive"
        assert document[f"#/operations/{by}-send-{kind}/channel/$ref"] == f"#/channels/{kind}"
