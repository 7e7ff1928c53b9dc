"""What the demo says of itself, each sentence with its evidence and its truth. Pure: values in, claims out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Claim", "Killed", "Outcome", "Refused", "Resumed", "judge"]

MIN_RATIO = 50.0
LARGE_BYTES = 40_000
"""Of the update of a smaller model, the proof of who sent it is a good part: then smaller is all that is claimed."""


@dataclass(frozen=True)
class Claim:
    """A sentence, whether it is true, and the figures that show it."""

    text: str
    is_true: bool
    evidence: str


@dataclass(frozen=True)
class Killed:
    """A vehicle killed in mid-round: how it ended, how its round closed, and its next update that was folded."""

    vehicle: str
    exit_status: int
    round: int
    close_reason: str
    contributed: bool
    back_in_round: int | None


@dataclass(frozen=True)
class Refused:
    """A bad message sent on purpose: what it was, and the reason that the server recorded for it."""

    what: str
    expected: str
    found: str
    folded: bool


@dataclass(frozen=True)
class Resumed:
    """The server killed in mid-round: the round before and after, and the updates that were stored before."""

    exit_status: int
    round_before: int
    round_after: int | None
    stored_before: tuple[str, ...]
    folded_after: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Everything that the demo measured. Errors are in the task's primary metric, lower is better."""

    task: str
    metric: str
    unit: str
    lower_is_better: bool
    rounds_asked: int
    rounds_run: int
    rounds_published: int
    seconds: float
    first_round_s: float
    scores: Mapping[str, float]
    baseline: Mapping[str, float]
    updates: int
    bytes_up: int
    dense_bytes_up: int
    bytes_down: int
    frames: int
    missed: int
    missed_in_swap: int
    swaps: int
    p50_ms: float
    p99_ms: float
    vehicles: int
    on_last_release: int
    agent_rss_bytes: int
    model_sha256: str
    released_sha256: str
    killed: Killed | None = None
    refused: Sequence[Refused] = ()
    resumed: Resumed | None = None
    history: Sequence[Mapping[str, Any]] = ()
    rounds: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times smaller the uploads were than dense float32 ones."""
        return self.dense_bytes_up / self.bytes_up if self.bytes_up else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the figures as plain values for ``report.json``."""
        return {**asdict(self), "ratio": self.ratio}


def judge(outcome: Outcome) -> tuple[Claim, ...]:
    """Return every claim of the demo with its truth."""
    claims = [
        _rounds(outcome),
        *_accuracy(outcome),
        _upload(outcome),
        _swaps(outcome),
        _model(outcome),
    ]
    if outcome.killed is not None:
        claims += _killed(outcome.killed)
    claims += [_refused(one) for one in outcome.refused]
    if outcome.resumed is not None:
        claims.append(_resumed(outcome.resumed))
    return tuple(claims)


def _rounds(outcome: Outcome) -> Claim:
    asked, run, published = outcome.rounds_asked, outcome.rounds_run, outcome.rounds_published
    text = f"{_counted(published, 'version')} published in {_counted(asked, 'round')}"
    void = f", {run - published} published nothing" if run > published else ""
    evidence = f"{run} of {asked} rounds were run to their end, {published} published a version{void}"
    if not published:
        evidence = f"{evidence}: version 0, untrained, drives"
    return Claim(text, run >= asked and published > 0, evidence)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _accuracy(outcome: Outcome) -> list[Claim]:
    claims = []
    for region, score in sorted(outcome.scores.items()):
        base = outcome.baseline[region]
        is_better = score < base if outcome.lower_is_better else score > base
        text = (
            f"{region}: the released model beats the trivial baseline on test drives that no one trained on"
        )
        gain = (base - score) / base * 100 * (1 if outcome.lower_is_better else -1) if base else 0.0
        figures = f"{score:.3f} {outcome.unit} against {base:.3f} {outcome.unit}"
        evidence = f"{outcome.metric} {figures} ({gain:+.1f} %, + is better)"
        claims.append(Claim(text, is_better, evidence))
    return claims


def _upload(outcome: Outcome) -> Claim:
    is_large = outcome.dense_bytes_up >= LARGE_BYTES * outcome.updates
    wanted = MIN_RATIO if is_large else 1.0
    text = f"uploads were {f'at least {wanted:.0f} × ' if is_large else ''}smaller than dense float32"
    sent = f"{outcome.bytes_up:,} bytes in {outcome.updates} sealed updates"
    evidence = f"{outcome.ratio:.0f} ×: {sent}, {outcome.dense_bytes_up:,} dense"
    return Claim(text, outcome.ratio >= wanted, evidence)


def _swaps(outcome: Outcome) -> Claim:
    is_true = outcome.missed_in_swap == 0 and outcome.swaps > 0
    in_all = f"{outcome.missed} of {outcome.frames:,} frames missed in all"
    evidence = f"{outcome.missed_in_swap} missed in {outcome.swaps} swaps; {in_all}"
    return Claim("no inference frame was missed while models were swapped", is_true, evidence)


def _model(outcome: Outcome) -> Claim:
    is_same = outcome.model_sha256 == outcome.released_sha256 and outcome.on_last_release == outcome.vehicles
    vehicles = f"{outcome.on_last_release} of {outcome.vehicles} vehicles run the last release"
    evidence = f"SHA-256 {outcome.model_sha256[:12]}…; {vehicles}"
    return Claim("model.onnx is byte for byte what the vehicles run", is_same, evidence)


def _killed(killed: Killed) -> list[Claim]:
    gone = killed.exit_status == -9 and killed.close_reason == "deadline" and not killed.contributed
    closed = f"exit status {killed.exit_status}; round {killed.round} closed by {killed.close_reason}"
    back = killed.back_in_round is not None
    return [
        Claim(
            f"{killed.vehicle} was killed (-9) in round {killed.round}, which closed at its deadline without it",
            gone,
            closed,
        ),
        Claim(
            f"{killed.vehicle} came back and took part again",
            back,
            f"its update was folded in round {killed.back_in_round}"
            if back
            else "no later update of it was folded",
        ),
    ]


def _refused(refused: Refused) -> Claim:
    is_true = refused.found == refused.expected and not refused.folded
    return Claim(
        f"{refused.what} was refused through the broker",
        is_true,
        f"recorded reason: {refused.found or 'none'}",
    )


def _resumed(resumed: Resumed) -> Claim:
    kept = set(resumed.stored_before) <= set(resumed.folded_after)
    once = len(resumed.folded_after) == len(set(resumed.folded_after))
    is_true = resumed.exit_status == -9 and resumed.round_after == resumed.round_before and kept and once
    before = f"the server was killed (-9) in round {resumed.round_before}"
    text = f"{before}, resumed the same round and lost no stored update"
    found = len(set(resumed.stored_before) & set(resumed.folded_after))
    folded = f"{found} of {len(resumed.stored_before)} stored updates folded, each once"
    evidence = f"round after the restart: {resumed.round_after}; {folded}"
    return Claim(text, is_true, evidence)
