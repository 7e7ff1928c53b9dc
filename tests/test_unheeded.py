"""Every key and option that a command does not honour is refused, or noted with the reason."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedfleet.cli.config import load
from fedfleet.cli.main import app
from fedfleet.cli.unheeded import check_loopback, of_demo, of_load_run
from fedfleet.protocol.errors import UsageError


def settings(folder: Path, text: str) -> Any:
    path = folder / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def test_the_demo_notes_what_it_does_not_honour(tmp_path: Path) -> None:
    text = """
work_dir = "elsewhere"
[broker]
port = 1999
keepalive_s = 20
[server.rounds]
total = 7
quorum = 2
[[server.enrolment]]
vehicle = "v01"
region = "north"
code = "0123456789abcdef0123456789abcdef"
"""
    assert of_demo(settings(tmp_path, text)) == (
        "work_dir had no effect: the demo keeps everything under --out",
        "broker.port had no effect: the demo starts a broker of its own",
        "server.rounds.total had no effect: --rounds says how many",
        "server.enrolment had no effect: the demo makes and enrols its own vehicles",
    )
    assert of_demo(settings(tmp_path, "[data]\nseed = 3\n[agent]\nnice = 3\n")) == ()


def test_a_load_run_notes_what_it_does_not_honour(tmp_path: Path) -> None:
    (note,) = of_load_run(
        settings(tmp_path, '[data]\nvehicles_per_region = 3\npartition = "data"\nseed = 2\n')
    )
    assert note.startswith("data.vehicles_per_region, data.partition had no effect: --vehicles NUMBER")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[broker]\nhost = "broker.example.org"\ninsecure = true\n',
            "broker.host is broker.example.org: the broker that",
        ),
        ('[broker]\nca_file = "ca.pem"\n', "broker.ca_file is set: server and vehicles would speak TLS"),
    ],
)
def test_a_broker_that_others_could_not_reach_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_loopback(settings(tmp_path, text))
    check_loopback(settings(tmp_path, '[broker]\nhost = "localhost"\nport = 1\n'))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("status", "--watch", "--check"), "--check: goes with one look, not with --watch"),
        (("status", "--interval", "3"), "--interval: goes with --watch"),
        (("agent", "v01", "--show-key", "--wait"), "--wait: goes with a vehicle that runs"),
        (("agent", "v01", "--show-key", "-s", "x"), "--scenarios: goes with a vehicle that runs"),
        (
            ("server", "restore", "folder", "--verify", "--ahead", "3"),
            "--ahead: goes with a backup that is brought back",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_without_effect_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UsageError), done.output
    assert told in str(done.exception)
    assert list(tmp_path.iterdir()) == []
