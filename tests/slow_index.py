"""The index modes once more, written from docs/codec-format.md alone: slow, plain Python, one coordinate at a time."""

from collections.abc import Callable
from itertools import pairwise

import zstandard
from slow_bytes import Bytes, Refused, bits_of, bytes_for, require


def read_count(body: Bytes, size: int, *, compressed: bool, valued: bool) -> int:
    count = body.varint()
    require(count <= size, "count-out-of-range")
    require(not (compressed and valued) or count <= 8 * len(body.rest), "truncated")
    return count


def read_rice(body: Bytes, size: int, valued: bool) -> list[int]:
    count = read_count(body, size, compressed=False, valued=valued)
    if count == 0:
        return []
    b = body.take(1)[0]
    require(b <= 31, "bad-parameter")
    length = body.varint()
    require(bytes_for(count) <= length <= bytes_for(count + (size - count) // 2**b), "stream-length")
    unary = body.take(length)
    planes = body.take(bytes_for(count * b))
    quotients = read_unary(unary, count)
    return add_up(quotients, [b] * count, read_ragged(planes, [b] * count), size)


def read_adaptive(body: Bytes, size: int, valued: bool) -> list[int]:
    count = read_count(body, size, compressed=False, valued=valued)
    require(count > 0, "count-out-of-range")
    lowest = body.take(1)[0]
    require(lowest <= 31, "bad-parameter")
    width = body.take(1)[0]
    require(1 <= width <= 4 and lowest + 2**width - 1 <= 31, "bad-parameter")
    blocks = -(-count // 32)
    steps = read_ragged(body.take(bytes_for(blocks * width)), [width] * blocks)
    each = [lowest + steps[j // 32] for j in range(count)]
    length = body.varint()
    require(bytes_for(count) <= length <= bytes_for(count + (size - count) // 2**lowest), "stream-length")
    unary = body.take(length)
    planes = body.take(bytes_for(sum(each)))
    return add_up(read_unary(unary, count), each, read_ragged(planes, each), size)


def read_unary_zstd(body: Bytes, size: int, valued: bool) -> list[int]:
    count = read_count(body, size, compressed=True, valued=valued)
    require(count > 0, "count-out-of-range")
    b = body.take(1)[0]
    require(b <= 31, "bad-parameter")
    length = body.varint()
    require(bytes_for(count) <= length <= bytes_for(count + (size - count) // 2**b), "stream-length")
    frame = body.take(body.varint())
    planes = body.take(bytes_for(count * b))
    quotients = read_unary(inflated(frame, length), count)
    return add_up(quotients, [b] * count, read_ragged(planes, [b] * count), size)


def read_bitmap(body: Bytes, size: int, valued: bool) -> list[int]:
    count = read_count(body, size, compressed=True, valued=valued)
    require(count > 0, "count-out-of-range")
    bits = list(bits_of(inflated(body.take(body.varint()), bytes_for(size))))
    coordinates = [at for at, bit in enumerate(bits) if bit]
    require(len(coordinates) == count, "count-mismatch")
    require(coordinates[-1] < size, "index-out-of-range")
    return coordinates


def read_rows(body: Bytes, size: int, valued: bool) -> list[int]:
    count = read_count(body, size, compressed=True, valued=valued)
    require(0 < count <= 16384, "count-out-of-range")
    head = body.take(1)[0]
    runs, strength = read_runs(body, head % 64, size), (1, 4, 16, 64)[head // 64]
    stream = body.take(body.varint())
    coder, coordinates, at = Coder(stream), list[int](), 0
    for rows, columns in runs:
        left, room = count - len(coordinates), size - at
        shares = first_shares(left, room, columns)
        past, found = [0] * columns, 0
        for row in range(rows):
            width, left = min(columns, size - at), count - len(coordinates)
            if left == 0:
                break
            number = left if at + width == size else read_row_count(coder, shares, width)
            require(number <= min(left, width), "count-mismatch")
            base = max(1, (found + 1) * 65536 // ((row + 1) * columns))
            places = read_places(coder, [p * strength + 4 * base for p in past[:width]], number)
            past = [p - p // 64 for p in past]
            for place in places:
                past[place] += 1024
            found += number
            coordinates += [at + place for place in places]
            at += width
    require(coder.at >= len(stream) and stream[-1:] != b"\0", "stream-length")
    return coordinates


def read_runs(body: Bytes, more: int, size: int) -> list[tuple[int, int]]:
    runs = []
    for _ in range(more):
        columns = body.varint()
        runs.append((body.varint(), columns))
    columns, at = body.varint(), sum(rows * width for rows, width in runs)
    require(1 <= columns <= 4096 and at < size, "bad-rows")
    runs.append((-(-(size - at) // columns), columns))
    require(all(rows >= 1 and 1 <= width <= 4096 for rows, width in runs), "bad-rows")
    require(sum(rows for rows, _ in runs) <= 16384, "bad-rows")
    return runs


def first_shares(left: int, room: int, columns: int) -> list[int]:
    mean = left * columns * 65536 // room
    more = mean * 65536 // (mean + 65536)
    shares, rest = [], 4096
    for _ in range(15):
        here = rest * (65536 - more) // 65536
        shares.append(here + 1)
        rest -= here
    return [*shares, rest + 1]


def read_row_count(coder: "Coder", shares: list[int], width: int) -> int:
    symbol = coder.symbol(shares)
    shares[symbol] += 512
    if sum(shares) > 32768:
        shares[:] = [share // 2 + 1 for share in shares]
    if symbol < 15:
        return symbol
    require(width >= 15, "count-mismatch")
    return 15 + coder.symbol([1] * (width - 14))


def read_places(coder: "Coder", weights: list[int], number: int) -> list[int]:
    places: list[int] = []
    at = 0
    while number:
        choices = len(weights) - number - at + 1
        stay, bounds = 1.0, [2**24]
        for i in range(at, at + choices - 1):
            stay *= 1.0 - min(weights[i] * number / sum(weights[i:]), 1.0 - 1.0 / 1024)
            bounds.append(int(stay * (2**24 - choices)) + choices - 1 - (i - at))
        bounds.append(0)
        # the stream's number falls into the stretches from the top down
        shares = [high - low for high, low in pairwise(bounds)]
        if len(shares) > 1:
            at += len(shares) - 1 - coder.symbol(shares[::-1])
        places.append(at)
        at += 1
        number -= 1
    return places


class Coder:
    """The range decoder: `value` of 2^48 at first, each symbol's share of the range, bytes as room is wanted."""

    def __init__(self, stream: bytes) -> None:
        self.stream, self.at, self.range = stream, 6, 2**48
        self.value = int.from_bytes((stream + bytes(6))[:6], "big")

    def symbol(self, shares: list[int]) -> int:
        unit = self.range // sum(shares)
        number, low, symbol = self.value // unit, 0, 0
        require(number < sum(shares), "bad-stream")
        while number >= low + shares[symbol]:
            low += shares[symbol]
            symbol += 1
        self.value -= unit * low
        self.range = unit * shares[symbol]
        while self.range <= 2**40:
            following = self.stream[self.at] if self.at < len(self.stream) else 0
            self.value, self.range, self.at = self.value * 256 + following, self.range * 256, self.at + 1
        return symbol


def read_unary(unary: bytes, count: int) -> list[int]:
    require(unary[-1] != 0, "stream-length")
    quotients = [0]
    for bit in bits_of(unary):
        if bit == 1:
            quotients.append(0)
        else:
            quotients[-1] += 1
    require(len(quotients) == count + 1, "count-mismatch")  # the last counts the padding
    return quotients[:-1]


def read_ragged(planes: bytes, widths: list[int]) -> list[int]:
    bits = list(bits_of(planes))
    require(not any(bits[sum(widths) :]), "padding-not-zero")
    numbers = [0] * len(widths)
    for plane in range(max(widths)):
        for j, width in enumerate(widths):
            if width > plane:
                numbers[j] += bits.pop(0) * 2**plane
    return numbers


def add_up(quotients: list[int], parameters: list[int], remainders: list[int], size: int) -> list[int]:
    at, coordinates = -1, []
    for quotient, b, remainder in zip(quotients, parameters, remainders, strict=True):
        at += quotient * 2**b + remainder + 1
        coordinates.append(at)
    require(coordinates[-1] < size, "index-out-of-range")
    return coordinates


def inflated(frame: bytes, size: int) -> bytes:
    """Undo one zstd frame; its header must tell the size, a small window, and no checksum or dictionary."""
    try:
        told = zstandard.get_frame_parameters(frame, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
        require(told.content_size == size and not told.has_checksum and told.dict_id == 0, "bad-frame")
        require(told.window_size <= min(max(size, 1024), 131072), "bad-frame")
        undo = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
        return undo.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError:
        raise Refused("bad-frame") from None


MODES: dict[int, Callable[[Bytes, int, bool], list[int]]] = {
    1: read_rice,
    2: read_adaptive,
    3: read_unary_zstd,
    4: read_bitmap,
    6: read_rows,
}
