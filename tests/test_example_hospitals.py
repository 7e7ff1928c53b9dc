"""The third task, under examples/: another domain, a package of its own, found by its entry point."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "hospitals"
HOSPITALS = ["birch-hill", "lakeside", "old-town", "riverbank"]

pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra dev)")


def run(installed: Path, *words: object, limit_s: float = 170) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
        env=environment,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as pip installs it: a folder with the package and its entry point."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "installed"))
    shutil.copytree(
        EXAMPLE, source / "hospitals", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__", "build")
    )
    words = ("--no-deps", "--no-build-isolation", "--no-index", "--target", target, source / "hospitals")
    done = run(target, "pip", "install", "-q", "--disable-pip-version-check", *words)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def records(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    done = run(installed, "fedfleet_hospitals.make_records", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_product_file_knows_of_it() -> None:
    root = EXAMPLE.parents[1]
    rooms = (
        "protocol",
        "codec",
        "link",
        "models",
        "scenarios",
        "fleet_server",
        "vehicle_agent",
        "cli",
        "broker_config",
    )
    for room in rooms:
        for path in (root / room).rglob("*.py"):
            assert "hospital" not in path.read_text(encoding="utf-8").lower(), path


def test_it_is_listed_and_its_records_are_read(installed: Path, records: Path) -> None:
    unknown = run(installed, "fedfleet.cli.main", "scenarios", "list", "--task", "chess")
    assert "hospitals, motion_forecast" in unknown.stderr
    (records / "bad").mkdir()
    damaged = records / "bad" / "old-town.csv"
    lines = (records / "old-town.csv").read_text(encoding="utf-8").splitlines()
    lines[3] = lines[3].replace(",", ",?", 2)
    lines[5] = "what is this"
    damaged.write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ("fedfleet.cli.main", "scenarios", "check", "--task", "hospitals", "--json", "--scenarios")
    sound, bad = (json.loads(run(installed, *words, folder).stdout) for folder in (records, damaged.parent))
    assert (sound["samples"], sound["problems"]) == (569, {})
    assert bad["problems"] == {"bad-measurement": 1, "malformed-record": 1}
    assert bad["samples"] == len(lines) - 3


@pytest.mark.timeout(400)
def test_hospitals_learn_together_over_a_real_broker(
    installed: Path, records: Path, tmp_path: Path, nats_binary: Path
) -> None:
    del nats_binary
    (tmp_path / "fleet.toml").write_text('[broker]\nembedded = "nats"\n', encoding="utf-8")
    done = run(
        installed,
        *("fedfleet.cli.main", "compare", "--broker", "--task", "hospitals", "--scenarios", records),
        *("--config", tmp_path / "fleet.toml", "--out", tmp_path / "out", "--epochs", "12", "--seed", "3"),
        limit_s=380,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert found["link"] == "broker"
    assert sorted(found["federated"]["regions"]) == HOSPITALS
    loss = {
        arm: found[arm]["overall"]["log_loss"] for arm in ("baseline", "centralised", "on_site", "federated")
    }
    assert loss["federated"] < loss["on_site"] < loss["baseline"]
    assert found["baseline"]["name"] == "usual share"
    assert (
        found["federated"]["overall"]["f1"] > 0.85
    )  # made of three sums; of the trivial answer there is none
    assert found["baseline"]["overall"]["f1"] == 0
    assert "usual share" in done.stdout
    assert "all patients" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_of_another_domain_claims_only_what_is_true(
    installed: Path, records: Path, tmp_path: Path, mosquitto_binary: Path
) -> None:
    del mosquitto_binary
    out = tmp_path / "demo"
    done = run(
        installed,
        *("fedfleet.cli.main", "demo", "--task", "hospitals", "--scenarios", records, "--out", out),
        limit_s=560,
    )
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert sorted(report["scores"]) == HOSPITALS
    untrue = [claim["text"] for claim in report["claims"] if not claim["is_true"]]
    assert untrue == [], done.stdout
    assert done.returncode == 0, done.stderr
