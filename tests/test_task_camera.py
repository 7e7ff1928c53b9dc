"""Task `camera_steering`: samples and frames, metrics from sums, variations, the graph, and the same commands."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tubs

from fedfleet.models import prepared
from fedfleet.models.camera_steering import TASK
from fedfleet.models.task import Case, Metric, Samples, added, load
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.prepare import Job, prepare

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")
pytest.importorskip("PIL", reason="Pillow is not installed (extra scenarios)")

CARS = {"hall-red": 1.0, "hall-blue": 0.8, "yard-green": 1.2}
FRAMES = 270


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tubs")
    for number, (name, light) in enumerate(CARS.items()):
        tubs.write_zip(folder / f"{name}.zip", tubs.files(FRAMES, seed=number, light=light))
    return folder


def drives(folder: Path) -> list[str]:
    return [drive.key for drive in TASK.index(folder).drives]


# --- samples and frames ---


def test_every_second_frame_is_a_sample_and_every_frame_is_seen(recordings: Path) -> None:
    samples, frames = TASK.samples(recordings, ["hall/red-01"]), TASK.frames(recordings, ["hall/red-01"])
    assert (samples.inputs.shape, samples.inputs.dtype) == ((35, 3, 66, 200), np.uint8)
    assert (len(frames), frames.rate_hz) == (70, 20.0)
    assert samples.judged.all()
    assert np.abs(samples.targets).max() <= 1
    known = frames.sample >= 0
    assert known.sum() == len(samples) == 70 // 2
    assert np.array_equal(frames.inputs[known], samples.inputs[frames.sample[known]])


def test_drives_are_cars_in_places_and_an_unknown_one_is_named(recordings: Path) -> None:
    assert drives(recordings) == [
        f"{car}-0{number}" for car in ("hall/blue", "hall/red", "yard/green") for number in range(3)
    ]
    with pytest.raises(UsageError, match="no drive hall/pink-00: expected one of hall/blue-00"):
        TASK.samples(recordings, ["hall/pink-00"])


def test_prepared_images_stay_a_byte_a_pixel_and_what_is_left_out_is_written_down(tmp_path: Path) -> None:
    made = tubs.changed(tubs.files(150), 2, angle=9.0)
    tubs.write_zip(tmp_path / "tubs" / "hall-red.zip", made)
    job = Job(out=tmp_path / "out", drives=("hall/red-00",), parts=("train", "frames"))
    (meta,) = prepare(TASK, tmp_path / "tubs", [job])
    assert meta.problems == {"bad-angle": 1, "between-blocks": 40}
    assert prepared.open_meta(tmp_path / "out").problems == {"bad-angle": 1, "between-blocks": 40}
    train, frames = prepared.open(tmp_path / "out", "train"), prepared.open_frames(tmp_path / "out")
    assert train.inputs.dtype == frames.inputs.dtype == np.uint8
    assert (len(train), len(frames)) == (15, 30)
    assert (tmp_path / "out" / "train_inputs.npy").stat().st_size < 15 * 3 * 66 * 200 + 200


# --- metrics ---


def by_hand(outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    off = outputs - targets
    r = np.corrcoef(outputs[:, 0], targets[:, 0])[0, 1]
    return {"MAE": np.abs(off).mean(), "RMSE": math.sqrt((off**2).mean()), "correlation": float(r)}


def test_metrics_of_parts_add_up_to_those_of_the_whole() -> None:
    chance = np.random.default_rng(1)
    targets = chance.uniform(-1, 1, (300, 1)).astype(np.float32)
    outputs = (0.6 * targets + chance.normal(0, 0.3, (300, 1))).astype(np.float32)
    images = np.zeros((300, 1), dtype=np.uint8)  # scoring looks at none
    parts = [
        TASK.score(
            outputs[rows], Samples(images[rows], targets[rows], np.ones(len(images[rows]), dtype=np.bool_))
        )
        for rows in (slice(0, 17), slice(17, 200), slice(200, 300))
    ]
    found = {metric.name: metric.value(added(parts)) for metric in TASK.metrics}
    assert found == pytest.approx(by_hand(outputs.astype(np.float64), targets.astype(np.float64)))
    means = [metric.value(parts[0]) for metric in TASK.metrics]
    assert means != [metric.value(added(parts)) for metric in TASK.metrics]


def test_a_metric_without_a_value_is_none() -> None:
    targets = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    samples = Samples(np.zeros((5, 3, 66, 200), np.uint8), targets, np.ones(5, dtype=np.bool_))
    sums = TASK.score(TASK.baseline(samples.inputs), samples)
    assert [metric.value(sums) for metric in TASK.metrics] == [0.6, pytest.approx(math.sqrt(0.5)), None]
    nothing = TASK.score(
        np.empty((0, 1), np.float32), Samples(samples.inputs[:0], targets[:0], samples.judged[:0])
    )
    assert [metric.value(nothing) for metric in TASK.metrics] == [None, None, None]
    assert Metric("MAE", "", "lower").value({}) is None


# --- variations, network ---


def test_mirrored_samples_steer_to_the_other_side() -> None:
    from fedfleet.models.augment_camera_steering import augment

    images = torch.arange(64 * 3 * 2 * 4, dtype=torch.float32).reshape(64, 3, 2, 4) % 251
    angles = torch.linspace(-1, 1, 64)[:, None]
    seen, steered = augment(images, angles, kind="mirror", chance=torch.Generator().manual_seed(3))
    turned = steered[:, 0] == -angles[:, 0]
    assert 16 < int(turned.sum()) < 48
    assert torch.equal(seen[turned], images.flip(3)[turned])
    assert torch.equal(seen[~turned], images[~turned])
    assert torch.equal(steered[~turned], angles[~turned])


def test_other_light_keeps_pixels_and_the_same_seed_gives_the_same() -> None:
    from fedfleet.models.augment_camera_steering import augment

    images, angles = torch.full((50, 3, 2, 4), 200.0), torch.zeros(50, 1)
    images[:, :, :, 0] = 0.0
    one, other, more = (
        augment(images, angles, kind="mirror-light", chance=torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, other)
    assert not torch.equal(one, more)
    assert float(one.min()) == 0.0
    assert float(one.max()) == 255.0  # 200 × 1.4 is more than white
    assert float(one[:, :, :, 1].amin(dim=(1, 2)).max()) > 240
    assert float(one[:, :, :, 1].min()) >= 120
    with pytest.raises(UsageError, match="no augmentation mirror-speed"):
        augment(images, angles, kind="mirror-speed", chance=torch.Generator())


def test_a_moved_image_repeats_its_edge_and_keeps_its_angle() -> None:
    from fedfleet.models.augment_camera_steering import augment

    # given a dot in the middle, where a mirror leaves it, and an edge of another brightness
    images, angles = torch.full((200, 3, 21, 81), 80.0), torch.full((200, 1), 0.5)
    images[:, :, 0] = 20.0
    images[:, :, 10, 40] = 255.0
    # when
    one, other, more = (
        augment(images, angles, kind="mirror-shift", chance=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    # then the same seed gives the same
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[0], more[0])
    assert one[0].shape == images.shape
    assert one[1].abs().eq(0.5).all()
    # and every dot is still there, nowhere further than it may go, and everywhere else sometimes
    dots = one[0][:, 0].flatten(1).argmax(dim=1)
    rows, columns = dots // 81, dots % 81
    assert set(rows.tolist()) == set(range(7, 14))
    assert set(columns.tolist()) == set(range(34, 47))
    # and above an image that moved down its edge is repeated
    down = rows == 13
    assert torch.equal(one[0][down][:, :, :3], one[0][down][:, :, 3:4].expand(-1, -1, 3, -1))


def test_pilotnet_has_the_paper_s_size_and_begins_straight_ahead() -> None:
    from fedfleet.models.training import network, vector

    model = network(TASK, seed=1)
    assert len(vector(model)) == 252_219
    images = torch.randint(0, 256, (2, 3, 66, 200), generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(model(images), torch.zeros(2, 1))


def test_the_model_does_not_see_how_bright_it_is() -> None:
    from fedfleet.models.nets_camera_steering import PilotNet

    torch.manual_seed(2)
    model = PilotNet()
    torch.nn.init.normal_(model.angle.weight)
    image = torch.from_numpy(tubs.image(0.3)[:66, :, :].repeat(2, axis=1)[:, :200].transpose(2, 0, 1).copy())[
        None
    ]
    with torch.no_grad():
        dark, bright = (model(image.float() * light) for light in (0.5, 1.0))
    assert float((dark - bright).abs()) < 0.1 * float(bright.abs())


def test_the_same_training_gives_the_same_bytes_and_learns(recordings: Path) -> None:
    from fedfleet.models.settings import TrainSettings
    from fedfleet.models.training import fine_tune, network, vector

    samples = TASK.samples(recordings, ["hall/red-00", "hall/red-01"])
    base = vector(network(TASK, seed=1))
    settings = TrainSettings(
        epochs=8, batch_size=8, learning_rate=1e-3, optimizer="adam", augment="mirror-light"
    )
    one, other = (fine_tune(TASK, base, samples, settings, seed=5) for _ in range(2))
    assert one.delta.tobytes() == other.delta.tobytes()
    assert one.loss_after < 0.6 * one.loss_before


# --- the commands ---


def command(*words: object, limit_s: float = 170) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedfleet.cli.main", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compare_then_replay_with_pictures(recordings: Path, tmp_path: Path) -> None:
    # given a comparison of all arms on small tubs
    out, task = tmp_path / "compare", ("--task", "camera_steering", "--scenarios", recordings)
    done = command("compare", *task, "--out", out, "--epochs", "3", limit_s=400)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert found["baseline"]["name"] == "angle 0"
    assert found["baseline"]["overall"]["correlation"] is None
    for arm in ("centralised", "on_site", "federated"):
        assert {"mae", "rmse", "correlation"} <= found[arm]["overall"].keys()
        assert found[arm]["overall"]["rmse"] >= found[arm]["overall"]["mae"]
    samples = found["data"]["training_samples"].values()
    # three passes at most over all samples, a batch of every vehicle a round
    seen = TASK.suits["compare"]["federated"]["training"]["batch_size"] * len(samples)
    assert found["rounds"] == 3 * sum(samples) // seen
    # of so few frames the gate refuses wild first steps
    assert 0 < found["rounds_published"] <= found["rounds"]
    assert len(found["federated"]["curve"]) == found["rounds_published"] + 1
    assert found["federated"]["curve"][-1]["validation"]["rmse"] > 0
    # a region with one drive to train on has one vehicle, the other as many as it can
    assert sorted(found["data"]["vehicles"].values()) == ["hall", "hall", "hall", "yard"]

    # when the model drives the recordings
    model = out / "work" / "server" / "model.onnx"
    pictures, figures = tmp_path / "pictures", tmp_path / "replay.json"
    words = (
        "--model",
        model,
        "--speed",
        "max",
        "--plot",
        "--worst",
        "3",
        "--out",
        pictures,
        "--json",
        figures,
    )
    done = command("replay", *task, *words)
    assert done.returncode == 0, done.stderr
    told = json.loads(figures.read_text(encoding="utf-8"))
    assert told["overall"]["frames"] == sum(230 for _ in CARS)  # less two gaps of 20
    assert told["overall"]["mae"] > 0
    names = sorted(path.name for path in pictures.glob("*.png"))
    assert names[-1] == "worst.png"
    assert len(names) == 4
    assert all((pictures / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_a_picture_shows_both_angles_of_the_right_frame(recordings: Path, tmp_path: Path) -> None:
    from fedfleet.models.plot_camera_steering import draw, views

    samples = TASK.samples(recordings, ["yard/green-02"])
    case = Case("yard/green-02", 4, np.array([0.25], dtype=np.float32))
    (view,) = views([case], recordings)
    assert (view.driven, view.predicted) == (pytest.approx(float(samples.targets[4, 0])), 0.25)
    assert np.array_equal(view.image.transpose(2, 0, 1), samples.inputs[4])
    assert view.number == 180 + 4 * 2
    assert draw([], scenarios=recordings, out=tmp_path) == []
    with pytest.raises(UsageError, match="has 45 samples, none of number 45"):
        views([Case("yard/green-02", 45, case.output)], recordings)


def test_the_installed_task_is_this_one() -> None:
    assert load("camera_steering") is TASK


def test_the_recorded_cars_have_angles_to_learn(data_dir: Path) -> None:
    samples = TASK.samples(data_dir / "donkey", ["garage/car3-01", "patio/car5-00"])
    mae, rmse, _ = (
        metric.value(TASK.score(TASK.baseline(samples.inputs), samples)) for metric in TASK.metrics
    )
    assert 0.2 < mae < rmse < 0.8
    assert samples.problems == {"between-blocks": 40, "frozen-camera": 5}
