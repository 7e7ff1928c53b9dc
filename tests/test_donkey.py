"""Donkey tubs: zips and folders read alike, blocks of neighbours, and what others may have written into them."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tubs

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios import donkey, donkey_catalog, donkey_image
from fedfleet.scenarios.donkey import Block, Shots, open_camera, open_tubs
from fedfleet.scenarios.tree import walk

pytest.importorskip("PIL", reason="Pillow is not installed (extra scenarios)")

FRAMES = 150


@pytest.fixture(scope="module")
def sound() -> dict[str, bytes]:
    return tubs.files(FRAMES)


def shots(block: Block) -> Shots:
    return donkey.shots(block, rows=66, columns=200)


def only(folder: Path) -> list[Shots]:
    return [shots(block) for block in open_tubs(folder).values()]


def test_a_zip_a_folder_and_the_tub_itself_read_alike(tmp_path: Path, sound: dict[str, bytes]) -> None:
    tubs.write_zip(tmp_path / "a" / "Shed-Car_1.zip", sound)
    tubs.write_zip(tmp_path / "b" / "shed-car-1.zip", sound, inside="data/")
    tubs.write_folder(tmp_path / "c" / "shed-car-1", sound)
    keys = [f"shed/car-1-0{number}" for number in range(3)]
    read = {}
    for name in ("a", "b", "c", "c/shed-car-1"):
        blocks = open_tubs(tmp_path / name)
        assert list(blocks) == keys
        read[name] = [shots(block) for block in blocks.values()]
    for name in ("b", "c", "c/shed-car-1"):
        for one, other in zip(read["a"], read[name], strict=True):
            assert np.array_equal(one.images, other.images)
            assert np.array_equal(one.angles, other.angles)


def test_an_image_is_cut_below_the_horizon_and_scaled() -> None:
    pixels = tubs.image(0.0)
    pixels[: tubs.HEIGHT // 3] = 0  # all above the horizon black
    seen = donkey_image.decode(tubs.jpeg(pixels), rows=66, columns=200)
    assert (seen.shape, seen.dtype) == ((3, 66, 200), np.uint8)
    assert seen[:, 4:, :].min() > 60  # nothing black is left
    assert seen[0, 30, 100] > 200  # the line stands in the middle
    assert seen[0, 30, 20] < 120


def test_blocks_are_neighbours_with_a_gap_between_them(tmp_path: Path) -> None:
    one = tubs.jpeg(tubs.image(0.0))
    lines = [json.dumps(tubs.record(number, "x.jpg", 0.0)) for number in range(2600)]
    made = {"images/x.jpg": one, "catalog_0.catalog": "\n".join(lines).encode()}
    tubs.write_zip(tmp_path / "hall-red.zip", {**made, "manifest.json": tubs.manifest(["catalog_0.catalog"])})
    blocks = list(open_tubs(tmp_path).values())
    assert [(block.start, block.end) for block in blocks] == [
        *((0, 500), (520, 1020), (1040, 1540), (1560, 2060), (2080, 2600))
    ]
    assert [block.drive.key for block in blocks] == [f"hall/red-0{number}" for number in range(5)]


def test_a_short_recording_is_cut_into_three(tmp_path: Path, sound: dict[str, bytes]) -> None:
    tubs.write_zip(tmp_path / "hall-red.zip", sound)
    assert [(block.start, block.end) for block in open_tubs(tmp_path).values()] == [
        (0, 30),
        (50, 80),
        (100, 150),
    ]


def test_what_cannot_be_read_is_counted_and_left_out(tmp_path: Path, sound: dict[str, bytes]) -> None:
    made = tubs.changed(sound, 2, angle="left")
    made = tubs.changed(made, 4, angle=7.5)
    made = tubs.changed(made, 6, name="../../secret.jpg")
    made = tubs.changed(made, 8, name="gone.jpg")
    made = tubs.changed(made, 12, name="11_cam_image_array_.jpg")  # the camera stood still
    made["images/10_cam_image_array_.jpg"] = made["images/10_cam_image_array_.jpg"][:700]
    made["images/14_cam_image_array_.jpg"] = b"GIF89a what"
    made["catalog_0.catalog"] += b"{not json\n" + b"[" * 60_000 + b"\n" + b"x" * 70_000 + b"\n"
    made["manifest.json"] = tubs.manifest(["catalog_0.catalog", "lost.catalog"], deleted=(16,))
    tubs.write_zip(tmp_path / "hall-red.zip", made)
    read = only(tmp_path)
    assert read[0].problems == {
        "bad-angle": 2,
        "between-blocks": 40,
        "broken-image": 2,
        "deleted": 1,
        "frozen-camera": 1,
        "malformed-record": 4,
        "no-catalog": 1,
        "no-image": 1,
    }
    assert [one.problems for one in read[1:]] == [{}, {}]
    assert not {2, 4, 12} & set(read[0].numbers[read[0].labelled].tolist())
    assert not {6, 8, 10, 14, 16} & set(read[0].numbers.tolist())


def test_every_cut_of_an_image_is_counted_never_raised(sound: dict[str, bytes]) -> None:
    data = sound["images/0_cam_image_array_.jpg"]
    for size in range(0, len(data), 97):
        with pytest.raises(donkey.ScenarioError, match="broken-image"):
            donkey_image.decode(data[:size], rows=66, columns=200)


def test_a_huge_image_is_not_unpacked() -> None:
    from PIL import Image

    bomb = io.BytesIO()
    Image.new("RGB", (6000, 6000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < donkey_image.MAX_IMAGE_BYTES
    with pytest.raises(donkey.ScenarioError, match="6000x6000 pixels"):
        donkey_image.decode(bomb.getvalue(), rows=66, columns=200)


def test_flipped_bytes_of_a_catalog_never_raise(sound: dict[str, bytes], tmp_path: Path) -> None:
    chance = np.random.default_rng(5)
    for trial in range(40):
        data = np.frombuffer(sound["catalog_0.catalog"], dtype=np.uint8).copy()
        data[chance.integers(0, len(data), 20)] = chance.integers(0, 256, 20)
        folder = tmp_path / f"hall-{trial}"
        tubs.write_folder(
            folder, {"catalog_0.catalog": data.tobytes(), "manifest.json": sound["manifest.json"]}
        )
        records, problems = donkey_catalog.read_records(donkey.open_files(walk(folder))[0])
        assert len(records) + problems.total() >= FRAMES - 20
        assert all("/" not in record.image for record in records)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"catalog_0.catalog": b""}, "no-frames: hall-red.zip: expected at least 1 frame, got none"),
    ],
)
def test_a_tub_that_is_none_refuses_the_folder(
    change: dict[str, bytes], words: str, tmp_path: Path, sound: dict[str, bytes]
) -> None:
    tubs.write_zip(tmp_path / "hall-red.zip", {**sound, **change})
    with pytest.raises(UsageError, match=words):
        open_tubs(tmp_path)


def test_a_folder_without_a_tub_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"no recordings: an empty folder; `fedfleet scenarios formats` lists what is read",
    ):
        open_tubs(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        UsageError, match=r"no recordings: 1 × unknown-file: notes\.txt is of no format that is read"
    ):
        open_tubs(tmp_path)
    with pytest.raises(UsageError, match="got nothing"):
        open_tubs(tmp_path / "absent")


def test_a_zip_that_is_none_and_two_tubs_of_one_name_are_refused(
    tmp_path: Path, sound: dict[str, bytes]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "hall-red.zip").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(UsageError, match=r"not-a-zip: hall-red\.zip"):
        open_tubs(tmp_path / "a")
    tubs.write_zip(tmp_path / "b" / "hall-red.zip", sound)
    tubs.write_folder(tmp_path / "b" / "copy" / "hall-red", sound)
    found = open_camera(tmp_path / "b")
    assert len(found.blocks) == 3
    (row,) = found.account.rows
    assert re.match(
        r"duplicate-drive: .*: two recordings are named for car red in hall: rename one", row.text
    )


def test_names_that_fold_to_one_id_are_cars_of_their_own(tmp_path: Path, sound: dict[str, bytes]) -> None:
    for name in ("hall-red", "Hall_Red", "hall,red"):
        tubs.write_zip(tmp_path / f"{name}.zip", sound)
    blocks = open_tubs(tmp_path)
    assert len(blocks) == 9
    assert len({block.tub.car for block in blocks.values()}) == 3
    assert {"hall/red-00", "hall/red-01", "hall/red-02"} < set(blocks)


def test_an_encrypted_or_oversized_member_is_counted(tmp_path: Path, sound: dict[str, bytes]) -> None:
    made = {**sound, "images/3_cam_image_array_.jpg": b"\0" * (17 * 2**20)}
    path = tmp_path / "hall-red.zip"
    tubs.write_zip(path, made)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        name = archive.getinfo("images/5_cam_image_array_.jpg").filename.encode()
    entry = raw.rindex(name) - 46  # the central directory's entry: its flags stand at 8
    raw[entry + 8] |= 1
    path.write_bytes(raw)
    assert only(tmp_path)[0].problems == {"between-blocks": 40, "broken-image": 2}


def test_a_changed_tub_is_read_again(tmp_path: Path, sound: dict[str, bytes]) -> None:
    tubs.write_folder(tmp_path / "hall-red", sound)
    before = open_tubs(tmp_path)
    lines = sound["catalog_0.catalog"].splitlines(keepends=True)[:90]
    tubs.write_folder(tmp_path / "hall-red", {"catalog_0.catalog": b"".join(lines)})
    after = open_tubs(tmp_path)
    assert sum(block.end for block in after.values()) < sum(block.end for block in before.values())


def test_the_recorded_cars(data_dir: Path) -> None:
    blocks = open_tubs(data_dir / "donkey")
    frames: dict[str, int] = {}
    for block in blocks.values():
        car = block.drive.key.rpartition("-")[0]
        frames[car] = max(frames.get(car, 0), block.end)
        assert 200 < block.end - block.start <= 600
    assert frames == {
        "garage/car3": 2500,
        "lab/car4-imu": 1556,  # the last 2 s follow a pause
        "office/car1": 2500,
        "office/car2": 2500,
        "patio/car5": 800,
    }
    seen = shots(blocks["office/car1-01"])
    assert len(seen.images) == 480
    assert seen.problems["frozen-camera"] > 0
    assert np.abs(seen.angles).max() <= 1
