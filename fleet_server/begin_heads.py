"""Brings a stored model in line with ``regional_heads``: heads begin from the shared model, nothing is mixed up."""

from dataclasses import replace
from fnmatch import fnmatchcase

import structlog
from sqlalchemy import Connection

from fedfleet.fleet_server import heads, store_blobs, store_models
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.heads import Regional
from fedfleet.fleet_server.model_state import Graph
from fedfleet.fleet_server.store_models import Model
from fedfleet.fleet_server.validation import Validation
from fedfleet.models import bundle
from fedfleet.protocol.errors import UsageError

__all__ = ["check_heads", "with_heads"]

log = structlog.get_logger()
_WAY_OUT = "or begin anew with another data_dir"


def check_heads(config: ServerConfig, graph: Graph, model: Model) -> None:
    """Raise UsageError when the stored model cannot have the heads that are configured."""
    patterns, layout = config.regional_heads, graph.layout
    if not patterns:
        if model.regions:
            told = ", ".join(layout.head_tensors)
            raise UsageError(
                f"regional_heads: the stored model {model.version} has heads of its regions ({told}), got none; "
                f"configure them again, {_WAY_OUT}"
            )
        return
    wanted = tuple(name for name in layout.names if any(fnmatchcase(name, each) for each in patterns))
    if wanted != layout.head_tensors:
        found, asked = ", ".join(layout.head_tensors) or "none", ", ".join(wanted) or "none"
        raise UsageError(
            f"regional_heads: the stored model was made with head tensors {found}, expected {asked}; "
            f"put the setting back, {_WAY_OUT}"
        )


def with_heads(
    connection: Connection, config: ServerConfig, model: Model, *, graph: Graph, validation: Validation
) -> Model:
    """Return the model with a head for every configured region, and store what was missing.

    A region that is new, or a store that had one model for all, begins with the shared model.
    """
    missing = (
        [region for region in config.regions if region not in model.regions] if config.regional_heads else []
    )
    if not missing:
        return model
    onnx = graph.file(model.vector)
    canary = store_blobs.put_canary(connection, **validation.canary(onnx)._asdict())
    full = store_blobs.put(connection, "full", bundle.pack_vector(model.vector))
    begun: dict[str, Regional] = {
        region: replace(one, onnx_sha256=model.onnx_sha256, full_sha256=full, canary_sha256=canary)
        for region, one in heads.begin(
            missing,
            vector=model.vector,
            error=model.error,
            optimizer=model.optimizer,
            parts=graph.layout.parts,
            version=model.version,
        ).items()
    }
    model = replace(model, regions={**model.regions, **begun})
    store_models.replace_heads(connection, model)
    log.info("regional heads begin", version=model.version, regions=missing)
    return model
