"""Messages that vehicles could send, and that they must not: what `fuzz_ingest.py` gives to the server.

Nearly all are signed by an enrolled vehicle and have a topic of its own, so that what is odd in them is reached.
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import zstandard
from server_world import FLEET, code, key_of

from fedfleet.link.port import Delivery
from fedfleet.protocol import chunks, enrolment, envelope, ids, topics, update
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.ids import UpdateId

__all__ = ["KINDS", "NAMES", "NOW_S", "ROUNDS", "TASK", "WAITING", "Maker"]

TASK = "linear-test"
NOW_S = 1_700_000_000.0
NAMES = tuple(f"v-{number}" for number in range(200))
WAITING = tuple(f"w-{number}" for number in range(20))
"""Vehicles with an open code."""
ROUNDS = (4, 5)
"""One that is over, one that is open."""
TEXTS = (
    *(
        "",
        "\0",
        "a\0b",
        "\x1b[2J",
        "\x9b31m",
        "\r\n",
        "\x7f",
        "\u2028",
        "\u202e",
        "\ufeff",
        "\ufffd",
        "\U0001f697",
    ),
    *(
        "e\u0301" * 50,
        "x" * 300,
        "x" * 301,
        "x" * 20_000,
        "'; drop table vehicle; --",
        "%s%n",
        "{}",
        "[/oops]",
    ),
    *("../../etc", "NaN", "null", "\ud800", "\udfff\ud800", "٣", "ＡＢＣ", "v-1\n"),
)
NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -0.0),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        1e-320,
        1e11,
        1e12,
        True,
        None,
        "7",
        "1e5",
        [],
        {},
        0.1 + 0.2,
    ),
)
COUNTED = ("session", "active_version", "frames", "missed", "missed_in_swap", "swaps", "trainings")
Make = Callable[[], tuple[str, bytes]]


class Maker:
    """Makes deliveries of every kind, the same for the same seed. ``payload`` gives the bytes of an update."""

    def __init__(self, seed: str, payload: Callable[[random.Random], bytes]) -> None:
        self.rng = random.Random(seed)
        self._payload = payload
        self._count = 0
        self._salt = int(self.rng.getrandbits(32))
        self.makers: dict[str, Make] = {
            "status": self._status,
            "metrics": self._metrics,
            "request": self._request,
            "update": self._update,
            "piece": self._piece,
            "envelope": self._envelope,
            "packed": self._packed,
            "json": self._json,
            "garbage": self._garbage,
            "topic": self._topic,
        }

    def delivery(self, kind: str = "") -> Delivery:
        """Return the next delivery, of a kind by chance."""
        rng = self.rng
        topic, payload = self.makers[kind or rng.choice(KINDS)]()
        qos = 0 if rng.randrange(50) == 0 else 1
        return Delivery(topic, payload, qos, retain=rng.random() < 0.1, duplicate=rng.random() < 0.1, token=1)

    def update_of(self, payload: bytes, *, round_: int = 5) -> Delivery:
        """Return an update with these bytes of the codec, sound in all else."""
        name = self.rng.choice(NAMES)
        sealed = self._sealed_update(name, payload, round_=round_)
        topic = topics.update(FLEET, name, TASK, round_=round_, number=0)
        return Delivery(topic, sealed, 1, retain=False, duplicate=False, token=1)

    def _sealed_update(self, name: str, payload: bytes, *, round_: int = 5, base: int | None = None) -> bytes:
        self._count += 1
        id_ = UpdateId(name, self._salt, self._count)
        base = round_ - 1 if base is None else base
        manifest = update.Manifest(id_, TASK, "north", round=round_, base_version=base)
        return self._seal(update.pack(manifest, payload), Kind.UPDATE, name)

    def _seal(self, body: bytes, kind: Kind, name: str) -> bytes:
        return envelope.seal(body, key_of(name), kind=kind, sender=name, fleet=FLEET)

    def _odd(self) -> Any:  # noqa: ANN401 - any value that JSON can say
        rng, roll = self.rng, self.rng.randrange(6)
        if roll < 2:
            return rng.choice(TEXTS)
        if roll < 4:
            return rng.choice(NUMBERS)
        if roll == 4:
            return {rng.choice(TEXTS): rng.choice(NUMBERS) for _ in range(rng.randrange(5))}
        return [rng.choice(NUMBERS) for _ in range(rng.randrange(4))]

    def _spoiled(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return the message with some of its fields changed, gone or new; now and then as it is."""
        rng = self.rng
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            name = rng.choice(list(content))
            action = rng.randrange(8)
            if action == 0:
                del content[name]
                if not content:
                    return content
            elif action == 1:
                content[rng.choice(TEXTS)] = self._odd()
            else:
                content[name] = self._odd()
        return content

    def _body(self, content: dict[str, Any]) -> bytes:
        text = json.dumps(content, ensure_ascii=self.rng.random() < 0.7)
        return text.encode("utf-8", "surrogatepass")

    def _status(self) -> tuple[str, bytes]:
        rng, name = self.rng, self.rng.choice((*NAMES, *WAITING))
        lease = {"task": TASK, "round": 5, "until_s": NOW_S + 60}
        content = {
            "vehicle": name,
            "state": rng.choice(("ONLINE", "OFFLINE", "CONNECTIONBROKEN")),
            "session": rng.choice((1, 2, 2**53)),
            "at_s": rng.choice((0.0, NOW_S, NOW_S + 86_400, 1e11)),
            "lease": rng.choice((None, lease, self._spoiled(dict(lease)))),
            "eligible": True,
            "reason": rng.choice(TEXTS),
            "epoch": rng.choice((0, 7, 2**53)),
        }
        return topics.status(FLEET, name), self._seal(self._body(self._spoiled(content)), Kind.STATUS, name)

    def _metrics(self) -> tuple[str, bytes]:
        rng, name = self.rng, self.rng.choice(NAMES)
        content: dict[str, Any] = dict.fromkeys((*COUNTED, "p50_ms", "p99_ms", "bytes_up", "bytes_down"), 1)
        content |= {"vehicle": name, "task": TASK, "at_s": rng.choice((0.0, NOW_S, 1e11))}
        content |= {"scores": {rng.choice(TEXTS): [rng.choice(NUMBERS), rng.choice(NUMBERS)]}}
        content |= {"refusals": {f"{rng.choice(TEXTS)}{n}": n for n in range(rng.choice((1, 5, 150)))}}
        if rng.random() < 0.5:
            content |= {
                "scores": {"ade": [1.5, 3]},
                "refusals": {"too-old": 2},
                "frames": rng.choice((0, 2**53)),
            }
        return topics.metrics(FLEET, name), self._seal(self._body(self._spoiled(content)), Kind.METRICS, name)

    def _request(self) -> tuple[str, bytes]:
        rng = self.rng
        name, kind = rng.choice((*NAMES, *WAITING)), rng.choice(("hello", "enrol"))
        public, nonce = key_of(name).public.hex(), f"{rng.getrandbits(128):032x}"
        secret = code(name) if rng.random() < 0.5 else "guess"
        proof = enrolment.vehicle_proof(secret, fleet=FLEET, vehicle=name, nonce=nonce, public_key=public)
        content = {"vehicle": name, "kind": kind, "nonce": nonce, "public_key": public, "proof": proof}
        if rng.random() < 0.7:
            content = self._spoiled(content)
        return topics.request(FLEET, name), self._seal(self._body(content), Kind.REQUEST, name)

    def _update(self) -> tuple[str, bytes]:
        rng, name = self.rng, self.rng.choice(NAMES)
        told, base = rng.choice((4, 5, 5, 5, 3, 2**32 - 1)), rng.choice((None, None, 0, 2**32 - 1))
        sealed = self._sealed_update(name, self._payload(rng), round_=told, base=base)
        round_ = told if rng.random() < 0.8 else rng.choice((0, 5, 6, 2**32 - 1))
        return topics.update(FLEET, name, TASK, round_=round_, number=rng.choice((0, 0, 1))), sealed

    def _piece(self) -> tuple[str, bytes]:
        """One piece of an update: of a sound split, mostly, which other calls may complete, or of a spoiled one."""
        rng = self.rng
        name = rng.choice(NAMES[:5])
        whole = self._seal(random.Random(f"{name}/{rng.randrange(3)}").randbytes(3000), Kind.UPDATE, name)
        frames = chunks.split(whole, chunk_bytes=rng.choice((500, 1000)))
        number = rng.randrange(len(frames))
        frame = bytearray(frames[number])
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            frame[rng.randrange(min(60, len(frame)))] = rng.randrange(256)
        if rng.randrange(10) == 0:
            frame = frame[: rng.randrange(len(frame))]
        round_ = rng.choice((5, 5, 5, 4, 6, 2**32 - 1))
        return topics.update(FLEET, name, TASK, round_=round_, number=number), bytes(frame)

    def _envelope(self) -> tuple[str, bytes]:
        topic, sealed = self.makers[self.rng.choice(("status", "metrics", "request", "update"))]()
        return topic, self._changed(sealed)

    def _changed(self, data: bytes) -> bytes:
        rng, changed = self.rng, bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at, action = rng.randrange(len(changed) + 1), rng.randrange(5)
            if action == 0 and at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            elif action == 1:
                changed[at:at] = rng.randbytes(rng.randrange(1, 40))
            elif action == 2:
                del changed[at : at + rng.randrange(1, 40)]
            elif action == 3:
                changed[: min(12, len(changed))] = rng.randbytes(12)
            else:
                del changed[at:]
        return bytes(changed)

    def _packed(self) -> tuple[str, bytes]:
        """A signed message whose body is a zstd frame: sound, spoiled, without its size, or a bomb."""
        rng, name = self.rng, self.rng.choice(NAMES)
        content = self._body({"vehicle": name, "state": "ONLINE", "session": 1, "reason": rng.choice(TEXTS)})
        text = rng.choice((content, content, bytes(999_999), b"[" * 500_000, b'{"a":' * 100_000, b""))
        body = zstandard.ZstdCompressor(level=3, write_content_size=rng.random() < 0.8).compress(text)
        if rng.random() < 0.4:
            body = self._changed(body)
        kind, topic = rng.choice(((Kind.STATUS, topics.status), (Kind.METRICS, topics.metrics)))
        return topic(FLEET, name), self._seal(body, kind, name)

    def _json(self) -> tuple[str, bytes]:
        """A signed message whose body is no object of ours: deep, doubled, huge numbers, bad UTF-8, nothing."""
        rng, name = self.rng, self.rng.choice(NAMES)
        depth = rng.choice((10, 1000, 50_000))
        body = rng.choice(
            (
                b"[" * depth + b"]" * depth,
                b'{"a":' * (depth // 2) + b"1" + b"}" * (depth // 2),
                b'{"vehicle":"' + name.encode() + b'","vehicle":"v-2","state":"ONLINE","session":1}',
                b'{"session":' + b"9" * rng.choice((10, 5000, 60_000)) + b"}",
                b'{"at_s":1e' + b"9" * rng.choice((1, 3, 300)) + b"}",
                b'{"vehicle":"\xff\xfe","state":"ONLINE","session":1}',
                rng.choice((b"", b"null", b"NaN", b"[]", b"0", b'"x"', b"\xef\xbb\xbf{}", b"\0")),
                rng.randbytes(rng.randrange(1, 2000)),
            )
        )[:63_000]
        kind, topic = rng.choice(
            ((Kind.STATUS, topics.status), (Kind.METRICS, topics.metrics), (Kind.REQUEST, topics.request))
        )
        return topic(FLEET, name), self._seal(body, kind, name)

    def _garbage(self) -> tuple[str, bytes]:
        rng = self.rng
        name = rng.choice((*NAMES, "stranger", "x" * 36))
        build = rng.choice((topics.status, topics.metrics, topics.request, topics.receipt, topics.command))
        update_topic = topics.update(
            FLEET, name, TASK, round_=rng.choice((4, 5, 6)), number=rng.choice((0, 9))
        )
        head = rng.choice((b"", b"FFEN", b"FFCH", b"FFEN\x01", b"FFCH\x01\x00", b"\x28\xb5\x2f\xfd"))
        size = rng.choice((0, 1, 11, 12, 40, 200, 5000, 60_000))
        return rng.choice((build(FLEET, name), update_topic)), head + rng.randbytes(size)

    def _topic(self) -> tuple[str, bytes]:
        rng = self.rng
        name = rng.choice(NAMES)
        sealed = self._status()[1]
        levels = topics.update(FLEET, name, TASK, round_=5, number=0).split("/")
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(len(levels))
            levels[at] = rng.choice(
                (*TEXTS, ids.shard(name), "9" * 400, "-1", "0x1", "01", "²", "fl", "v", "")
            )[:500]
        if rng.random() < 0.2:
            del levels[rng.randrange(len(levels)) :]
        return "/".join(levels), sealed


KINDS = ("status", "metrics", "request", "update", "piece", "envelope", "packed", "json", "garbage", "topic")
