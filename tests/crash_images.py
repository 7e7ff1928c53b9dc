"""What a disk may hold after a power cut: every write and sync of a process is recorded, and replayed with losses.

The record is strace's, of the unmodified store. A write that was not synced may be there, be lost, or be torn at a
sector; a name that was made or removed may be there or not until its folder was synced. Used by the tests and by
``benchmarks/crash_images.py``.
"""

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crash_writer import VEHICLES, opened, update_ids
from sqlalchemy import select

from fedfleet.fleet_server import schema, store_vehicles
from fedfleet.fleet_server.store_check import problems
from fedfleet.fleet_server.store_files import UPDATES

__all__ = ["Found", "Op", "examine", "record"]

TESTS = Path(__file__).parent
SECTOR_BYTES = 512
RECORD_S = 300
CALLS = "openat,pwrite64,write,fsync,fdatasync,ftruncate,unlink,rename,mkdir"
STRING_BYTES = 110_000
LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)(?:<(.*)>)?(?: .*)?$")
KINDS = {
    "pwrite64": "write",
    "ftruncate": "truncate",
    "fsync": "sync",
    "fdatasync": "sync",
    "unlink": "unlink",
}
SHM = "-shm"
ODDS = (0.05, 0.35, 0.65, 0.95)
"""How likely a write that was not synced is lost, by image."""


@dataclass(frozen=True)
class Op:
    """One thing that the process did: write, truncate, create, mkdir, unlink, sync (a file), sync-folder, told.

    ``name`` is relative to the store's folder; that of the folder itself is ".".
    """

    kind: str
    name: str = ""
    offset: int = 0
    data: bytes = b""


def record(folder: Path, *, batches: int) -> list[Op]:
    """Run the store process under strace and return what it did to its files, in order."""
    log, store = folder / "strace", folder / "store"
    watched = [sys.executable, str(TESTS / "crash_writer.py"), str(store), str(folder / "told"), str(batches)]
    strace = ["strace", "-f", "-y", "-xx", "-s", str(STRING_BYTES), "-e", f"trace={CALLS}", "-o", str(log)]
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [*strace, *watched],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=RECORD_S,
    )
    if done.returncode:
        raise RuntimeError(f"the store process failed under strace: {done.stderr[-500:]}")
    with log.open() as lines:
        return list(_parse(lines, store=store, told=folder / "told"))


def _parse(lines: Iterator[str], *, store: Path, told: Path) -> Iterator[Op]:
    known: set[str] = set()
    for line in lines:
        if "<unfinished" in line or "resumed>" in line:
            if str(store).encode().hex() in line.replace("\\x", ""):
                raise RuntimeError(f"two threads at the store's files: {line[:200]}")
            continue
        found = LINE.match(line)
        if found is None or int(found[3]) < 0:
            continue
        yield from _ops(found[1], found[2], found[4] or "", known, store=store, told=told)


def _ops(call: str, words: str, opened_: str, known: set[str], *, store: Path, told: Path) -> Iterator[Op]:
    path = _path(call, words, opened_)
    if path == told and call == "write":
        yield Op("told", data=_bytes(words))
        return
    if not path.is_relative_to(store):
        return
    name = str(path.relative_to(store))
    if name in {".", UPDATES}:
        yield from _folder_ops(call, name)
    elif name.startswith(("store.sqlite", f"{UPDATES}/")) and not name.endswith(SHM):
        yield from _file_ops(call, words, name, known)


def _folder_ops(call: str, name: str) -> Iterator[Op]:
    if call in {"fsync", "fdatasync"}:
        yield Op("sync-folder", name)
    elif call == "mkdir" and name != ".":
        yield Op("mkdir", name)


def _file_ops(call: str, words: str, name: str, known: set[str]) -> Iterator[Op]:
    if call == "openat":
        if name not in known and "O_CREAT" in words:
            known.add(name)
            yield Op("create", name)
    elif call == "write":  # a file of updates is written once, from its beginning
        yield Op("write", name, 0, _bytes(words))
    elif call in KINDS:
        if call == "unlink":
            known.discard(name)
        offset = int(words.rsplit(",", 1)[1]) if call in {"pwrite64", "ftruncate"} else 0
        yield Op(KINDS[call], name, offset, _bytes(words) if call == "pwrite64" else b"")
    else:
        raise RuntimeError(f"{call} of {name}: this replay does not know it")


def _path(call: str, words: str, opened_: str) -> Path:
    if call == "openat":
        return Path(_text(opened_))
    if call in {"unlink", "rename", "mkdir"}:
        return Path(_text(words.split('"')[1]))
    return Path(_text(words.split("<", 1)[1].split(">", 1)[0]) if "<" in words else "")


def _bytes(words: str) -> bytes:
    found = words.split('"')[1]
    if words.split('"')[2].startswith("..."):
        raise RuntimeError("strace has cut a string")
    return bytes.fromhex(found.replace("\\x", ""))


def _text(words: str) -> str:
    return bytes.fromhex(words.replace("\\x", "")).decode() if words.startswith("\\x") else words


@dataclass
class Disk:
    """What is durable, and what may be lost. Names are durable once their folder was synced, and its own name.

    ``before`` is what stands under a name whose removal and making anew may both be lost.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    pending: dict[str, list[Op]] = field(default_factory=dict)
    names: dict[str, bool] = field(default_factory=dict)
    before: dict[str, bytes] = field(default_factory=dict)
    folders: dict[str, bool] = field(default_factory=dict)
    told: int = 0

    def do(self, op: Op) -> None:
        """Take over one thing that the process did."""
        match op.kind:
            case "mkdir":
                self.folders[op.name] = False
            case "create":
                if op.name in self.files:
                    self.before[op.name] = self.files.pop(op.name)
                self.names[op.name] = True
                self.pending[op.name] = []
            case "unlink":
                self.names[op.name] = False
            case "sync":
                self.files[op.name] = _apply(self.files.get(op.name, b""), self.pending[op.name])
                self.pending[op.name] = []
            case "sync-folder":
                self._sync_folder(op.name)
            case "told":
                self.told = int(op.data)
            case _:
                self.pending[op.name].append(op)

    def _sync_folder(self, folder: str) -> None:
        for name in [each for each in self.names if str(Path(each).parent) == folder]:
            if not self.names.pop(name):
                self.files.pop(name, None)
                self.pending.pop(name, None)
            self.before.pop(name, None)
        if folder == ".":
            self.folders = dict.fromkeys(self.folders, True)

    def image(self, rng: random.Random, loss: float) -> dict[str, bytes]:
        """Return files as a power cut may leave them, each pending thing lost with this probability."""
        found = {}
        lost = {name for name, is_safe in self.folders.items() if not is_safe and rng.random() < loss}
        for name in self.files.keys() | self.pending.keys():
            if str(Path(name).parent) in lost:
                continue
            if name in self.names and rng.random() < (loss if self.names[name] else 1 - loss):
                if self.names[name] and name in self.before and rng.random() < loss:
                    found[name] = self.before[name]
                continue  # its making was lost, or its removal was not
            kept = [torn for op in self.pending.get(name, ()) if (torn := _torn(op, rng, loss)) is not None]
            found[name] = _apply(self.files.get(name, b""), kept)
        return found


def _torn(op: Op, rng: random.Random, loss: float) -> Op | None:
    if loss in {0.0, 1.0}:
        return op if loss == 0.0 else None
    if rng.random() < loss:
        return None
    if op.kind == "write" and len(op.data) > SECTOR_BYTES and rng.random() < 0.2:
        cut = rng.randrange(SECTOR_BYTES, len(op.data), SECTOR_BYTES)
        if rng.random() < 0.5:
            return Op("write", op.name, op.offset, op.data[:cut])
        return Op("write", op.name, op.offset + cut, op.data[cut:])
    return op


def _apply(content: bytes, ops: list[Op]) -> bytes:
    if not ops:
        return content
    data = bytearray(content)
    for op in ops:
        end = op.offset + len(op.data)
        if op.kind == "truncate":
            data[op.offset :] = b""
            end = op.offset
        if len(data) < end:
            data.extend(bytes(end - len(data)))
        if op.kind == "write":
            data[op.offset : end] = op.data
    return bytes(data)


@dataclass
class Found:
    """What the images showed. ``lost`` are acknowledged updates that an image lacked, over all images."""

    images: int = 0
    opened: int = 0
    lost: int = 0
    acknowledged: int = 0
    failures: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


def examine(
    ops: list[Op], folder: Path, *, images: int, seed: int, heard: Callable[[int], None] = lambda _: None
) -> Found:
    """Rebuild so many images, spread over everything the process did, open each with the store and compare."""
    rng, found, disk = random.Random(seed), Found(kinds=Counter(op.kind for op in ops)), Disk()
    for number, op in enumerate(ops, start=1):
        disk.do(op)
        while found.images < images * number // len(ops):
            place = found.images % (len(ODDS) + 2)
            loss = (0.0, 1.0, *ODDS)[place]
            found.images += 1
            _open(disk.image(rng, loss), disk.told, folder / "image", found, rng)
            heard(found.images)
    return found


def _open(image: dict[str, bytes], told: int, folder: Path, found: Found, rng: random.Random) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in image.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    if rng.random() < 0.2:  # what is left of the index of the log is never to be believed
        (folder / f"store.sqlite{SHM}").write_bytes(rng.randbytes(32_768))
    try:
        store = opened(folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
        found.failures.append(f"image {found.images}: does not open: {error}"[:300])
        return
    try:
        with store.read() as connection:
            there = set(connection.execute(select(schema.update.c.id)).scalars())
            wrong = problems(connection)
            enrolled = len(store_vehicles.regions(connection))
    finally:
        store.close()
    found.opened += 1
    missing = [str(id_) for id_ in update_ids(told) if str(id_) not in there]
    found.acknowledged += told
    found.lost += len(missing)
    if missing or wrong or (told and enrolled != len(VEHICLES)):
        found.failures.append(f"image {found.images}: {len(missing)} lost, {wrong[:3]}")
