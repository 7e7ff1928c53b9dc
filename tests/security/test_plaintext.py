"""Nothing leaves this machine in clear unless the configuration says that it may."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedfleet.link.config import BrokerConfig
from fedfleet.link.options import options_for


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.3.2.1", "::1"])
def test_this_machine_needs_no_tls(host: str) -> None:
    assert options_for(BrokerConfig(host=host)).tls is None


@pytest.mark.parametrize(
    "host",
    ["broker.example", "10.0.0.1", "192.168.1.7", "fe80::1", "localhost.example", "127.0.0.1.example"],
)
def test_another_machine_without_tls_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match=r"nothing is encrypted: set ca_file to .* or insecure = true"):
        BrokerConfig(host=host)


def test_another_machine_without_tls_is_taken_when_the_user_says_so() -> None:
    assert options_for(BrokerConfig(host="broker.example", insecure=True)).tls is None


@pytest.mark.parametrize("command", [["agent", "v01"], ["server"], ["status"], ["fleet"]])
def test_every_command_says_it_in_one_line(command: list[str], tmp_path: Path) -> None:
    # given a remote broker and no authority
    (tmp_path / "fedfleet.toml").write_text('[broker]\nhost = "broker.example"\nembedded = "none"\n')
    # when
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fedfleet.cli.main", *command],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # then
    assert done.returncode == 2
    assert "broker.example is another machine, and without ca_file nothing is encrypted" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("out*"))
