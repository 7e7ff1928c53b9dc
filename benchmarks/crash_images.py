"""Power cuts: what the store process wrote and synced is recorded; images that lost what was not synced are opened.

``python benchmarks/crash_images.py --json [--images 2000]``: needs strace. Keys: ``images``, ``opened`` (must be all),
``lost`` (acknowledged updates that an image lacked; must be 0), ``acknowledged`` (their sum over the images),
``writes``, ``syncs``, ``folder_syncs``, ``failures`` (the first ten). The machinery is that of the tests
(``tests/crash_images.py``).
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from crash_images import examine, record

MEMORY = Path("/dev/shm")  # noqa: S108 - images are many and short-lived
SHOWN = 10


def heard(count: int) -> None:
    """Say on stderr how far it is."""
    if count % 100 == 0:
        sys.stderr.write(f"crash images: {count}\n")


def measure(folder: Path, *, images: int, batches: int, seed: int) -> dict[str, Any]:
    """Record, rebuild, open, compare."""
    begun = time.monotonic()
    ops = record(folder, batches=batches)
    found = examine(ops, folder, images=images, seed=seed, heard=heard)
    return {
        "images": found.images,
        "opened": found.opened,
        "lost": found.lost,
        "acknowledged": found.acknowledged,
        "writes": found.kinds["write"],
        "syncs": found.kinds["sync"],
        "folder_syncs": found.kinds["sync-folder"],
        "failures": found.failures[:SHOWN],
        "seconds": round(time.monotonic() - begun, 1),
    }


def main() -> int:
    """Print the figures; 1 when an image did not open or lacked something."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000, help="images to rebuild")
    parser.add_argument("--batches", type=int, default=160, help="transactions of the store process")
    parser.add_argument("--seed", type=int, default=1, help="seed of what is lost")
    parser.add_argument("--json", action="store_true", help="print JSON")
    told = parser.parse_args()
    place = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fedfleet-images-", dir=place) as folder:
        figures = measure(Path(folder), images=told.images, batches=told.batches, seed=told.seed)
    if told.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:14} {value}")
    return 0 if figures["opened"] == figures["images"] and not figures["failures"] else 1


if __name__ == "__main__":
    sys.exit(main())
