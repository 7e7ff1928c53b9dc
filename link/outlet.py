"""Where a link's events leave: one that the sink refuses is offered again."""

import logging
from collections import Counter, deque

from fedfleet.link.port import Delivery, Event, Sink

__all__ = ["Outlet"]

_log = logging.getLogger(__name__)


class Outlet:
    """Offers events to a sink in order. What it refuses (by raising) is counted as ``sink_errors`` and owed.

    What is owed goes first at the next ``emit`` or ``settle``. Only a delivery of QoS 0 is not kept.
    """

    def __init__(self, client_id: str, sink: Sink, counts: Counter[str]) -> None:
        self._client_id, self._sink, self._counts = client_id, sink, counts
        self._owed: deque[Event] = deque()
        self._refusing = False

    def emit(self, event: Event) -> None:
        """Offer what is owed, then this event."""
        if isinstance(event, Delivery) and event.qos == 0:
            if self.settle():
                self._offer(event)
        else:
            self._owed.append(event)
            self.settle()

    def settle(self) -> bool:
        """Offer what is owed; False when the sink still refuses."""
        while self._owed and self._offer(self._owed[0]):
            self._owed.popleft()
        return not self._owed

    def connection_lost(self) -> None:
        """Forget owed deliveries: the broker sends them again."""
        self._owed = deque(e for e in self._owed if not isinstance(e, Delivery))

    def owes(self) -> bool:
        """Whether events wait for the sink to take them."""
        return bool(self._owed)

    def _offer(self, event: Event) -> bool:
        try:
            self._sink(event)
        except Exception as error:  # noqa: BLE001 - whatever a sink raises: not taken, counted, offered again
            self._counts["sink_errors"] += 1
            if not self._refusing:  # once for a row of refusals
                reason = f"{type(event).__name__}: {type(error).__name__}: {error}"
                _log.warning("%s: the sink refused %s", self._client_id, reason)
            self._refusing = True
            return False
        self._refusing = False
        return True
