"""What a vehicle knows between two events: frozen values. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedfleet.protocol.messages import ModelPointer, Plan, Release
from fedfleet.vehicle_agent.actions import PublishStatus
from fedfleet.vehicle_agent.eligibility import Rule, Verdict

__all__ = [
    "UNKNOWN",
    "Active",
    "Base",
    "Pending",
    "Resumed",
    "Settings",
    "State",
    "Training",
    "Trouble",
    "start",
]

UNKNOWN = Verdict(("conditions-unknown",))
"""The verdict before the first conditions were read."""


@dataclass(frozen=True)
class Settings:
    """Who this vehicle is and how patient it is; times in seconds.

    ``variant`` is the form of a release that it wants, where there is one; empty: the release as it is.
    """

    fleet: str
    vehicle: str
    task: str
    rules: tuple[Rule, ...] = ()
    resend_min_s: float = 5.0
    resend_cap_s: float = 60.0
    training_limit_s: float = 600.0
    forget_after_rounds: int = 20
    training_attempts: int = 3
    variant: str = ""
    lacks: tuple[str, ...] = ()
    """Why it never trains, whatever the conditions, as long as it runs."""


@dataclass(frozen=True)
class Base:
    """The published model on disk, and the region it was published for (empty: an older program wrote it).

    ``step``: the delta that led to it is held too, or there was none.
    """

    version: int
    onnx_sha256: str
    region: str = ""
    step: bool = False


@dataclass(frozen=True)
class Active:
    """The release that drives; ``onnx_sha256`` is empty in old event logs, ``variant`` for the release as it is."""

    number: int
    version: int
    onnx_sha256: str = ""
    variant: str = ""


@dataclass(frozen=True)
class Training:
    """A fine-tuning under way, for one plan; ``submitting`` once its result is being stored."""

    plan: Plan
    started_s: float
    lease_until_s: float
    steps: int = 0
    submitting: bool = False


@dataclass(frozen=True)
class Pending:
    """An update of the outbox. ``stored``: the server has it, only its fate is open.

    ``word`` is the newest round at which the server said something of it, ``asked`` that it was sent again since, so
    that the answer tells its fate.
    """

    sequence: int
    update: str
    sealed_sha256: str
    round: int
    stored: bool = False
    attempts: int = 0
    due_s: float = 0.0
    word: int = -1
    asked: bool = False

    @property
    def heard(self) -> int:
        """The newest round at which there was word of it, at least its own."""
        return max(self.round, self.word)


@dataclass(frozen=True)
class Trouble:
    """Why the vehicle does nothing: a short code, words for a person, since when; ``told`` once it was said."""

    code: str
    words: str
    since_s: float
    told: bool = False


@dataclass(frozen=True)
class State:
    """All that ``agent.step`` decides upon. ``draws`` numbers the jitter draws, so that none is used twice.

    ``trying``: a fetched release is being tried. ``given_up`` are the digests of variants that did not pass,
    ``refused`` the number of the release that did not, which may be read again. ``rests``
    is from when until when the last answered plan lets this vehicle rest; ``ticked_s`` is the last tick,
    ``reread_at_s`` when retained messages are read again, after ``rereads`` that brought nothing new. ``up_at_s`` is
    when the connection was made, ``drops`` how many ended soon in a row, ``behind_s`` how far the clock is behind the
    server's. ``troubles`` are the reasons for doing nothing, ``troubled`` that one was reported and is not over,
    ``said_troubles`` what was reported and when, by code.
    """

    settings: Settings
    session: int
    enrolled: bool
    region: str = ""
    connected: bool = False
    told_down: bool = False
    subscribed: bool = False
    following: str = ""
    asked: int = 0
    ask_at_s: float | None = None
    verdict: Verdict = UNKNOWN
    base: Base | None = None
    pointer: ModelPointer | None = None
    release: Release | None = None
    active: Active | None = None
    fetching: bool = False
    trying: bool = False
    given_up: frozenset[str] = frozenset()
    refused: int | None = None
    fetch_failures: int = 0
    fetch_at_s: float = 0.0
    plan: Plan | None = None
    failures: int = 0
    refused_for: tuple[int, tuple[str, ...]] | None = None
    answered: frozenset[int] = frozenset()
    training: Training | None = None
    outbox: tuple[Pending, ...] = ()
    rests: tuple[float, float] = (0.0, 0.0)
    ticked_s: float | None = None
    reread_at_s: float | None = None
    rereads: int = 0
    draws: int = 0
    up_at_s: float = 0.0
    drops: int = 0
    behind_s: float = 0.0
    troubles: tuple[Trouble, ...] = ()
    troubled: bool = False
    said_troubles: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    said: PublishStatus | None = None


@dataclass(frozen=True)
class Resumed:
    """What the journal remembers at start."""

    session: int
    enrolled: bool
    region: str = ""
    base: Base | None = None
    active: Active | None = None
    answered: frozenset[int] = frozenset()
    outbox: tuple[Pending, ...] = field(default=())


def start(settings: Settings, resumed: Resumed) -> State:
    """Return the state of a vehicle that was just switched on."""
    return State(
        settings,
        resumed.session,
        resumed.enrolled,
        region=resumed.region,
        base=resumed.base,
        active=resumed.active,
        answered=resumed.answered,
        outbox=resumed.outbox,
    )
