"""From one published model to the next: merge, step, patch, score, judge. Values in, a candidate out; no disk.

The graph travels once; a version is the same file with other weight bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from fedfleet.fleet_server import gate, strategies
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.downlink import DivergedError, Step, step
from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.gate import Scores, Verdict
from fedfleet.fleet_server.heads import Moved, move
from fedfleet.fleet_server.merge import merge, merge_controls
from fedfleet.fleet_server.store_models import Model
from fedfleet.fleet_server.validation import Validation
from fedfleet.models import bundle, layout
from fedfleet.models.layout import Layout, patch

__all__ = ["Candidate", "Graph", "Past", "Proposal", "open_graph", "propose"]

GRAPH_LIMIT_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Graph:
    """The model file with its weights zeroed, and where they belong."""

    onnx: bytes
    layout: Layout

    def file(self, vector: npt.NDArray[np.float32]) -> bytes:
        """Return the model file of this vector, float32[M]."""
        return patch(self.onnx, self.layout, vector)


def open_graph(blob: bytes) -> Graph:
    """Return the graph of its blob."""
    layout_json, onnx = bundle.unpack_graph(blob, limit_bytes=GRAPH_LIMIT_BYTES)
    return Graph(onnx, layout.read(layout_json))


@dataclass(frozen=True, eq=False)
class Candidate:
    """What may be published next: the step, the file of its vector, the strategy's next state, the scores.

    ``files`` has the model file by region; ``heads`` the regions' own steps, when they have heads of their own;
    ``before`` the scores of the published model; ``norm`` is the length (L2) of the strategy's update.
    """

    step: Step
    onnx: bytes
    optimizer: Mapping[str, npt.NDArray[np.float64]]
    scores: Scores
    files: Mapping[str, bytes]
    heads: Mapping[str, Moved] = field(default_factory=dict)
    before: Scores = field(default_factory=dict)
    norm: float = 0.0

    @property
    def onnx_sha256(self) -> str:
        """SHA-256 (hex) of the model file."""
        return sha256(self.onnx).hexdigest()


@dataclass(frozen=True)
class Proposal:
    """The gate's verdict, and the candidate when there was one to score."""

    verdict: Verdict
    candidate: Candidate | None = None


@dataclass(frozen=True)
class Past:
    """What else a proposal depends on: enrolled vehicles (SCAFFOLD), lengths of the last steps, number of the round."""

    vehicles: int = 0
    norms: Sequence[float] = ()
    round: int = 1


def propose(
    model: Model,
    aggregates: Mapping[str, Aggregate],
    *,
    config: ServerConfig,
    graph: Graph,
    validation: Validation,
    past: Past | None = None,
) -> Proposal:
    """Return what the aggregates of a round make of the published model. Equal arguments give equal bytes.

    Nothing is changed: who refuses the proposal keeps model, residual and strategy state as they were.
    """
    past = past or Past()
    merged, _weights = merge(aggregates, cap=config.merge_cap, trim=config.merge_trim)
    if not all(np.isfinite(each).all() for each in (merged, *(one.mean for one in aggregates.values()))):
        return Proposal(Verdict(accepted=False, reason="aggregate: a value is NaN or infinite"))
    scaled = strategies.scaled(config.optimizer, config.step_of(past.round))
    settings, parts, averaged = config.downlink.settings(), graph.layout.parts, graph.layout.is_averaged
    strategy = strategies.averaging(scaled, averaged)
    control = merge_controls(aggregates, vehicles=past.vehicles)
    optimizer, update = strategy.apply(model.optimizer or strategy.init(merged.size), merged, control)
    norm, limits = float(np.linalg.norm(update[~averaged])), config.gate
    wrong = gate.judge_step(norm, past.norms, limit=limits.step_norm, factor=limits.step_factor)
    if wrong is not None:
        return Proposal(wrong)
    of_head = strategies.averaging(scaled, averaged[parts.coordinates("head")])
    try:
        found = step(model.vector, model.error, update, settings, parts=parts)
        heads = {
            region: move(
                one, aggregates.get(region), update, strategy=of_head, parts=parts, settings=settings
            )
            for region, one in model.regions.items()
        }
    except DivergedError as error:
        return Proposal(Verdict(accepted=False, reason=str(error)))
    onnx = graph.file(found.x_next)
    files = dict.fromkeys(config.regions, onnx)
    files |= {region: graph.file(one.step.x_next) for region, one in heads.items()}
    published = _files(model, config, graph)
    before, after = validation.scores_of(published), validation.scores_of(files)
    verdict = gate.judge(
        before, after, metrics=validation.task.metrics, tolerance=config.gate.tolerance, finite=True
    )
    if verdict.accepted and limits.floors:
        was, now = validation.slices_of(published), validation.slices_of(files)
        verdict = (
            gate.judge_floors(was, now, metric=validation.task.metrics[0], floors=limits.floors) or verdict
        )
    return Proposal(verdict, Candidate(found, onnx, optimizer, after, files, heads, before, norm))


def _files(model: Model, config: ServerConfig, graph: Graph) -> dict[str, bytes]:
    """Return the model file of each region as published."""
    if not model.regions:
        return dict.fromkeys(config.regions, graph.file(model.vector))
    return {region: graph.file(model.regions[region].vector) for region in config.regions}
