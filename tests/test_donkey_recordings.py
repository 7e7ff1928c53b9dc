"""Donkey tubs as cars leave them: driven by the autopilot, cut by a power loss, with pauses, by other cameras."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tubs

from fedfleet.models.camera_steering import TASK
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios import donkey, donkey_image
from fedfleet.scenarios.donkey import Shots, open_tubs
from fedfleet.scenarios.donkey_blocks import cut_blocks

pytest.importorskip("PIL", reason="Pillow is not installed (extra scenarios)")

from PIL import Image

FRAMES = 90


@pytest.fixture(scope="module")
def sound() -> dict[str, bytes]:
    return tubs.files(FRAMES)


def shots(folder: Path) -> list[Shots]:
    return [donkey.shots(block, rows=66, columns=200) for block in open_tubs(folder).values()]


def records(made: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in made["catalog_0.catalog"].splitlines()]


def catalog(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def samples(folder: Path) -> tuple[int, Mapping[str, int]]:
    found = TASK.samples(folder, [*open_tubs(folder)])
    return len(found.targets), found.problems


@pytest.mark.parametrize("mode", ["local", "local_angle", "pilot", ["user"]])
def test_frames_that_the_autopilot_steered_teach_nothing(
    tmp_path: Path, sound: dict[str, bytes], mode: object
) -> None:
    rows = records(sound)
    for row in rows:
        row["user/mode"] = "user"
    for row in rows[:60]:
        row |= {"user/mode": mode, "user/angle": 0.0, "pilot/angle": 0.7}
    tubs.write_zip(tmp_path / "hall-red.zip", {**sound, "catalog_0.catalog": catalog(rows)})
    count, left_out = samples(tmp_path)
    assert (count, left_out) == (15, {"autopilot": 60})
    assert {number for one in shots(tmp_path) for number in one.numbers[one.labelled]} == set(range(60, 90))


def three_catalogs(sound: Mapping[str, bytes]) -> dict[str, bytes]:
    rows = records(sound)
    parts = {f"catalog_{n}.catalog": catalog(rows[30 * n : 30 * n + 30]) for n in range(3)}
    return {**sound, **parts, "catalog_0.catalog_manifest": b"{}"}


@pytest.mark.parametrize("as_zip", [True, False])
def test_catalogs_that_an_old_manifest_does_not_name_are_read(
    tmp_path: Path, sound: dict[str, bytes], as_zip: bool
) -> None:
    made = {**three_catalogs(sound), "manifest.json": tubs.manifest(["catalog_0.catalog"], deleted=(3,))}
    if as_zip:
        tubs.write_zip(tmp_path / "hall-red.zip", made, inside="data/")
    else:
        tubs.write_folder(tmp_path / "hall-red", made)
    assert samples(tmp_path) == (45, {"deleted": 1})


@pytest.mark.parametrize("ending", [b"\n", b"\n\n  \n", b"\r\n", b"\0\0\0"])
def test_a_manifest_with_a_blank_last_line_is_whole(
    tmp_path: Path, sound: dict[str, bytes], ending: bytes
) -> None:
    made = {**sound, "manifest.json": sound["manifest.json"] + ending}
    if ending == b"\0\0\0":  # a block that was never written, on a line of its own
        made["manifest.json"] = sound["manifest.json"] + b"\n" + ending
    tubs.write_zip(tmp_path / "hall-red.zip", made)
    assert samples(tmp_path) == (45, {})


@pytest.mark.parametrize("size", [0, 2, 9, 40, -2])
def test_a_manifest_that_was_cut_leaves_the_catalogs(
    tmp_path: Path, sound: dict[str, bytes], size: int
) -> None:
    made = three_catalogs(sound)
    made["manifest.json"] = sound["manifest.json"][:size]
    tubs.write_folder(tmp_path / "hall-red", made)
    assert samples(tmp_path) == (45, {"damaged-manifest": 1})


@pytest.mark.parametrize("text", [b"", b'{"paths": 3}', b"\xff\xfe"])
def test_a_damaged_manifest_without_a_catalog_says_what_was_expected(
    tmp_path: Path, sound: dict[str, bytes], text: bytes
) -> None:
    made = {name: data for name, data in sound.items() if name.startswith("images/")}
    tubs.write_zip(tmp_path / "hall-red.zip", {**made, "manifest.json": text})
    expected = r"malformed-manifest: hall-red: manifest.json: expected .* or catalog_\*\.catalog beside it"
    with pytest.raises(UsageError, match=expected):
        open_tubs(tmp_path)


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def test_sixteen_bits_of_grey_become_eight() -> None:
    eight = tubs.image(0.3)[:, :, 0]
    expected = donkey_image.decode(png(eight), rows=66, columns=200)
    for pixels in (eight.astype(np.uint16) * 256, eight.astype(np.uint16) * 256 + 255):
        seen = donkey_image.decode(png(pixels), rows=66, columns=200)
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("size", [(1920, 1080), (3840, 2160), (1080, 1920)])
def test_a_large_camera_shows_what_a_small_one_does(size: tuple[int, int]) -> None:
    small = Image.fromarray(tubs.image(0.3))
    data = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
    seen = donkey_image.decode(data.getvalue(), rows=66, columns=200)
    expected = donkey_image.decode(png(np.asarray(small)), rows=66, columns=200)
    assert np.abs(seen.astype(float) - expected).mean() < 6


def test_an_image_that_says_how_it_is_turned_is_turned() -> None:
    whole = Image.fromarray(tubs.image(0.3))
    data, orientation = io.BytesIO(), Image.Exif()
    orientation[0x0112] = 3  # upside down, as a camera under a roof
    whole.transpose(Image.Transpose.ROTATE_180).save(data, "PNG", exif=orientation)
    seen = donkey_image.decode(data.getvalue(), rows=66, columns=200)
    np.testing.assert_array_equal(seen, donkey_image.decode(png(np.asarray(whole)), rows=66, columns=200))


def test_images_beyond_the_limit_are_counted_as_too_large(tmp_path: Path, sound: dict[str, bytes]) -> None:
    made = dict(sound)
    made["images/4_cam_image_array_.jpg"] = png(np.zeros((6000, 6000), dtype=np.uint8))
    tubs.write_zip(tmp_path / "hall-red.zip", made)
    assert samples(tmp_path)[1] == {"image-too-large": 1}


def times(*stretches: tuple[int, int], step_ms: int = 50) -> np.ndarray:
    """Time stamps of stretches: (frames, pause before it in ms) each."""
    found: list[int] = []
    at = 1_700_000_000_000
    for frames, pause_ms in stretches:
        at += pause_ms
        found += [at + step_ms * number for number in range(frames)]
        at = found[-1]
    return np.array(found, dtype=np.int64)


def test_a_drive_ends_at_a_pause() -> None:
    cuts = cut_blocks(times((700, 0), (900, 32_000), (400, 1_100)))
    assert cuts.rate_hz == 20.0
    assert cuts.left_out == {"pause": 2, "between-blocks": 20}
    assert cuts.blocks == ((0, 700), (700, 1130), (1150, 1600), (1600, 2000))


def test_a_clock_that_is_set_ends_a_drive_whichever_way() -> None:
    for jump in (-3_600_000, 5 * 3_600_000):
        cuts = cut_blocks(times((300, 0), (300, jump)))
        assert cuts.left_out["pause"] == 1
        assert not any(start < 300 < end for start, end in cuts.blocks)


def test_stretches_of_a_few_seconds_are_left_out_and_counted() -> None:
    cuts = cut_blocks(times((600, 0), (90, 5_000), (600, 5_000)))
    assert cuts.left_out["short-stretch"] == 90
    assert all(end <= 600 or start >= 690 for start, end in cuts.blocks)


@pytest.mark.parametrize(("step_ms", "rate_hz"), [(100, 10.0), (33, 30.0), (17, 60.0), (1000, 1.0)])
def test_the_rate_is_that_of_the_time_stamps(step_ms: int, rate_hz: float) -> None:
    cuts = cut_blocks(times((2000, 0), step_ms=step_ms))
    assert cuts.rate_hz == pytest.approx(rate_hz, rel=0.02)
    longest = max(end - start for start, end in cuts.blocks) / cuts.rate_hz
    assert longest <= 2 * 25.0 + 1 / cuts.rate_hz
    assert cuts.left_out["pause"] == 0


def test_time_stamps_that_tell_nothing_are_taken_as_twenty_a_second() -> None:
    assert cut_blocks(np.zeros(1000, dtype=np.int64)).rate_hz == 20.0
    assert cut_blocks(np.zeros(1, dtype=np.int64)).blocks == ((0, 1),)
    assert cut_blocks(np.zeros(0, dtype=np.int64)).blocks == ()


def test_samples_are_ten_a_second_at_any_rate(tmp_path: Path, sound: dict[str, bytes]) -> None:
    rows = records(sound)
    for row in rows:
        row["_timestamp_ms"] = 1_700_000_000_000 + row["_index"] * 100
    tubs.write_zip(tmp_path / "hall-red.zip", {**sound, "catalog_0.catalog": catalog(rows)})
    count, left_out = samples(tmp_path)
    assert (count, left_out) == (70, {"between-blocks": 20})
    assert TASK.frames(tmp_path, [*open_tubs(tmp_path)]).rate_hz == 10.0
    assert sum(block.drive.seconds for block in open_tubs(tmp_path).values()) == pytest.approx(7.0)


def test_every_frame_is_in_a_block_or_counted() -> None:
    chance = np.random.default_rng(3)
    for _ in range(300):
        stretches = [
            (int(chance.integers(1, 900)), int(chance.integers(1_500, 90_000)))
            for _ in range(chance.integers(1, 6))
        ]
        stamps = times(*stretches)
        cuts = cut_blocks(stamps)
        kept = sum(end - start for start, end in cuts.blocks)
        assert kept + cuts.left_out["between-blocks"] + cuts.left_out["short-stretch"] == len(stamps)
        for start, end in cuts.blocks:
            assert (np.diff(stamps[start:end]) <= 1000).all()
