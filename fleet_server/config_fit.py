"""Pairs of settings that cannot work together: refused when they are made, one line each. Pure.

What only a running server knows (the size of the model) is checked at its start (`sizes.py`).
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from fedfleet.fleet_server.rules import part
from fedfleet.fleet_server.strategies_adaptive import ADAPTIVE

if TYPE_CHECKING:
    from fedfleet.fleet_server.config import ServerSettings

__all__ = ["check", "check_regions"]


def check(settings: "ServerSettings") -> None:
    """Raise ValueError, with one line, for settings of which one makes the other useless."""
    _check_rounds(settings)
    _check_strategy(settings)
    codec, keep = settings.codec, settings.retention
    if codec.layer_floor and codec.index != "rice":
        raise ValueError(f"codec.layer_floor: expected 0 with index {codec.index}, got {codec.layer_floor:g}")
    limit = settings.update_limit_bytes
    for name, link in codec.links.items():
        if limit is not None and link.budget_bytes is not None and link.budget_bytes > limit:
            raise ValueError(
                f"codec.links.{name}.budget_bytes: expected at most update_limit_bytes = {limit:,}, "
                f"got {link.budget_bytes:,}"
            )
    if keep.payload_rounds > keep.record_rounds:
        raise ValueError(
            f"retention.payload_rounds: expected at most record_rounds = {keep.record_rounds:,}, "
            f"got {keep.payload_rounds:,}"
        )
    if settings.rounds.keep_settlements > keep.record_rounds:
        raise ValueError(
            f"rounds.keep_settlements: expected at most retention.record_rounds = {keep.record_rounds:,}, "
            f"got {settings.rounds.keep_settlements:,}"
        )
    if settings.int8.most_loss is not None and not settings.int8.enabled:
        raise ValueError("int8.most_loss: expected none where int8 is not enabled")


def _check_rounds(settings: "ServerSettings") -> None:
    rounds = settings.rounds
    if rounds.share_wanted is not None and rounds.share_wanted < rounds.quorum:
        raise ValueError(
            f"rounds.share_wanted: expected at least quorum = {rounds.quorum}, got {rounds.share_wanted}"
        )
    for region, vehicles in (rounds.contributors or {}).items():
        if len(vehicles) < rounds.quorum:
            raise ValueError(
                f"rounds.contributors: {region} has {len(vehicles)} vehicles, quorum is {rounds.quorum}: "
                "no round would ever open"
            )


def _check_strategy(settings: "ServerSettings") -> None:
    told = settings.strategy
    defaults = type(told)()
    if told.name not in ADAPTIVE:
        for key in ("beta2", "tau"):
            if getattr(told, key) != getattr(defaults, key):
                raise ValueError(
                    f"strategy.{key}: strategy {told.name} has none; expected one of {', '.join(ADAPTIVE)}"
                )


def check_regions(settings: "ServerSettings", regions: Collection[str]) -> None:
    """Raise ValueError for settings that cannot work with so many regions."""
    trim, count = settings.merge_trim, len(regions)
    if trim and part(trim, count) < 1:
        raise ValueError(
            f"merge_trim: {trim:g} of {count} regions leaves out none, expected at least {1 / count:.2g}"
            if count > 2
            else f"merge_trim: expected 0 with {count} regions, where none can be left out at both ends"
        )
