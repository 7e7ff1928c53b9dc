"""`fedfleet closed-loop` with SUMO: the whole way, twice the same bytes."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedfleet.cli.main import app
from fedfleet.scenarios.closed_loop_plan import plan
from fedfleet.scenarios.closed_loop_world import SumoWorld

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("libsumo") is None, reason="libsumo is not installed (extra sumo)"
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's first version, which answers constant velocity."""
    from fedfleet.fleet_server.export import export
    from fedfleet.models.layout import patch
    from fedfleet.models.motion_forecast import TASK

    exported = export(TASK, seed=1)
    path = tmp_path_factory.mktemp("model") / "first.onnx"
    path.write_bytes(patch(exported.onnx, exported.layout, exported.initial))
    return path


def run(model: Path, out: Path, *more: str) -> dict[str, Any]:
    words = ["closed-loop", "--model", str(model), "--episodes", "1", "--seed", "3", "--out", str(out), *more]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def test_the_same_seed_gives_the_same_bytes_and_an_untrained_model_drives_as_constant_velocity(
    model: Path, tmp_path: Path
) -> None:
    # when
    found = run(model, tmp_path / "a")
    run(model, tmp_path / "b")
    # then
    assert (tmp_path / "a/result.json").read_bytes() == (tmp_path / "b/result.json").read_bytes()
    assert [each["situation"] for each in found["episodes"]] == ["gap", "merge"]
    for each in found["episodes"]:
        ours, straight = each["outcomes"]["model"], each["outcomes"]["constant-velocity"]
        assert ours["driven_s"] > 1.0
        assert ours["mean_speed_ms"] == pytest.approx(straight["mean_speed_ms"], abs=0.5)
    assert found["situations"]["merge"]["against"]["constant-velocity"]["collisions"]["episodes"] == 1
    assert {path.name for path in (tmp_path / "a").iterdir()} >= {"result.json"}


def test_every_drive_of_an_episode_begins_in_the_same_world() -> None:
    with SumoWorld(plan("gap", 0, seed=3), times=2) as world:
        assert len(world.before) >= 19
        firsts = []
        for _ in range(2):
            first = world.next()
            assert first is not None
            firsts.append(first)
            world.act(first.ego.speed_ms, 0.0)
            assert world.next() is not None
            world.again()
    assert firsts[0] == firsts[1]
    assert sys.modules.get("libsumo") is None, "libsumo must stay in a process of its own"
