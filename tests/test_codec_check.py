"""`check` accepts and refuses exactly what `decode` does, in the same words, without naming coordinates."""

import random
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from fedfleet.codec import entropy, payload
from fedfleet.codec.entropy_rice import pack_rice, unpack_rice
from fedfleet.codec.parts import Part, Parts
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import Reader
from fedfleet.protocol.errors import PeerError

SIZE = 4000
PARTS = Parts(
    SIZE,
    (
        Part("body", ((0, 1000), (1400, 3000))),
        Part("body", ((1000, 1400),), "dense"),
        Part("head", ((3000, 4000),)),
    ),
)
Floats = npt.NDArray[np.float32]


def normal(seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)


def clustered(seed: int) -> Floats:
    """Large in a few stretches: what adaptive Rice, zstd and bitmaps are for."""
    found = normal(seed) * 1e-3
    found[200:260] *= 1e4
    found[2500:2530] *= 1e4
    return found


CASES: dict[str, tuple[Settings, Parts | None, Callable[[int], Floats]]] = {
    "rice, signs": (Settings("rice", "sign", 0.01), None, normal),
    "rice, eight bits": (Settings("rice", "int8", 0.05), None, normal),
    "rice of one": (Settings("rice", "int4", 1e-9), None, normal),
    "rice of all": (Settings("rice", "int8", 1.0), None, normal),
    "clustered": (Settings("rice", "sign", 0.02), None, clustered),
    "parts": (Settings("rice", "int8", 0.02), PARTS, normal),
    "dense": (Settings("dense", "float32"), None, normal),
    "stochastic": (Settings("dense", "stochastic4", 0.1), None, normal),
}


def told(act: Callable[[], payload.Payload | payload.Checked]) -> tuple[str, str] | tuple[int, int, bytes]:
    """What comes of it: reason and words of a refusal, or numbers and values."""
    try:
        found = act()
    except PeerError as error:
        return error.reason, error.detail
    values = found.delta.values
    return found.steps, found.examples, np.sort(values[values != 0]).tobytes()


def both(data: bytes, parts: Parts | None, *, control: bool = False) -> tuple[object, object]:
    one = told(lambda: payload.check(data, size=SIZE, parts=parts, control=control))
    return one, told(lambda: payload.decode(data, size=SIZE, parts=parts, control=control))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Change, cut or insert some bytes, and make the checksum right again, as a vehicle that means it would."""
    changed = bytearray(data[:-4])
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(4, len(changed))
        match rng.randrange(3):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.randrange(256)
            case _:
                del changed[at : at + rng.randint(1, 3)]
                changed[at:at] = rng.randbytes(rng.randint(0, 3))
    return bytes(changed) + zlib.crc32(changed).to_bytes(4, "little")


@pytest.mark.parametrize("name", CASES)
def test_check_says_what_decode_says(name: str) -> None:
    settings, parts, deltas = CASES[name]
    rng = random.Random(name)
    accepted = 0
    for seed in range(6):
        data = payload.encode(deltas(seed), settings, steps=5, examples=seed, parts=parts, seed=seed)
        one, other = both(data, parts)
        assert one == other
        assert one[:2] == (5, seed)  # type: ignore[index]
        for _ in range(150):
            one, other = both(mutated(data, rng), parts)
            assert one == other
            accepted += isinstance(one[0], int)  # type: ignore[index]
    assert accepted or name == "rice of one"


def test_check_requires_a_control_step_where_decode_does() -> None:
    settings = Settings("rice", "int8", 0.05)
    bare = payload.encode(normal(1), settings, steps=1, examples=1)
    whole = payload.encode(normal(1), settings, steps=1, examples=1, control=normal(2))
    for data in (bare, whole):
        for control in (False, True):
            one, other = both(data, None, control=control)
            assert one == other
    found = payload.check(whole, size=SIZE, control=True)
    assert found.control is not None
    assert found.control.values.size == 200


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 63, 64, 65, 1000])
def test_the_last_index_is_known_without_the_others(size: int) -> None:
    rng = np.random.default_rng(size)
    for count in {1, max(1, size // 3), size}:
        indices = np.sort(rng.choice(size, count, replace=False)).astype(np.int64)
        data = pack_rice(entropy.gaps_of(indices))
        checked, read = (Reader(memoryview(data), what="it") for _ in range(2))
        assert entropy.check_indices(checked, size=size, mode=entropy.RICE) == count
        assert read.varint() == count
        assert (unpack_rice(read, size=size, count=count) == indices).all()
        assert checked.left == read.left == 0
        # one coordinate fewer than the last index needs
        with pytest.raises(PeerError):
            entropy.check_indices(
                Reader(memoryview(data), what="it"), size=int(indices[-1]), mode=entropy.RICE
            )
