"""Puts a server together from its configuration, up to the link: store, key, validation drives, newest model."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from fedfleet.fleet_server import (
    finishing,
    initial,
    sizes,
    store_blobs,
    store_models,
    store_published,
    store_rounds,
)
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.begin_heads import check_heads, with_heads
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.coordinator import Coordinator, is_over
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.initial import Export
from fedfleet.fleet_server.keys import load_key
from fedfleet.fleet_server.model_state import Graph, open_graph
from fedfleet.fleet_server.publisher import Publisher
from fedfleet.fleet_server.rate import Limiter
from fedfleet.fleet_server.requests import Code, Party
from fedfleet.fleet_server.root_training import RootTrainer, root_command
from fedfleet.fleet_server.server import Server
from fedfleet.fleet_server.stopwatch import Watch, unwatched
from fedfleet.fleet_server.store import Store, open_store, save_start
from fedfleet.fleet_server.store_ahead import step_ahead
from fedfleet.fleet_server.store_models import Model
from fedfleet.fleet_server.validation import Validation, open_validation
from fedfleet.fleet_server.variants import Maker, quantize_command
from fedfleet.link.port import Link
from fedfleet.models import bundle, layout, prepared
from fedfleet.models import task as tasks
from fedfleet.models.task import Task
from fedfleet.protocol.enrolment import secret_of
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import task_id

__all__ = ["Parts", "assemble", "prepare"]

log = structlog.get_logger()


@dataclass
class Parts:
    """Everything of a server that is there before it is connected. ``close`` gives the store back."""

    config: ServerConfig
    store: Store
    party: Party
    coordinator: Coordinator
    ingest: Ingest
    variants: Maker | None = None

    def close(self) -> None:
        """Close the store, and end what it was waiting for."""
        if self.variants is not None:
            self.variants.close()
        if self.coordinator.roots is not None:
            self.coordinator.roots.close()
        self.store.close()


def prepare(
    config: ServerConfig, *, now_s: float, draw: Callable[[int], bytes], watch: Watch = unwatched
) -> Parts:
    """Open or make everything in ``config.data_dir``; ``draw`` gives random bytes for a first key.

    Raises UsageError, the store closed again, when something does not fit; StoreFailed for a full disk.
    """
    task = tasks.load(config.task)
    roots = _roots(config, task)
    if config.int8.calibration_dir is not None and config.int8.enabled:
        prepared.check(prepared.open_meta(config.int8.calibration_dir), task)
        prepared.open(config.int8.calibration_dir, "train")
    validation = open_validation(
        config.validation_dir,
        task,
        regions=config.regions,
        batch=config.gate.batch,
        floors=tuple(config.gate.floors),
    )
    address = config.store.address()
    store = open_store(config.data_dir, fleet=config.fleet, task=config.task, address=address)
    store.watch = watch
    try:
        codes = {
            one.vehicle: Code(secret_of(one.code.get_secret_value()), one.region) for one in config.enrolment
        }
        key = load_key(store, draw)
        party = Party(config.fleet, task_id(task.name), key, codes)
        graph, model = _model(store, config, validation, now_s=now_s)
        with store.read() as connection:
            left_out = store_published.left_out(connection)
        config = config.model_copy(update={"rounds": config.rounds.leaving_out(left_out)})
        update_limit = sizes.limit_of(
            config.codec,
            graph.layout.parts,
            given=config.update_limit_bytes,
            control=config.strategy.name == "scaffold",
        )
        _note_start(store, config, now_s=now_s)
    except BaseException:
        store.close()
        raise
    _note_strategy(config)
    coordinator = Coordinator(store, config, party.task, graph, validation, model, watch, roots, update_limit)
    limits = Limits(
        update_limit,
        model.vector.size,
        config.example_cap,
        config.quarantine_keep,
        config.retention.quarantine_bytes,
        config.retention.incomplete_bytes,
        config.retention.incomplete_age_s,
        graph.layout.parts,
        control=config.strategy.name == "scaffold",
        norm_factor=config.norm_factor,
    )
    ingest = Ingest(
        store, party, limits, Limiter(config.rate.rate(update_bytes=limits.update_bytes)), config.rounds
    )
    return Parts(config, store, party, coordinator, ingest, _variants(store, config, task, graph))


def _variants(store: Store, config: ServerConfig, task: Task, graph: Graph) -> Maker | None:
    """Return what makes the int8 variants, where they are wanted."""
    if not config.int8.enabled:
        return None
    return Maker(store, graph, task, config, quantize_command(config), config.data_dir / ".int8")


def _roots(config: ServerConfig, task: Task) -> RootTrainer | None:
    """Return what trains on the server's root set, where the rule needs one; UsageError when the set does not fit."""
    folder = config.strategy.root_dir
    if folder is None:
        return None
    prepared.check(prepared.open_meta(folder), task)
    prepared.open(folder, "train")
    return RootTrainer(root_command(config.task, folder), config.data_dir / ".root")


def assemble(parts: Parts, link: Link) -> Server:
    """Return the server at this link, ready for its first events."""

    def load(digest: str) -> bytes:
        with parts.store.read() as connection:
            return store_blobs.content(connection, digest)

    publisher = Publisher(link, parts.config.fleet, load)
    server = Server(parts.store, link, parts.ingest, parts.coordinator, publisher, parts.variants)
    server.start()
    return server


def _model(
    store: Store, config: ServerConfig, validation: Validation, *, now_s: float
) -> tuple[Graph, Model]:
    with store.read() as connection:
        model = store_models.newest_model(connection)
        if model is not None:
            blob = store_blobs.content(connection, store_blobs.graph(connection).sha256)
    if model is not None:
        return _resumed(store, config, validation, _checked(open_graph(blob), validation), model)
    command = initial.export_command(
        config.task,
        seed=config.rounds.seed,
        out=config.data_dir / ".export.new",
        head=config.regional_heads,
    )
    export = initial.prepare_export(config.data_dir / "export", command, out=config.data_dir / ".export.new")
    return _first(store, config, validation, export, now_s=now_s)


def _resumed(
    store: Store, config: ServerConfig, validation: Validation, graph: Graph, model: Model
) -> tuple[Graph, Model]:
    check_heads(config, graph, model)
    with store.write() as connection:
        return graph, with_heads(connection, config, model, graph=graph, validation=validation)


def _first(
    store: Store, config: ServerConfig, validation: Validation, export: Export, *, now_s: float
) -> tuple[Graph, Model]:
    graph = _checked(Graph(export.onnx, layout.read(export.layout_json)), validation)
    onnx = graph.file(export.vector)
    scores, baseline = validation.scores(onnx), validation.baseline()
    canary = validation.canary(onnx)
    with store.write() as connection:
        store_blobs.put(connection, "graph", bundle.pack_graph(export.layout_json, export.onnx))
        model = store_models.first_model(
            export.vector,
            config.optimizer.init(export.vector.size),
            onnx=onnx,
            full_sha256=store_blobs.put(connection, "full", bundle.pack_vector(export.vector)),
            now_s=now_s,
        )
        check_heads(config, graph, model)
        store_models.save_model(connection, model)
        model = with_heads(connection, config, model, graph=graph, validation=validation)
        store_models.save_scores(connection, model.version, scores)
        store_models.save_scores(connection, store_models.BASELINE, baseline)
        finishing.release(connection, config, version=model.version, round_=0, canary=canary, now_s=now_s)
        model = _moved(connection, model)
    log.info("first model", version=model.version, parameters=model.vector.size)
    return graph, model


def _moved(connection: Connection, model: Model) -> Model:
    """Give the first model the number that was planned for it, where vehicles know numbers of a store that is lost."""
    if not (numbers := store_published.planned_begin(connection)):
        return model
    store_published.begin_at(connection, 0)
    step_ahead(connection, numbers)
    moved = store_models.newest_model(connection)
    assert moved is not None  # noqa: S101 - it was saved above
    return moved


def _checked(graph: Graph, validation: Validation) -> Graph:
    task = validation.task
    told = (graph.layout.task, graph.layout.task_version)
    if told != (task.name, task.version):
        raise UsageError(
            f"the stored model is of task {told[0]} {told[1]}, expected {task.name} {task.version}"
        )
    return graph


def _note_strategy(config: ServerConfig) -> None:
    """Say in the log what is folded how, and what the codec decided about it."""
    told, dense = config.strategy, config.codec.is_dense
    chosen = "" if told.server_learning_rate else f"by codec {'dense' if dense else 'sparse'}"
    about = {"optimizer": told.name, "rule": told.rule_name, "server_learning_rate": told.rate(dense=dense)}
    log.info("strategy", **about, **({"rate_chosen": chosen} if chosen else {}))


def _note_start(store: Store, config: ServerConfig, *, now_s: float) -> None:
    """Write down for ``status`` when this server started, and which round it resumes."""
    with store.write() as connection:
        current = store_rounds.current(connection)
        number = next((one.plan.round for one in current.values()), None)
        resumed = number if number is not None and not is_over(current) else None
        if resumed is not None:
            log.info("round resumed", round=resumed)
        told = {
            "started_at_s": now_s,
            "resumed_round": resumed,
            "rounds_total": config.rounds.total,
            "regions": list(config.regions),
        }
        save_start(connection, json.dumps(told))
