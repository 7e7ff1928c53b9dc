"""Regional heads against one model for all, region by region, on recordings of regions that differ.

    python benchmarks/regions.py [--scenarios FOLDER] [--rounds 40] [--seeds 1,2,3] [--arms NAME,…] [--json]

The server's own fold, merge, strategy, downlink and gate (`model_state.propose`); vehicles train from their region's
model and send sparse updates with error feedback. All arms have the same split, rounds and training, and nothing is
tuned for one of them. ADE in metres on each region's test drives after the last round; the arm named `best_arm` has
the lowest mean ADE on validation drives. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedfleet.codec.payload import decode
from fedfleet.codec.residual import encode_with_feedback
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server import heads
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.export import Exported, export
from fedfleet.fleet_server.fold import Aggregate, fold
from fedfleet.fleet_server.model_state import Candidate, Graph, propose
from fedfleet.fleet_server.store_models import Model, first_model
from fedfleet.fleet_server.validation import Validation
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats, Samples, Task, load
from fedfleet.models.training import fine_tune
from fedfleet.protocol.ids import UpdateId
from fedfleet.scenarios.pack import sumo_pack
from fedfleet.scenarios.partition import partition

ONE = "one-model"
ARMS: Mapping[str, tuple[str, ...]] = {
    ONE: (),
    "norms-and-biases": ("*norm*", "*.bias"),
    "last-layer": ("leave*",),
    "all-but-first-layer": ("hidden*", "leave*"),
    "a-model-each": ("*",),
}
VEHICLES = 12


@dataclass(frozen=True, eq=False)
class Data:
    """Each vehicle's region and samples, and the validation and test samples of each region."""

    vehicles: Mapping[str, tuple[str, Samples]]
    validation: Mapping[str, Samples]
    tests: Mapping[str, Samples]


def read(task: Task, folder: Path, *, seed: int) -> Data:
    """Deal the drives of a folder out by a seed."""
    split = partition(task.index(folder).drives, vehicles=VEHICLES, seed=seed)
    own = {name: (region, task.samples(folder, drives)) for name, (region, drives) in split.vehicles.items()}
    parts = [
        {region: task.samples(folder, drives) for region, drives in part.items()}
        for part in (split.validation, split.test)
    ]
    return Data(own, *parts)


def configuration(regions: list[str], patterns: tuple[str, ...], rounds: int) -> ServerConfig:
    """Return the server's configuration, with its defaults but for the learning rate's course."""
    return ServerConfig.model_validate(
        {
            "fleet": "regions",
            "regions": tuple(regions),
            "data_dir": "unused",
            "validation_dir": "unused",
            "rounds": {"total": rounds},
            "learning_rate_schedule": "cosine",
            "regional_heads": patterns,
            "gate": {"tolerance": 1.0},
        }
    )


def start(first: Exported, config: ServerConfig) -> Model:
    """Return version 0, with heads where they are configured."""
    model = first_model(first.initial, {}, onnx=b"", full_sha256="", now_s=0.0)
    if not config.regional_heads:
        return model
    found = heads.begin(
        config.regions,
        vector=model.vector,
        error=model.error,
        optimizer={},
        parts=first.layout.parts,
        version=0,
    )
    return replace(model, regions=found)


def published(model: Model, made: Candidate) -> Model:
    """Return the model after an accepted candidate."""
    moved = {
        region: replace(
            model.regions[region],
            vector=one.step.x_next,
            error=one.step.error_next,
            optimizer=one.optimizer,
        )
        for region, one in made.heads.items()
    }
    return replace(
        model,
        version=model.version + 1,
        vector=made.step.x_next,
        error=made.step.error_next,
        optimizer=made.optimizer,
        regions=moved,
    )


def base_of(model: Model, region: str) -> Floats:
    """Return what vehicles of a region train from."""
    return model.regions[region].vector if model.regions else model.vector


def run(task: Task, data: Data, patterns: tuple[str, ...], *, rounds: int, seed: int) -> dict[str, Any]:
    """Run the rounds of one arm; ADE by region on test and validation drives at the end."""
    first = export(task, seed=seed, head=patterns)
    config = configuration(sorted(data.tests), patterns, rounds)
    graph, validation = Graph(first.onnx, first.layout), Validation(task, data.validation, 1024)
    model, parts, sent = start(first, config), first.layout.parts, 0
    codec = Settings(config.codec.index, config.codec.value, config.codec.density)
    left = {vehicle: np.zeros_like(first.initial) for vehicle in data.vehicles}
    for number in range(1, rounds + 1):
        training = TrainSettings.model_validate(config.training_of(number))
        updates: dict[str, list[Any]] = {region: [] for region in config.regions}
        for turn, (vehicle, (region, samples)) in enumerate(data.vehicles.items()):
            trained = fine_tune(task, base_of(model, region), samples, training, seed=1000 * number + turn)
            told = {"steps": trained.steps, "examples": trained.examples}
            payload, left[vehicle] = encode_with_feedback(
                trained.delta, left[vehicle], codec, parts=parts, **told
            )
            sent += len(payload)
            change = decode(payload, size=parts.size, parts=parts).delta
            updates[region].append((UpdateId(vehicle, 0, number), change, float(trained.examples)))
        folded: dict[str, Aggregate] = {
            region: fold(each, size=parts.size) for region, each in updates.items() if each
        }
        made = propose(model, folded, config=config, graph=graph, validation=validation).candidate
        model = model if made is None else published(model, made)
    files = {region: graph.file(base_of(model, region)) for region in config.regions}
    return {
        "test": _means(Validation(task, data.tests, 1024).scores_of(files)),
        "validation": _means(validation.scores_of(files)),
        "update_bytes": round(sent / (rounds * len(data.vehicles))),
        "head_parameters": int(parts.coordinates("head").size),
    }


def _means(scores: Mapping[str, Mapping[str, tuple[float, int]]]) -> dict[str, float]:
    return {region: round(each["ADE"][0] / each["ADE"][1], 4) for region, each in scores.items()}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over seeds by arm and region, and the gain over one model in percent, seed by seed."""
    found: dict[str, Any] = {}
    one = {row["seed"]: row["test"] for row in rows if row["arm"] == ONE}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        gains = {
            region: [round(100 * (1 - row["test"][region] / one[row["seed"]][region]), 1) for row in mine]
            for region in mine[0]["test"]
            if one
        }
        found[arm] = {
            "test": {r: round(statistics.mean(row["test"][r] for row in mine), 3) for r in mine[0]["test"]},
            "gain_percent": gains,
            "better_in": f"{sum(g > 0 for each in gains.values() for g in each)} of {sum(map(len, gains.values()))}",
            "validation": round(statistics.mean(v for row in mine for v in row["validation"].values()), 4),
            "head_parameters": mine[0]["head_parameters"],
            "update_bytes": mine[0]["update_bytes"],
        }
    return found


def _finished(file: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {str(line["key"]): line["row"] for line in lines}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenarios", type=Path, default=sumo_pack(), help="recordings (the shipped pack)")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--rows", type=Path, help="file of finished runs: added to, and not done again")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    given = parser.parse_args()
    task, rows = load("motion_forecast"), list[dict[str, Any]]()
    done = {} if given.rows is None or not given.rows.exists() else _finished(given.rows)
    for seed in map(int, given.seeds.split(",")):
        for arm in given.arms.split(","):
            began = time.perf_counter()
            key = [str(given.scenarios.name), given.rounds, seed, arm]
            if (known := done.get(str(key))) is None:
                data = read(task, given.scenarios, seed=seed)
                known = {
                    "arm": arm,
                    "seed": seed,
                    **run(task, data, ARMS[arm], rounds=given.rounds, seed=seed),
                }
                if given.rows is not None:
                    with given.rows.open("a") as file:
                        file.write(json.dumps({"key": key, "row": known}) + "\n")
            rows.append(known)
            sys.stderr.write(f"seed {seed} {arm}: {known['test']} in {time.perf_counter() - began:.0f} s\n")
    found = summary(rows)
    best = min(found, key=lambda arm: found[arm]["validation"])
    told = {"rounds": given.rounds, "seeds": given.seeds, "best_arm": best, "arms": found}
    print(json.dumps(told, indent=None if given.json else 1))


if __name__ == "__main__":
    main()
