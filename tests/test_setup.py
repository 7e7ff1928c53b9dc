"""The scripts of setup/ that decide: is a build of torch a CUDA one, were the brokers really tested."""

import json
import re
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

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


LOCK = SETUP.parent / "requirements.lock"


def test_the_lock_has_every_pin_with_hashes() -> None:
    entries = {}
    for entry in LOCK.read_text().replace("\\\n", " ").splitlines():
        if entry and not entry.startswith("#"):
            pin, *hashes = entry.split()
            entries[pin] = hashes
    pins = [line for line in (SETUP.parent / "constraints.txt").read_text().splitlines() if "==" in line]
    expected = [
        f"{canonicalize_name(name)}=={version}" for name, version in (pin.split("==") for pin in pins)
    ]
    assert sorted(entries) == sorted(expected), "run setup/lock.py"
    assert all(hashes for hashes in entries.values())
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for each in entries.values() for one in each)


def test_a_file_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    # given the lock's entry of a package and an index whose file of that version is another one
    wheel = tmp_path / "iniconfig-2.3.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("iniconfig/__init__.py", "raise SystemExit('not what was tested')")
        metadata = "Metadata-Version: 2.1\nName: iniconfig\nVersion: 2.3.1\n"
        archive.writestr("iniconfig-2.3.1.dist-info/METADATA", metadata)
        archive.writestr("iniconfig-2.3.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("iniconfig-2.3.1.dist-info/RECORD", "")
    script = (SETUP / "setup.sh").read_text()
    functions = re.search(r"^locked\(\) \{.*?^\}\n", script, re.MULTILINE | re.DOTALL)
    assert functions is not None
    listed = subprocess.run(
        ["bash", "-c", f"{functions[0]}\nlocked iniconfig"],
        cwd=SETUP.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert listed.startswith("iniconfig==2.3.1 ")
    (tmp_path / "locked.txt").write_text(listed)
    # when it is installed as setup.sh installs
    pip = [sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", "--no-index"]
    words = ["--find-links", str(tmp_path), "--target", str(tmp_path / "site"), "-r"]
    done = subprocess.run(
        [*pip, *words, str(tmp_path / "locked.txt")], capture_output=True, text=True, check=False, timeout=60
    )
    # then it is refused
    assert done.returncode != 0
    assert "HASHES" in done.stderr
    assert not (tmp_path / "site" / "iniconfig").exists()


def test_a_build_of_torch_is_known_by_its_hash(tmp_path: Path) -> None:
    # given a file of torch that the lock names or not
    wheel = tmp_path / "torch.whl"
    wheel.write_bytes(b"a build")
    report = pip_report(tmp_path, requires=[], url=wheel.as_uri())
    lock = tmp_path / "lock"
    for text, status in ((sha256(b"a build").hexdigest(), 0), ("0" * 64, 1)):
        lock.write_text(f"torch==2.13.0 \\\n    --hash=sha256:{text}\n")
        assert run("downloads.py", "locked-torch", report, lock).returncode == status
    # and names are all others
    assert run("downloads.py", "names", report).stdout.strip() == ""
