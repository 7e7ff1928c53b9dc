"""How fast recordings are read, and in how much memory.

    FEDFLEET_DATA=FOLDER python benchmarks/readers.py [--json] [--copies 8]

- `argoverse1_per_s`: scenarios of `FOLDER/argoverse1` per second of one core, as `Scenario`;
- `parquet_per_s`: the same scenarios, converted to our tables, as checked offset arrays (positions, frames, offsets);
  `parquet_scenarios_per_s`: as `Scenario`;
- `rss_mb`: peak memory of a process that goes through the tables; `rss_mb_copies`: through a folder of so many copies
  of them, every one another region;
- `csv_2gb_s`, `csv_2gb_rss_mb`: going through 2 GB of NGSIM rows that are made while they are read.

Every figure is of a process of its own; seconds are those of its processor time, which other work does not add to.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TWO_GB = 2 * 10**9


def main() -> None:
    """Measure and print, or be one of the processes that measure."""
    parser = argparse.ArgumentParser(description="Measure the readers of recordings.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--copies", type=int, default=8, help="copies in the larger folder")
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(_timed(PARTS[given.part], given.folder)))
        return
    data = os.environ.get("FEDFLEET_DATA")
    if not data:
        sys.exit("FEDFLEET_DATA is not set: expected the folder of recorded data")
    report = measure(Path(data) / "argoverse1", copies=given.copies)
    print(json.dumps(report, indent=1) if given.json else "\n".join(f"{k}: {v}" for k, v in report.items()))


def measure(recordings: Path, *, copies: int) -> dict[str, float]:
    """All figures, one process after the other."""
    with tempfile.TemporaryDirectory() as name:
        tables, more = Path(name) / "tables", Path(name) / "more"
        argoverse = _run("scenarios", recordings)
        made = _run("convert", recordings, out=tables)
        more.mkdir()
        _copy(tables, more, copies)
        arrays, scenarios = _run("arrays", tables), _run("scenarios", tables)
        many = _run("scenarios", more)
    csv = _run("csv", Path())
    return {
        "scenarios": argoverse["count"],
        "argoverse1_per_s": round(argoverse["count"] / argoverse["seconds"], 1),
        "convert_per_s": round(made["count"] / made["seconds"], 1),
        "parquet_per_s": round(arrays["count"] / arrays["seconds"], 1),
        "parquet_scenarios_per_s": round(scenarios["count"] / scenarios["seconds"], 1),
        "rss_mb": round(scenarios["rss_mb"], 1),
        "copies": copies,
        "rss_mb_copies": round(many["rss_mb"], 1),
        "argoverse1_rss_mb": round(argoverse["rss_mb"], 1),
        "csv_2gb_s": round(csv["seconds"], 1),
        "csv_2gb_rss_mb": round(csv["rss_mb"], 1),
    }


def _scenarios(folder: Path) -> int:
    from fedfleet.scenarios.reading import stream

    return sum(1 for _ in stream(folder))


def _convert(folder: Path) -> int:
    from fedfleet.scenarios.convert import convert

    made = convert(folder, Path(os.environ["READERS_OUT"]))
    return sum(int(row["scenarios"]) for row in made.regions.values())


def _arrays(folder: Path) -> int:
    from fedfleet.scenarios.table import Table

    count = points = 0
    for path in sorted(folder.glob("*.parquet")):
        table = Table(path)
        for group in range(len(table.group_rows)):
            arrays = table.arrays(group)
            points += len(arrays.xy)
            _ = arrays.frame
            count += len(arrays.scenario_offsets) - 1
    print(f"{points} positions", file=sys.stderr)
    return count


class _Rows(io.RawIOBase):
    """NGSIM rows of a location that nobody asks for, and one in 5,000 of another; so many bytes of them."""

    head = b"Vehicle_ID,Frame_ID,Global_Time,Global_X,Global_Y,Location\n"

    def __init__(self, size: int) -> None:
        lines = [
            b"%d,%d,%d,6451137.641,1873344.962,%s\n" % (i % 3000, i, i, b"us-101" if i % 5000 else b"i-80")
            for i in range(50_000)
        ]
        self.block, self.size, self.at = b"".join(lines), size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, out: bytearray) -> int:  # type: ignore[override]
        place = (self.at - len(self.head)) % len(self.block)
        start = self.head[self.at :] if self.at < len(self.head) else self.block[place:]
        piece = start[: min(len(out), self.size - self.at)]
        out[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)


def _csv(_: Path) -> int:
    from fedfleet.scenarios.csv_stream import Block, Names, collect
    from fedfleet.scenarios.members import Stream

    def keep(block: Block) -> NDArray[np.bool_]:
        place, names = block.texts["Location"]
        return place == (names.index("i-80") if "i-80" in names else -1)

    whole = len(_Rows.head) + TWO_GB // len(_Rows(0).block) * len(_Rows(0).block)
    stream = Stream("made.csv", "made.csv", whole, lambda: io.BufferedReader(_Rows(whole), 2**20))
    columns = {"Vehicle_ID": "whole", "Global_Time": "whole", "Global_X": "number", "Location": "text"}
    return len(collect(stream, columns, {"Location": Names()}, keep=keep)["Global_X"])


PARTS: dict[str, Callable[[Path], int]] = {
    "scenarios": _scenarios,
    "convert": _convert,
    "arrays": _arrays,
    "csv": _csv,
}


def _timed(part: Callable[[Path], int], folder: Path) -> dict[str, float]:
    import pyarrow.csv
    import pyarrow.parquet  # noqa: F401 - imports are not what is measured

    import fedfleet.scenarios.convert
    import fedfleet.scenarios.table  # noqa: F401

    start = time.process_time()
    count = part(folder)
    seconds = time.process_time() - start
    return {
        "count": count,
        "seconds": seconds,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _run(part: str, folder: Path, *, out: Path | None = None) -> dict[str, float]:
    print(f"{part} {folder}", file=sys.stderr)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "READERS_OUT": str(out or "")}
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, check=True, text=True, timeout=900
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _copy(tables: Path, out: Path, copies: int) -> None:
    """The same tables again and again, each time as other regions and with other ids."""
    from fedfleet.scenarios.reading import read
    from fedfleet.scenarios.records import Scenario
    from fedfleet.scenarios.table import TableWriter

    for path in sorted(tables.glob("*.parquet")):
        found = [each for each in read(tables) if each.region == path.stem]
        for copy in range(copies):
            with TableWriter(out / f"{path.stem}-{copy}.parquet", level=1) as table:
                for s in found:
                    name, region = f"{s.scenario_id}-{copy}", f"{s.region}-{copy}"
                    table.add(
                        Scenario(
                            name,
                            region,
                            s.drive,
                            s.rate_hz,
                            s.t0_s,
                            s.track_ids,
                            s.kinds,
                            s.xy.copy(),
                            s.types,
                        )
                    )
        print(f"{copies} × {path.stem}", file=sys.stderr)


if __name__ == "__main__":
    main()
