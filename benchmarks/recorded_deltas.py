"""Updates of `motion_forecast` recorded from federated training on Argoverse, for figures on real index sets.

    FEDFLEET_DATA=FOLDER python benchmarks/recorded_deltas.py --out FOLDER [--rounds 60] [--density 0.01] [--json]

12 vehicles fine-tune as `fedfleet compare` does by default (60 rounds of one pass, learning rate on a cosine) and send
top 1 %, sign + mean, with error feedback; FedAvg by examples. Of the rounds in `KEPT` two matrices float32[vehicles, M]
are kept: the raw local deltas, and what error feedback wanted to send (delta + residual). Made once per folder.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedfleet.codec.payload import decode
from fedfleet.codec.residual import encode_with_feedback
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.export import export
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import load
from fedfleet.models.training import fine_tune
from fedfleet.scenarios.partition import partition

VERSION = 1
VEHICLES = 12
KEPT = (1, 10, 20, 30, 60)
TRAINING = TrainSettings(
    epochs=1, batch_size=64, learning_rate=0.2, schedule="constant", augment="mirror-speed"
)

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Recorded:
    """The updates of one round, one row per vehicle, and the shapes of the model's tensors in vector order."""

    round: int
    raw: Matrix
    wanted: Matrix
    shapes: tuple[tuple[int, ...], ...]


def data_folder() -> Path | None:
    """Return the folder of Argoverse recordings, or None where FEDFLEET_DATA names none."""
    named = os.environ.get("FEDFLEET_DATA")
    return Path(named) / "argoverse1" if named else None


def record(scenarios: Path, out: Path, *, rounds: int = 60, density: float = 0.01) -> None:
    """Make the recordings in `out`, unless it holds those of the same settings; progress on stderr."""
    settings = {"version": VERSION, "rounds": rounds, "density": density, "training": TRAINING.model_dump()}
    if (out / "meta.json").is_file() and json.loads((out / "meta.json").read_text())["settings"] == settings:
        return
    out.mkdir(parents=True, exist_ok=True)
    task = load("motion_forecast")
    split = partition(task.index(scenarios).drives, vehicles=VEHICLES, seed=1)
    samples = [task.samples(scenarios, drives) for _, drives in split.vehicles.values()]
    first = export(task, seed=1)
    x, codec = first.initial.copy(), Settings(density=density)
    residuals: Matrix = np.zeros((len(samples), x.size), dtype=np.float32)
    start = time.perf_counter()
    for number in range(1, rounds + 1):
        told = TRAINING.model_copy(update={"learning_rate": _rate((number - 1) / rounds)})
        trained = [fine_tune(task, x, each, told, seed=1000 * number + n) for n, each in enumerate(samples)]
        raw = np.stack([one.delta for one in trained])
        wanted, sent = raw + residuals, []
        for n, one in enumerate(trained):
            data, residuals[n] = encode_with_feedback(
                one.delta, residuals[n], codec, steps=one.steps, examples=one.examples
            )
            sent.append(decode(data, size=x.size).delta.dense())
        if number in KEPT:
            np.savez(out / f"round-{number}.npz", raw=raw, wanted=wanted)
        x = x + np.average(sent, axis=0, weights=[one.examples for one in trained]).astype(np.float32)
        loss = np.mean([one.loss_before for one in trained])
        spent = time.perf_counter() - start
        print(f"recording: round {number} of {rounds}, {spent:.0f} s, loss {loss:.4f}", file=sys.stderr)
    kept = [number for number in KEPT if number <= rounds]
    meta = {"settings": settings, "rounds": kept, "shapes": first.layout.shapes}
    (out / "meta.json").write_text(json.dumps(meta))


def _rate(done: float) -> float:
    return TRAINING.model_copy(update={"schedule": "cosine"}).learning_rate_at(done)


def read(folder: Path) -> list[Recorded]:
    """Return what `record` made, by rising round."""
    meta = json.loads((folder / "meta.json").read_text())
    shapes = tuple(tuple(shape) for shape in meta["shapes"])
    found = []
    for number in meta["rounds"]:
        with np.load(folder / f"round-{number}.npz") as arrays:
            found.append(Recorded(number, arrays["raw"], arrays["wanted"], shapes))
    return found


def main() -> None:
    """Record, and tell what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/recorded_deltas"))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    scenarios = data_folder()
    told: dict[str, Any] = {"skipped": "FEDFLEET_DATA is not set: no recorded data"}
    if scenarios is not None:
        record(scenarios, given.out, rounds=given.rounds, density=given.density)
        told = {"rounds": [one.round for one in read(given.out)], "folder": str(given.out)}
    print(json.dumps(told) if given.json else told)


if __name__ == "__main__":
    main()
