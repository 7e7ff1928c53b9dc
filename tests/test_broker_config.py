"""Holds the brokers' files against protocol/topics.py: each topic described, no ACL wider or narrower."""

import re
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from certificates import Authority
from child_processes import Processes
from link_bench import PATIENCE_S, Party

from fedfleet.link import embedded
from fedfleet.link.inbox import Inbox
from fedfleet.link.live import LiveLink
from fedfleet.link.options import Options
from fedfleet.link.paho import Loop
from fedfleet.link.port import MAX_PAYLOAD_BYTES, Event, matches
from fedfleet.link.probe import check
from fedfleet.protocol import chunks, envelope, ids, topics
from fedfleet.protocol.errors import UsageError

FILES = resources.files("fedfleet.broker_config")
ME, OTHER = "v-example", "v-2"
SERVER = ids.SERVER


def by_kind(vehicle: str) -> dict[topics.Kind, str]:
    """One topic of each kind, those of a vehicle for this one."""
    return {
        "round": topics.round_plan("f", "r1", "motion"),
        "settlement": topics.settlement("f", "r1", "motion", 7),
        "model": topics.model("f", "r1", "motion"),
        "release": topics.release("f", "r1", "motion"),
        "blob": topics.blob("f", "ab" * 32, 3),
        "status": topics.status("f", vehicle),
        "update": topics.update("f", vehicle, "motion", round_=7, number=0),
        "metrics": topics.metrics("f", vehicle),
        "request": topics.request("f", vehicle),
        "receipt": topics.receipt("f", vehicle),
        "command": topics.command("f", vehicle),
    }


READS = {"round", "settlement", "model", "release", "blob", "receipt", "command"}
WRITES: set[topics.Kind] = {"status", "update", "metrics", "request"}
REGIONAL = {"round", "settlement", "model", "release", "blob"}


# --- the ACLs as text ---

Rule = tuple[str | None, str, str]  # user (None: everyone), "read" | "write" | "readwrite", filter


def mosquitto_rules(name: str) -> list[Rule]:
    rules: list[Rule] = []
    user: str | None = None
    for line in FILES.joinpath(name).read_text().splitlines():
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


def emqx_rules() -> list[Rule]:
    lines = [x for x in FILES.joinpath("emqx-acl.conf").read_text().splitlines() if x and x[0] != "%"]
    assert lines[-1] == "{deny, all}."
    words = {"all": "readwrite", "subscribe": "read", "publish": "write"}
    rules: list[Rule] = []
    for line in lines[:-1]:
        found = re.fullmatch(r'\{allow, (all|\{user, "(.+)"\}), (\w+), \["(.+)"\]\}\.', line)
        assert found, line
        rules.append((found[2], words[found[3]], found[4]))
    return rules


def nats_rules() -> list[Rule]:
    text = FILES.joinpath("nats-production.conf").read_text()
    rules: list[Rule] = []
    for user in re.split(r'user: "CN=', text)[1:]:
        name = user.split('"')[0]
        for word, access in (("publish", "write"), ("subscribe", "read")):
            listed = re.search(word + r": \[(.*?)\]", user, re.DOTALL)
            assert listed
            for subject in re.findall(r'"(.+?)"', listed[1]):
                plain = subject.replace(".", "/").replace("*", "+").replace(">", "#")
                if not plain.startswith("$MQTT"):
                    rules.append((name, access, plain))
    return rules


def allowed(rules: list[Rule], client: str, access: str, topic: str) -> bool:
    def filled(topic_filter: str) -> str:
        return re.sub(r"%c|%u|\$\{clientid\}", client, topic_filter)

    return any(
        user in {None, client} and access in given and matches(filled(topic_filter), topic)
        for user, given, topic_filter in rules
    )


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(mosquitto_rules("mosquitto-loopback.acl"), id="mosquitto-loopback"),
        pytest.param(mosquitto_rules("mosquitto-production.acl"), id="mosquitto-production"),
        pytest.param(emqx_rules(), id="emqx"),
        pytest.param(nats_rules(), id="nats-production"),
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


# --- real brokers ---


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop().start()
    yield made
    made.stop()


def join(loop: Loop, port: int, client_id: str, *, host: str = "127.0.0.1", options: Options) -> Party:
    inbox: Inbox[Event] = Inbox(1000)
    link = loop.connect(host, port, client_id=client_id, sink=inbox.put, options=options)
    party = Party(link, inbox, pump=lambda: None, patience_s=PATIENCE_S)
    party.connected()
    return party


def hold_vehicle_to_its_topics(me: Party, server: Party) -> None:
    """What a vehicle may not is judged by what is delivered, not by what the broker grants."""
    # given everyone listens as far as it may be let
    server.link.subscribe("fl/v1/f/#")
    server.send(topics.status("f", "fence"))
    server.receive()
    for kind, topic in by_kind(OTHER).items():
        me.link.subscribe(topic)
        me.link.subscribe(by_kind(ME)[kind])
    me.send(topics.metrics("f", ME))
    server.receive()
    # when the vehicle publishes everywhere
    for kind, topic in by_kind(OTHER).items():
        me.send(topic, b"forged")
        me.send(by_kind(ME)[kind], b"own")
    me.send(topics.request("f", ME), b"fence")
    # then only its own arrives
    expected = sorted(by_kind(ME)[kind] for kind in WRITES)
    heard = server.receive(len(expected))
    assert sorted(d.topic for d in heard) == expected
    assert {d.payload for d in heard} == {b"own"}
    assert server.receive()[0].payload == b"fence"
    # when the server publishes everywhere
    for kind, topic in by_kind(OTHER).items():
        server.send(topic, b"to")
        server.send(by_kind(ME)[kind], b"to")
    server.send(topics.command("f", ME), b"fence")
    # then the vehicle hears what is regional, and its own
    topics_heard = []
    while (delivery := me.receive()[0]).payload != b"fence":
        topics_heard.append(delivery.topic)
    assert set(topics_heard) == {t for v in (ME, OTHER) for k, t in by_kind(v).items() if k in REGIONAL} | {
        by_kind(ME)["receipt"],
        by_kind(ME)["command"],
    }


def test_forbidden_filters_are_granted_and_nothing_is_delivered_by_mosquitto(
    mosquitto_binary: Path, tmp_path: Path, loop: Loop
) -> None:
    assert mosquitto_binary.is_file()
    with embedded.start(tmp_path, kind="mosquitto") as broker:
        me = join(loop, broker.port, ME, options=Options())
        server = join(loop, broker.port, SERVER, options=Options())
        hold_vehicle_to_its_topics(me, server)
        assert isinstance(me.link, LiveLink)
        assert me.link.counts["refused_filters"] == 0  # a SUBACK proves nothing


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.issue("localhost", "broker")
    for name in (SERVER, ME):
        made.issue(name, name)
    return made


def configured(name: str, folder: Path, port: int) -> Path:
    """A production configuration with its folders and port moved into the test."""
    text = FILES.joinpath(name).read_text()
    text = re.sub(r"/etc/(mosquitto|nats)/fedfleet|/var/lib/(mosquitto|nats)", str(folder), text)
    text = text.replace("8883", str(port)).replace("port: 4222", "port: -1")
    text = text.replace("host: 0.0.0.0", "host: 127.0.0.1").replace(
        "log_dest syslog", "log_dest stderr\nuser root"
    )
    path = folder / name
    path.write_text(text)
    shutil.copy(str(FILES.joinpath("mosquitto-production.acl")), folder)
    return path


def hold_to_certificates(broker: tuple[Processes, Path, list[str]], authority: Authority, loop: Loop) -> None:
    """A broker's production configuration, run on loopback: certificates name the clients."""
    processes, config, command = broker
    port = int(re.findall(r"^(?:listener|  port:) (\d+)", config.read_text(), re.MULTILINE)[-1])
    process = processes.start([*command, config])
    until_ready(port, authority, process, lambda: processes.log(process))
    # a vehicle that says another's name is still itself, and keeps to its topics
    me = join(loop, port, ME, host="localhost", options=replace(authority.options(ME), username=OTHER))
    server = join(loop, port, SERVER, host="localhost", options=authority.options(SERVER))
    hold_vehicle_to_its_topics(me, server)
    # without TLS, or without a certificate, no one comes in
    for options in (Options(), Options(tls=trusting(authority))):
        with pytest.raises(UsageError, match=rf"^broker localhost:{port} refuses: "):
            check("localhost", port, timeout_s=5.0, options=options)


def trusting(authority: Authority) -> ssl.SSLContext:
    """A context that trusts the broker and shows no certificate."""
    return ssl.create_default_context(cafile=str(authority.folder / "ca.pem"))


def until_ready(
    port: int, authority: Authority, process: "subprocess.Popen[bytes]", log: Callable[[], str]
) -> None:
    for _ in range(200):
        try:
            check("localhost", port, timeout_s=5.0, options=authority.options(SERVER))
        except UsageError as error:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
                pytest.fail(f"the broker ended: {error}: {log()}")
        else:
            return
    pytest.fail(f"the broker does not answer: {log()}")


def test_production_mosquitto_takes_names_from_certificates(
    mosquitto_binary: Path, processes: Processes, authority: Authority, loop: Loop, free_port: int
) -> None:
    config = configured("mosquitto-production.conf", authority.folder, free_port)
    hold_to_certificates((processes, config, [str(mosquitto_binary), "-c"]), authority, loop)


def test_production_nats_takes_names_from_certificates(
    nats_binary: Path, processes: Processes, authority: Authority, loop: Loop, free_port: int
) -> None:
    config = configured("nats-production.conf", authority.folder, free_port)
    hold_to_certificates((processes, config, [str(nats_binary), "-c"]), authority, loop)
