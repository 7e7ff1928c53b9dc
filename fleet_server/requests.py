"""What vehicles ask of the server, enrolment above all, and how the server's words to one vehicle are made."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from fedfleet.fleet_server import store_codes, store_vehicles
from fedfleet.protocol import enrolment, envelope, messages, topics
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import SERVER
from fedfleet.protocol.messages import Command, Receipt, Request
from fedfleet.protocol.signing import Keyring, SigningKey

__all__ = ["Code", "Outgoing", "Party", "answer", "has_code"]

NO_NONCE = "0" * 32
LIMIT_BYTES = 4096


@dataclass(frozen=True)
class Code:
    """A one-time enrolment code: the secret, and the region that its vehicle is put in."""

    secret: str
    region: str


@dataclass(frozen=True)
class Outgoing:
    """Something to publish: topic and sealed payload."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Party:
    """Who the server is: its fleet, the task's id on the wire, its key, and its open enrolment codes by vehicle."""

    fleet: str
    task: str
    key: SigningKey
    codes: Mapping[str, Code]

    def seal(self, message: messages.Message, kind: Kind) -> bytes:
        """Return a message of the server, sealed; equal messages give equal bytes."""
        return envelope.seal(messages.encode(message), self.key, kind=kind, sender=SERVER, fleet=self.fleet)

    def receipt(self, receipt: Receipt) -> Outgoing:
        """Return a receipt, ready to publish."""
        return Outgoing(topics.receipt(self.fleet, receipt.vehicle), self.seal(receipt, Kind.RECEIPT))

    def command(self, command: Command) -> Outgoing:
        """Return a command, ready to publish."""
        return Outgoing(topics.command(self.fleet, command.vehicle), self.seal(command, Kind.COMMAND))

    def refusal(self, vehicle: str, reason: str) -> Outgoing:
        """Return the answer to a request that could not be opened; nothing in it was believed, so no nonce."""
        return self.command(Command(vehicle=vehicle, kind="refused", nonce=NO_NONCE, reason=reason))


def has_code(connection: Connection, party: Party, vehicle: str, now_s: float) -> bool:
    """Tell whether this vehicle may still enrol with a one-time code."""
    return any(one.is_open for one in _codes(connection, party, vehicle, now_s))


@dataclass(frozen=True)
class _Known:
    """A code of a vehicle: made by command and kept in the store, or from the configuration."""

    code: Code
    is_made: bool
    is_open: bool


def _codes(connection: Connection, party: Party, vehicle: str, now_s: float) -> list[_Known]:
    found = []
    if (made := store_codes.find(connection, vehicle)) is not None:
        found.append(_Known(Code(made.secret, made.region), is_made=True, is_open=made.is_open(now_s)))
    if (given := party.codes.get(vehicle)) is not None:
        is_open = store_vehicles.code_is_open(connection, vehicle, given.secret)
        found.append(_Known(given, is_made=False, is_open=is_open))
    return found


def answer(
    connection: Connection, party: Party, sealed: bytes, *, vehicle: str, keyring: Keyring, now_s: float
) -> Outgoing:
    """Answer a request that came on this vehicle's topic; a vehicle enrols by its code, with a new key too.

    A vehicle that enrols again with its enrolled key (the answer was lost) gets the same answer; one that lost its
    key enrols again by a code that was not used yet. Raises PeerError with the reasons of envelope and enrolment,
    wrong-sender, or locked-out after too many wrong proofs; nothing is enrolled then.
    """
    if vehicle in keyring.denied:
        raise PeerError("denied-sender", f"{vehicle} is on the deny-list of fleet {party.fleet}")
    codes = _codes(connection, party, vehicle, now_s)
    try:
        request = _by_code(connection, party, sealed, vehicle=vehicle, codes=codes, now_s=now_s)
    except PeerError as refused:
        try:
            if vehicle not in keyring.keys:
                raise
            request = _open_known(sealed, vehicle=vehicle, keyring=keyring, fleet=party.fleet)
        except PeerError:
            if refused.reason == "wrong-code":
                store_codes.note_wrong(connection, vehicle, now_s=now_s)
            raise
    region = store_vehicles.regions(connection)[vehicle]
    code = next((one.code for one in codes if _proves(request, one.code, fleet=party.fleet)), None)
    if request.kind == "hello" or code is None:
        return party.command(Command(vehicle=vehicle, kind="assign", nonce=request.nonce, region=region))
    server_key = party.key.public.hex()
    proof = enrolment.server_proof(
        code.secret, fleet=party.fleet, vehicle=vehicle, nonce=request.nonce, server_key=server_key
    )
    told = Command(
        vehicle=vehicle,
        kind="enrolled",
        nonce=request.nonce,
        region=region,
        server_key=server_key,
        proof=proof,
    )
    return party.command(told)


def _proves(request: Request, code: Code, *, fleet: str) -> bool:
    expected = enrolment.vehicle_proof(
        code.secret, fleet=fleet, vehicle=request.vehicle, nonce=request.nonce, public_key=request.public_key
    )
    return hmac.compare_digest(expected, request.proof)


def _by_code(
    connection: Connection,
    party: Party,
    sealed: bytes,
    *,
    vehicle: str,
    codes: Sequence[_Known],
    now_s: float,
) -> Request:
    """Enrol the vehicle by one of its codes that are open, and spend it."""
    candidates = [one for one in codes if one.is_open]
    if not candidates:
        raise PeerError("unknown-sender", f"{vehicle} is not enrolled and has no open enrolment code")
    if (until_s := store_codes.locked_until(connection, vehicle, now_s)) is not None:
        told = f"too many wrong codes: no code of {vehicle} is looked at for {until_s - now_s:.0f} s"
        raise PeerError("locked-out", told)
    wrong: PeerError | None = None
    for one in candidates:
        try:
            request = enrolment.open_enrolment(sealed, {vehicle: one.code.secret}, fleet=party.fleet)
        except PeerError as error:
            if error.reason != "wrong-code":
                raise
            wrong = error
            continue
        public_key = bytes.fromhex(request.public_key)
        region = one.code.region
        store_vehicles.enrol(
            connection, vehicle, region=region, public_key=public_key, now_s=now_s, replace=True
        )
        if one.is_made:
            store_codes.use(connection, vehicle, now_s=now_s)
        else:
            store_vehicles.use_code(connection, vehicle, one.code.secret, now_s=now_s)
        store_codes.note_right(connection, vehicle)
        return request
    if wrong is None:
        raise PeerError("unknown-sender", f"{vehicle} has no open enrolment code")
    raise wrong


def _open_known(sealed: bytes, *, vehicle: str, keyring: Keyring, fleet: str) -> Request:
    opened = envelope.open_sealed(sealed, keyring, fleet=fleet, limit_bytes=LIMIT_BYTES)
    if opened.kind is not Kind.REQUEST:
        raise PeerError("wrong-kind", f"{vehicle} sent {opened.kind.name} to a topic for REQUEST")
    request = messages.decode(Request, opened.body, sender=opened.sender)
    if not opened.sender == request.vehicle == vehicle:
        raise PeerError("wrong-sender", f"{opened.sender} asks for {request.vehicle} on a topic of {vehicle}")
    return request
