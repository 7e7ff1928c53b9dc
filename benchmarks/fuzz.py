"""Mutated payloads against the decoder: only PeerError may come out, and little memory may go in.

    python benchmarks/fuzz.py [--payloads 1000000] [--json] [--state FILE] [--seed 1]

Valid payloads of every index and value mode, of one and of several parts, with and without a control variate, are cut,
flipped, overwritten and spliced; most get right section lengths and a right checksum again, so that a mutation reaches
what is behind them. What is accepted is added to an accumulator with weight zero, which must leave it finite. `--state`
keeps what is done, in chunks: a run that was stopped goes on there. Exit code 1 when anything but PeerError was raised,
or memory went over its limit.
"""

import argparse
import json
import random
import resource
import sys
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedfleet.codec import container, payload
from fedfleet.codec.blocks import VALUE_CODES
from fedfleet.codec.entropy import ADAPTIVE, BITMAP, NAMES, RICE, ROWS, UNARY_ZSTD
from fedfleet.codec.entropy_rice import gaps_of, pack_adaptive, pack_rice
from fedfleet.codec.entropy_rows import pack_rows
from fedfleet.codec.entropy_zstd import pack_bitmap, pack_unary_zstd
from fedfleet.codec.parts import Part, Parts
from fedfleet.codec.quantize import pack_values
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import varint
from fedfleet.protocol.errors import PeerError

CHUNK = 5_000
SIZE = 1_200
MEMORY_LIMIT_BYTES = 1_000_000  # of Python's and numpy's allocations, for one payload
TRACED_EVERY = 10  # chunks: tracing memory is slow

PARTS = Parts(
    SIZE,
    (
        Part("body", ((0, 400), (500, 1000)), columns=(20, 25)),
        Part("body", ((400, 500),), "dense"),
        Part("body", ((1000, 1040),), "exclude"),
        Part("head", ((1040, 1200),), columns=(16,)),
    ),
)


@dataclass(frozen=True, eq=False)
class Source:
    """A valid payload, and what its receiver knows."""

    name: str
    data: bytes
    parts: Parts | None = None
    common: np.ndarray | None = None
    control: bool = False

    def decode(self, data: bytes) -> payload.Payload:
        """Read other bytes as this receiver does."""
        return payload.decode(data, size=SIZE, parts=self.parts, common=self.common, control=self.control)


def update(seed: int) -> np.ndarray:
    """Return float32[SIZE], some stretches far stronger than others."""
    rng = np.random.default_rng(seed)
    strength = np.repeat(rng.integers(0, 5, SIZE // 40), 40)
    return (rng.standard_normal(SIZE) * 4.0**strength).astype(np.float32)


def forced(mode: int, value: str, delta: np.ndarray, indices: np.ndarray) -> bytes:
    """Return a payload whose index mode is this one, smallest or not."""
    gaps = gaps_of(indices)
    packers: dict[int, Callable[[], bytes | None]] = {
        RICE: lambda: pack_rice(gaps),
        ADAPTIVE: lambda: pack_adaptive(gaps),
        UNARY_ZSTD: lambda: pack_unary_zstd(gaps),
        BITMAP: lambda: pack_bitmap(indices, size=SIZE),
        ROWS: lambda: pack_rows(indices, ((20, 20), (32, 25)), size=SIZE),
    }
    coded = packers[mode]()
    if coded is None:
        raise ValueError(f"index mode {NAMES[mode]} does not take this set")
    head = bytes((0, mode << 4 | VALUE_CODES[value])) + varint(SIZE)
    body = head + coded + pack_values(delta[indices], value)
    counts = {(container.STEPS, 0): varint(300), (container.EXAMPLES, 0): varint(20_000)}
    return container.join({(container.DELTA, 0): body, **counts})


def sources() -> list[Source]:
    """Return valid payloads of every mode."""
    delta, told = update(1), {"steps": 300, "examples": 20_000}
    strongest = np.sort(np.argsort(-np.abs(delta))[:150]).astype(np.int64)
    found = [
        Source(f"{NAMES[mode]} {value}", forced(mode, value, delta, strongest))
        for mode in (RICE, ADAPTIVE, UNARY_ZSTD, BITMAP, ROWS)
        for value in ("sign", "int8", "int2", "int3", "int4")
    ]
    common = np.arange(0, SIZE, 9, dtype=np.int64)
    for value in VALUE_CODES:
        plain = Settings("dense", value, 0.05)
        found.append(Source(f"dense {value}", payload.encode(delta, plain, seed=1, **told)))
        if value != "stochastic4":
            by_plan = Settings("common", value)
            data = payload.encode(delta, by_plan, common=common, **told)
            found.append(Source(f"by plan {value}", data, common=common))
    for settings in (Settings(density=0.1), Settings(value="int4", density=0.3), Settings("dense", "int8")):
        data = payload.encode(delta, settings, parts=PARTS, **told)
        found.append(Source(f"parts {settings.index} {settings.value}", data, parts=PARTS))
        data = payload.encode(delta, settings, parts=PARTS, control=update(2), **told)
        found.append(Source(f"control {settings.index} {settings.value}", data, parts=PARTS, control=True))
    for source in found:
        source.decode(source.data)
    return found


def mutated(source: Source, other: Source, rng: random.Random) -> bytes:
    """Return the payload with one to four changes, mostly inside one section and with a right checksum."""
    if rng.randrange(4) == 0:
        inner = change(source.data[:-4], other.data, rng, head=24)
        told = source.data[-4:] if rng.randrange(4) == 0 else zlib.crc32(inner).to_bytes(4, "little")
        return inner + told
    sections = {
        key: bytes(body) for key, body in container.split(source.data, limit=1 << 20, control=True).items()
    }
    key = rng.choice([each for each in sections if len(sections[each]) > 6] or list(sections))
    sections[key] = change(sections[key], other.data, rng, head=16)
    return container.join(sections)


def change(data: bytes, other: bytes, rng: random.Random, *, head: int) -> bytes:
    """Return the bytes with one to four changes; some aim at the first `head`, where counts and lengths stand."""
    inner = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        at = rng.randrange(len(inner) + 1)
        early = rng.randrange(min(head, len(inner) + 1))
        kind = rng.randrange(8)
        if kind == 0 and at < len(inner):
            inner[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(inner):
            inner[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            inner[early : early + 1] = bytes((rng.randrange(256),))
        elif kind == 3:
            inner[at:at] = rng.randbytes(rng.randrange(1, 6))
        elif kind == 4:
            del inner[at : at + rng.randrange(1, 12)]
        elif kind == 5:
            inner[at:at] = inner[at : at + rng.randrange(1, 40)]
        elif kind == 6:
            start = rng.randrange(len(other))
            inner[at : at + 8] = other[start : start + rng.randrange(1, 24)]
        elif kind == 7:
            inner[early:early] = varint(
                rng.choice((0, SIZE - 1, SIZE, SIZE + 1, 2**31 - 1, 2**32, 2**35 - 1))
            )
    return bytes(inner)


def chunk(number: int, seed: int, found: list[Source]) -> dict[str, Any]:
    """Return the verdicts of one chunk: reasons, crashes (source, error, payload), and the peak of memory if traced."""
    rng = random.Random(f"{seed}/{number}")
    reasons: Counter[str] = Counter()
    crashes: list[list[str]] = []
    peak, accumulator = 0, np.zeros(SIZE)
    traced = number % TRACED_EVERY == 0
    if traced:
        tracemalloc.start()
    for _ in range(CHUNK):
        source, other = rng.choice(found), rng.choice(found)
        data = mutated(source, other, rng)
        if traced:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
        try:
            source.decode(data).delta.add_to(accumulator, 0.0)
            reasons["accepted"] += 1
        except PeerError as error:
            reasons[error.reason] += 1
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the finding)
            crashes.append([source.name, repr(error), data.hex()])
        if traced:
            peak = max(peak, tracemalloc.get_traced_memory()[1] - before)
    if traced:
        tracemalloc.stop()
    if not np.isfinite(accumulator).all():
        crashes.append(["accumulator", "not finite", ""])
    return {"reasons": dict(reasons), "crashes": crashes, "peak_bytes": peak}


def run(payloads: int, seed: int, state: Path | None) -> dict[str, Any]:
    """Return the sums over all chunks; progress on stderr."""
    empty: dict[str, Any] = {"seed": seed, "chunks": 0, "reasons": {}, "crashes": [], "peak_bytes": 0}
    done = json.loads(state.read_text()) if state and state.is_file() else empty
    if done["seed"] != seed:
        raise SystemExit(f"fuzz: {state} is of seed {done['seed']}, not {seed}")
    found, wanted, start = sources(), -(-payloads // CHUNK), time.perf_counter()
    first = done["chunks"]
    for number in range(first, wanted):
        one = chunk(number, seed, found)
        done = {
            "seed": seed,
            "chunks": number + 1,
            "reasons": dict(Counter(done["reasons"]) + Counter(one["reasons"])),
            "crashes": (done["crashes"] + one["crashes"])[:20],
            "peak_bytes": max(done["peak_bytes"], one["peak_bytes"]),
        }
        if state:
            spare = state.with_suffix(".new")
            spare.write_text(json.dumps(done))
            spare.replace(state)
        left = (time.perf_counter() - start) / (number + 1 - first) * (wanted - number - 1)
        if number % 10 == 9 or number == wanted - 1:
            count, crashed = (number + 1) * CHUNK, len(done["crashes"])
            print(f"fuzz: {count:,} payloads, {crashed} crashes, about {left:.0f} s left", file=sys.stderr)
    return {
        "payloads": done["chunks"] * CHUNK,
        "sources": len(found),
        "crashes": len(done["crashes"]),
        "first_crashes": done["crashes"][:5],
        "accepted": done["reasons"].get("accepted", 0),
        "peak_bytes": done["peak_bytes"],
        "peak_limit_bytes": MEMORY_LIMIT_BYTES,
        "resident_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "reasons": dict(sorted(done["reasons"].items())),
    }


def main() -> int:
    """Run, print, and say by the exit code whether all was refused properly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--payloads", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state", type=Path, help="what is done is kept here, to go on after a stop")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    figures = run(given.payloads, given.seed, given.state)
    print(json.dumps(figures, indent=2) if given.json else figures)
    return int(figures["crashes"] > 0 or figures["peak_bytes"] > MEMORY_LIMIT_BYTES)


if __name__ == "__main__":
    sys.exit(main())
