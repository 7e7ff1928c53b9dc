"""What the store forgets, and when: nothing that a round, a release or a vehicle's question can still need."""

from sqlalchemy import ColumnElement, Connection, delete, select, text

from fedfleet.fleet_server.config_store import RetentionConfig
from fedfleet.fleet_server.rounds import FINAL
from fedfleet.fleet_server.schema import (
    CARRIED,
    WITH_FILE,
    WITH_PAYLOAD,
    member,
    model,
    regional,
    release,
    round_,
    score,
    settlement,
    update,
)
from fedfleet.fleet_server.store_files import files_of
from fedfleet.fleet_server.store_updates import SETTLED

__all__ = ["retire"]

RELEASES_KEPT = 2
"""The release that drives, and the one before it."""


def retire(
    connection: Connection, config: RetentionConfig, *, oldest_round: int, newest_version: int
) -> None:
    """Forget what is older than the configuration keeps.

    ``oldest_round`` is the oldest that is not over in some region. Bytes of settled updates go after
    ``payload_rounds``; their records with rounds, members and settlements after ``record_rounds`` (an update that
    comes again by then is refused as of an unknown round, so that none counts twice); hashes and scores of versions
    after ``score_versions``, except what is released. What is carried stays until it is settled.
    """
    _payloads(connection, before=oldest_round - config.payload_rounds)
    before = oldest_round - config.record_rounds
    if before > 0:
        _records(connection, before=before)
    if newest_version > config.score_versions:
        _versions(connection, before=newest_version - config.score_versions)


def _payloads(connection: Connection, *, before: int) -> None:
    old = (update.c.round < before) & update.c.fate.in_(SETTLED)
    connection.execute(update.update().where(old & text(WITH_PAYLOAD)).values(payload=None))
    _drop_files(connection, old)
    connection.execute(update.update().where(old & text(WITH_FILE)).values(payload_at=None))


def _drop_files(connection: Connection, which: ColumnElement[bool]) -> None:
    digests = select(update.c.sealed_sha256).where(which & text(WITH_FILE))
    files_of(connection).drop(connection.execute(digests).scalars())


def _records(connection: Connection, *, before: int) -> None:
    unsettled = select(update.c.round).where(
        update.c.round == round_.c.round, update.c.region == round_.c.region, text(CARRIED)
    )
    done = round_.c.state.in_(FINAL) & ~unsettled.exists()
    over = select(round_.c.round, round_.c.region).where(round_.c.round < before, done)
    for number, region in connection.execute(over).all():
        _drop_files(connection, (update.c.round == number) & (update.c.region == region))
        for table in (member, settlement, update, round_):
            connection.execute(delete(table).where(table.c.round == number, table.c.region == region))


def _versions(connection: Connection, *, before: int) -> None:
    newest = select(release.c.version).order_by(release.c.number.desc()).limit(RELEASES_KEPT)
    released = list(connection.execute(newest).scalars())
    for table in (score, regional, model):
        old = table.c.version.between(1, before - 1) & table.c.version.not_in(released)
        connection.execute(delete(table).where(old))
