"""The messages besides the update: frozen, bounded values that travel as JSON inside an envelope.

A message that exists is valid. Unknown fields are ignored, so that a newer peer may add some. Times are Unix
seconds (UTC); sizes are bytes. No text holds a control character (C0, DEL, C1): databases and terminals do not
take all of them.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import Id
from fedfleet.protocol.packing import pack, unpack

__all__ = [
    "BlobRef",
    "CodecPlan",
    "Command",
    "DeltaRef",
    "Fate",
    "Lease",
    "LinkClass",
    "LinkPlan",
    "Message",
    "Metrics",
    "ModelPointer",
    "PackRef",
    "Plan",
    "Receipt",
    "Release",
    "Request",
    "Segment",
    "Settlement",
    "Status",
    "Variant",
    "decode",
    "digest_key",
    "encode",
]

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
Number = Annotated[int, Field(ge=0, le=2**32 - 1)]
Seconds = Annotated[float, Field(ge=0, le=1e11)]
Share = Annotated[float, Field(ge=0, le=1)]
Plain = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Text = Annotated[Plain, Field(max_length=300)]
Setting = Annotated[int, Field(ge=-(2**53), le=2**53)] | float | Annotated[Plain, Field(max_length=64)]
Fate = Literal["folded", "carried", "returned", "dropped"]
LinkClass = Literal["metered", "wifi", "ethernet"]


DIGEST_KEY_CHARACTERS = 32
"""Half of a SHA-256 in hex: 128 bits, so that nobody finds another update with the same."""


def digest_key(sealed_sha256: str) -> str:
    """Return by what a settlement names an update with this digest."""
    return sealed_sha256[:DIGEST_KEY_CHARACTERS]


class Message(BaseModel):
    """What all messages share: frozen, finite, unknown fields ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class BlobRef(Message):
    """Where to take some bytes: their SHA-256, length and number of chunks."""

    sha256: Digest
    size_bytes: Count
    chunks: Annotated[int, Field(ge=1, le=65_535)]


class Segment(Message):
    """A named stretch of the flat parameter vector, with the version of its own chain."""

    name: Annotated[str, Field(pattern=r"^(body|head:[a-z0-9-]{1,36})$")]
    offset: Count
    size: Annotated[int, Field(ge=1, le=2**31)]
    version: Number


class DeltaRef(Message):
    """A blob that leads from one published version to the next: add to, or set, the vector."""

    from_version: Number
    to_version: Number
    kind: Literal["add", "set"]
    blob: BlobRef


class PackRef(Message):
    """A blob with the deltas from one published version to a later one, for who holds any version between."""

    from_version: Number
    to_version: Number
    blob: BlobRef


class LinkPlan(Message):
    """What vehicles on one class of link do otherwise; None: as the plan says for all.

    ``budget_bytes`` bounds the sealed update: the vehicle takes the best setting, at most this one, that fits.
    """

    value: Annotated[Plain, Field(max_length=32)] | None = None
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    budget_bytes: Annotated[int, Field(ge=1, le=2**31)] | None = None


class CodecPlan(Message):
    """How vehicles encode their updates in a round (DESIGN of the codec: ``docs/codec-format.md``).

    ``links`` has what differs by class of link (``LinkClass``; a class that a vehicle does not know is not its own).
    ``seeded`` is the share of ``common`` coordinates that the seed draws (``codec/common.py``). A vehicle's density is
    multiplied by the rounds since its last update, at most by ``catch_up``; if it missed any, it trains from the base
    and ``step_ahead`` of its residual (``codec/residual.py``). From so many rounds
    on as ``stateless_after`` says (0: never) it encodes without state instead, dense with ``stateless_density``.
    With ``effort`` quick it leaves out what costs both sides most time (``codec/settings.py``).
    """

    index: Annotated[Plain, Field(max_length=32)] = "rice"
    value: Annotated[Plain, Field(max_length=32)] = "sign"
    density: Annotated[float, Field(gt=0, le=1)] = 0.01
    coordinates: Literal["own", "common", "dense"] = "own"
    layer_floor: Share = 0.0
    seeded: Share = 0.1
    catch_up: Annotated[int, Field(ge=1, le=1000)] = 1
    step_ahead: Share = 0.0
    stateless_after: Number = 0
    stateless_density: Annotated[float, Field(gt=0, le=1)] = 0.1
    effort: Annotated[Plain, Field(max_length=16)] = "full"
    links: Annotated[Mapping[Annotated[Plain, Field(max_length=16)], LinkPlan], Field(max_length=16)] = Field(
        default_factory=dict
    )


class Plan(Message):
    """The round plan of one region: what to train from, how, until when, and who takes part.

    ``late`` other than return: a training of an older plan is finished and sent, not given up, for it still counts; so
    it is in ``mode`` buffered. ``next_round_at_s`` is when a vehicle that has answered comes back for another
    training; 0: with the next plan. ``update_limit_bytes`` is the largest sealed update that the server takes; 0:
    it does not say.
    """

    task: Id
    region: Id
    round: Number
    revision: Number
    base_version: Number
    onnx_sha256: Digest
    opened_at_s: Seconds
    deadline_s: Seconds
    lease_s: Annotated[float, Field(gt=0, le=1e7)]
    seed: Count
    share: Share
    mode: Literal["sync", "buffered"] = "sync"
    late: Literal["return", "carry", "staleness-weighted"] = "return"
    next_round_at_s: Seconds = 0.0
    update_limit_bytes: Annotated[int, Field(ge=0, le=2**31)] = 0
    codec: CodecPlan
    training: Annotated[Mapping[Annotated[Plain, Field(max_length=40)], Setting], Field(max_length=40)]

    @property
    def coordinates_seed(self) -> str:
        """Seed of the draw among ``common`` coordinates: one for all regions of the round."""
        return f"fedfleet common 1:{self.seed}:{self.round}"


class Settlement(Message):
    """The fate of a round of one region, and of every update in it.

    All vehicles of the region read it, so it names none: with ``named_by`` digest an update's key is the beginning of
    the SHA-256 of its sealed bytes (`digest_key`), which its vehicle knows. By id is how servers named them before.
    A ``dropped`` or ``returned`` fate has its reason in ``reasons``. A large one comes in ``pages``, each on a topic
    of its own and good by itself; ``page`` counts from 0.
    """

    task: Id
    region: Id
    round: Number
    outcome: Literal["published", "abandoned"]
    reason: Text = ""
    version: Number
    closed_at_s: Seconds
    fates: Mapping[Annotated[Plain, Field(max_length=80)], Fate]
    reasons: Mapping[Annotated[Plain, Field(max_length=80)], Text] = Field(default_factory=dict)
    page: Number = 0
    pages: Annotated[int, Field(ge=1, le=2**32 - 1)] = 1
    named_by: Literal["id", "digest"] = "id"

    def told(self, update: str, sealed_sha256: str) -> tuple[Fate, str] | None:
        """Return fate and reason of an update, known by its id and the digest of its sealed bytes; None: not told."""
        key = update if self.named_by == "id" else digest_key(sealed_sha256)
        fate = self.fates.get(key)
        return None if fate is None else (fate, self.reasons.get(key, ""))


class ModelPointer(Message):
    """The published model: what vehicles train from. The vector is float32, little-endian, in layout order.

    ``graph`` names a zstd frame of ``u32 layout length | layout JSON | ONNX file with weights zeroed``; ``full`` a
    zstd frame of the vector; each delta a codec payload; ``packs`` hold the deltas before those. ``onnx_sha256`` is
    that of the patched ONNX file. With ``keep_step`` plans name coordinates from the delta to this version, the last
    of ``deltas``: vehicles keep it. ``control`` names the server's control variate (SCAFFOLD), a vector like ``full``;
    zero when there is none.
    """

    task: Id
    region: Id
    version: Number
    parameters: Annotated[int, Field(ge=1, le=2**31)]
    onnx_sha256: Digest
    vector_sha256: Digest
    segments: Annotated[tuple[Segment, ...], Field(min_length=1, max_length=256)]
    graph: BlobRef
    full: BlobRef
    deltas: Annotated[tuple[DeltaRef, ...], Field(max_length=256)] = ()
    packs: Annotated[tuple[PackRef, ...], Field(max_length=256)] = ()
    keep_step: bool = False
    control: BlobRef | None = None

    @property
    def is_regional(self) -> bool:
        """Whether a part of the model is its region's own."""
        return len(self.segments) > 1

    @property
    def step(self) -> DeltaRef | None:
        """The delta that was added to make this version; None when there is none, or it was set."""
        last = self.deltas[-1] if self.deltas else None
        return last if last and last.to_version == self.version and last.kind == "add" else None


class Variant(Message):
    """Another form of a release's model file, such as ``int8``: a file of its own, which the weights do not make.

    ``file`` names a zstd frame of the whole ONNX file, ``size_bytes`` long, ``canary`` what that file answers; an
    answer may be ``tolerance`` away (in the unit of the output). ``canary_inputs`` as of a release.
    """

    kind: Annotated[str, Field(pattern=r"^[a-z0-9]{1,16}$")]
    onnx_sha256: Digest
    size_bytes: Annotated[int, Field(ge=1, le=2**31)]
    file: BlobRef
    canary: BlobRef
    canary_inputs: BlobRef | None = None
    tolerance: Annotated[float, Field(gt=0, le=1e9)]


class Release(Message):
    """What may drive: a published version promoted by the release policy. ``number`` always rises.

    ``model`` is complete, so that a vehicle can fetch it even when the training base has moved on. ``canary`` names
    a blob of the ``canary`` format of ``docs/protocol.md``, ``canary_inputs`` that of its inputs, which mostly stays
    the same from release to release; None: they are in the canary. ``variants`` may be added to a release later.
    """

    task: Id
    region: Id
    number: Number
    model: ModelPointer
    canary: BlobRef
    canary_inputs: BlobRef | None = None
    policy: Text
    released_at_s: Seconds
    variants: Annotated[tuple[Variant, ...], Field(max_length=8)] = ()

    def variant(self, kind: str) -> Variant | None:
        """Return the variant of this kind; None where there is none."""
        return next((each for each in self.variants if each.kind == kind), None)


class Lease(Message):
    """A vehicle's word that it is training for a round, until a time."""

    task: Id
    round: Number
    until_s: Seconds


class Status(Message):
    """A vehicle's retained status, also its will. ``session`` counts its processes and always rises.

    ``process`` is drawn at random by each: two that use one id take turns in it. 0: an older vehicle.
    """

    vehicle: Id
    state: Literal["ONLINE", "OFFLINE", "CONNECTIONBROKEN"]
    session: Count
    at_s: Seconds = 0.0
    lease: Lease | None = None
    eligible: bool = False
    reason: Text = ""
    active_version: Number = 0
    epoch: Count = 0
    process: Count = 0


class Metrics(Message):
    """A vehicle's counters since its start, and the latency of inference over its last window, in milliseconds.

    ``update_bytes``, ``update_codec`` and ``update_steps`` tell size, setting and training steps of its last
    update. ``late`` counts frames later than the guard allows, ``guard_pauses`` and ``guard_paused_s`` how often
    and how long it stopped the process's trainers; ``shadow_answers`` were compared before a release drove,
    ``shadow_disagreed`` of them disagreed. ``variant`` is the form of the model that drives, empty for the release
    as it is; ``personal`` whether it has a head that this vehicle tuned for itself, so that its ``scores`` are not
    the release's. ``trouble`` is why it does nothing, in words.
    """

    vehicle: Id
    task: Id
    at_s: Seconds
    session: Count
    active_version: Number
    frames: Count
    missed: Count
    missed_in_swap: Count
    swaps: Count
    p50_ms: Annotated[float, Field(ge=0, le=1e9)]
    p99_ms: Annotated[float, Field(ge=0, le=1e9)]
    bytes_up: Count
    bytes_down: Count
    trainings: Count
    late: Count = 0
    guard_pauses: Count = 0
    guard_paused_s: Seconds = 0.0
    shadow_answers: Count = 0
    shadow_disagreed: Count = 0
    variant: Annotated[Plain, Field(max_length=16)] = ""
    personal: bool = False
    link_class: Annotated[Plain, Field(max_length=16)] = ""
    update_bytes: Count = 0
    update_codec: Annotated[Plain, Field(max_length=80)] = ""
    update_steps: Count = 0
    rss_bytes: Count = 0
    trouble: Text = ""
    scores: Annotated[
        Mapping[Annotated[Plain, Field(max_length=40)], tuple[float, Count]], Field(max_length=40)
    ] = Field(default_factory=dict)
    refusals: Annotated[Mapping[Annotated[Plain, Field(max_length=80)], Count], Field(max_length=100)] = (
        Field(default_factory=dict)
    )


class Request(Message):
    """What a vehicle asks: ``hello`` (tell me my region), or ``enrol`` with a one-time code (``enrolment.py``)."""

    vehicle: Id
    kind: Literal["hello", "enrol"]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    public_key: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    proof: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


class Command(Message):
    """What the server tells one vehicle: its region; after enrolment also the server's key, proven by the code."""

    vehicle: Id
    kind: Literal["assign", "enrolled", "refused"]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]{0,36}$")] = ""
    server_key: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    proof: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    reason: Text = ""


class Receipt(Message):
    """The server's word on one update message, named by the SHA-256 of its sealed bytes.

    ``stored`` comes after the commit; ``refused`` has a reason. ``fate`` is set when the update's fate is already
    recorded (a duplicate, or one that came after its round closed).
    """

    vehicle: Id
    sealed_sha256: Digest
    update: Annotated[Plain, Field(max_length=80)] = ""
    outcome: Literal["stored", "refused"]
    reason: Text = ""
    fate: Fate | None = None


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """Return a message as it travels: its JSON, packed where that is shorter."""
    return pack(message.model_dump_json(exclude_defaults=False).encode())


def decode(kind: type[M], body: bytes, *, sender: str) -> M:
    """Return the message; PeerError ``malformed-message`` names the sender and the first wrong field, ``too-large``."""
    try:
        return kind.model_validate_json(unpack(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise PeerError(
            "malformed-message", f"{kind.__name__} from {sender}: {where}: {first['msg']}"[:300]
        ) from error
