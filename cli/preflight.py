"""What can be checked before long work begins: so that a mistake costs a second, not the minutes until it shows."""

import shutil
import socket
from contextlib import suppress
from pathlib import Path

from fedfleet.cli.config import Settings
from fedfleet.fleet_server.config import ServerSettings
from fedfleet.link import embedded
from fedfleet.models import extras
from fedfleet.models import task as tasks
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import task_id

__all__ = [
    "can_draw",
    "can_export",
    "can_store",
    "can_train",
    "has_broker",
    "has_space",
    "ports_are_free",
    "task_is_usable",
]

SPACE_BYTES = 200_000_000
"""What a fleet on this machine takes at least, with data, stores and logs."""


def task_is_usable(settings: Settings) -> tasks.Task:
    """Return the task, which can be loaded and has a name that topics can hold; UsageError otherwise."""
    task = tasks.load(settings.task)
    task_id(task.name)
    return task


def can_export(settings: Settings) -> None:
    """Raise UsageError unless a server can export its first model, or has one."""
    if not (settings.work_dir / "server" / "export" / "graph.onnx").is_file():
        extras.need("torch", "onnx", "onnxscript", what="the export of the first model")
    if settings.server.int8.enabled:
        extras.need("onnx", what="the int8 variant")


def can_store(settings: Settings) -> None:
    """Raise UsageError unless the driver of the server's store is installed."""
    if settings.server.store.address() is not None:
        extras.need("psycopg", what="server.store.url")


def can_train() -> None:
    """Raise UsageError unless vehicles on this machine can train."""
    extras.need("torch", what="training")


def can_draw(what: str) -> None:
    """Raise UsageError unless pages and pictures can be made."""
    extras.need("matplotlib", what=what)


def has_broker(settings: Settings, who: str) -> None:
    """Raise UsageError unless a broker can be started here."""
    kind = settings.broker.embedded
    if kind == "none":
        raise UsageError(f"broker.embedded is 'none': {who} starts a broker of its own")
    embedded.must_be_installed(kind)


def has_space(folder: Path, *, size_bytes: int = SPACE_BYTES) -> None:
    """Raise UsageError unless a folder, which need not be there yet, can be made and its disk has room."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise UsageError(f"{folder}: {there} is a file, expected a folder")
    free = shutil.disk_usage(there).free
    if free < size_bytes:
        raise UsageError(
            f"{folder}: {free / 1e6:.0f} MB are free on its disk, expected {size_bytes / 1e6:.0f} MB or more"
        )


def ports_are_free(server: ServerSettings) -> None:
    """Raise UsageError when the server's metrics could not be served."""
    metrics = server.metrics
    if metrics.port:
        with suppress(socket.gaierror), socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((metrics.host, metrics.port))
            except socket.gaierror:
                raise
            except OSError as error:
                text = f"server.metrics: cannot listen on {metrics.host}:{metrics.port}: {error.strerror}"
                raise UsageError(text) from error
