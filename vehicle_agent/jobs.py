"""What agent and trainer say to each other: one JSON object a line, arrays as files."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Job", "Order", "PersonalJob", "Told"]

Text = Annotated[str, Field(max_length=4096)]


class PersonalJob(BaseModel):
    """What a head of the vehicle's own needs besides: the release's file, its layout, a head held before (``.npz``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Text
    layout: Text
    validation_share: Annotated[float, Field(gt=0, lt=1)]
    held: Text = ""


class Job(BaseModel):
    """One fine-tuning. ``base`` and ``out`` are ``.npy`` files of float32[M]; ``data_dir`` a prepared folder.

    ``control``, when given, is one of float32[2, M], the control variates c_k and c (SCAFFOLD); then ``out`` has the
    delta and the step of c_k, float32[2, M]. ``checkpoint`` is a file that the job goes on from when it is its own, and
    keeps up every ``checkpoint_s`` seconds. After ``budget_s`` seconds in all what was done so far is the result.
    A ``personal`` job holds samples back, and ``out`` is what ``personal_training.finish`` writes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text
    task: Text
    data_dir: Text
    base: Text
    settings: Mapping[str, int | float | str]
    seed: int
    out: Text
    control: Text = ""
    checkpoint: Text = ""
    checkpoint_s: Annotated[float, Field(gt=0)] = 5.0
    budget_s: Annotated[float, Field(ge=0)] = 0.0
    personal: PersonalJob | None = None


class Order(BaseModel):
    """A line to the trainer: a job to do, or the id of one to give up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Job | None = None
    cancel: Text = ""


class Told(BaseModel):
    """A line from the trainer. ``done`` comes after ``out`` is whole; ``failed`` has a reason code.

    ``onnx_sha256`` and ``scores`` (of "released" and "personal", by sum) are a personal job's.

    ``held`` is the pool's own word: the job's trainer was in a pause for so many ``seconds``.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    kind: Literal["ready", "progress", "done", "failed", "held"]
    id: Text = ""
    step: int = 0
    steps: int = 0
    examples: int = 0
    loss_before: float = 0.0
    loss_after: float = 0.0
    seconds: float = 0.0
    reason: str = ""
    detail: str = ""
    onnx_sha256: str = ""
    scores: Mapping[str, Mapping[str, tuple[float, int]]] = Field(default_factory=dict)
