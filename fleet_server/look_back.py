"""Notices that the store went back in time: keeps what is published outside of it, and hears what others have seen."""

from math import inf

import structlog
from sqlalchemy import Connection

from fedfleet.fleet_server import evidence, store_published, store_vehicles
from fedfleet.fleet_server.evidence import Claim
from fedfleet.fleet_server.requests import Party
from fedfleet.fleet_server.store import Store, StoreFailed
from fedfleet.fleet_server.store_published import Published
from fedfleet.link.port import Delivery, Link
from fedfleet.protocol.errors import UsageError

__all__ = ["LookBack"]

log = structlog.get_logger()

EVERY_S = 10.0


class LookBack:
    """Watches over one server's store. All methods may raise StoreFailed; those that compare, UsageError.

    Numbers that prove to be ahead of the store are noted beside it, so that the next start refuses it at once and
    `fedfleet server ahead` knows them.
    """

    def __init__(self, store: Store, link: Link, party: Party, regions: tuple[str, ...]) -> None:
        self._store, self._link, self._party = store, link, party
        self._filters = evidence.filters(party.fleet, regions, party.task)
        self._noted = Published()
        self._look_s = -inf
        self._is_listening = False
        self._liars: frozenset[str] = frozenset()

    def note(self, connection: Connection) -> None:
        """Keep the store's newest numbers, which are about to be published."""
        self._keep(store_published.of_store(connection))

    def connected(self) -> None:
        """Ask the broker for what it retains of this server; it comes before what is published from now on."""
        for topic_filter in self._filters:
            self._link.subscribe(topic_filter)
        self._is_listening, self._look_s = True, -inf

    def heard(self, delivery: Delivery) -> bool:
        """Tell whether a message came on the server's own topics; one with its signature is compared."""
        if not evidence.is_own(delivery.topic, self._party.fleet):
            return False
        proven = evidence.proven(delivery.payload, self._party)
        if proven.above(self._noted):
            with self._store.read() as connection:
                self._compare(proven, store_published.of_store(connection), "the broker retains")
        return True

    def tick(self, now_s: float) -> None:
        """See from time to time whether vehicles have seen more than the store knows."""
        if self._look_s <= now_s < self._look_s + EVERY_S:
            return
        is_first, self._look_s = self._look_s == -inf, now_s
        if self._is_listening and not is_first:
            for topic_filter in self._filters:  # what was retained has come; what comes now is our own
                self._link.unsubscribe(topic_filter)
            self._is_listening = False
        with self._store.read() as connection:
            found = store_published.of_store(connection)
            claims = [
                Claim(*row)
                for row in store_vehicles.ahead_of(connection, version=found.version, round_=found.round)
            ]
            if not claims:
                self._liars = frozenset()
                return
            online = sum(one.online for one in store_vehicles.presences(connection))
            enrolled = sum(store_vehicles.enrolled(connection).values())
        self._alarm(claims, found)
        self._compare(
            evidence.believed(claims, online=online, enrolled=enrolled),
            found,
            "most vehicles online have seen",
        )

    def _alarm(self, claims: list[Claim], found: Published) -> None:
        names = frozenset(one.vehicle for one in claims)
        if names - self._liars:
            most = max(claims, key=lambda one: (one.version, one.round))
            log.error(
                "vehicles say that they have seen more than this server has published",
                vehicles=len(names),
                vehicle=most.vehicle,
                says_version=most.version,
                says_round=most.round,
                version=found.version,
                round=found.round,
            )
        self._liars = names

    def _compare(self, others: Published, found: Published, who: str) -> None:
        if others.above(found):
            self._keep(others)
            told = f"{who} {others.told_beside(found)}"
            raise UsageError(f"store {self._store.name} {store_published.went_back(told)}")

    def _keep(self, numbers: Published) -> None:
        if self._noted | numbers == self._noted:
            return
        try:
            store_published.note(self._store.folder, numbers)
        except OSError as error:
            path = self._store.folder / store_published.FILE
            raise StoreFailed(f"{path}: {error.strerror}") from error
        self._noted |= numbers
