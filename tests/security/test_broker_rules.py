"""What a vehicle with valid credentials can do at real brokers, judged by what is delivered, not by what is granted."""

import json
import os
import re
import signal
import ssl
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Authority
from child_processes import Processes
from link_bench import PATIENCE_S, Party
from strangers import NatsClient, Stranger

from fedfleet.link import embedded, production
from fedfleet.link.inbox import Inbox
from fedfleet.link.live import LiveLink
from fedfleet.link.options import Options
from fedfleet.link.paho import Loop
from fedfleet.link.port import Event, Published
from fedfleet.link.probe import check
from fedfleet.protocol import topics
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import SERVER

ME, OTHER, ONLOOKER = "v-example", "v-2", "onlooker"
SEES_ALL = f"\nuser {ONLOOKER}\ntopic readwrite #\n"
PLAN = topics.round_plan("f", "r1", "motion")
OWN = (
    topics.status("f", ME),
    topics.update("f", ME, "motion", round_=7, number=0),
    topics.metrics("f", ME),
    topics.request("f", ME),
)
TO_ME = (topics.receipt("f", ME), topics.command("f", ME))
REGIONAL = (
    PLAN,
    topics.settlement("f", "r1", "motion", 7),
    topics.model("f", "r1", "motion"),
    topics.release("f", "r1", "motion"),
    topics.blob("f", "ab" * 32, 3),
)


def of_others(vehicle: str, fleet: str) -> list[str]:
    """Topics that belong to another vehicle, or to another fleet."""
    own = [
        topics.status(fleet, vehicle),
        topics.update(fleet, vehicle, "motion", round_=7, number=0),
        topics.metrics(fleet, vehicle),
        topics.request(fleet, vehicle),
        topics.receipt(fleet, vehicle),
        topics.command(fleet, vehicle),
    ]
    return own if fleet == "f" else [*own, topics.round_plan(fleet, "r1", "motion")]


FORBIDDEN = [*REGIONAL, *TO_ME, *of_others(OTHER, "f"), *of_others(ME, "g"), *of_others(OTHER, "g")]
#: What the brokers keep for themselves: a way around the rules where a broker lets clients write there.
BROKERS_OWN = [
    f"{prefix}{topic}"
    for topic in (PLAN, topics.status("f", OTHER), topics.receipt("f", OTHER))
    for prefix in (
        "$MQTT/msgs/",
        "$MQTT/rmsgs/",
        "$MQTT/deliver/pubrel/",
        "$share/x/",
        "$delayed/0/",
        "$queue/",
    )
] + [
    "$JS/API/STREAM/DELETE/$MQTT_msgs",
    "$JS/API/STREAM/PURGE/$MQTT_rmsgs",
    "$JS/API/STREAM/PURGE/$MQTT_sess",
    "$SYS/REQ/SERVER/PING",
    "$CONTROL/dynamic-security/v1",
    "_INBOX/x",
]
PRYING = [
    "#",
    "+/#",
    "fl/v1/#",
    "fl/v1/+/v/#",
    "fl/v1/f/v/#",
    *of_others(OTHER, "f"),
    *of_others(ME, "g"),
    *(f"$share/x/{topic}" for topic in of_others(OTHER, "f")),
    "$SYS/#",
    "$MQTT/#",
    "$MQTT/sub/#",
    "$MQTT/msgs/#",
    "$JS/#",
    "_INBOX/#",
]


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop().start()
    yield made
    made.stop()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.issue("localhost", "broker")
    for name in (SERVER, ME, OTHER, ONLOOKER):
        made.issue(name, name)
    return made


def join(loop: Loop, port: int, client_id: str, options: Options) -> Party:
    inbox: Inbox[Event] = Inbox(1000)
    host = "localhost" if options.tls else "127.0.0.1"
    link = loop.connect(host, port, client_id=client_id, sink=inbox.put, options=options)
    party = Party(link, inbox, pump=lambda: None, patience_s=PATIENCE_S)
    party.connected()
    return party


def configured(brand: production.Brand, folder: Path, port: int) -> Path:
    """A production configuration for fleet f, with its folders and port moved into the test."""
    paths = production.write(brand, folder, fleet="f", vehicles=(ME, OTHER) if brand == "nats" else ())
    text = paths[0].read_text()
    if brand == "mosquitto":
        paths[1].write_text(paths[1].read_text() + SEES_ALL)
    text = text.replace("  users = [\n", f'  users = [\n    {{ user: "CN={ONLOOKER}" }}\n')
    text = re.sub(r"/etc/(mosquitto|nats)/fedfleet|/var/lib/(mosquitto|nats)", str(folder), text)
    text = text.replace("8883", str(port)).replace("port: 4222", "port: -1")
    text = text.replace("host: 0.0.0.0", "host: 127.0.0.1").replace(
        "log_dest syslog", "log_dest stderr\nuser root"
    )
    paths[0].write_text(text)
    return paths[0]


@dataclass(frozen=True)
class Running:
    """A broker's MQTT port, and what it has written so far."""

    port: int
    log: Callable[[], str]

    @property
    def nats_port(self) -> int:
        """The port of NATS' own protocol."""
        found = re.findall(r"Listening for client connections on 127\.0\.0\.1:(\d+)", self.log())
        assert found, self.log()
        return int(found[-1])


Started = Callable[..., Running]


@pytest.fixture
def started(processes: Processes, authority: Authority, free_ports: Callable[[int], list[int]]) -> Started:
    """`started(brand, program, edit=…)`: a broker with its production configuration."""

    def start(brand: production.Brand, program: Path, *, edit: Callable[[str], str] = str) -> Running:
        (port,) = free_ports(1)
        config = configured(brand, authority.folder, port)
        config.write_text(edit(config.read_text()))
        process = processes.start([program, "-c", config])
        answer = ""
        for _ in range(200):
            try:
                check("localhost", port, timeout_s=5.0, options=authority.options(SERVER))
            except UsageError as error:
                answer = str(error)
            else:
                return Running(port, lambda: processes.log(process))
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
                pytest.fail(f"the broker ended: {answer}: {processes.log(process)}")
        pytest.fail(f"the broker does not answer: {answer}: {processes.log(process)}")

    return start


class Site:
    """A fleet at a broker: the server, a vehicle of it, and a retained plan."""

    def __init__(self, loop: Loop, port: int, options: Callable[[str], Options]) -> None:
        self.server = join(loop, port, SERVER, options(SERVER))
        self.server.link.subscribe("fl/v1/f/#")
        self._send(self.server, PLAN, b"the plan", retain=True)
        self._send(self.server, f"{PLAN}-fence", b"x")  # handled after what is retained can be had
        self.other = join(loop, port, OTHER, options(OTHER))
        for topic in (*REGIONAL, topics.receipt("f", OTHER), topics.command("f", OTHER)):
            self.other.link.subscribe(topic)
        (plan,) = self.other.receive()
        assert plan.payload == b"the plan"
        self.onlooker = join(loop, port, ONLOOKER, options(ONLOOKER))
        self.onlooker.link.subscribe("#")
        self._send(self.onlooker, "g/fence", b"x")
        self._fences = 0

    def server_says(self, topic: str, payload: bytes) -> None:
        self._send(self.server, topic, payload)

    def heard_by_server(self) -> list[tuple[str, bytes]]:
        """What the server has heard of others since it was asked last."""
        return self._heard(self.server, topics.status("f", OTHER), self.other)

    def heard_by_other(self) -> list[tuple[str, bytes]]:
        """What the other vehicle has heard since it was asked last."""
        return self._heard(self.other, topics.receipt("f", OTHER), self.server)

    def heard_by_onlooker(self) -> list[tuple[str, bytes]]:
        """What was delivered to anyone since it was asked last, without what server and other vehicle said."""
        heard = self._heard(self.onlooker, topics.status("f", OTHER), self.other)
        return [one for one in heard if one != ("g/fence", b"x")]

    def _heard(self, who: Party, topic: str, sender: Party) -> list[tuple[str, bytes]]:
        self._fences += 1
        fence = b"fence %d" % self._fences
        self._send(sender, topic, fence)
        heard = []
        while (delivery := who.receive()[0]).payload != fence:
            if not delivery.payload.startswith((b"fence", b"the plan", b"from the server")):
                heard.append((delivery.topic, delivery.payload))
        return [one for one in heard if one != (f"{PLAN}-fence", b"x")]

    def _send(self, sender: Party, topic: str, payload: bytes, *, retain: bool = False) -> None:
        ticket = sender.link.publish(topic, payload, retain=retain)
        while sender.next(Published).ticket != ticket:
            pass


def hold(site: Site, stranger: Callable[..., Stranger]) -> None:
    """A vehicle publishes and listens wherever it can: nothing of it arrives but what is its own."""
    site.heard_by_server()
    # when it publishes everywhere, with every quality and as retained, and dies with every will
    for topic in (*FORBIDDEN, *BROKERS_OWN):
        with stranger() as me:
            for qos, retain in ((0, False), (1, False), (1, True)):
                me.publish(topic, b"forged", qos=qos, retain=retain)
            me.publish(topic, b"", retain=True)
    for topic in (PLAN, topics.status("f", OTHER), f"$MQTT/rmsgs/{PLAN}", topics.status("g", ME)):
        stranger(will=(topic, b"forged")).die()
    with stranger() as me:
        for topic in OWN:
            me.publish(topic, b"own")
    stranger(will=(OWN[0], b"my will")).die()
    # then only its own arrives
    heard = site.heard_by_server()
    while (OWN[0], b"my will") not in heard:  # the broker notices a cut in its own time
        heard += site.heard_by_server()
    assert sorted(heard) == sorted([(topic, b"own") for topic in OWN] + [(OWN[0], b"my will")])
    assert site.heard_by_other() == []
    assert sorted(site.heard_by_onlooker()) == sorted(heard)
    # and the retained plan is what the server published
    with stranger() as me:
        me.subscribe(PLAN)
        assert me.heard(b"the plan") == []
    # when it listens everywhere
    with stranger() as me:
        for topic in PRYING:
            me.subscribe(topic)
        for topic in (*REGIONAL, *TO_ME):
            me.subscribe(topic)
        for topic in of_others(OTHER, "f"):
            site.server_says(topic, b"from the server: secret")
        site.other.link.publish(topics.metrics("f", OTHER), b"fence: secret")
        site.heard_by_server()
        for topic in (*REGIONAL[1:], TO_ME[0]):
            site.server_says(topic, b"from the server")
        site.server_says(TO_ME[1], b"from the server: last")
        # then it hears what is regional, and its own
        heard_by_me = me.heard(b"from the server: last")
    assert {one.topic for one in heard_by_me} - {PLAN} == {*REGIONAL[1:], TO_ME[0]}


def trusting(authority: Authority) -> ssl.SSLContext:
    """A context that trusts the broker and shows no certificate."""
    return ssl.create_default_context(cafile=str(authority.folder / "ca.pem"))


def nobody_comes_in_without_a_certificate(port: int, authority: Authority) -> None:
    for options in (Options(), Options(tls=trusting(authority))):
        with pytest.raises(UsageError, match=rf"^broker localhost:{port} refuses: "):
            check("localhost", port, timeout_s=5.0, options=options)


# --- Mosquitto ---


def test_loopback_mosquitto_holds_a_vehicle_to_its_topics_and_its_fleet(
    mosquitto_binary: Path, tmp_path: Path, loop: Loop
) -> None:
    assert mosquitto_binary.is_file()
    with embedded.start(tmp_path, kind="mosquitto", fleet="f") as broker:
        with (tmp_path / "mosquitto.acl").open("a") as rules:
            rules.write(SEES_ALL)
        os.kill(broker.pid, signal.SIGHUP)
        site = Site(loop, broker.port, lambda name: Options(username=name))
        hold(site, lambda **more: Stranger(broker.port, ME, username=ME, **more))
        assert isinstance(site.other.link, LiveLink)
        assert site.other.link.counts["refused_filters"] == 0  # a SUBACK proves nothing


def test_production_mosquitto_holds_a_vehicle_to_its_topics_and_its_fleet(
    mosquitto_binary: Path, authority: Authority, started: Started, loop: Loop
) -> None:
    port = started("mosquitto", mosquitto_binary).port
    site = Site(loop, port, authority.options)
    tls = authority.options(ME).tls
    # a vehicle that says another's name is still itself
    hold(site, lambda **more: Stranger(port, ME, tls=tls, username=OTHER, **more))
    nobody_comes_in_without_a_certificate(port, authority)


def test_production_mosquitto_binds_the_client_id_to_the_certificate(
    mosquitto_binary: Path, authority: Authority, started: Started, loop: Loop
) -> None:
    # given a server and a vehicle that are connected
    port = started("mosquitto", mosquitto_binary).port
    site = Site(loop, port, authority.options)
    # when another vehicle comes with their ids
    for stolen in (SERVER, OTHER):
        with Stranger(port, stolen, tls=authority.options(ME).tls, username=stolen) as thief:
            assert thief.is_in
            # then their connections stand, and the thief is who it is
            thief.publish(topics.metrics("f", ME), b"own")
            thief.publish(topics.metrics("f", OTHER), b"forged")
            assert site.heard_by_server() == [(topics.metrics("f", ME), b"own")]
    for party in (site.server, site.other):
        assert isinstance(party.link, LiveLink)
        assert party.link.counts["connects"] == 1


# --- NATS ---


def test_production_nats_holds_a_vehicle_to_its_topics_and_its_fleet(
    nats_binary: Path, authority: Authority, started: Started, loop: Loop
) -> None:
    port = started("nats", nats_binary).port
    site = Site(loop, port, authority.options)
    tls = authority.options(ME).tls
    hold(site, lambda **more: Stranger(port, ME, tls=tls, username=OTHER, **more))
    nobody_comes_in_without_a_certificate(port, authority)


def test_production_nats_keeps_what_is_queued_for_a_vehicle_that_is_away(
    nats_binary: Path, authority: Authority, started: Started, loop: Loop
) -> None:
    # given a vehicle that was there and went
    port = started("nats", nats_binary).port
    server = join(loop, port, SERVER, authority.options(SERVER))
    me = join(loop, port, ME, authority.options(ME))
    me.link.subscribe(TO_ME[0])
    ticket = me.link.publish(OWN[2], b"x")
    assert me.next(Published).ticket == ticket
    me.link.close()
    # when something is sent to it
    server.link.publish(TO_ME[0], b"queued")
    # then it comes when the vehicle is back
    me = join(loop, port, ME, authority.options(ME))
    (delivery,) = me.receive()
    assert delivery.payload == b"queued"


def test_client_ids_are_not_bound_at_nats_but_a_thief_hears_and_says_nothing(
    nats_binary: Path, authority: Authority, started: Started, loop: Loop
) -> None:
    """What broker_config/README.md says of NATS: anyone can disturb, nobody can read or write as another."""
    # given a server
    port = started("nats", nats_binary).port
    site = Site(loop, port, authority.options)
    # when a vehicle takes its client id, while it is there
    with Stranger(port, SERVER, tls=authority.options(ME).tls, clean=False) as thief:
        assert thief.is_in
        thief.publish(topics.receipt("f", OTHER), b"forged")
        site.other.link.publish(topics.status("f", OTHER), b"fence: secret")
        assert thief.silence() == []
    # then nothing of it is heard, and the server comes back with its subscriptions
    assert site.heard_by_other() == []
    assert site.heard_by_server() == []
    assert thief.silence() == []


def on_tls(text: str) -> str:
    """NATS' own port with the same certificates as MQTT's: an operator opened it."""
    block = re.search(r"^  tls \{.*?^  \}", text, re.MULTILINE | re.DOTALL)
    assert block
    return f"{block[0]}\n{text}"


def without_types(text: str) -> str:
    return re.sub(r".*allowed_connection_types.*\n", "", on_tls(text))


ATTACKS = (
    f"$MQTT.msgs.{PLAN}",
    f"$MQTT.rmsgs.{PLAN}",
    f"$MQTT.msgs.{topics.status('f', OTHER)}",
    f"$MQTT.msgs.{topics.receipt('f', OTHER)}",
    "$MQTT.sess.x",
    PLAN,
    topics.receipt("f", OTHER),
    topics.round_plan("g", "r1", "motion"),
    "$JS.API.STREAM.PURGE.$MQTT_rmsgs",
    "$JS.API.STREAM.DELETE.$MQTT_msgs",
    "$JS.API.STREAM.MSG.DELETE.$MQTT_rmsgs",
    "$JS.ACK.x",
    "$SYS.REQ.ACCOUNT.PING",
    "_INBOX.x",
)


@pytest.mark.parametrize("shown", [True, False], ids=["certificate", "name"])
def test_nats_own_protocol_is_closed_to_vehicles(
    nats_binary: Path, authority: Authority, started: Started, *, shown: bool
) -> None:
    # given the production configuration, on TLS where the vehicle shows its certificate
    broker = started("nats", nats_binary, edit=on_tls if shown else str)
    tls = authority.options(ME).tls if shown else None
    for user in (f"CN={ME}", f"CN={SERVER}", None):
        # when a vehicle speaks NATS
        stranger = NatsClient(broker.nats_port, user=user, tls=tls)
        # then it is sent away
        assert any("Authorization Violation" in line for line in stranger.answers()), user
        stranger.close()


def test_rules_hold_on_nats_own_protocol_too(
    nats_binary: Path, authority: Authority, started: Started, loop: Loop
) -> None:
    # given entries that somebody opened to NATS' own protocol
    broker = started("nats", nats_binary, edit=without_types)
    port = broker.port
    site = Site(loop, port, authority.options)
    # when a vehicle speaks NATS, and attacks
    stranger = NatsClient(broker.nats_port, tls=authority.options(ME).tls)
    subjects = [subject.replace("/", ".") for subject in ATTACKS]
    for subject in subjects:
        stranger.publish(subject, "forged")
        stranger.publish(subject, "")
    prying = (">", "$MQTT.>", "$MQTT.msgs.>", "$JS.>", "$SYS.>", "_INBOX.>", "fl.>", "fl.v1.g.>")
    for number, subject in enumerate(prying):
        stranger.say(f"SUB {subject} {number}")
    answers = stranger.answers()
    # then each is refused, and nobody hears of it
    for subject in (*subjects, *prying):
        assert any("Permissions Violation" in line and f'"{subject}"' in line for line in answers), subject
    assert site.heard_by_server() == []
    assert site.heard_by_other() == []
    with Stranger(port, "onlooker", tls=authority.options(OTHER).tls) as onlooker:
        onlooker.subscribe(PLAN)
        assert onlooker.heard(b"the plan") == []


# --- a cluster of NATS ---


def test_node_joins_a_nats_cluster_only_with_password_and_a_certificate_of_nodes(
    nats_binary: Path,
    authority: Authority,
    processes: Processes,
    free_ports: Callable[[int], list[int]],
    wait_until: Callable[..., None],
) -> None:
    # given two nodes with the cluster block of the template
    (authority.folder / "nodes").mkdir()
    nodes = Authority(authority.folder / "nodes")
    nodes.issue("localhost", "node")
    (routes, monitor, *ports) = free_ports(10)
    text = configured("nats", authority.folder, ports[0]).read_text()

    def node(name: str, route_port: int, mqtt_port: int, *, edit: Callable[[str], str] = str) -> Path:
        block = re.search(r"^# cluster \{.*?^# \}$", text, re.MULTILINE | re.DOTALL)
        assert block
        cluster = re.sub(r"^# ?", "", block[0], flags=re.MULTILINE).replace("ROUTE-PASSWORD", "0f9a7c")
        cluster = re.sub(r"nodes-ca\.pem", "nodes/ca.pem", cluster)
        cluster = re.sub(r"/node\.", "/nodes/node.", cluster).replace(
            "0.0.0.0:6222", f"127.0.0.1:{route_port}"
        )
        cluster = re.sub(r"node-\d:6222", f"localhost:{routes}", cluster)
        mine = (
            text.replace(block[0], edit(cluster))
            .replace("fedfleet-1", name)
            .replace(str(ports[0]), str(mqtt_port))
        )
        mine = mine.replace("/jetstream", f"/jetstream-{name}")
        path = authority.folder / f"{name}.conf"
        path.write_text(mine + (f"\nhttp: 127.0.0.1:{monitor}\n" if name == "first" else ""))
        return path

    def joined() -> set[str]:
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{monitor}/routez", timeout=5) as page,
        ):
            return {route["remote_name"] for route in json.load(page)["routes"]}
        return set()

    first = processes.start([nats_binary, "-c", node("first", routes, ports[0])])
    processes.start([nats_binary, "-c", node("second", ports[1], ports[2])])
    wait_until(lambda: joined() == {"second"}, "the second node is in")
    # when strangers come: without anything, with a vehicle's certificate, with a wrong password
    vehicles = f"{authority.folder}/{ME}"
    intruders: dict[str, Callable[[str], str]] = {
        "bare": lambda block: re.sub(r"  (tls|authorization) \{.*?\}\n", "", block, flags=re.DOTALL).replace(
            "route:0f9a7c@", ""
        ),
        "vehicle": lambda block: re.sub(r'cert_file: ".*"', f'cert_file: "{vehicles}.pem"', block).replace(
            f"{authority.folder}/nodes/node.key", f"{vehicles}.key"
        ),
        "guess": lambda block: block.replace("0f9a7c", "guess"),
    }
    for number, (name, edit) in enumerate(intruders.items()):
        before = processes.log(first).count("[ERR]")
        intruder = processes.start(
            [nats_binary, "-c", node(name, ports[3 + number], ports[6 + number - 1], edit=edit)]
        )
        wait_until(
            lambda before=before: processes.log(first).count("[ERR]") > before,
            f"{name} is refused",
            timeout_s=30,
        )
        intruder.terminate()
    # then none is in
    assert joined() == {"second"}
