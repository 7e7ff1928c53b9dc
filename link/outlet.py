"""Where a link's events leave: the sink may refuse one, and then nothing but a delivery is lost to it."""

import logging
from collections import Counter, deque

from fedfleet.link.port import Delivery, Event, Sink

__all__ = ["Outlet"]

_log = logging.getLogger(__name__)


class Outlet:
    """Offers events to a sink in order. What it refuses (by raising) is counted as ``sink_errors``.

    A refused delivery is not kept: of QoS 1 it comes again from the broker, of QoS 0 it is lost. Any other
    refused event is owed: it goes first at the next ``emit`` or ``settle``.
    """

    def __init__(self, client_id: str, sink: Sink, counts: Counter[str]) -> None:
        self._client_id, self._sink, self._counts = client_id, sink, counts
        self._owed: deque[Event] = deque()

    def emit(self, event: Event) -> bool:
        """Offer what is owed, then this event; False when the sink refuses (a delivery: it was not taken)."""
        if isinstance(event, Delivery):
            return self.settle() and self._offer(event)
        self._owed.append(event)
        return self.settle()

    def settle(self) -> bool:
        """Offer what is owed; False when the sink still refuses."""
        while self._owed and self._offer(self._owed[0]):
            self._owed.popleft()
        return not self._owed

    def _offer(self, event: Event) -> bool:
        try:
            self._sink(event)
        except Exception as error:  # noqa: BLE001 - whatever a sink raises: not taken, counted, offered again
            self._counts["sink_errors"] += 1
            name = type(event).__name__
            _log.warning(
                "%s: the sink refused %s: %s: %s", self._client_id, name, type(error).__name__, error
            )
            return False
        return True
