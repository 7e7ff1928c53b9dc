"""``fedfleet demo``: a whole fleet on this machine, faults on purpose, and its claims held against the facts."""

import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live

from fedfleet.cli import demo_result, live, preflight, suits, unheeded
from fedfleet.cli.claims import Claim, Outcome, judge
from fedfleet.cli.config import Settings, load
from fedfleet.cli.demo_fleet import DemoFleet, clean
from fedfleet.cli.demo_scenes import Intrusion, KilledServer, KilledVehicle
from fedfleet.cli.options import ConfigFile, ScenariosDir, TaskName, pack_dir
from fedfleet.cli.report import write_html
from fedfleet.cli.terminal import Terminal
from fedfleet.fleet_server.status import snapshot
from fedfleet.models import task as tasks
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.signing import SigningKey

__all__ = ["demo"]

_POLL_S = 0.1
FAULT_ROUNDS = 3  # one to be killed in, one to come back in, one for the server
_ROUND_LIMIT_S = 120.0
_DEADLINE_S = 25.0
# A dozen vehicles share these cores, so frames wait for each other; a trainer that is stopped for it holds a round up.
_LATE_MS = 50.0
_WARM_S = 300.0  # importing torch five times at once takes that long on no machine that could run the rest
_SETTLE_S = 30.0  # for the vehicles to take the last release; one that refuses it never does


def demo(
    config: ConfigFile = None,
    scenarios: ScenariosDir = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Rounds to run; as many as suit the task when not given."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out/demo"),
    faults: Annotated[
        bool, typer.Option(help="Kill a vehicle and the server, and send bad updates, on purpose.")
    ] = True,
    task: TaskName = None,
) -> None:
    """Run broker, server and vehicles of all regions on this machine; show them learn, fail and recover."""
    begun = time.monotonic()
    console = Terminal()
    told = load(config, task=task)
    rounds = suits.demo_rounds(tasks.load(told.task)) if rounds is None else rounds
    settings = _settings(told, out, rounds=rounds)
    folder = scenarios or settings.data.scenarios or pack_dir()
    _preflight(settings, rounds=rounds, faults=faults)
    fleet = DemoFleet(settings, folder)
    fleet.must_have_test_drives()
    if faults:
        fleet.must_bear_faults()
    clean(settings.work_dir)
    for note in unheeded.of_demo(told):
        Terminal(stderr=True).say(f"note: {note}")
    with fleet:
        show = Show(console, fleet)
        show.tell(
            f"{len(fleet.parts.vehicles)} vehicles in {len(fleet.regions)} regions, scenarios from {folder}"
        )
        _start(fleet, show)
        first_round_s, end = _run(fleet, show, rounds=rounds, begun=begun, faults=faults)
        show.tell("all rounds are done: judging the released model on test drives that no one trained on")
        outcome = demo_result.collect(
            fleet,
            end,
            show.scenes,
            rounds=rounds,
            first_round_s=first_round_s,
            seconds=time.monotonic() - begun,
        )
    claims = judge(outcome)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(fleet.server_dir / "model.onnx", out / "model.onnx")
    demo_result.write_json(out / "report.json", outcome, claims)
    write_html(out / "report.html", outcome, claims)
    _print_claims(console, outcome, claims, out)
    if not all(claim.is_true for claim in claims):
        raise typer.Exit(1)


def _preflight(settings: Settings, *, rounds: int, faults: bool) -> None:
    """Raise UsageError for what would end the demo only after minutes."""
    preflight.task_is_usable(settings)
    preflight.can_export(settings)
    preflight.can_store(settings)
    preflight.can_draw("the demo's report")
    preflight.has_broker(settings, "the demo")
    preflight.ports_are_free(settings.server)
    preflight.has_space(settings.work_dir)
    if faults and rounds < FAULT_ROUNDS:
        raise UsageError(
            f"--rounds {rounds}: the faults take {FAULT_ROUNDS} rounds or more; fewer go with --no-faults"
        )


class Show:
    """What the person sees: the table on a terminal, plain lines elsewhere, and what happens, told once."""

    def __init__(self, console: Terminal, fleet: DemoFleet) -> None:
        self.console = console
        self._note = ""
        self._said = ""
        self.vehicle: KilledVehicle | None = None
        self.intrusion: Intrusion | None = None
        self.server: KilledServer | None = None
        self._fleet = fleet

    @property
    def scenes(self) -> demo_result.Scenes:
        """The scenes, for the results."""
        return demo_result.Scenes(self.vehicle, self.intrusion, self.server)

    def cast(self, rounds: int) -> None:
        """Set the cues of the faults: about a third, a half and two thirds through the rounds."""
        third, half, late = max(1, rounds // 3), max(1, rounds // 2), max(1, (2 * rounds) // 3)
        self.vehicle = KilledVehicle(self._fleet, self._fleet.victim(), cue_round=third, tell=self.tell)
        stranger = SigningKey(secrets.token_bytes(32))
        self.intrusion = Intrusion(self._fleet, cue_round=half, stranger=stranger, tell=self.tell)
        self.server = KilledServer(self._fleet, cue_round=late, tell=self.tell)

    def tell(self, text: str) -> None:
        """Say what happens."""
        self._note = text
        self.console.say(text, mark="demo")

    @contextmanager
    def live(self) -> Iterator["Show"]:
        """Keep the table on the terminal as long as the block runs."""
        if not self.console.is_terminal:
            self._view: Live | None = None
            yield self
            return
        with Live(console=self.console, auto_refresh=False) as view:
            self._view = view
            yield self

    def update(self, now: Mapping[str, Any]) -> None:
        """Show a new snapshot."""
        if self._view is not None:
            self._view.update(live.view(now, width=self.console.width, note=self._note), refresh=True)
            return
        text = live.line(now)
        if text != self._said:
            self._said = text
            self.console.say(text)


def _settings(settings: Settings, out: Path, *, rounds: int) -> Settings:
    """Return the demo's settings: short rounds, unless the configuration says otherwise; everything under ``out``."""
    server = settings.server
    changed: dict[str, float] = {"total": rounds}
    if "rounds" not in server.model_fields_set:
        changed |= {"deadline_s": _DEADLINE_S, "lease_s": _DEADLINE_S, "start_wait_s": 30.0}
    pace = type(server.rounds).model_validate({**dict(server.rounds), **changed})
    server = server.model_copy(update={"rounds": pace})
    agent = settings.agent
    if not {"metrics_interval_s", "resend_min_s"} & agent.model_fields_set:
        agent = agent.model_copy(update={"metrics_interval_s": 1.0, "resend_min_s": 2.0, "resend_cap_s": 5.0})
    if "warm_start_s" not in agent.model_fields_set:
        agent = agent.model_copy(update={"warm_start_s": _WARM_S})
    if "guard" not in agent.model_fields_set:
        guard = agent.guard.model_copy(update={"late_ms": _LATE_MS})
        agent = agent.model_copy(update={"guard": guard})
    return settings.model_copy(update={"work_dir": out / "work", "server": server, "agent": agent})


def _start(fleet: DemoFleet, show: Show) -> None:
    fleet.start_broker()
    assert fleet.broker is not None  # noqa: S101 - start_broker has just set it
    show.tell(
        f"{fleet.broker.kind} listens on {fleet.broker.host}:{fleet.broker.port}; preparing the recordings"
    )
    fleet.prepare()
    fleet.must_be_judged()
    fleet.enrol_saboteur()
    fleet.start_server()
    fleet.start_vehicles()
    show.tell(
        "server and vehicles are starting: trainers warm up first, then each vehicle enrols with its one-time code"
    )


def _run(
    fleet: DemoFleet, show: Show, *, rounds: int, begun: float, faults: bool
) -> tuple[float, Mapping[str, Any]]:
    """Watch until all rounds are done, every scene is over and every vehicle runs the last release, or will not."""
    if faults:
        show.cast(rounds)
    first_round_s: float | None = None
    limit = time.monotonic() + 60.0 + _WARM_S + rounds * _ROUND_LIMIT_S
    patience: float | None = None
    with show.live():
        while True:
            time.sleep(_POLL_S)
            fleet.check()
            now = _snapshot(fleet)
            if now is None:
                continue
            if first_round_s is None and now["round"] > 0:
                first_round_s = time.monotonic() - begun
                show.tell(
                    f"trainers are warm and vehicles online after {first_round_s:.0f} s: round 1 begins"
                )
            for scene in show.scenes.present():
                if not scene.is_done:
                    scene.step(now)
            show.update(now)
            if now["is_done"] and patience is None:
                patience = time.monotonic() + _SETTLE_S
            if patience is not None and (_everyone_is_current(now) or time.monotonic() > patience):
                return first_round_s or 0.0, now
            if time.monotonic() > limit:
                raise UsageError(
                    f"the demo is stuck in round {now['round']}: see {fleet.settings.work_dir / 'logs'}"
                )


def _everyone_is_current(now: Mapping[str, Any]) -> bool:
    """Tell whether what was released last drives everywhere; the newest version may not have been good enough."""
    active = [v["active_version"] for v in now["vehicles"].values() if v["state"] == "ONLINE"]
    return bool(active) and all(version == now["released"] for version in active)


def _snapshot(fleet: DemoFleet) -> Mapping[str, Any] | None:
    """Return the newest snapshot; None before the server has made its store."""
    try:
        return snapshot(fleet.server_dir, time.time())
    except UsageError:
        return None


def _print_claims(console: Terminal, outcome: Outcome, claims: tuple[Claim, ...], out: Path) -> None:
    pace = f"first round after {outcome.first_round_s:.1f} s, all after {outcome.seconds:.0f} s"
    memory = f"an agent process takes {outcome.agent_rss_bytes / 2**20:.0f} MiB"
    console.say_all(["", f"{pace}; {memory}", ""])
    for claim in claims:
        mark, style = ("true    ", "green") if claim.is_true else ("NOT TRUE", "red")
        console.say(f"{claim.text}: {claim.evidence}", mark=mark, style=style)
    files = [str(out / name) for name in ("report.html", "report.json", "model.onnx")]
    console.say_all(["", f"results: {', '.join(files)}"])
