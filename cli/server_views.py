"""``fedfleet server rounds``, ``vehicles``, ``models``: what the store says, while the server runs and afterwards."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from fedfleet.cli.config import Settings, load
from fedfleet.cli.launch import server_dir
from fedfleet.cli.options import ConfigFile, Json
from fedfleet.cli.tables import Column, ago, figure, kilobytes, moment, show
from fedfleet.cli.terminal import Terminal
from fedfleet.fleet_server import views
from fedfleet.fleet_server.store import START
from fedfleet.models import task as tasks
from fedfleet.protocol.errors import UsageError

__all__ = ["models", "rounds", "vehicles"]

SHARED_SHOWN_S = 3600.0
"""So long an id that was used twice is shown."""
Regions = Annotated[
    list[str] | None,
    typer.Option("--region", "-r", help="Only this region; may be given again.", show_default=False),
]
Last = Annotated[int, typer.Option("--last", "-n", min=1, help="How many, the newest.")]
LastHeard = Annotated[
    int | None,
    typer.Option("--last", "-n", min=1, help="Only so many, those heard of latest.", show_default=False),
]


def rounds(region: Regions = None, last: Last = 20, as_json: Json = False, config: ConfigFile = None) -> None:
    """Show the last rounds of every region: state, updates and their fates, why and when they closed."""
    now_s = time.time()
    with _store(load(config), region) as (connection, _):
        found = views.rounds(connection, now_s, regions=region or (), last=last)
    if as_json:
        typer.echo(json.dumps(found))
        return
    columns = [
        Column("round", is_number=True),
        Column("region"),
        Column("state"),
        Column("base", is_number=True),
        Column("asked", is_number=True),
        Column("stored", is_number=True),
        Column("folded", is_number=True),
        Column("other fates"),
        Column("kB", is_number=True),
        Column("seconds", is_number=True),
        Column("opened (UTC)"),
        Column("closed by"),
    ]
    show(Terminal(), "Rounds", columns, [_round(one) for one in found])


def _round(one: Mapping[str, Any]) -> list[str]:
    fates = dict(one["fates"])
    folded = fates.pop("folded", 0)
    return [
        str(one["round"]),
        one["region"],
        one["state"],
        str(one["base_version"]),
        str(one["asked"]),
        str(one["stored"]),
        str(folded),
        ", ".join(f"{number} {fate}" for fate, number in fates.items()) or "–",
        kilobytes(one["stored_bytes"]),
        figure(one["seconds"], 1),
        moment(one["opened_at_s"]),
        one["reason"] or "–",
    ]


def vehicles(
    region: Regions = None, last: LastHeard = None, as_json: Json = False, config: ConfigFile = None
) -> None:
    """Show the enrolled vehicles: state, version that drives, updates sent, frames and latency as they tell."""
    now_s = time.time()
    with _store(load(config), region) as (connection, _):
        found = views.vehicles(connection, regions=region or (), last=last)
    if as_json:
        typer.echo(json.dumps(found))
        return
    columns = [
        Column("vehicle"),
        Column("region"),
        Column("state"),
        Column("heard", is_number=True),
        Column("version", is_number=True),
        Column("learns"),
        Column("updates", is_number=True),
        Column("folded", is_number=True),
        Column("last round", is_number=True),
        Column("kB up", is_number=True),
        Column("frames", is_number=True),
        Column("p99 ms", is_number=True),
    ]
    show(Terminal(), "Vehicles", columns, [_vehicle(name, one, now_s) for name, one in found.items()])
    for name, one in found.items():
        if (shared_at_s := one["shared_at_s"]) is not None and now_s - shared_at_s < SHARED_SHOWN_S:
            seen = ago(shared_at_s, now_s)
            what = f"its id was used twice ({seen} ago): is there a copy of its folder, or was one put back?"
            Terminal().print(f"{name}: {what}", soft_wrap=True)
        if trouble := one.get("metrics", {}).get("trouble"):
            Terminal().print(f"{name}: {trouble}", soft_wrap=True)


def _vehicle(name: str, one: Mapping[str, Any], now_s: float) -> list[str]:
    metrics = one.get("metrics", {})
    return [
        name,
        one["region"],
        "denied" if one["denied"] else one["state"].lower(),
        ago(one["status_at_s"], now_s),
        " ".join([str(one["active_version"]), *_form(metrics)]),
        one["reason"] or ("yes" if one["eligible"] else "no"),
        str(one["updates"]),
        str(one["folded"]),
        "–" if one["last_round"] is None else str(one["last_round"]),
        kilobytes(one["update_bytes"]),
        str(one.get("totals", {}).get("frames", "–")),
        figure(metrics.get("p99_ms")),
    ]


def _form(metrics: Mapping[str, Any]) -> list[str]:
    """Return in which form the version drives: int8, or with a head of the vehicle's own."""
    return [*filter(None, [metrics.get("variant", "")]), *(["own head"] if metrics.get("personal") else [])]


def models(region: Regions = None, last: Last = 20, as_json: Json = False, config: ConfigFile = None) -> None:
    """Show the last versions: the round that made each, its bytes, its validation score in every region."""
    with _store(load(config), region) as (connection, told):
        found = views.models(connection, regions=region or (), last=last)
        names = region or json.loads(told[START])["regions"]
        metric = tasks.load(told["task"]).metrics[0]
    if as_json:
        typer.echo(json.dumps(found))
        return
    columns = [
        Column("version", is_number=True),
        Column("round", is_number=True),
        Column("made (UTC)"),
        Column("released"),
        Column("delta kB", is_number=True),
        Column("full kB", is_number=True),
        *(Column(name, is_number=True) for name in names),
        Column("int8"),
        Column("file (SHA-256)"),
    ]
    title = f"Models: {metric.name} in {metric.unit} on validation drives, {metric.better} is better"
    show(Terminal(), title, columns, [_model(one, names, metric.name) for one in found])


def _model(one: Mapping[str, Any], regions: Sequence[str], metric: str) -> list[str]:
    return [
        str(one["version"]),
        "–" if one["round"] is None else str(one["round"]),
        moment(one["created_at_s"]),
        "yes" if one["released"] else "no",
        kilobytes(_largest(one, "delta_bytes")),
        kilobytes(_largest(one, "full_bytes")),
        *(figure(one["metrics"].get(name, {}).get(metric), 3) for name in regions),
        "; ".join(_variant(told) for told in one["variants"]) or "–",
        "one per region" if one["regions"] else one["onnx_sha256"][:12],
    ]


def _variant(told: Mapping[str, Any]) -> str:
    """Return what a variant is worth: the loss of its primary metric, its size, its time, each beside float32."""
    where = f"{told['region']}: " if told["region"] else ""
    if not told["published"]:
        return f"{where}no: {told['reason']}"
    times = f"{told['latency_ms']:.2f} of {told['float32_ms']:.2f} ms"
    sizes = f"{kilobytes(told['size_bytes'])} of {kilobytes(told['float32_bytes'])} kB"
    return f"{where}{100 * told['loss']:+.2f} %, {sizes}, {times}"


def _largest(one: Mapping[str, Any], name: str) -> int | None:
    """Return what a vehicle fetches at most: regions with heads of their own get a model each."""
    sizes = [each[name] for each in one["regions"].values()] or [one[name]]
    return max((size for size in sizes if size is not None), default=None)


@contextmanager
def _store(
    settings: Settings, regions: Sequence[str] | None
) -> Iterator[tuple[Connection, Mapping[str, str]]]:
    with views.begun(server_dir(settings)) as (connection, told):
        known = json.loads(told[START])["regions"]
        if unknown := sorted(set(regions or ()) - set(known)):
            raise UsageError(f"--region {unknown[0]}: unknown region, expected one of {', '.join(known)}")
        yield connection, told
