"""``fedfleet scenarios partition``: who gets which drives, how unlike the vehicles are, and the split as a file."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.box import SIMPLE
from rich.table import Table

from fedfleet.cli.config import Settings, load
from fedfleet.cli.data import dealt
from fedfleet.cli.options import ConfigFile, Json, ScenariosDir, TaskName, pack_dir
from fedfleet.cli.progress import steps
from fedfleet.cli.terminal import Terminal
from fedfleet.fleet_server.files import write_file
from fedfleet.models import slices
from fedfleet.models import task as tasks
from fedfleet.models.slices import Labels
from fedfleet.models.task import Drive, Samples, Task
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.divergence import Skew, skews
from fedfleet.scenarios.partition import Dealing, Partition
from fedfleet.scenarios.partition_file import as_json as split_json
from fedfleet.scenarios.partition_file import read_split

__all__ = ["partition", "told_labels"]

By = Literal["drive", "data", "dirichlet"]


def partition(  # noqa: PLR0913 - the options of the command
    *,
    by: Annotated[
        By | None,
        typer.Option(
            help="drive: a region's drives in turn; data: a vehicle for each region of the recordings; dirichlet: "
            "drives by their label, for studies. Without it as configured.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="Concentration of dirichlet: the smaller, the less alike the vehicles.")
    ] = 0.5,
    regions: Annotated[
        Literal["data", "place"] | None,
        typer.Option(
            help="data: as the recordings tell; place: names up to the first hyphen.", show_default=False
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Instead look at the split in this file.", show_default=False)
    ] = None,
    vehicles_per_region: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Vehicles in each region.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the split.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the split here, for data.split_file.", show_default=False),
    ] = None,
    config: ConfigFile = None,
    scenarios: ScenariosDir = None,
    task: TaskName = None,
    as_json: Json = False,
) -> None:
    """Split a folder among vehicles, validation and test, and tell how unlike the vehicles' data are."""
    settings = load(config, task=task)
    changed = {"seed": seed, "vehicles_per_region": vehicles_per_region, "partition": by, "regions": regions}
    given = {name: value for name, value in changed.items() if value is not None}
    settings = settings.model_copy(update={"data": settings.data.model_copy(update=given)})
    folder = scenarios or settings.data.scenarios or pack_dir()
    learned = tasks.load(settings.task)
    drives = learned.index(folder).drives
    chosen = file or (None if by else settings.data.split_file)
    read = _read(learned, folder, drives)
    if chosen is not None:
        parts, way = read_split(chosen, drives), f"as {chosen} says"
    else:
        parts, way = _split(settings, drives, alpha, read, learned)
    for note in parts.notes:
        Terminal(stderr=True).say(f"note: {note}")
    found, labels = _skews(learned, parts, read, seed=settings.data.seed)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, (json.dumps(split_json(parts), indent=1) + "\n").encode())
    if as_json:
        content = _told(parts, found, labels, {"folder": str(folder), "task": learned.name, "by": way})
        typer.echo(json.dumps(content, indent=2))
        return
    _show(Terminal(), learned, parts, found, way)
    if out is not None:
        Terminal().say(f"written: {out}")


def told_labels(found: Mapping[str, Labels]) -> dict[str, str]:
    """Return one label for each drive, by the first dimension of slices: the one it has more of than the others.

    That is the slice whose share in the drive is the largest multiple of its share in all; what all drives are mostly
    full of (straight on) tells them not apart. No dimension: no labels.
    """
    first = next((next(iter(labels), None) for labels in found.values() if labels), None)
    if first is None:
        return {}
    whole = Counter(name for labels in found.values() for name in labels[first].tolist() if name)
    told = {}
    for drive, labels in found.items():
        own = Counter(name for name in labels[first].tolist() if name)
        if own:
            told[drive] = max(sorted(own), key=lambda name: own[name] / whole[name])
    return told


def _read(task: Task, folder: Path, drives: Sequence[Drive]) -> dict[str, Samples]:
    found = {}
    with steps("reading") as progress:
        for count, drive in enumerate(drives, start=1):
            found[drive.key] = task.samples(folder, [drive.key])
            if count == len(drives) or count % 50 == 0:
                progress(count, len(drives), "drives")
    return found


def _split(
    settings: Settings, drives: Sequence[Drive], alpha: float, read: Mapping[str, Samples], task: Task
) -> tuple[Partition, str]:
    by, regions = settings.data.partition, settings.data.regions
    labels = {}
    way = {"drive": "by drive", "data": "by data"}.get(by, f"dirichlet, alpha {alpha:g}")
    if by not in {"drive", "data"}:
        labels = told_labels({drive: slices.cut(task, one) for drive, one in read.items()})
    dealing = Dealing(by=by, regions=regions, alpha=alpha, labels=labels)
    return dealt(settings, drives, dealing, read=read.__getitem__), way


def _skews(
    task: Task, parts: Partition, read: Mapping[str, Samples], *, seed: int
) -> tuple[dict[str, Skew], dict[str, dict[str, Counter[str]]]]:
    """Return the divergences, and how many samples of each slice each vehicle has."""
    together = {
        name: _together([read[drive] for drive in some]) for name, (_, some) in parts.vehicles.items()
    }
    labels = {name: slices.cut(task, one) for name, one in together.items()}
    counts = {
        name: {dimension: Counter(values.tolist()) for dimension, values in each.items()}
        for name, each in labels.items()
    }
    return skews(together, labels, seed=seed), counts


def _together(parts: Sequence[Samples]) -> Samples:
    names = set.intersection(*(set(part.traits) for part in parts)) if parts else set()
    traits = {name: np.concatenate([part.traits[name] for part in parts]) for name in sorted(names)}
    return Samples(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.judged for part in parts]),
        traits=traits,
    )


def _told(
    parts: Partition,
    found: Mapping[str, Skew],
    labels: Mapping[str, Mapping[str, Counter[str]]],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    vehicles = {}
    for name, (region, drives) in parts.vehicles.items():
        skew = found.get(name)
        vehicles[name] = {
            "region": region,
            "drives": len(drives),
            "samples": 0 if skew is None else skew.samples,
            "slices": {each: dict(sorted(counts.items())) for each, counts in labels[name].items()},
            "divergence": None if skew is None else _figures(skew),
        }
    held = {
        side: {region: len(drives) for region, drives in regions.items()}
        for side, regions in (("validation", parts.validation), ("test", parts.test))
    }
    return {**about, "vehicles": vehicles, **held, "divergence": _means(found)}


def _figures(skew: Skew) -> dict[str, Any]:
    return {
        "label": dict(skew.labels),
        "target": skew.target,
        "feature": skew.feature,
        "shuffled": {
            "label": dict(skew.shuffled_labels),
            "target": skew.shuffled_target,
            "feature": skew.shuffled_feature,
        },
    }


def _means(found: Mapping[str, Skew]) -> dict[str, Any]:
    """Return the mean over vehicles of every divergence, and of the shuffled split's."""
    if not found:
        raise UsageError("no vehicle has a usable sample in its training drives")
    sums: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for skew in found.values():
        for dimension, value in skew.labels.items():
            sums[f"label {dimension}"].append((value, skew.shuffled_labels[dimension]))
        sums["target"].append((skew.target, skew.shuffled_target))
        sums["feature"].append((skew.feature, skew.shuffled_feature))
    return {
        name: dict(zip(("mean", "shuffled"), np.mean(pairs, axis=0).tolist(), strict=True))
        for name, pairs in sums.items()
    }


def _show(console: Terminal, task: Task, parts: Partition, found: Mapping[str, Skew], way: str) -> None:
    means = _means(found)
    first = next((name for name in means if name.startswith("label ")), None)
    heads = ([first.removeprefix("label ")] if first else []) + ["target", "feature"]
    table = Table(title=f"split {way}", title_justify="left", box=SIMPLE, pad_edge=False)
    for place, head in enumerate(["vehicle", "region", "drives", tasks.noun(task), *heads]):
        table.add_column(head, justify="right" if place > 1 else "left", no_wrap=True)
    for name, (region, drives) in parts.vehicles.items():
        skew = found.get(name)
        values = (
            [] if skew is None else [*([skew.labels[heads[0]]] if first else []), skew.target, skew.feature]
        )
        cells = [f"{value:.3f}" for value in values] or ["–"] * len(heads)
        table.add_row(name, region, str(len(drives)), f"{0 if skew is None else skew.samples:,}", *cells)
    console.print(table)
    for region, held in parts.validation.items():
        text = f"{region}: {len(held)} drives for validation, {len(parts.test.get(region, ()))} for test"
        console.say(text)
    for name, each in means.items():
        unit = "bit" if name.startswith("label") else "σ"
        text = f"divergence of {name}: {each['mean']:.3f} {unit}; dealt by chance {each['shuffled']:.3f}"
        console.say(text)
