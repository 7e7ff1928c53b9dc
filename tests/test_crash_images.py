"""A power cut at any moment: the store opens, and everything that was acknowledged is there."""

import random
import shutil
from pathlib import Path

import pytest
from crash_images import Disk, Op, examine, record


@pytest.mark.slow
def test_every_image_opens_and_has_what_was_acknowledged(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace installed")
    # given everything that a store process wrote and synced, while its log was carried into the file several times
    ops = record(tmp_path, batches=120)
    # when what was not synced is lost, in 200 ways
    found = examine(ops, tmp_path, images=200, seed=1)
    # then nothing that was acknowledged is
    assert found.kinds["sync"] > 240
    assert found.kinds["mkdir"] == 1
    assert found.kinds["unlink"] > 50
    assert found.acknowledged > 0
    assert found.failures == []
    assert (found.images, found.opened, found.lost) == (200, 200, 0)


def test_a_process_that_does_not_sync_is_found_out(tmp_path: Path) -> None:
    # given a process that says what it stored before it is on the disk
    ops = [Op("create", "store.sqlite"), Op("write", "store.sqlite", 0, b"x" * 4096), Op("told", data=b"4")]
    # then images show it
    found = examine(ops, tmp_path, images=30, seed=1)
    assert found.images == 30
    assert found.lost > 0
    assert found.failures


def test_what_was_not_synced_may_be_lost_and_what_was_may_not() -> None:
    disk = Disk()
    for op in (
        Op("create", "a"),
        Op("write", "a", 0, b"1" * 1024),
        Op("sync", "a"),
        Op("sync-folder", "."),
        Op("write", "a", 512, b"2" * 1024),
    ):
        disk.do(op)
    assert disk.image(random.Random(1), 1.0) == {"a": b"1" * 1024}
    assert disk.image(random.Random(1), 0.0) == {"a": b"1" * 512 + b"2" * 1024}
    # half-way, its second half may be there alone; a name that was removed may come back
    seen = {disk.image(random.Random(seed), 0.05)["a"] for seed in range(60)}
    assert b"1" * 1024 + b"2" * 512 in seen
    disk.do(Op("unlink", "a"))
    assert {len(disk.image(random.Random(seed), 0.5)) for seed in range(20)} == {0, 1}
    disk.do(Op("sync-folder", "."))
    assert disk.image(random.Random(1), 0.0) == {}


def test_a_file_is_safe_only_with_its_folder_and_its_folders_name() -> None:
    # given a file in a new folder, both named and synced but for the folder's own name
    disk = Disk()
    for op in (
        Op("mkdir", "updates"),
        Op("create", "updates/a"),
        Op("write", "updates/a", 0, b"whole"),
        Op("sync", "updates/a"),
        Op("sync-folder", "updates"),
    ):
        disk.do(op)
    assert disk.image(random.Random(1), 1.0) == {}
    # when that is synced as well, then it stays
    disk.do(Op("sync-folder", "."))
    assert disk.image(random.Random(1), 1.0) == {"updates/a": b"whole"}
