"""Payloads that would unpack to far more than they are, refused; measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedfleet.codec import container, payload
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import deflate, varint
from fedfleet.protocol.errors import PeerError

SIZE = 1_000_000
BOMB_BYTES = 100_000_000

CHILD = """
import resource, sys
from pathlib import Path
from fedfleet.codec import payload
from fedfleet.protocol.errors import PeerError

def peak_kb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def reason(data):
    try:
        payload.decode(data, size=1_000_000)
    except PeerError as error:
        return error.reason
    return "accepted"

files = [Path(name).read_bytes() for name in sys.argv[1:]]
reasons = [reason(files[0])]
before = peak_kb()
reasons += [reason(data) for data in files[1:]]
print(peak_kb() - before, *reasons)
"""


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A frame of zeros, with a little before them that hardly compresses, so that it has some length itself."""
    noise = np.random.default_rng(1).integers(0, 256, 90_000, dtype=np.uint8).tobytes()
    frame = deflate(noise + bytes(BOMB_BYTES - len(noise)))
    assert 90_000 < len(frame) < 110_000
    return frame


def lying(frame: bytes, *, size: int) -> bytes:
    """The frame with a header that tells another size."""
    told = BOMB_BYTES.to_bytes(4, "little")
    assert told in frame[:12]
    return frame.replace(told, size.to_bytes(4, "little"), 1)


def of(mode: int, index_part: bytes) -> bytes:
    """A payload of this mode and index part, and bytes enough behind it for the values."""
    delta = bytes((0, mode)) + varint(SIZE) + index_part + b"\0\0\x80\x3f" + bytes(1000)
    return container.join(
        {(container.DELTA, 0): delta, (container.STEPS, 0): b"\0", (container.EXAMPLES, 0): b"\0"}
    )


def rice(frame: bytes) -> bytes:
    """8,000 coordinates, b = 5, a unary stream of 4,000 bytes in the frame, and the remainders."""
    return varint(8000) + b"\x05" + varint(4000) + varint(len(frame)) + frame + bytes(5000)


def bitmap(frame: bytes) -> bytes:
    return varint(8000) + varint(len(frame)) + frame


def test_a_bomb_is_refused_with_less_than_a_megabyte(bomb: bytes, tmp_path: Path) -> None:
    # given 100 MB in 100 kB, told truly and told small, wherever a payload may hold a frame
    bombs = [
        *(of(0x30, rice(each)) for each in (bomb, lying(bomb, size=4000))),
        *(of(0x40, bitmap(each)) for each in (bomb, lying(bomb, size=SIZE // 8))),
        *(of(0x06, b"\x04" + bitmap(each)) for each in (bomb, lying(bomb, size=SIZE // 8))),
    ]
    delta = np.random.default_rng(1).standard_normal(SIZE).astype(np.float32)
    files = []
    for number, data in enumerate([payload.encode(delta, Settings(), steps=1, examples=1), *bombs]):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(data)
    # when a process that has decoded a usual payload decodes them all
    command = [sys.executable, "-c", CHILD, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    # then each is refused, and its memory never rose by a megabyte
    grown_kb, first, *reasons = done.stdout.split()
    assert first == "accepted"
    assert len(reasons) == len(bombs)
    assert set(reasons) <= {"bad-frame", "count-mismatch"}
    assert int(grown_kb) < 1000


def test_a_bomb_says_what_it_is(bomb: bytes) -> None:
    for mode, part, expected in ((0x30, rice(bomb), 4000), (0x40, bitmap(bomb), SIZE // 8)):
        text = rf"^bad-frame: .*: zstd frame of {BOMB_BYTES} bytes, expected {expected}$"
        with pytest.raises(PeerError, match=text):
            payload.decode(of(mode, part), size=SIZE)
