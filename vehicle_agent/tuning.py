"""A vehicle's trainings: the job to the trainer, its result to a sealed update in the journal, its fate afterwards."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfleet.codec import payload
from fedfleet.codec.common import common
from fedfleet.codec.delta import Delta
from fedfleet.codec.parts import Parts
from fedfleet.codec.residual import Feedback, encode_with_feedback
from fedfleet.codec.settings import Settings
from fedfleet.models import layout
from fedfleet.protocol import update
from fedfleet.protocol.envelope import Kind, peek, seal
from fedfleet.protocol.errors import PeerError, UsageError
from fedfleet.protocol.messages import Plan
from fedfleet.vehicle_agent import actions as act
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent.agent import training_seed
from fedfleet.vehicle_agent.budget import MOST_BYTES, Encoded, best, budget_for, most_bytes, settings_for
from fedfleet.vehicle_agent.entries import OutboxEntry
from fedfleet.vehicle_agent.jobs import Job, Told
from fedfleet.vehicle_agent.journal import Journal
from fedfleet.vehicle_agent.journal_file import JournalError
from fedfleet.vehicle_agent.trainer_port import Trainers

__all__ = ["Means", "Tuning"]

Indices = NDArray[np.int64]

REFUSED_BY_GATE = "refused-by-gate"


@dataclass(frozen=True)
class Means:
    """What a vehicle has for a training: seconds (0: no limit), and settings that stand above the plan's."""

    budget_s: float = 0.0
    checkpoint_s: float = 5.0
    settings: Mapping[str, int | float | str] = field(default_factory=dict)


class Tuning:
    """One training at a time; files in ``folder`` live as long as their job.

    ``task`` is the name that loads the task; ``identity`` has fleet and vehicle.
    """

    def __init__(
        self,
        journal: Journal,
        pool: Trainers,
        folder: Path,
        *,
        task: str,
        data_dir: Path,
        identity: tuple[str, str],
    ) -> None:
        self._journal, self._pool, self._folder = journal, pool, folder
        self._task, self._data_dir, (self._fleet, self._vehicle) = task, data_dir, identity
        self._job: Job | None = None
        self._round = -1
        self._jobs = 0
        self._named: Indices | None = None
        self.max_update_bytes: int | None = None
        self.link_class = ""
        self.budget_bytes: int | None = None
        self.means = Means()
        self.trainings = self.update_bytes = self.update_steps = 0
        self.update_codec = ""
        self.trouble = ""
        for left in folder.glob("*.npy") if folder.is_dir() else ():
            left.unlink()

    def start(self, plan: Plan, seed: int) -> list[ev.Event]:
        """Hand the base and the plan's settings to a trainer."""
        try:
            return self._start(plan, seed)
        except JournalError as error:
            self.trouble = str(error)
            return [ev.TrainingFailed(plan.round, error.reason)]

    def _start(self, plan: Plan, seed: int) -> list[ev.Event]:
        base, vector = self._journal.base, self._journal.base_vector
        if base is None or vector is None or base.version != plan.base_version:
            return [ev.TrainingFailed(plan.round, "base-missing")]
        try:
            self._named = self._coordinates(plan)
        except PeerError as error:
            self.trouble = str(error)
            return [ev.TrainingFailed(plan.round, error.reason)]
        self._jobs += 1
        name = f"{plan.round}-{self._jobs}"
        files = {kind: self._folder / f"{kind}-{name}.npy" for kind in ("base", "delta", "control")}
        has_control = plan.training.get("correction") == "scaffold"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            start = self._feedback(plan).start(
                vector, self._journal.residual(vector.size), age=self._age(plan)
            )
            np.save(files["base"], start, allow_pickle=False)
            if has_control:
                np.save(files["control"], self._journal.controls(vector.size), allow_pickle=False)
        except OSError as error:
            self.trouble = f"cannot write {files['base']}: {error.strerror}"
            return [ev.TrainingFailed(plan.round, "disk-full")]
        settings: Mapping[str, int | float | str] = {**plan.training, **self.means.settings}
        self._round, kept = plan.round, self._folder / f"round-{plan.round}.checkpoint"
        for stale in self._folder.glob("*.checkpoint"):
            if stale != kept:
                stale.unlink(missing_ok=True)
        self._job = Job(
            id=f"{self._vehicle}/{name}",
            task=self._task,
            data_dir=str(self._data_dir),
            base=str(files["base"]),
            settings=settings,
            seed=seed,
            out=str(files["delta"]),
            control=str(files["control"]) if has_control else "",
            checkpoint=str(kept),
            checkpoint_s=self.means.checkpoint_s,
            budget_s=self.means.budget_s,
        )
        self._pool.submit(self._job)
        return []

    def stop(self) -> None:
        """Give the training up."""
        if self._job is not None:
            self._pool.cancel(self._job.id)
            self._end(self._job)

    def told(self, told: Told) -> list[ev.Event]:
        """Take a trainer's word; what it says about jobs that were given up is ignored."""
        if self._job is None or told.id != self._job.id:
            return []
        if told.kind == "progress":
            return [ev.TrainingProgress(self._round, told.step)]
        if told.kind == "held":
            return [ev.TrainingHeld(self._round, told.seconds)]
        if told.kind == "failed":
            self.trouble = f"{told.reason}: {told.detail}"
            self._end(self._job)
            return [ev.TrainingFailed(self._round, told.reason)]
        return [ev.TrainingDone(self._round, told.steps, told.examples)]

    def submit(self, action: act.SubmitUpdate) -> list[ev.Event]:
        """Encode, seal and journal the result; nothing of it remains when that fails."""
        plan, job = action.plan, self._job
        if job is None or self._round != plan.round:
            return [ev.UpdateGivenUp(plan.round, "result-missing")]
        try:
            entry = self._commit(plan, job, action)
        except (PeerError, JournalError) as error:
            self.trouble = str(error)
            return [ev.UpdateGivenUp(plan.round, error.reason)]
        except (UsageError, OSError, ValueError) as error:
            self.trouble = str(error)
            return [ev.UpdateGivenUp(plan.round, "not-encodable")]
        finally:
            self._end(job)
        self.trainings += 1
        Path(job.checkpoint).unlink(missing_ok=True)
        return [ev.UpdateJournaled(entry.id.sequence, str(entry.id), entry.sealed_sha256, plan.round)]

    def _commit(self, plan: Plan, job: Job, action: act.SubmitUpdate) -> OutboxEntry:
        id_ = self._journal.next_id
        manifest = update.Manifest(id_, plan.task, plan.region, plan.round, plan.base_version)
        found = np.load(job.out, allow_pickle=False)
        encoded = self._encode(plan, found, action, frame_bytes=len(self._seal(manifest)))
        sealed = self._seal(manifest, encoded.data)
        limit_bytes = most_bytes(plan, self.max_update_bytes)
        if len(sealed) > limit_bytes:
            told = f"round {plan.round}: update is {len(sealed)} bytes, limit {limit_bytes}"
            raise PeerError("update-too-large", told)
        entry = OutboxEntry(id_, sealed, plan.round, plan.region, self._named)
        self._journal.commit_update(entry, encoded.residual)
        used = encoded.settings
        self.update_steps = action.steps
        self.update_bytes, self.update_codec = len(sealed), f"{used.index} {used.value} {used.density:.3g}"
        return entry

    def _encode(
        self,
        plan: Plan,
        found: NDArray[np.float32],
        action: act.SubmitUpdate,
        *,
        frame_bytes: int,
    ) -> Encoded:
        """Return the best payload that the budget allows; ``frame_bytes`` is what sealing adds to it.

        ``found`` is the delta float32[M], or float32[2, M] with the step of the control variate.
        """
        delta, control = (found[0], found[1]) if found.ndim == 2 else (found, None)
        feedback, age = self._feedback(plan), self._age(plan)
        residual, parts = feedback.entering(self._journal.residual(delta.size), age=age), self._parts()
        seed = training_seed(plan.task, plan.round, self._vehicle)
        told = {"steps": action.steps, "examples": action.examples, "seed": seed}

        def encode(settings: Settings) -> Encoded:
            data, left = encode_with_feedback(
                delta, residual, settings, parts=parts, common=self._named, control=control, **told
            )
            return Encoded(data, left, settings)

        wished = feedback.settings(settings_for(plan.codec, self.link_class, age=age), age=age)
        budget = budget_for(plan.codec, self.link_class, self.budget_bytes)
        limit_bytes = min(most_bytes(plan, self.max_update_bytes), budget or MOST_BYTES) - frame_bytes
        return best(encode, wished, size=delta.size, limit_bytes=limit_bytes)

    @staticmethod
    def _feedback(plan: Plan) -> Feedback:
        return Feedback(catch_up=plan.codec.catch_up, step_ahead=plan.codec.step_ahead)

    def _age(self, plan: Plan) -> int:
        """Return the rounds since the last one that was answered; 1 when none was."""
        answered = self._journal.answered
        return max(0, plan.round - max(answered)) if answered else 1

    def _seal(self, manifest: update.Manifest, payload_: bytes = b"") -> bytes:
        packed = update.pack(manifest, payload_)
        return seal(packed, self._journal.key, kind=Kind.UPDATE, sender=self._vehicle, fleet=self._fleet)

    def _coordinates(self, plan: Plan) -> Indices | None:
        """Return the coordinates int64[k] that the plan names by its rule; None when it names none."""
        codec, parts, step = plan.codec, self._parts(), self._journal.base_step
        if codec.coordinates != "common":
            return None
        if step is None or parts is None:
            told = f"round {plan.round}: the step to version {plan.base_version} is not held"
            raise PeerError("step-missing", told)
        moved = payload.decode(step, size=parts.size, parts=parts).delta if step else None
        seed = plan.coordinates_seed
        return common(moved, parts, density=codec.density, seeded=codec.seeded, seed=seed)

    def _parts(self) -> Parts | None:
        """Return how the base's layout divides an update."""
        graph = self._journal.graph
        return None if graph is None else layout.read(graph.layout).parts

    def head(self) -> Indices | None:
        """Return the coordinates int64[n] that are a region's own; None when there is no model yet."""
        parts = self._parts()
        return None if parts is None else parts.coordinates("head")

    def settle(self, action: act.Settle) -> None:
        """Forget an update, or let it re-enter the residual when it came back; JournalError when that fails.

        What the gate refused does not re-enter: the model stayed as it was, so the next training from it learns the
        same again, and with the residual the next update would be twice as long, and be refused, too.
        """
        entry = self._journal.sealed(action.sequence)
        if entry is not None:
            comes_back = action.fate == "returned" and action.reason.partition(":")[0] != REFUSED_BY_GATE
            returned = self._returned(entry) if comes_back else None
            sent = self._sent(entry) if action.fate == "folded" else None
            self._journal.settle(
                action.sequence, returned=returned, control=None if sent is None else sent.control
            )

    def _sent(self, entry: OutboxEntry) -> payload.Payload | None:
        """Return what an update said; None when it was made for another model."""
        vector = self._journal.base_vector
        if vector is None:
            return None
        header = peek(entry.sealed, limit_bytes=len(entry.sealed))
        _, body = update.unpack(entry.sealed[header.body_start :], sender=self._vehicle)
        decode = partial(
            payload.decode, body, size=vector.size, parts=self._parts(), common=entry.coordinates
        )
        for control in (False, True):
            with suppress(PeerError):
                return decode(control=control)
        return None

    def _returned(self, entry: OutboxEntry) -> Delta | None:
        sent = self._sent(entry)
        if sent is None:  # there is no residual that it could enter
            return None
        found = sent.delta
        head = self.head()
        if head is None or not head.size or entry.region == self._journal.region:
            return found
        change = found.dense()
        change[head] = 0  # what was learned for the head of another region
        return Delta(found.size, None, change)

    def _end(self, job: Job) -> None:
        self._job = None
        for file in filter(None, (job.base, job.out, job.control)):
            Path(file).unlink(missing_ok=True)
