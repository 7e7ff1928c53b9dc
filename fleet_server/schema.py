"""The tables of the store, as `migrations` makes them. One store serves one fleet and one task."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

__all__ = [
    "CARRIED",
    "PENDING",
    "WITH_FILE",
    "WITH_PAYLOAD",
    "audit",
    "blob",
    "carried_updates",
    "clearing",
    "code",
    "counter",
    "file_updates",
    "guess",
    "made_code",
    "member",
    "metadata",
    "model",
    "optimizer",
    "pack",
    "payload_updates",
    "pending_updates",
    "property_",
    "quarantine",
    "regional",
    "release",
    "round_",
    "rounds_by_state",
    "score",
    "settlement",
    "update",
    "variant",
    "vehicle",
]

metadata = MetaData()

property_ = Table(
    "property", metadata, Column("name", String, primary_key=True), Column("value", Text, nullable=False)
)
"""Schema version, fleet and task (what must match before anything else is read), and the server's last start."""

vehicle = Table(
    "vehicle",
    metadata,
    Column("id", String, primary_key=True),
    Column("region", String, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("denied", Boolean, nullable=False, default=False),
    Column("enrolled_at_s", Float, nullable=False),
    Column("region_before", String),  # where it was until round moved_round
    Column("moved_round", BigInteger),
    Column("state", String, nullable=False, default="OFFLINE"),
    Column("status_at_s", Float, nullable=False, default=0.0),
    Column("epoch", BigInteger, nullable=False, default=0),
    Column("session", BigInteger, nullable=False, default=0),
    Column("lease_round", BigInteger),
    Column("lease_until_s", Float),
    Column("active_version", BigInteger, nullable=False, default=0),
    Column("eligible", Boolean, nullable=False, default=False),
    Column("reason", Text, nullable=False, default=""),
    Column("metrics_at_s", Float, nullable=False, default=-1.0),
    Column("metrics", LargeBinary),
    Column("metrics_before", Text),  # counters of the processes before the one that sent `metrics`, as JSON
    Column(
        "process", BigInteger, nullable=False, server_default="0"
    ),  # that sent the newest status; 0: unknown
    Column("process_before", BigInteger, nullable=False, server_default="0"),
    Column("shared_at_s", Float),  # when its id was last seen to be used twice
)

code = Table(
    "code",
    metadata,
    Column("vehicle", String, primary_key=True),
    Column("code_sha256", String, nullable=False),
    Column("used_at_s", Float, nullable=False),
)
"""The one-time codes that were used; a new code for the same vehicle has another digest."""

made_code = Table(
    "made_code",
    metadata,
    Column("vehicle", String, primary_key=True),
    Column("region", String, nullable=False),
    Column(
        "secret", String, nullable=False
    ),  # what is proven of the code (protocol/enrolment.py), never the code
    Column("made_at_s", Float, nullable=False),
    Column("expires_at_s", Float, nullable=False),
    Column("used_at_s", Float),
)
"""The one-time code that was made last for each vehicle; a used one stays, to prove the same answer again."""

guess = Table(
    "guess",
    metadata,
    Column("vehicle", String, primary_key=True),  # empty: all together
    Column("wrong", BigInteger, nullable=False),
    Column("since_s", Float, nullable=False),
    Column("locked_until_s", Float, nullable=False, default=0.0),
)
"""Wrong proofs of enrolment codes since a time, and until when none is looked at."""

update = Table(
    "update",
    metadata,
    Column("id", String, primary_key=True),
    Column("vehicle", String, nullable=False),
    Column("epoch", String, nullable=False),  # 16 hex digits: u64 does not fit a signed integer
    Column("sequence", BigInteger, nullable=False),
    Column("shard", String, nullable=False),
    Column("region", String, nullable=False),
    Column("round", BigInteger, nullable=False),
    Column("base_version", BigInteger, nullable=False),
    Column("steps", BigInteger, nullable=False),
    Column("examples", BigInteger, nullable=False),
    Column("sealed_sha256", String, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("payload", LargeBinary),  # the codec's bytes; gone some rounds after the settlement
    Column("stored_at_s", Float, nullable=False),
    Column("fate", String),
    Column("reason", Text, nullable=False, default=""),
    Column(
        "payload_at", BigInteger
    ),  # a large one: where the codec's bytes begin in the file of the sealed update
    Column("norm", Float),  # length (L2) of the change; NULL where it was not written down
)
Index(
    "update_of_round",
    *(update.c.round, update.c.region, update.c.shard, update.c.vehicle, update.c.epoch, update.c.sequence),
)


def _some(name: str, *columns: Column[Any], where: str) -> Index:
    """Return an index of few of the rows: what is looked for often does not cost with all there ever was."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


PENDING, CARRIED, WITH_PAYLOAD = "fate IS NULL", "fate = 'carried'", "payload IS NOT NULL"
WITH_FILE = "payload_at IS NOT NULL"
"""Conditions of those indexes; a query that is to use one says it in these words, not by parameter."""
pending_updates = _some(  # with the fate in it, so that SQLite does not look for it behind each payload
    "update_pending", update.c.region, update.c.round, update.c.vehicle, update.c.fate, where=PENDING
)
carried_updates = _some("update_carried", update.c.region, where=CARRIED)
payload_updates = _some("update_payload", update.c.round, where=WITH_PAYLOAD)
file_updates = _some("update_file", update.c.round, update.c.sealed_sha256, where=WITH_FILE)

round_ = Table(
    "round",
    metadata,
    Column("round", BigInteger, primary_key=True),
    Column("region", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("plan", LargeBinary, nullable=False),  # the message Plan, JSON
    Column("target", Text, nullable=False),  # JSON list of vehicles
    Column("contributors", Text),  # JSON list when the round closes by a fixed list
    Column("announced_at_s", Float, nullable=False),  # when the newest revision of the plan was made
    Column("closed_at_s", Float),
    Column("reason", Text, nullable=False, default=""),
)

rounds_by_state = Index("round_state", round_.c.state)

member = Table(
    "member",
    metadata,
    Column("round", BigInteger, primary_key=True),
    Column("region", String, primary_key=True),
    Column("update_id", String, primary_key=True),
)
"""Frozen when a round closes: exactly these updates are folded."""

settlement = Table(
    "settlement",
    metadata,
    Column("round", BigInteger, primary_key=True),
    Column("region", String, primary_key=True),
    Column("message", LargeBinary, nullable=False),  # the message Settlement, JSON
    Column("retired", Boolean, nullable=False, default=False),
)

model = Table(
    "model",
    metadata,
    Column("version", BigInteger, primary_key=True),
    Column("round", BigInteger),  # the round that made it; NULL for version 0
    Column("onnx_sha256", String, nullable=False),
    Column("vector_sha256", String, nullable=False),
    Column("vector", LargeBinary),  # float32, little-endian; only the newest is kept
    Column("error", LargeBinary),  # the downlink's residual, float32; only the newest is kept
    Column("full_sha256", String, nullable=False),
    Column("delta_sha256", String),  # leads here from version - 1
    Column("created_at_s", Float, nullable=False),
    Column(
        "step_norm", Float
    ),  # length of the step that the strategy took to it; NULL where it was not written down
)

optimizer = Table(
    "optimizer",
    metadata,
    Column("name", String, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
"""The strategy's state that belongs to the newest model: float64, little-endian."""

pack = Table(
    "pack",
    metadata,
    Column("region", String, primary_key=True),  # whose chain; empty: all regions have the same model
    Column("to_version", BigInteger, primary_key=True),
    Column("from_version", BigInteger, nullable=False),
    Column("sha256", String, nullable=False),
)
"""Blobs that hold the deltas from one version to a later one; the blob goes when the chain has become too long."""

regional = Table(
    "regional",
    metadata,
    Column("version", BigInteger, primary_key=True),
    Column("region", String, primary_key=True),
    Column("head_version", BigInteger, nullable=False),  # the version at which the region's head moved last
    Column("onnx_sha256", String, nullable=False),
    Column("vector_sha256", String, nullable=False),
    Column("full_sha256", String, nullable=False),
    Column("delta_sha256", String),  # leads here from version - 1
    Column("canary_sha256", String, nullable=False),
    Column("vector", LargeBinary),  # float32, little-endian; only the newest is kept
    Column("error", LargeBinary),  # the downlink's residual, float32; only the newest is kept
)
"""What each region's vehicles get, when regions have heads of their own; then ``model`` has what is shared."""

release = Table(
    "release",
    metadata,
    Column("number", BigInteger, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("canary_sha256", String, nullable=False),
    Column("policy", Text, nullable=False),
    Column("round", BigInteger, nullable=False),
    Column("released_at_s", Float, nullable=False),
)

variant = Table(
    "variant",
    metadata,
    Column("release", BigInteger, primary_key=True),
    Column("region", String, primary_key=True),  # whose; empty: all regions have the same model
    Column("kind", String, primary_key=True),
    Column("onnx_sha256", String, nullable=False),
    Column("file_sha256", String),  # blobs; NULL when it is not published
    Column("canary_sha256", String),
    Column("tolerance", Float, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("float32_bytes", BigInteger, nullable=False),
    Column("latency_ms", Float, nullable=False),
    Column("float32_ms", Float, nullable=False),
    Column("loss", Float),
    Column("metrics", Text, nullable=False),  # JSON: means by form and metric
    Column("reason", Text, nullable=False),
)
"""Other forms of a release's model file, and why some are not published."""

score = Table(
    "score",
    metadata,
    Column("version", BigInteger, primary_key=True),  # -1: the task's trivial answer
    Column("region", String, primary_key=True),
    Column("metric", String, primary_key=True),
    Column("sum", Float, nullable=False),
    Column("count", BigInteger, nullable=False),
)

blob = Table(
    "blob",
    metadata,
    Column("sha256", String, primary_key=True),
    Column("kind", String, nullable=False),  # graph, full, delta, canary, variant …
    Column("data", LargeBinary, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("retired_round", BigInteger),  # NULL while live
)

clearing = Table("clearing", metadata, Column("topic", String, primary_key=True))
"""Retained topics that the broker must still forget."""

quarantine = Table(
    "quarantine",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("at_s", Float, nullable=False),
    Column("reason", String, nullable=False),
    Column("detail", Text, nullable=False),
    Column("vehicle", String, nullable=False),  # whose topic it was; empty when it was nobody's
    Column("topic", Text, nullable=False),
    Column("sha256", String, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("head", LargeBinary, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("update_id", String, nullable=False),
    Column("sealed_sha256", String, nullable=False),
    Column("leaf", String, nullable=False),
)
"""A hash chain over every stored update: leaf = SHA-256(previous leaf, update id, sealed digest)."""

counter = Table(
    "counter", metadata, Column("name", String, primary_key=True), Column("value", BigInteger, nullable=False)
)
