"""Settlements in pages: what one message of the link cannot carry goes into several, each good by itself. Pure."""

import json
from collections.abc import Iterator, Mapping

from fedfleet.protocol import topics
from fedfleet.protocol.chunks import CHUNK_BYTES
from fedfleet.protocol.messages import Fate, Settlement

__all__ = ["PAGE_BYTES", "page_bytes", "pages", "settlement_topics"]


def page_bytes(piece: int) -> int:
    """Return the most bytes of fates and reasons in a page, as JSON, where messages hold ``piece`` bytes.

    The rest of the message and its envelope fit beside them.
    """
    return piece * 15 // 16


PAGE_BYTES = page_bytes(CHUNK_BYTES)


def pages(told: Settlement, *, limit_bytes: int = PAGE_BYTES) -> list[Settlement]:
    """Return the settlement in pages of at most `limit_bytes` of fates and reasons, at least one; ids in order."""
    parts = list(_parts(told, limit_bytes))
    return [
        told.model_copy(
            update={
                "fates": part,
                "reasons": {id_: told.reasons[id_] for id_ in part if id_ in told.reasons},
                "page": number,
                "pages": len(parts),
            }
        )
        for number, part in enumerate(parts)
    ]


def settlement_topics(told: Settlement, *, fleet: str, limit_bytes: int = PAGE_BYTES) -> list[str]:
    """Return the topics of a settlement's pages, in order."""
    count = len(list(_parts(told, limit_bytes)))
    return [
        topics.settlement(fleet, told.region, told.task, told.round, page=number) for number in range(count)
    ]


def _parts(told: Settlement, limit_bytes: int) -> Iterator[Mapping[str, Fate]]:
    part: dict[str, Fate] = {}
    size = 0
    for id_, fate in told.fates.items():
        more = len(id_) + len(fate) + 6
        if id_ in told.reasons:
            more += len(id_) + len(json.dumps(told.reasons[id_]).encode()) + 4
        if part and size + more > limit_bytes:
            yield part
            part, size = {}, 0
        part[id_] = fate
        size += more
    yield part
