"""Sizes and speeds of update payloads, on one core; every ratio is between figures of this same run.

    [FEDFLEET_DATA=FOLDER] python benchmarks/codec.py [--json] [--seconds 6] [--recorded out/recorded_deltas]

Updates are normal noise, so their strongest coordinates form a uniform random set: the hardest case for the index
coder. The dense opponent reads a float32 vector with np.load from a cached file and adds it to the accumulator.
`real_*` are of updates of `motion_forecast` on Argoverse, made by recorded_deltas.py on first use; without
FEDFLEET_DATA they are left out, and `skipped` says so.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import recorded_deltas

from fedfleet.codec import payload
from fedfleet.codec.entropy import ALL, NAMES, pack_indices
from fedfleet.codec.entropy_rows import row_length
from fedfleet.codec.parts import Part, Parts
from fedfleet.codec.select import top_k
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import varint
from fedfleet.protocol import update
from fedfleet.protocol.envelope import Kind, seal
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.signing import SigningKey
from fedfleet.protocol.update import Manifest

MILLION = 1_000_000
TURNS = 10
ROUND = 30  # of the recordings, for real_*

MEANING = {
    "bytes_1m_1pct_sign": "payload of 1 M parameters, top 1 %, sign + mean, with header",
    "bytes_1m_01pct_sign": "the same with top 0.1 %",
    "ratio_1m_1pct_sign": "dense float32 bytes over those of top 1 %",
    "index_over_bound_pct": "index bytes at 1 % (M and k apart, as in the bound) above log2 C(M, k), in percent",
    "decode_add_per_s_1m": "decode and add, updates of top 1 % of 1 M per second",
    "x_dense_1m": "that rate over np.load + add of dense float32",
    "decode_add_per_s_10m": "decode and add, updates of top 1 % of 10 M per second",
    "encode_ms_1m": "encode with selection, milliseconds",
    "encode_memcpys_1m": "that time in copies of the vector",
    "envelope_bytes": "what manifest, envelope and signature add to a payload",
    "real_raw_ratio": "index bits at 1 % over log2 C(M, k), raw local deltas of round 30",
    "real_ef_ratio": "the same with error feedback",
    "real_raw_payload_bytes": "mean payload of those, sign + mean, raw",
    "real_ef_payload_bytes": "the same with error feedback",
    "real_encode_ms": "encode of those, milliseconds (M = 97,840)",
    "real_decode_ms": "their decode, milliseconds",
}


def rates_per_s(actions: list[Callable[[], None]], seconds: float) -> list[float]:
    """Return the median rate of each action, measured in turns so that all see the same machine."""
    share = seconds / (TURNS * len(actions))
    rates: list[list[float]] = [[] for _ in actions]
    for _ in range(TURNS):
        for action, found in zip(actions, rates, strict=True):
            done, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < share or not done:
                action()
                done += 1
            found.append(done / spent if spent else math.inf)
    return [statistics.median(found) for found in rates]


def noise(size: int) -> npt.NDArray[np.float32]:
    """Return standard normal float32[size], the same each time."""
    return np.random.default_rng(1).standard_normal(size, dtype=np.float32)


def decode_add(data: bytes, size: int) -> Callable[[], None]:
    """Return an action that decodes the payload and adds it to one accumulator float64[size]."""
    accumulator = np.zeros(size)

    def action() -> None:
        payload.decode(data, size=size).delta.add_to(accumulator, 20.0)

    return action


def load_add(path: Path, size: int) -> Callable[[], None]:
    """Return an action that loads a dense float32 vector and adds it."""
    accumulator = np.zeros(size)

    def action() -> None:
        np.add(accumulator, np.load(path), out=accumulator)

    return action


def bound_bits(size: int, count: int) -> float:
    """Return log2 C(size, count)."""
    ln_sets = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
    return ln_sets / math.log(2)


def index_over_bound_pct(delta: npt.NDArray[np.float32], count: int) -> float:
    """Return by how many percent the index bytes, without the count k, exceed log2 C(M, k)."""
    coded = pack_indices(top_k(delta, count), size=delta.size)[1]
    bits = 8 * (len(coded) - len(varint(count)))
    return 100.0 * (bits / bound_bits(delta.size, count) - 1.0)


def envelope_bytes(payload_bytes: bytes) -> int:
    """Return what is sent of an update beside its payload, in one message."""
    vehicle = "vehicle-0001"
    manifest = Manifest(UpdateId(vehicle, 1, 30), "motion-forecast", "region-1", round=30, base_version=30)
    key = SigningKey(bytes(32))
    body = update.pack(manifest, payload_bytes)
    return len(seal(body, key, kind=Kind.UPDATE, sender=vehicle, fleet="fleet")) - len(payload_bytes)


def measure(seconds: float, folder: Path) -> dict[str, Any]:
    """Return every figure that needs no data; `folder` takes the dense opponent's file."""
    delta = noise(MILLION)
    percent = payload.encode(delta, Settings(), steps=1000, examples=10_000)
    thousandth = payload.encode(delta, Settings(density=0.001), steps=1000, examples=10_000)
    large = payload.encode(noise(10 * MILLION), Settings(), steps=1000, examples=10_000)
    np.save(folder / "dense.npy", delta)
    copy = np.empty_like(delta)
    sparse_rate, dense_rate, large_rate, encode_rate, copy_rate = rates_per_s(
        [
            decode_add(percent, MILLION),
            load_add(folder / "dense.npy", MILLION),
            decode_add(large, 10 * MILLION),
            lambda: void(payload.encode(delta, Settings(), steps=1000, examples=10_000)),
            lambda: np.copyto(copy, delta),
        ],
        seconds,
    )
    return {
        "bytes_1m_1pct_sign": len(percent),
        "bytes_1m_01pct_sign": len(thousandth),
        "ratio_1m_1pct_sign": round(4 * MILLION / len(percent), 1),
        "envelope_bytes": envelope_bytes(percent),
        "index_over_bound_pct": round(index_over_bound_pct(delta, MILLION // 100), 3),
        "decode_add_per_s_1m": round(sparse_rate),
        "x_dense_1m": round(sparse_rate / dense_rate, 2),
        "decode_add_per_s_10m": round(large_rate),
        "encode_ms_1m": round(1000 / encode_rate, 3),
        "encode_memcpys_1m": round(copy_rate / encode_rate, 1),
    }


def void(_: object) -> None:
    """Drop a result."""


def real_figures(folder: Path) -> dict[str, Any]:
    """Return the figures of recorded updates; without data, what is skipped."""
    scenarios = recorded_deltas.data_folder()
    if scenarios is None:
        return {"skipped": "real_*: FEDFLEET_DATA is not set, no recorded data"}
    recorded_deltas.record(scenarios, folder)
    recorded = recorded_deltas.read(folder)
    middle = next(one for one in recorded if one.round == ROUND)
    ratios = {one.round: [figure["ratio"] for figure in both(one)] for one in recorded}
    raw, fed = both(middle)
    return {
        "real_raw_ratio": raw["ratio"],
        "real_ef_ratio": fed["ratio"],
        "real_raw_payload_bytes": raw["payload_bytes"],
        "real_ef_payload_bytes": fed["payload_bytes"],
        "real_ratio_by_round": ratios,
        "real_ratio_by_mode": {
            NAMES[mode]: [figure["ratio"] for figure in both(middle, (mode,))] for mode in (*ALL,)
        },
        "real_encode_ms": fed["encode_ms"],
        "real_decode_ms": fed["decode_ms"],
    }


def both(
    one: recorded_deltas.Recorded, modes: tuple[int, ...] = ALL
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the figures of the raw deltas, and of those with error feedback."""
    print(f"recorded updates: round {one.round}, {len(modes)} index modes", file=sys.stderr)
    return real(one.raw, one.shapes, modes), real(one.wanted, one.shapes, modes)


def real(
    updates: npt.NDArray[np.float32], shapes: tuple[tuple[int, ...], ...], modes: tuple[int, ...]
) -> dict[str, float]:
    """Return the mean cost of each vehicle's update: index bytes with k and all that decoding needs, over the bound."""
    rows = tuple((math.prod(shape) // row_length(shape), row_length(shape)) for shape in shapes)
    spans = np.cumsum([0, *(math.prod(shape) for shape in shapes)]).tolist()
    size = updates.shape[1]
    part = Part("body", tuple(itertools.pairwise(spans)), columns=tuple(columns for _, columns in rows))
    parts = Parts(size, (part,))
    bits, sent, encode_s, decode_s = [], [], [], []
    for each in updates:
        chosen = top_k(each, Settings().count(size))
        bits.append(
            8
            * len(pack_indices(chosen, size=size, modes=modes, rows=rows)[1])
            / bound_bits(size, chosen.size)
        )
        start = time.perf_counter()
        data = payload.encode(each, Settings(), steps=30, examples=1000, parts=parts)
        middle = time.perf_counter()
        payload.decode(data, size=size, parts=parts)
        decode_s.append(time.perf_counter() - middle)
        encode_s.append(middle - start)
        sent.append(len(data))
    return {
        "ratio": round(statistics.mean(bits), 4),
        "payload_bytes": round(statistics.mean(sent)),
        "encode_ms": round(1000 * statistics.median(encode_s), 2),
        "decode_ms": round(1000 * statistics.median(decode_s), 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="measuring time in all, without recordings"
    )
    parser.add_argument(
        "--recorded", type=Path, default=Path("out/recorded_deltas"), help="where recordings are kept"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("noise: sizes and speeds", file=sys.stderr)
        figures = measure(arguments.seconds, Path(folder))
    figures |= real_figures(arguments.recorded)
    if arguments.json:
        json.dump(figures, sys.stdout, indent=2)
        print()
        return
    for key, figure in figures.items():
        print(
            f"{key:22} {figure:>12,}  {MEANING[key]}"
            if isinstance(figure, int | float)
            else f"{key}: {figure}"
        )


if __name__ == "__main__":
    main()
