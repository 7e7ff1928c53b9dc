"""Every command of docs/tutorial.md, run as it stands there on a small folder laid out as Argoverse 1 is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import argoverse
import pytest
from traffic import scenario

from fedfleet.fleet_server.export import export
from fedfleet.models.layout import patch
from fedfleet.models.motion_forecast import TASK

PAGE = Path(__file__).parent.parent / "docs" / "tutorial.md"
CITIES = ("MIA", "PIT")
DRIVES = 12
SCENARIOS = 4

pytestmark = pytest.mark.timeout(400)


def blocks(word: str) -> list[str]:
    """The ```bash blocks of the page that have this word."""
    found = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for block in found if word in block]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cars on circles in two cities, each cut into west and east, with drives that are there in the real index too."""
    folder = tmp_path_factory.mktemp("data") / "argoverse1"
    lines = ["scenario,city,district,drive,t0,tracks"]
    for place, city in enumerate(CITIES):
        members = {}
        for drive in range(DRIVES):
            side = "W" if drive < DRIVES // 2 else "E"
            for part in range(SCENARIOS):
                name, t0_s = f"{1000 * place + 10 * drive + part}", 3600.0 * drive + 10.0 * part
                members[f"{city}/{name}.csv"] = argoverse.text(csv_rows(name, city, t0_s))
                start_s = argoverse.EPOCH_S + t0_s
                lines.append(f"{name},{city},{city}-{side},{city}-{1132 + drive},{start_s:.3f},12")
        argoverse.write_zip(folder / f"{city}.zip", members)
    (folder / "index.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder.parent


def csv_rows(name: str, city: str, t0_s: float) -> list[str]:
    one = scenario(name, region=city.lower(), tracks=12)
    kinds = ["AV", "AGENT", *["OTHERS"] * 10]
    return [
        f"{argoverse.EPOCH_S + t0_s + 0.1 * frame:.6f},{track},{kind},{xy[0]:.3f},{xy[1]:.3f},{city}"
        for frame in range(50)
        for track, kind, xy in zip(one.track_ids, kinds, one.xy[:, frame], strict=True)
    ]


def run(block: str, folder: Path, data: Path) -> str:
    """Run a block in a shell that stops at the first command that fails."""
    beside = Path(sys.executable).parent
    env = {**os.environ, "FEDFLEET_DATA": str(data), "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", block], cwd=folder, env=env, capture_output=True, text=True, timeout=360, check=False
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def loaded(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_the_recordings_are_listed_and_checked(tmp_path: Path, data: Path) -> None:
    (block,) = blocks("scenarios list")
    said = run(block, tmp_path, data)
    for region in ("mia-e", "mia-w", "pit-e", "pit-w"):
        assert region in said
    assert "24 drives" in said


def is_replayed(folder: Path, said: str) -> None:
    report = loaded(folder / "out/replay/replay.json")
    assert set(report["regions"]) == {"mia-e", "mia-w", "pit-e", "pit-w"}
    assert len(report["pictures"]) == 13
    assert all((folder / name).is_file() for name in report["pictures"])
    assert "miss_rate" in said


@pytest.mark.slow
def test_a_model_is_replayed(tmp_path: Path, data: Path) -> None:
    # given the first model, where a comparison leaves the one that it judged
    first = export(TASK, seed=1)
    model = tmp_path / "out/compare/federated.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(patch(first.onnx, first.layout, first.initial))
    # then
    is_replayed(tmp_path, "".join(run(block, tmp_path, data) for block in blocks("fedfleet replay")))


@pytest.mark.slow
def test_the_whole_page_from_top_to_bottom(tmp_path: Path, data: Path, mosquitto_binary: Path) -> None:
    del mosquitto_binary
    said = [run(block, tmp_path, data) for block in blocks("")]
    found = loaded(tmp_path / "out/compare/compare.json")
    assert {"constant_velocity", "centralised", "on_site", "federated"} <= set(found)
    assert (tmp_path / "out/compare/report.html").is_file()
    is_replayed(tmp_path, "".join(said))
    assert (tmp_path / "out/demo/report.html").is_file()
    assert "NOT TRUE" not in said[-1]


def test_no_command_of_the_page_is_left_out() -> None:
    words = ("scenarios list", "fedfleet compare", "fedfleet replay", "fedfleet demo")
    assert sorted(block for word in words for block in blocks(word)) == sorted(blocks(""))
