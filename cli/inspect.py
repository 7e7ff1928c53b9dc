"""``fedfleet inspect``: what an update file holds, and how near its coding is to the bound."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fedfleet.cli.options import ConfigFile, Json, unused
from fedfleet.cli.terminal import Terminal
from fedfleet.codec.container import MAGIC
from fedfleet.codec.describe import BlockView, PayloadView, describe
from fedfleet.protocol import envelope, update
from fedfleet.protocol.envelope import Kind, check_digest, peek
from fedfleet.protocol.errors import PeerError, UsageError
from fedfleet.protocol.packing import unpack
from fedfleet.protocol.update import Manifest

__all__ = ["Inspected", "inspect", "look"]

MAX_FILE_BYTES = 1_000_000_000
MAX_PARAMETERS = 100_000_000
"""Parameters that a payload may claim before the user has to say that they are so many."""


@dataclass(frozen=True)
class Inspected:
    """What a file holds: the envelope's kind and sender, an update's manifest and payload, another message's JSON."""

    size_bytes: int
    kind: str | None = None
    sender: str | None = None
    manifest: Manifest | None = None
    payload: PayloadView | None = None
    message: Any = None


def inspect(
    file: Annotated[Path, typer.Argument(help="A codec payload, or a sealed message as vehicles send it.")],
    as_json: Json = False,
    parameters: Annotated[
        int,
        typer.Option(min=1, help="The most parameters that the payload may claim, against hostile files."),
    ] = MAX_PARAMETERS,
    config: ConfigFile = None,
) -> None:
    """Show what an update holds: modes, parts, stream sizes, bits per value against the bound, ratio to float32.

    Of a sealed message the digest is checked, the signature is not: that needs the sender's key.
    """
    unused(config, "inspect")
    found = look(_read(file), name=str(file), parameters=parameters)
    if as_json:
        typer.echo(json.dumps(_as_json(found)))
    else:
        _show(Terminal(), found)


def look(data: bytes, *, name: str, parameters: int = MAX_PARAMETERS) -> Inspected:
    """Return what the bytes hold; UsageError, naming the file, when they are neither payload nor sealed message."""
    try:
        if data[: len(MAGIC)] == MAGIC:
            return Inspected(len(data), payload=describe(data, largest=parameters))
        if data[: len(envelope.MAGIC)] == envelope.MAGIC:
            return _open(data, parameters=parameters)
    except PeerError as error:
        raise UsageError(f"{name}: {error}") from error
    begins = f"begins {data[:4].hex()}" if data else "is empty"
    expected = f'a payload ("{MAGIC.decode()}") or a sealed message ("{envelope.MAGIC.decode()}")'
    raise UsageError(f"{name}: {begins}, expected {expected}")


def _open(sealed: bytes, *, parameters: int) -> Inspected:
    header = peek(sealed, limit_bytes=len(sealed))
    check_digest(sealed, header)
    body, kind = sealed[header.body_start :], header.kind.name.lower()
    if header.kind is not Kind.UPDATE:
        try:
            return Inspected(len(sealed), kind, header.sender, message=json.loads(unpack(body)))
        except ValueError as error:
            raise PeerError("malformed-message", f"{kind} message: {error}") from error
    manifest, payload = update.unpack(body, sender=header.sender)
    return Inspected(len(sealed), kind, header.sender, manifest, describe(bytes(payload), largest=parameters))


def _read(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UsageError(f"{file}: {size} bytes, expected at most {MAX_FILE_BYTES}")
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error


def _as_json(found: Inspected) -> dict[str, Any]:
    told = {name: value for name, value in asdict(found).items() if value is not None}
    if found.manifest is not None:
        told["manifest"]["id"] = str(found.manifest.id)
    return told


def _show(console: Terminal, found: Inspected) -> None:
    say = console.say
    if found.kind is not None:
        say(f"sealed {found.kind} from {found.sender}, {found.size_bytes:,} bytes (signature not checked)")
    if found.manifest is not None:
        told = found.manifest
        say(
            f"update {told.id}: task {told.task}, region {told.region}, round {told.round}, base {told.base_version}"
        )
    if found.payload is None:
        console.say_all(json.dumps(found.message, indent=2).splitlines())
        return
    payload = found.payload
    say(
        f"payload version {payload.version}: {payload.size_bytes:,} bytes for {payload.parameters:,} parameters, "
        f"{payload.ratio:.1f} times smaller than float32; {payload.steps:,} steps, {payload.examples:,} examples; "
        f"{payload.container_bytes} bytes around the blocks"
    )
    for one in payload.blocks:
        console.say_all(_lines(one))


def _lines(one: BlockView) -> list[str]:
    sent = f"{one.nonzeros:,} of {one.parameters:,} values sent, the largest {one.largest:.4g}"
    parts = [
        f"{one.section}, segment {one.segment}: {one.index} + {one.value}, {sent}",
        f"  {one.head_bytes} bytes of head, {one.index_bytes:,} of index, {one.value_bytes:,} of values",
    ]
    if one.bits_per_nonzero is not None:
        parts[-1] += f": {one.bits_per_nonzero:.3f} bits per value"
    if one.index_bits is not None and one.bound_bits is not None:
        over = "" if one.over_bound_pct is None else f", {one.over_bound_pct:+.2f} %"
        bound = f"log2 C({one.parameters}, {one.nonzeros})"
        parts.append(
            f"  index {one.index_bits:.3f} bits per value; bound {bound}: {one.bound_bits:.3f}{over}"
        )
    return parts
