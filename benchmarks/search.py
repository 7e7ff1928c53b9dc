"""Settings of the arms of `fedfleet compare`, searched with the same effort for each and judged on validation only.

    FEDFLEET_DATA=FOLDER python benchmarks/search.py --json [--scenarios DIR] [--splits 11,12] [--trials 6]

Each arm tries two learning rates, a large one and 0.4 of it, each with every augmentation. A trial is a whole run of
the arm by the functions of the command, with fewer passes; its value is the ADE of AGENT tracks on the validation
drives that also chose its pass. Test drives are never looked at. The results are lines of a file, from which it
resumes.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from fedfleet.cli import compare_federation
from fedfleet.cli.compare_arms import Judged, centralised, judge, mean, on_site
from fedfleet.cli.compare_data import Data, load
from fedfleet.cli.compare_settings import ArmSettings
from fedfleet.cli.config import Settings
from fedfleet.cli.launch import server_dir
from fedfleet.fleet_server import initial
from fedfleet.fleet_server.initial import Export

ARMS: Final = ("centralised", "on_site", "federated")
LARGE: Final = {"centralised": 0.05, "on_site": 0.15, "federated": 0.2}
"""Learning rates that earlier searches without augmentation found."""
TRIALS: Final = tuple((factor, kind) for kind in ("none", "mirror", "mirror-speed") for factor in (1.0, 0.4))
"""Factor on the arm's large learning rate, and augmentation."""

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Split:
    """What the trials of a split share; `settings.work_dir` is copied for each federated one."""

    settings: Settings
    data: Data
    first: Export


def main() -> None:
    """Search and print; without FEDFLEET_DATA and --scenarios there is nothing to search, and that is said."""
    parser = argparse.ArgumentParser(description="Search settings of the arms on validation drives.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--scenarios", type=Path, help="folder of recordings; argoverse1 of FEDFLEET_DATA")
    parser.add_argument("--trials", type=int, default=len(TRIALS), help="settings per arm, from the first on")
    parser.add_argument("--splits", default="11,12", help="seeds of the splits, separated by commas")
    parser.add_argument("--epochs", type=int, default=24, help="passes of each trial over the training data")
    parser.add_argument("--resume", type=Path, default=Path("out/search.jsonl"), help="file of results")
    parser.add_argument("--seconds", type=float, default=3600.0, help="start no trial after so many seconds")
    told = parser.parse_args()
    data = os.environ.get("FEDFLEET_DATA")
    if told.scenarios is None and not data:
        print(json.dumps({"skipped": "needs FEDFLEET_DATA or --scenarios"}))
        return
    told.scenarios = told.scenarios or Path(str(data)) / "argoverse1"
    told.trials = max(1, min(told.trials, len(TRIALS)))
    result = summary(list(search(told)), trials=told.trials)
    print(json.dumps(result, indent=1) if told.json else table(result))


def search(told: argparse.Namespace) -> Iterator[Row]:
    """Yield the results of all trials, old and new; the new ones are appended to the file as they come."""
    told.resume.parent.mkdir(parents=True, exist_ok=True)
    lines = told.resume.read_text(encoding="utf-8").splitlines() if told.resume.exists() else []
    known = {_key(row): row for row in map(json.loads, lines)}
    end = time.monotonic() + told.seconds
    for seed in map(int, told.splits.split(",")):
        with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
            structlog.configure(logger_factory=structlog.WriteLoggerFactory(log))
            split = _split(told.scenarios, Path(folder) / "work", seed=seed)
            same = {"data": split.data.sha256, "split": seed, "epochs": told.epochs}
            for factor, kind in TRIALS[: told.trials]:
                for arm in ARMS:
                    trial = {**same, "arm": arm, **_chosen(_arms(arm, factor, kind), arm)}
                    row = known.get(_key(trial))
                    if row is None:
                        if time.monotonic() > end:
                            return
                        row = _measured(split, trial, _arms(arm, factor, kind, epochs=told.epochs))
                        with told.resume.open("a", encoding="utf-8") as stream:
                            stream.write(json.dumps(row) + "\n")
                    yield row


def summary(rows: list[Row], *, trials: int) -> dict[str, Any]:
    """Return each arm's settings with their mean over the splits that are complete in every arm, and the best."""
    seeds = sorted({row["split"] for row in rows})
    whole = [s for s in seeds if sum(row["split"] == s for row in rows) == trials * len(ARMS)]
    arms: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for row in rows:
        if whole and row["split"] == whole[0]:
            own = ("arm", "learning_rate", "augment")
            same = [one for one in rows if one["split"] in whole and all(one[k] == row[k] for k in own)]
            values = {str(one["split"]): one["validation_ade"] for one in same}
            seconds = statistics.mean(one["seconds"] for one in same)
            arms[row["arm"]].append(
                {
                    "learning_rate": row["learning_rate"],
                    "augment": row["augment"],
                    "ade": statistics.mean(values.values()),
                    "by_split": values,
                    "seconds": round(seconds, 1),
                }
            )
    best = {arm: min(found, key=lambda one: float(one["ade"])) for arm, found in arms.items() if found}
    unfinished = [seed for seed in seeds if seed not in whole]
    return {"splits": whole, "unfinished_splits": unfinished, "arms": arms, "best": best}


def table(result: Mapping[str, Any]) -> str:
    """Return the summary as a Markdown table, the best of each arm marked."""
    lines = ["| arm | learning rate | augment | validation ADE (m) | by split | s |", "|" + " --- |" * 6]
    for arm, found in result["arms"].items():
        for one in found:
            mark = " **best**" if one == result["best"][arm] else ""
            each = ", ".join(f"{seed}: {value:.4f}" for seed, value in one["by_split"].items())
            rate, kind, value = one["learning_rate"], one["augment"], one["ade"]
            lines.append(f"| {arm} | {rate:g} | {kind} | {value:.4f}{mark} | {each} | {one['seconds']:.0f} |")
    return "\n".join(lines)


def _split(scenarios: Path, work: Path, *, seed: int) -> Split:
    """Prepare a split; its test drives are put out of reach: the arms are judged on validation."""
    plain = Settings()
    settings = plain.model_copy(
        update={"work_dir": work, "data": plain.data.model_copy(update={"seed": seed})}
    )
    data = load(settings, scenarios, None)
    folder = server_dir(settings)
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / ".export.new"
    command = initial.export_command(settings.task, seed=seed, out=fresh)
    first = initial.prepare_export(folder / "export", command, out=fresh)
    return Split(settings, replace(data, test=data.validation), first)


def _arms(arm: str, factor: float, kind: str, *, epochs: int = 24) -> ArmSettings:
    plain, rate = ArmSettings(epochs=epochs), round(LARGE[arm] * factor, 6)
    if arm == "federated":
        training = {**plain.federated.training, "learning_rate": rate, "augment": kind}
        return plain.model_copy(update={arm: plain.federated.model_copy(update={"training": training})})
    changed = {"learning_rate": rate, "augment": kind}
    return plain.model_copy(update={arm: getattr(plain, arm).model_copy(update=changed)})


def _chosen(arms: ArmSettings, arm: str) -> dict[str, Any]:
    training = arms.federated.training if arm == "federated" else dict(getattr(arms, arm))
    return {name: training[name] for name in ("learning_rate", "augment")}


def _measured(split: Split, trial: Row, arms: ArmSettings) -> Row:
    print(
        f"split {trial['split']} {trial['arm']} {trial['learning_rate']:g} {trial['augment']}",
        file=sys.stderr,
    )
    begun = time.monotonic()
    found = _RUNS[trial["arm"]](split, arms)
    value = mean(found.judged, split.data.task.metrics[0])
    seconds = time.monotonic() - begun
    print(f"  {value:.4f} m, {seconds:.0f} s", file=sys.stderr, flush=True)
    return {**trial, "validation_ade": value, "seconds": seconds}


def _centralised(split: Split, arms: ArmSettings) -> Judged:
    return centralised(split.data, split.first, arms, seed=split.settings.data.seed, tell=_quiet).test


def _on_site(split: Split, arms: ArmSettings) -> Judged:
    return on_site(split.data, split.first, arms, seed=split.settings.data.seed, tell=_quiet).test


def _federated(split: Split, arms: ArmSettings) -> Judged:
    """Run in a copy of the folder, so that every trial begins with a new server and new vehicles."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        shutil.copytree(split.settings.work_dir, work)
        settings = split.settings.model_copy(update={"work_dir": work})
        rounds = arms.rounds(split.data.sizes)
        model = compare_federation.run(settings, split.data.parts, arms, rounds, tell=_quiet).model
    return judge(model, split.data.task, split.data.test)


def _quiet(_done: int, _of: int, _what: str) -> None: ...


def _key(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in ("data", "split", "epochs", "arm", "learning_rate", "augment"))


_RUNS: Final[Mapping[str, Callable[[Split, ArmSettings], Judged]]] = {
    "centralised": _centralised,
    "on_site": _on_site,
    "federated": _federated,
}

if __name__ == "__main__":
    main()
