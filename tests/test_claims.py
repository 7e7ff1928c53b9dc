"""The demo's claims: each is true for the facts that bear it, and untrue for every fact that does not."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedfleet.cli import demo
from fedfleet.cli.claims import Killed, Outcome, Refused, Resumed, judge
from fedfleet.cli.report import write_html

GOOD = Outcome(
    task="motion_forecast",
    metric="ade",
    unit="m",
    lower_is_better=True,
    rounds_asked=10,
    rounds_run=10,
    rounds_published=10,
    seconds=90.0,
    first_round_s=12.0,
    scores={"north": 1.5, "south": 2.0},
    baseline={"north": 2.0, "south": 2.4},
    updates=120,
    bytes_up=200_000,
    dense_bytes_up=48_000_000,
    bytes_down=2_000_000,
    frames=9_000,
    missed=1,
    missed_in_swap=0,
    swaps=120,
    p50_ms=1.0,
    p99_ms=4.0,
    vehicles=12,
    on_last_release=12,
    agent_rss_bytes=105_000_000,
    model_sha256="ab",
    released_sha256="ab",
    killed=Killed("v01", -9, 3, "deadline", contributed=False, back_in_round=5),
    refused=(Refused("a corrupt update", "digest-mismatch", "digest-mismatch", folded=False),),
    resumed=Resumed(-9, 7, 7, ("a", "b"), ("a", "b", "c")),
    history=[
        {"version": 0, "scores": {"north": 2.0, "south": 2.4}},
        {"version": 1, "scores": {"north": 1.5, "south": 2.0}},
    ],
    rounds=[
        {
            "round": 1,
            "region": "north",
            "state": "published",
            "reason": "deadline",
            "contributors": ["v02"],
            "opened_at_s": 5.0,
            "seconds": 8.0,
        }
    ],
)


def test_good_facts_make_every_claim_true() -> None:
    assert all(claim.is_true for claim in judge(GOOD))
    assert GOOD.ratio == 240


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rounds_run": 9}, "published in 10 rounds"),
        ({"rounds_published": 0}, "0 versions published in 10 rounds"),
        ({"scores": {"north": 1.5, "south": 2.4}}, "south: the released model beats"),
        ({"bytes_up": 1_000_000}, "50 × smaller"),
        ({"missed_in_swap": 1}, "no inference frame"),
        ({"swaps": 0}, "no inference frame"),
        ({"released_sha256": "cd"}, "model.onnx is byte for byte"),
        ({"on_last_release": 11}, "model.onnx is byte for byte"),
        ({"killed": replace(GOOD.killed, close_reason="target")}, "closed at its deadline"),
        ({"killed": replace(GOOD.killed, contributed=True)}, "closed at its deadline"),
        ({"killed": replace(GOOD.killed, exit_status=0)}, "closed at its deadline"),
        ({"killed": replace(GOOD.killed, back_in_round=None)}, "came back"),
        ({"refused": (replace(GOOD.refused[0], found="unknown-sender"),)}, "a corrupt update was refused"),
        ({"refused": (replace(GOOD.refused[0], found=""),)}, "a corrupt update was refused"),
        ({"refused": (replace(GOOD.refused[0], folded=True),)}, "a corrupt update was refused"),
        ({"resumed": replace(GOOD.resumed, round_after=8)}, "resumed the same round"),
        ({"resumed": replace(GOOD.resumed, folded_after=("a",))}, "resumed the same round"),
        ({"resumed": replace(GOOD.resumed, folded_after=("a", "b", "b"))}, "resumed the same round"),
    ],
)
def test_each_bad_fact_makes_exactly_its_claim_untrue(change: dict[str, Any], words: str) -> None:
    untrue = [claim for claim in judge(replace(GOOD, **change)) if not claim.is_true]
    assert len(untrue) == 1
    assert words in untrue[0].text


def test_a_metric_that_should_rise_is_judged_the_other_way() -> None:
    outcome = replace(GOOD, lower_is_better=False, scores={"north": 2.5, "south": 3.0})
    assert all(claim.is_true for claim in judge(outcome))


def test_scenes_that_were_not_played_claim_nothing() -> None:
    texts = [claim.text for claim in judge(replace(GOOD, killed=None, refused=(), resumed=None))]
    assert not any("killed" in text or "refused" in text for text in texts)


def test_the_report_is_one_page_that_needs_no_network(tmp_path: Path) -> None:
    outcome = replace(GOOD, killed=replace(GOOD.killed, vehicle="<v01>"))
    write_html(tmp_path / "report.html", outcome, judge(outcome))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert "<v01>" not in page
    assert "&lt;v01&gt;" in page
    assert "src=" not in page
    assert "<link" not in page


def test_it_ends_and_tells_when_a_vehicle_will_not_take_the_last_release(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Standing:
        """Neither a fleet nor a picture of one: everything is well, and nothing is shown."""

        scenes = SimpleNamespace(present=list)

        def check(self) -> None:
            pass

        def update(self, now: object) -> None:
            pass

        def tell(self, text: str) -> None:
            pass

        def live(self) -> AbstractContextManager[None]:
            return nullcontext()

    now = {
        "round": 3,
        "is_done": True,
        "released": 3,
        "vehicles": {
            "v01": {"active_version": 3, "state": "ONLINE"},
            "v02": {"active_version": 1, "state": "ONLINE"},
        },
    }
    monkeypatch.setattr(demo, "_snapshot", lambda _: now)
    monkeypatch.setattr(demo, "_SETTLE_S", 0.3)
    standing: Any = Standing()
    end = demo._run(standing, standing, rounds=3, begun=0.0, faults=False)[1]
    assert end is now
