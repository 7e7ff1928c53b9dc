"""The configuration: precedence, and one line for every mistake."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedfleet.cli.config import load
from fedfleet.cli.data import split
from fedfleet.cli.mistakes import Mistakes
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


def test_all_mistakes_are_told_at_once_with_what_was_meant(tmp_path: Path) -> None:
    text = "[broker]\nprot = 1\nkeepalive_s = 'x'\n[server]\nquorom = 2\n"
    text += "[server.rounds]\ntotla = 3\n[agnet]\nnice = 1\n"
    with pytest.raises(Mistakes) as caught:
        load(written(tmp_path, text))
    lines = {line.split(": ", 1)[1] for line in caught.value.lines}
    assert {line.partition(",")[0] for line in lines if "unknown" in line} == {
        "broker.prot: unknown key",
        "server.quorom: unknown key",
        "server.rounds.totla: unknown key",
        "agnet: unknown key",
    }
    assert "broker.prot: unknown key, did you mean port?" in lines
    assert "server.rounds.totla: unknown key, did you mean total?" in lines
    assert "agnet: unknown key, did you mean agent?" in lines
    assert any(line.startswith("broker.keepalive_s: expected: ") for line in lines)
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("quorum = 2", "quorum: unknown key, did you mean server.rounds.quorum?"),
        (
            "[server.rounds]\nport = 1",
            "server.rounds.port: unknown key, did you mean broker.port or server.metrics.port",
        ),
        (
            '[[server.enrolment]]\nvehicle = "v1"\nregon = "r"\ncode = "0123456789abcdef"',
            "did you mean region?",
        ),
        ("[agent.profiles.far]\nshaer = 0.2", "did you mean share?"),
        ("[agent.profiles.far.link]\nup_kbits = 5", "did you mean up_kbit_s?"),
        ("zzzzzz = 1", "zzzzzz: unknown key"),
    ],
)
def test_an_unknown_key_is_told_what_may_be_meant(tmp_path: Path, text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=re.escape(meant)):
        load(written(tmp_path, text))


def test_unknown_sections_of_the_environment_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDFLEET__BROKR__PORT", "1")
    monkeypatch.setenv("FEDFLEET__SERVR__PORT", "1")
    with pytest.raises(Mistakes) as caught:
        load(written(tmp_path, ""))
    first, second = caught.value.lines
    assert "did you mean BROKER?" in first
    assert "did you mean SERVER?" in second


def test_mistakes_are_printed_a_line_each(tmp_path: Path) -> None:
    written(tmp_path, "colour = 1\nflavour = 2\n")
    done = subprocess.run(
        [sys.executable, "-m", "fedfleet.cli.main", "status", "-c", "fleet.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "fedfleet: fleet.toml: colour: unknown key",
        "fedfleet: fleet.toml: flavour: unknown key",
    ]


# --- how editors save ---


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b""])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_byte_order_mark_and_line_ends_of_windows_are_read(
    tmp_path: Path, start: bytes, end: bytes
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(start + end.join([b'fleet = "north"', b"\t[broker]", b"\tport = 1999", b""]))
    settings = load(path)
    assert (settings.fleet, settings.broker.port) == ("north", 1999)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('fleet = "north"\n'.encode("utf-16"), "is saved as UTF-16, expected UTF-8"),
        ('fleet = "north"\n'.encode("utf-16-be"), "not TOML|UTF-16"),
        ('fleet = "north"\n'.encode("utf-16-le"), "is saved as UTF-16, expected UTF-8"),
        ('# ä\nfleet = "nörth"\n'.encode("latin-1"), "is not UTF-8: line 1 has the byte 0xe4"),
        (
            b'fleet = "a"\nfleet = "b"\n',
            'Cannot overwrite a value.*: fleet = "b": this key or section is given twice',
        ),
        (b"[broker]\nport = 1\n[broker]\nport = 2\n", r"\[broker\]: this key or section is given twice"),
        ("fleet = “north”\n".encode(), "typographic quotes"),
        (b'work_dir = "C:\\Users\\me"\n', r"a \\ in double quotes begins an escape"),
        (b"fleet = north\n", "line 1.*: fleet = north: texts stand in quotes"),
        (b"fleet = True\n", "truth values are true and false"),
        (b'fleet = "a\x1b[31m"\n', r"\\x1b\[31m"),
        (b'fleet = "never closed\n', "not TOML: .*line 1"),
        (b"\x00\x01\x02", "UTF-16|not TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=words) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_folder_in_the_place_of_the_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path}: cannot be read: is a directory"):
        load(tmp_path)
