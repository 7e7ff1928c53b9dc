"""Sizes and speeds of update payloads, on one core; every ratio is between figures of this same run.

    python benchmarks/codec.py [--json] [--seconds 6]

Updates are normal noise, so their strongest coordinates form a uniform random set: the hardest case for the index
coder. The dense opponent reads a float32 vector with np.load from a cached file and adds it to the accumulator.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedfleet.codec import payload
from fedfleet.codec.entropy import pack_indices
from fedfleet.codec.select import top_k
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import varint

MILLION = 1_000_000
TURNS = 10

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


def index_over_bound_pct(delta: npt.NDArray[np.float32], count: int) -> float:
    """Return by how many percent the index bytes, without the count k, exceed log2 C(M, k)."""
    size = delta.size
    ln_sets = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
    bits = 8 * (len(pack_indices(top_k(delta, count), size=size)[1]) - len(varint(count)))
    return 100.0 * (bits * math.log(2) / ln_sets - 1.0)


def measure(seconds: float, folder: Path) -> dict[str, float]:
    """Return every figure; `folder` takes the dense opponent's file."""
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
        "index_over_bound_pct": round(index_over_bound_pct(delta, MILLION // 100), 3),
        "decode_add_per_s_1m": round(sparse_rate),
        "x_dense_1m": round(sparse_rate / dense_rate, 2),
        "decode_add_per_s_10m": round(large_rate),
        "encode_ms_1m": round(1000 / encode_rate, 3),
        "encode_memcpys_1m": round(copy_rate / encode_rate, 1),
    }


def void(_: object) -> None:
    """Drop a result."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=6.0, help="measuring time in all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments.seconds, Path(folder))
    if arguments.json:
        json.dump(figures, sys.stdout, indent=2)
        print()
        return
    for key, figure in figures.items():
        print(f"{key:22} {figure:>12,}  {MEANING[key]}")


if __name__ == "__main__":
    main()
