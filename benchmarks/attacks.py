"""Hostile vehicles against every rule: 4 of 20 vehicles attack federated rounds of `motion_forecast`.

    python benchmarks/attacks.py [--scenarios FOLDER] [--index dense|rice] [--rounds 10] [--resume FILE] [--json]

All 20 vehicles are one region, though their recordings come from several: unlike data, where robust rules have it
hardest. Honest ones fine-tune from the published vector; all send the `dense` coordinates, 8 bits each, or their own
largest 2 % (`rice`, sign and mean), with error feedback (hostile ones without). `gain` is ADE below constant velocity
on test drives of all, in percent. Attacks know what the honest ones send in the round (omniscient). Cells already in
--resume (JSON lines) are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from fedfleet.codec import payload
from fedfleet.codec.residual import encode_with_feedback
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.config import StrategyConfig
from fedfleet.fleet_server.export import Exported, export
from fedfleet.fleet_server.fold import fold_key
from fedfleet.fleet_server.region_fold import Member, Members, fold_members
from fedfleet.fleet_server.rules import VoidError
from fedfleet.models import scoring
from fedfleet.models.layout import patch
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats, Samples, Task, load
from fedfleet.models.training import fine_tune
from fedfleet.protocol.ids import UpdateId
from fedfleet.scenarios.pack import sumo_pack
from fedfleet.scenarios.partition import partition

VEHICLES, HOSTILE, SHARE = 20, 4, 0.2
RULES: tuple[str, ...] = get_args(get_args(StrategyConfig.model_fields["rule"].annotation)[0])
ATTACKS = ("none", "sign-flip-3", "label-flip", "noise", "alie", "ipm-0.5", "ipm-10")
TRAINING = TrainSettings(learning_rate=0.1, epochs=2)
CODECS = {"dense": (Settings("dense", "int8"), 1.0), "rice": (Settings("rice", "sign", 0.02), 2.0)}
"""By --index: how updates are encoded, and the server learning rate that goes with it."""
Rows = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class World:
    """What all cells share: samples by vehicle (hostile ones first), the server's root set, test samples by region."""

    task: Task
    first: Exported
    vehicles: Sequence[Samples]
    root: Samples
    tests: Mapping[str, Samples]


def main() -> None:
    """Run the cells that are missing and print the table."""
    parser = argparse.ArgumentParser(description="Measure rules against attacks.")
    parser.add_argument("--scenarios", type=Path, default=sumo_pack())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument(
        "--index", choices=CODECS, default="dense", help="coordinates: all, or each vehicle's own"
    )
    parser.add_argument("--resume", type=Path, help="file of finished cells, one JSON object a line")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    done = _finished(given.resume)
    world: tuple[int, World] | None = None
    for seed, attack, rule in product(
        map(int, given.seeds.split(",")), given.attacks.split(","), given.rules.split(",")
    ):
        key = (given.scenarios.name, given.index, given.rounds, seed, rule, attack)
        if key in done:
            continue
        if world is None or world[0] != seed:
            world = (seed, _world(given.scenarios, seed=seed))
        done[key] = run(world[1], rule, attack, index=given.index, rounds=given.rounds, seed=seed)
        _keep(given.resume, key, done[key])
    rows = [dict(zip(KEYS, key, strict=True)) | row for key, row in done.items()]
    print(json.dumps(rows, indent=1) if given.json else table(rows))


KEYS = ("scenarios", "index", "rounds", "seed", "rule", "attack")


def run(world: World, rule: str, attack: str, *, index: str, rounds: int, seed: int) -> dict[str, Any]:
    """Run the rounds of one rule under one attack; its gain in percent, at the end and by region."""
    codec, rate = CODECS[index]
    x, start = world.first.initial, time.perf_counter()
    residuals = [np.zeros_like(x) for _ in world.vehicles]
    config = StrategyConfig.model_validate(
        {"rule": rule, "hostile": SHARE} | ({"root_dir": "."} if rule == "fltrust" else {})
    )
    before, void = _ade(world, x), 0
    for number in range(rounds):
        deltas = [
            _change(world, x, turn, attack=attack, seed=1000 * (number + 100 * seed) + turn)
            for turn in range(VEHICLES)
        ]
        _attack(deltas, attack, seed=number + 1000 * seed)
        members = []
        for turn, (delta, samples) in enumerate(zip(deltas, world.vehicles, strict=True)):
            data, left = encode_with_feedback(
                delta, residuals[turn], codec, steps=1, examples=max(1, len(samples))
            )
            residuals[turn] = left if turn >= HOSTILE else residuals[turn]
            members.append(Member(UpdateId(f"v{turn}", 0, number), data, len(samples)))
        members.sort(key=lambda one: fold_key(one.id))
        root = None
        if rule == "fltrust":
            root = fine_tune(world.task, x, world.root, TRAINING, seed=number).delta
        step = _fold(members, config, root, size=x.size, rate=rate)
        void += step is None
        x = x if step is None else x + step
    after = _ade(world, x)
    mean = {name: total / count for name, (total, count) in after.items()}
    gains = {r: round(100 * (1 - mean[r] * before[r][1] / before[r][0]), 1) for r in mean}
    return {
        "gain": round(100 * (1 - _overall(after) / _overall(before)), 2),
        "regions": gains,
        "void_rounds": void,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _fold(
    members: list[Member], config: StrategyConfig, root: Floats | None, *, size: int, rate: float
) -> Floats | None:
    """Return the server's step; none when the round was void, or gave what is not finite."""
    source = Members(lambda: members, lambda data: payload.decode(data, size=size), size, 10_000)
    try:
        found = fold_members(source, config.fold_rule(root))
    except VoidError:
        return None
    step = (rate * found.mean).astype(np.float32)
    return step if np.isfinite(step).all() else None


def _change(world: World, x: Floats, turn: int, *, attack: str, seed: int) -> Floats:
    """What a vehicle's training finds; the hostile ones with their labels flipped when that is the attack."""
    samples = world.vehicles[turn]
    if turn < HOSTILE and attack in {"alie", "ipm-0.5", "ipm-10"}:
        return np.zeros_like(x)  # made from the others' updates
    if turn < HOSTILE and attack == "label-flip":
        samples = replace(samples, targets=-np.asarray(samples.targets))
    return fine_tune(world.task, x, samples, TRAINING, seed=seed).delta


def _attack(deltas: list[Floats], attack: str, *, seed: int) -> None:
    """Put in place of the first updates what the hostile vehicles send.

    sign-flip-3: -3 δ. label-flip: trained on the opposite way. noise: Gaussian, five times as long as δ. alie (Baruch
    et al. 2019): μ - z σ of the honest, z = Φ⁻¹((n - f - s) / (n - f)), s = ⌊n/2 + 1⌋ - f. ipm-ε (Xie et al. 2020):
    -ε μ of the honest.
    """
    rng = np.random.default_rng(seed)
    honest = np.stack(deltas[HOSTILE:]).astype(np.float64)
    mean = honest.mean(axis=0)
    supporters = VEHICLES // 2 + 1 - HOSTILE
    z = NormalDist().inv_cdf((VEHICLES - HOSTILE - supporters) / (VEHICLES - HOSTILE))
    makers: Mapping[str, Callable[[Rows], Rows]] = {
        "sign-flip-3": lambda mine: -3 * mine,
        "noise": lambda mine: _noise(rng, mine),
        "alie": lambda _: mean - z * honest.std(axis=0),
        "ipm-0.5": lambda _: -0.5 * mean,
        "ipm-10": lambda _: -10 * mean,
    }
    if attack in makers:
        for turn in range(HOSTILE):
            deltas[turn] = makers[attack](deltas[turn].astype(np.float64)).astype(np.float32)


def _noise(rng: np.random.Generator, mine: Rows) -> Rows:
    drawn = rng.normal(size=mine.size)
    scaled: Rows = drawn * (5 * np.linalg.norm(mine) / np.linalg.norm(drawn))
    return scaled


def _world(folder: Path, *, seed: int) -> World:
    task = load("motion_forecast")
    split = partition(task.index(folder).drives, vehicles=VEHICLES, seed=seed)
    order = np.random.default_rng(seed).permutation(sorted(split.vehicles))  # who is hostile is chance
    vehicles = [task.samples(folder, split.vehicles[name][1]) for name in order]
    root = task.samples(folder, [drive for drives in split.validation.values() for drive in drives])
    rows = np.random.default_rng(seed).permutation(len(root))[:500]
    root = root.take(rows)
    tests = {region: task.samples(folder, drives) for region, drives in split.test.items()}
    return World(task, export(task, seed=seed), vehicles, root, tests)


def _ade(world: World, x: Floats) -> dict[str, tuple[float, int]]:
    session = scoring.new_session(patch(world.first.onnx, world.first.layout, x))
    return {
        region: scoring.score(session, world.task, samples)["ADE"] for region, samples in world.tests.items()
    }


def _overall(sums: Mapping[str, tuple[float, int]]) -> float:
    return sum(total for total, _ in sums.values()) / sum(count for _, count in sums.values())


def _finished(file: Path | None) -> dict[tuple[Any, ...], dict[str, Any]]:
    if file is None or not file.exists():
        return {}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {tuple(row.pop(key) for key in KEYS): row for row in rows}


def _keep(file: Path | None, key: tuple[Any, ...], row: dict[str, Any]) -> None:
    line = json.dumps(dict(zip(KEYS, key, strict=True)) | row)
    sys.stderr.write(line + "\n")
    if file is not None:
        with file.open("a") as out:
            out.write(line + "\n")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean gains over seeds as a Markdown table, a line for each rule."""
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    lines = ["| rule | " + " | ".join(attacks) + " | worst |", "|---" * (len(attacks) + 2) + "|"]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        mine = {a: [r["gain"] for r in rows if r["rule"] == rule and r["attack"] == a] for a in attacks}
        means = {attack: float(np.mean(gains)) for attack, gains in mine.items() if gains}
        cells = [f"{means[a]:.1f}" if a in means else "" for a in attacks]
        lines.append(f"| {rule} | " + " | ".join(cells) + f" | {min(means.values()):.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
