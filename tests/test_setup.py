"""The scripts of setup/ that decide: is a build of torch a CUDA one, were the brokers really tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parent.parent / "setup"


def run(script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SETUP / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def pip_report(folder: Path, *, requires: list[str], url: str) -> Path:
    package = {
        "metadata": {"name": "torch", "version": "2.13.0", "requires_dist": requires},
        "download_info": {"url": url, "archive_info": {}},
    }
    path = folder / "report.json"
    path.write_text(json.dumps({"install": [package]}))
    return path


@pytest.mark.parametrize(
    ("requires", "cuda"),
    [
        (["sympy>=1.13"], False),
        (["sympy>=1.13", "nvidia-nccl-cu13==2.29.7"], True),
        (['nvidia-nccl-cu13==2.29.7; platform_system == "Plan9"'], False),
        (['triton==3.7.1; extra == "gpu"'], False),
    ],
)
def test_a_build_is_a_cuda_one_when_it_needs_the_libraries_here(
    tmp_path: Path, requires: list[str], cuda: bool
) -> None:
    report = pip_report(tmp_path, requires=requires, url="file:///nowhere")
    assert run("downloads.py", "brings-cuda", report).returncode == (0 if cuda else 1)


def test_sizes_are_printed_before_anything_is_fetched(tmp_path: Path) -> None:
    # given a report naming a file of 3 MB
    wheel = tmp_path / "torch.whl"
    wheel.write_bytes(bytes(3_000_000))
    report = pip_report(tmp_path, requires=[], url=wheel.as_uri())
    # when the sizes are asked for
    printed = run("downloads.py", "sizes", report).stdout
    # then number, sum and the largest are named
    assert printed == "setup: 1 packages, 3 MB to fetch; largest: torch 2.13.0 3 MB\n"


def test_an_unknown_size_is_said_to_be_unknown(tmp_path: Path) -> None:
    report = pip_report(tmp_path, requires=[], url="file:///nowhere/torch.whl")
    assert "1 of unknown size" in run("downloads.py", "sizes", report).stdout


MOSQUITTO = (
    '<testcase name="m"><properties><property name="broker" value="mosquitto"/></properties></testcase>'
)
NATS = '<testcase name="n"><properties><property name="broker" value="nats"/></properties></testcase>'
NATS_SKIPPED = NATS.replace("</testcase>", '<skipped message="no nats-server"/></testcase>')


@pytest.mark.parametrize(
    ("cases", "status"),
    [([MOSQUITTO, NATS], 0), ([MOSQUITTO], 1), ([MOSQUITTO, NATS, NATS_SKIPPED], 1), ([], 1)],
    ids=["both ran", "nats never collected", "one skipped", "none"],
)
def test_ci_fails_unless_both_brokers_were_tested(tmp_path: Path, cases: list[str], status: int) -> None:
    report = tmp_path / "report.xml"
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    assert run("brokers_tested.py", report).returncode == status


def test_a_skip_on_a_real_broker_fails_where_brokers_are_required(tmp_path: Path) -> None:
    # given a marked test that skips itself, run with our conftest and settings
    (tmp_path / "conftest.py").write_text((SETUP.parent / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.nats\ndef test_it():\n    pytest.skip('no broker')\n"
    )
    report = tmp_path / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(SETUP.parent / "pyproject.toml"),
        f"--junitxml={report}",
        str(tmp_path),
    ]
    # when it runs without and with the requirement
    status = {
        required: subprocess.run(
            command, env={"FEDFLEET_REQUIRE_BROKERS": required}, capture_output=True, check=False, timeout=60
        ).returncode
        for required in ("0", "1")
    }
    # then the skip counts as a failure, and the report names the broker
    assert status == {"0": 0, "1": 1}
    assert '<property name="broker" value="nats" />' in report.read_text()
    assert "nats: 0 tests passed, 1 skipped or failed" in run("brokers_tested.py", report).stdout
