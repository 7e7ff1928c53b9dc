"""What vehicles ask of the server, enrolment above all, and how the server's words to one vehicle are made."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from fedfleet.fleet_server import store_vehicles
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


def has_code(connection: Connection, party: Party, vehicle: str) -> bool:
    """Tell whether this vehicle may still enrol with a one-time code."""
    code = party.codes.get(vehicle)
    return code is not None and store_vehicles.code_is_open(connection, vehicle, code.secret)


def answer(
    connection: Connection, party: Party, sealed: bytes, *, vehicle: str, keyring: Keyring, now_s: float
) -> Outgoing:
    """Answer a request that came on this vehicle's topic; a vehicle enrols by its code, with a new key too.

    A vehicle that enrols again with its enrolled key (the answer was lost) gets the same answer; one that lost its
    key enrols again by a code that was not used yet. Raises PeerError with the reasons of envelope and enrolment, or
    wrong-sender; nothing is enrolled then.
    """
    if vehicle in keyring.denied:
        raise PeerError("denied-sender", f"{vehicle} is on the deny-list of fleet {party.fleet}")
    if vehicle in keyring.keys and not _is_by_code(connection, party, sealed, vehicle=vehicle):
        request = _open_known(sealed, vehicle=vehicle, keyring=keyring, fleet=party.fleet)
    else:
        request = _enrol(connection, party, sealed, vehicle=vehicle, now_s=now_s)
    region = store_vehicles.regions(connection)[vehicle]
    code = party.codes.get(vehicle)
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


def _is_by_code(connection: Connection, party: Party, sealed: bytes, *, vehicle: str) -> bool:
    """Tell whether this is an enrolment that proves the vehicle's code, which was not used yet."""
    if not has_code(connection, party, vehicle):
        return False
    try:
        enrolment.open_enrolment(sealed, {vehicle: party.codes[vehicle].secret}, fleet=party.fleet)
    except PeerError:
        return False
    return True


def _open_known(sealed: bytes, *, vehicle: str, keyring: Keyring, fleet: str) -> Request:
    opened = envelope.open_sealed(sealed, keyring, fleet=fleet, limit_bytes=LIMIT_BYTES)
    if opened.kind is not Kind.REQUEST:
        raise PeerError("wrong-kind", f"{vehicle} sent {opened.kind.name} to a topic for REQUEST")
    request = messages.decode(Request, opened.body, sender=opened.sender)
    if not opened.sender == request.vehicle == vehicle:
        raise PeerError("wrong-sender", f"{opened.sender} asks for {request.vehicle} on a topic of {vehicle}")
    return request


def _enrol(connection: Connection, party: Party, sealed: bytes, *, vehicle: str, now_s: float) -> Request:
    code = party.codes.get(vehicle)
    if code is None or not store_vehicles.code_is_open(connection, vehicle, code.secret):
        raise PeerError("unknown-sender", f"{vehicle} is not enrolled and has no open enrolment code")
    request = enrolment.open_enrolment(sealed, {vehicle: code.secret}, fleet=party.fleet)
    public_key = bytes.fromhex(request.public_key)
    store_vehicles.enrol(
        connection, vehicle, region=code.region, public_key=public_key, now_s=now_s, replace=True
    )
    store_vehicles.use_code(connection, vehicle, code.secret, now_s=now_s)
    return request
