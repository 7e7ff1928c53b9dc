"""Makes the variants of what drives: one process at a time, which the server never waits for; then it judges them."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import structlog
from sqlalchemy import Connection

from fedfleet.fleet_server import gate, store_blobs, store_heads, store_models, store_variants
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.gate import Scores
from fedfleet.fleet_server.model_state import Graph
from fedfleet.fleet_server.store import Store
from fedfleet.fleet_server.store_variants import Row
from fedfleet.fleet_server.validation import Canary
from fedfleet.models import bundle
from fedfleet.models import task as tasks
from fedfleet.models.interpreter import module_command
from fedfleet.models.task import Metric, Task

__all__ = ["Maker", "Wanted", "judged", "quantize_command"]

log = structlog.get_logger()

KIND = "int8"


@dataclass(frozen=True)
class Wanted:
    """A variant that there is not yet: of which release, for which region ("": all), from which full vector's blob."""

    release: int
    region: str
    full_sha256: str


def quantize_command(config: ServerConfig) -> tuple[str, ...]:
    """Return the command line of our own process, without what differs by release."""
    module = "fedfleet.fleet_server.quantize"
    places = ("--data", str(config.int8.calibration_dir), "--validation", str(config.validation_dir))
    fixed = ("--task", config.task, *places, "--batch", str(config.gate.batch), "--parent", str(os.getpid()))
    return module_command(module, *fixed)


def judged(wanted: Wanted, told: Mapping[str, Any], *, metrics: Sequence[Metric], most_loss: float) -> Row:
    """Return the row of a made variant, without its blobs, and with a loss of None when it is not good enough.

    Good enough is: the primary metric is worse by at most the share ``most_loss``, overall and in every region.
    """
    before, after = _scores(told["before"]), _scores(told["after"])
    verdict = gate.judge(before, after, metrics=metrics, tolerance=most_loss, finite=True)
    was, now = ({m.name: m.value(tasks.added(some.values())) for m in metrics} for some in (before, after))
    old, new = was[metrics[0].name], now[metrics[0].name]
    loss = None
    if verdict.accepted and old and new is not None:
        loss = (new - old) / abs(old) * (1 if metrics[0].better == "lower" else -1)
    elif verdict.accepted:
        loss = 0.0
    return Row(
        wanted.release,
        wanted.region,
        KIND,
        onnx_sha256=told["onnx_sha256"],
        tolerance=float(told["tolerance"]),
        size_bytes=int(told["size_bytes"]),
        float32_bytes=int(told["float32_bytes"]),
        latency_ms=float(told["latency_ms"]),
        float32_ms=float(told["float32_ms"]),
        loss=loss,
        metrics=json.dumps({"float32": was, KIND: now}),
        reason=verdict.reason,
    )


def _scores(told: Mapping[str, Mapping[str, Sequence[float]]]) -> Scores:
    return {
        region: {name: (float(total), int(count)) for name, (total, count) in sums.items()}
        for region, sums in told.items()
    }


@dataclass
class Maker:
    """Makes the missing variants of the newest release. ``tick`` often, from the process's main thread."""

    store: Store
    graph: Graph
    task: Task
    config: ServerConfig
    command: Sequence[str]
    folder: Path
    _wanted: Wanted | None = None
    _process: "subprocess.Popen[bytes] | None" = None
    _words: IO[bytes] | None = None
    _commits: int = field(default=-1)

    def tick(self) -> bool:
        """Begin what is missing, take what is made; tell whether there is something new to announce."""
        if self._process is not None:
            return self._process.poll() is not None and self._finish()
        if self.store.commits == self._commits:
            return False
        commits = self.store.commits
        with self.store.read() as connection:
            wanted = self._missing(connection)
            vector = None if wanted is None else store_blobs.content(connection, wanted.full_sha256)
        if wanted is None or vector is None:
            self._commits = commits
            return False
        self._wanted = wanted
        size = self.graph.layout.size
        self._start(self.graph.file(bundle.unpack_vector(vector, size=size)), wanted)
        return False

    def close(self) -> None:
        """End what is under way."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._words is not None:
            self._words.close()
            self._words = None

    def _missing(self, connection: Connection) -> Wanted | None:
        release = store_models.newest_release(connection)
        if release is None:
            return None
        there = {row.region for row in store_variants.of_release(connection, release.number)}
        own = store_heads.digests(connection, release.version)
        fulls = {region: found[2] for region, found in own.items()}
        fulls = fulls or {"": store_models.model_row(connection, release.version)[2]}
        left = sorted(set(fulls) - there)
        return Wanted(release.number, left[0], fulls[left[0]]) if left else None

    def _start(self, model: bytes, wanted: Wanted) -> None:
        regions = (wanted.region,) if wanted.region else self.config.regions
        named = [word for region in regions for word in ("--region", region)]
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, mode=0o700)
            (self.folder / "float32.onnx").write_bytes(model)
            self._words = (self.folder / "words.txt").open("w+b")
            files = ("--model", str(self.folder / "float32.onnx"), "--out", str(self.folder))
            command = [*self.command, *files, *named]
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._words)
        except OSError as error:
            self._keep(
                Row(wanted.release, wanted.region, KIND, reason=f"cannot start: {error}"[:300]),
                b"",
                Canary(b"", b""),
            )

    def _finish(self) -> bool:
        process, wanted = self._process, self._wanted
        if process is None or wanted is None:
            return False
        row, made, canary = Row(wanted.release, wanted.region, KIND), b"", Canary(b"", b"")
        if process.returncode == 0:
            told = json.loads((self.folder / "told.json").read_bytes())
            most = self.config.int8.most_loss
            limit = tasks.int8_loss(self.task) if most is None else most
            row = judged(wanted, told, metrics=self.task.metrics, most_loss=limit)
            made = (self.folder / "int8.onnx").read_bytes()
            canary = Canary(*((self.folder / name).read_bytes() for name in ("inputs.bin", "canary.bin")))
        else:
            row = Row(wanted.release, wanted.region, KIND, reason=f"not made: {self._said()}"[:300])
        self.close()
        return self._keep(row, made, canary)

    def _keep(self, row: Row, made: bytes, canary: Canary) -> bool:
        """Store a variant with its blobs, when it is good enough and still wanted."""
        with self.store.write() as connection:
            newest = store_models.newest_release(connection)
            if newest is None or newest.number != row.release:
                return False
            if row.loss is not None:
                file = store_blobs.put(connection, "variant", bundle.pack_file(made))
                digest = store_blobs.put_canary(connection, **canary._asdict())
                row = replace(row, file_sha256=file, canary_sha256=digest)
            store_variants.add(connection, row)
        told = log.info if row.accepted else log.warning
        told(
            "int8 variant", release=row.release, region=row.region, published=row.accepted, reason=row.reason
        )
        return row.accepted

    def _said(self) -> str:
        if self._words is None:
            return ""
        self._words.seek(0)
        lines = self._words.read(100_000).decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-2:])[:200]
