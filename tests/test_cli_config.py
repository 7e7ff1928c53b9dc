"""The configuration: precedence, and one line for every mistake."""

from pathlib import Path

import pytest

from fedfleet.cli.config import load
from fedfleet.cli.data import split
from fedfleet.cli.options import pack_dir
from fedfleet.protocol.errors import UsageError


def written(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None).fleet == "demo"


def test_a_file_in_the_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fedfleet.toml").write_text('fleet = "north-fleet"\n')
    assert load(None).fleet == "north-fleet"


def test_sections_reach_their_rooms(tmp_path: Path) -> None:
    text = "[server.rounds]\nquorum = 5\n[agent]\nnice = 3\n[broker]\nport = 1999\n[data]\nseed = 7\n"
    settings = load(written(tmp_path, text))
    assert (settings.server.rounds.quorum, settings.agent.nice, settings.broker.port, settings.data.seed) == (
        5,
        3,
        1999,
        7,
    )


def test_the_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFLEET__BROKER__PORT", "2001")
    settings = load(written(tmp_path, "[broker]\nport = 1999\nkeepalive_s = 60\n"))
    assert (settings.broker.port, settings.broker.keepalive_s) == (2001, 60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fleet = \n", r"fleet\.toml: not TOML: .*line 1"),
        ("colour = 1", r"fleet\.toml: colour: unknown key"),
        ("[server]\nquorom = 1", r"fleet\.toml: server\.quorom: unknown key"),
        ("[broker]\nport = 70000", r"fleet\.toml: broker\.port: expected: .*65535; got 70000"),
        ('fleet = "North"', r"fleet\.toml: fleet: expected: .*; got 'North'"),
        (
            "[server.rounds]\nquorum = 'two'",
            r"fleet\.toml: server\.rounds\.quorum: expected: .*integer.*; got 'two'",
        ),
        ("[data]\nvalidation = 1.5", r"fleet\.toml: data\.validation: expected: .*; got 1\.5"),
    ],
)
def test_a_mistake_names_file_key_expected_and_got(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        load(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_environment_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDFLEET__BROKER__PORT", "many")
    with pytest.raises(UsageError, match=r"environment FEDFLEET__BROKER__PORT: broker\.port: .*got 'many'"):
        load(written(tmp_path, ""))


def test_an_unknown_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFLEET__BROKR__PORT", "1")
    with pytest.raises(UsageError, match="unknown section 'BROKR', expected one of AGENT, BROKER"):
        load(written(tmp_path, ""))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml: no such configuration file"):
        load(tmp_path / "nowhere.toml")


def test_a_secret_never_shows_in_a_message(tmp_path: Path) -> None:
    text = '[[server.enrolment]]\nvehicle = "v01"\nregion = "north"\ncode = "short"\n'
    with pytest.raises(UsageError, match="not shown") as caught:
        load(written(tmp_path, text))
    assert "short" not in str(caught.value)


def test_the_example_enrols_every_vehicle_of_the_shipped_pack() -> None:
    settings = load(Path(__file__).parent.parent / "examples" / "fleet.toml")
    parts = split(settings, pack_dir())
    told = {entry.vehicle: entry.region for entry in settings.server.enrolment}
    assert told == {vehicle: region for vehicle, (region, _) in parts.vehicles.items()}
