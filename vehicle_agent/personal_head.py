"""A vehicle's own head at work: tuned by the trainer when it has nothing else to do, tried, recorded, laid over.

The release drives first, always; the head is laid over it after its checks, and gone with the next release.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from fedfleet.models import bundle, layout
from fedfleet.models.layout import Layout
from fedfleet.models.task import Metric
from fedfleet.protocol.errors import PeerError
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent.agent import training_seed
from fedfleet.vehicle_agent.jobs import Job, PersonalJob, Told
from fedfleet.vehicle_agent.journal import Journal
from fedfleet.vehicle_agent.journal_file import JournalError
from fedfleet.vehicle_agent.personal import Head, PersonalSettings, Record, judge
from fedfleet.vehicle_agent.runtime import Replay
from fedfleet.vehicle_agent.state import Active
from fedfleet.vehicle_agent.swap import Candidate, Swapper, Tried
from fedfleet.vehicle_agent.trainer_port import Trainers
from fedfleet.vehicle_agent.tuning import Means

__all__ = ["Own", "Personal"]

ATTEMPTS = 2
"""Trainings that may fail before the release drives until the next one comes."""


@dataclass(frozen=True)
class Own:
    """Whose head: the task by its name, its metrics, the vehicle's data, a folder to work in, its id and number."""

    task: str
    metrics: Sequence[Metric]
    data_dir: Path
    folder: Path
    vehicle: str
    owner: int


class Personal:
    """The head of one vehicle, for what drives now. ``tick``, ``told`` and ``tried`` return what to count."""

    def __init__(
        self,
        journal: Journal,
        pool: Trainers,
        replay: Replay,
        swapper: Swapper,
        own: Own,
        *,
        settings: PersonalSettings,
    ) -> None:
        self._journal, self._pool, self._replay, self._swapper = journal, pool, replay, swapper
        self._own, self._settings = own, settings
        self.means = Means()
        self._over = ""
        self._is_settled = False
        self._attempts = self._jobs = 0
        self._job: Job | None = None
        self._trying: Record | None = None

    def tick(self, active: Active | None, *, may_train: bool) -> list[ev.Event]:
        """Look at what drives, and at whether the trainer may work for this now."""
        if not self._settings.enabled:
            return []
        events = self._failures()
        digest = active.onnx_sha256 if active is not None and not active.variant else ""
        if digest != self._over:
            self.stop()
            self._over, self._is_settled, self._attempts, self._trying = digest, False, 0, None
            events += self._resume() if digest else []
        if digest and not self._is_settled and self._job is None and may_train:
            events += self._start()
        elif self._job is not None and not may_train:
            self.stop()
        return events

    def told(self, told: Told) -> list[ev.Event]:
        """Take a trainer's word about this job; the head is tried when it is better than the release."""
        job = self._job
        if job is None or told.id != job.id or told.kind not in {"done", "failed"}:
            return []
        self._job = None
        if told.kind == "failed":
            self._attempts += 1
            self._is_settled = self._attempts >= ATTEMPTS
            return [ev.MessageRefused(f"personal-{told.reason}"[:80])]
        self._is_settled = True
        before, after = (told.scores.get(name, {}) for name in ("released", "personal"))
        reason = judge(before, after, metrics=self._own.metrics, settings=self._settings)
        if reason:
            return self._leave(reason)
        try:
            record = self._read(Path(job.out), told)
            return self._try(record)
        except (OSError, ValueError, KeyError, BadZipFile, PeerError):
            return self._leave("personal-damaged")

    def tried(self, tried: Tried) -> list[ev.Event]:
        """Record a head that passed its checks, and let it drive; the release drives otherwise."""
        record = self._trying
        if record is None or tried.candidate.onnx_sha256 != record.onnx_sha256:
            return []
        self._trying = None
        if tried.run is None:
            return self._leave(f"personal-{tried.reason}")
        try:
            self._journal.keep_personal(record)
        except JournalError as error:
            return self._leave(f"personal-{error.reason}")
        self._replay.overlay(tried.run)
        return []

    def stop(self) -> None:
        """Give the training up; it goes on from its checkpoint another time."""
        if self._job is not None:
            self._pool.cancel(self._job.id)
            self._job = None

    def _failures(self) -> list[ev.Event]:
        """When the head was left because it failed on a frame, the release drives until the next one comes."""
        reason = self._replay.overlay_failed()
        return self._leave(f"personal-{reason}") if reason else []

    def _leave(self, reason: str) -> list[ev.Event]:
        self._replay.overlay(None)
        self._is_settled = True
        try:
            self._journal.drop_personal()
        except JournalError as error:
            return [ev.MessageRefused(reason), ev.MessageRefused(error.reason)]
        return [ev.MessageRefused(reason)]

    def _resume(self) -> list[ev.Event]:
        """Try the head that was recorded for this release and these data again: its digest and its canary."""
        kept = self._journal.personal
        if kept is None or kept.release_sha256 != self._over or kept.data not in {self._data()} - {""}:
            return []
        try:
            events = self._try(kept)
        except (ValueError, PeerError):
            events = self._leave("personal-damaged")
            self._is_settled = False  # a new one may be tuned
            return events
        self._is_settled = True
        return events

    def _try(self, record: Record) -> list[ev.Event]:
        """Have a head tried on the release that drives; PeerError, ValueError unless the two are what was recorded."""
        file, places = self._release()
        made = layout.patch(file, places, record.head.over(layout.extract(file, places)))
        if sha256(made).hexdigest() != record.onnx_sha256:
            raise PeerError(
                "digest-mismatch", f"head over release {record.release_sha256[:12]}… is another file"
            )
        canary = bundle.unpack_canary(record.canary, limit_bytes=1000 * len(record.canary))
        self._trying = record
        who, beside = (self._own.owner, 0, record.onnx_sha256), self._replay
        self._swapper.submit(Candidate(*who, made, canary, beside, is_personal=True))
        return []

    def _release(self) -> tuple[bytes, Layout]:
        """Return the file that drives, and where its weights are; PeerError when they are not at hand."""
        released, graph = self._journal.released("active"), self._journal.graph
        if released is None or graph is None or released.onnx_sha256 != self._over:
            raise PeerError("release-missing", "the release that drives is not at hand")
        return released.model, layout.read(graph.layout)

    def _read(self, out: Path, told: Told) -> Record:
        with np.load(out, allow_pickle=False) as file:
            head = Head(file["places"], file["values"])
            canary = bundle.pack_canary(file["inputs"], file["outputs"])
        scores = json.dumps({name: dict(sums) for name, sums in told.scores.items()})
        return Record(self._over, told.onnx_sha256, head, canary, self._data(), scores)

    def _data(self) -> str:
        """Return a digest that changes with the samples, by what they are said to be and when they were written.

        Nothing when they cannot be looked at.
        """
        try:
            digest = sha256((self._own.data_dir / "meta.json").read_bytes())
            for name in ("train_inputs.npy", "train_targets.npy"):
                found = (self._own.data_dir / name).stat()
                digest.update(f"{found.st_size} {found.st_mtime_ns}".encode())
        except OSError:
            return ""
        return digest.hexdigest()

    def _start(self) -> list[ev.Event]:
        """Hand the release to a trainer."""
        folder, settings = self._own.folder, self._settings
        try:
            file, places = self._release()
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / "base.npy", layout.extract(file, places), allow_pickle=False)
            (folder / "release.onnx").write_bytes(file)
            (folder / "layout.json").write_bytes(places.to_json())
            held = self._held(folder / "held.npz")
        except (OSError, PeerError) as error:
            self._is_settled = True
            return [ev.MessageRefused(f"personal-{getattr(error, 'reason', 'disk-full')}")]
        self._jobs += 1
        own = {"epochs": settings.epochs, "learning_rate": settings.learning_rate, "trainable": "head"}
        self._job = Job(
            id=f"{self._own.vehicle}/personal-{self._jobs}",
            task=self._own.task,
            data_dir=str(self._own.data_dir),
            base=str(folder / "base.npy"),
            settings={**self.means.settings, **own},
            seed=training_seed(self._over, 0, self._own.vehicle),
            out=str(folder / "head.npz"),
            checkpoint=str(folder / "personal.checkpoint"),
            checkpoint_s=self.means.checkpoint_s,
            budget_s=self.means.budget_s,
            personal=PersonalJob(
                model=str(folder / "release.onnx"),
                layout=str(folder / "layout.json"),
                validation_share=settings.validation_share,
                held=held,
            ),
        )
        self._pool.submit(self._job)
        return []

    def _held(self, path: Path) -> str:
        """Write the head that was recorded last, for the trainer to compare; nothing when there is none."""
        kept = self._journal.personal
        if kept is None:
            return ""
        packed = BytesIO()
        np.savez(packed, allow_pickle=False, places=kept.head.places, values=kept.head.values)
        path.write_bytes(packed.getvalue())
        return str(path)
