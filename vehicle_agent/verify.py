"""What a journal holds against its digests, once when it is opened: a sound file may still have a changed byte in it.

What is not what it was is forgotten, so that it is neither sent nor trained from: the server has it, or does without.
"""

from hashlib import sha256

from fedfleet.models import layout
from fedfleet.protocol.errors import PeerError
from fedfleet.vehicle_agent.journal import Journal

__all__ = ["forget_damaged"]


def forget_damaged(journal: Journal) -> tuple[str, ...]:
    """Forget updates and a base that are damaged, and return a reason for each."""
    reasons = []
    for pending in journal.outbox:
        entry = journal.sealed(pending.sequence)
        if entry is None or sha256(entry.sealed).hexdigest() != pending.sealed_sha256:
            journal.settle(pending.sequence, returned=None)
            reasons.append("outbox-damaged")
    if journal.base is not None and not _is_sound(journal):
        journal.drop_base()
        reasons.append("base-damaged")
    return tuple(reasons)


def _is_sound(journal: Journal) -> bool:
    """Tell whether graph and weights still make the file that the server published."""
    base, vector, graph = journal.base, journal.base_vector, journal.graph
    if base is None or vector is None or graph is None:
        return False
    try:
        file = layout.patch(graph.onnx, layout.read(graph.layout), vector)
    except PeerError:
        return False
    return sha256(file).hexdigest() == base.onnx_sha256
