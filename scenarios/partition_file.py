"""A split that was decided elsewhere, as a JSON file: who has which drives. Read, checked, written.

{"format": 1, "vehicles": {"v01": {"region": "mia-w", "drives": ["mia-w/mia-1"]}},
 "validation": {"mia-w": ["mia-w/mia-2"]}, "test": {"mia-w": ["mia-w/mia-3"]}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedfleet.models.task import Drive
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import Id
from fedfleet.scenarios.partition import Partition, check_overlaps
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.text import utf8

__all__ = ["as_json", "read_split"]

LIMIT_BYTES = 64_000_000
Keys = Annotated[tuple[str, ...], Field(max_length=10_000_000)]


class _Vehicle(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    region: Id
    drives: Annotated[Keys, Field(min_length=1)]


class _Split(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    vehicles: Annotated[Mapping[Id, _Vehicle], Field(min_length=1)]
    validation: Mapping[Id, Annotated[Keys, Field(min_length=1)]]
    test: Mapping[Id, Keys] = {}


def read_split(path: Path, drives: Sequence[Drive]) -> Partition:
    """Read a split of these drives; those that it does not name are left out.

    Raises UsageError for a file that is none, a drive that is not there, one that is in two places, drives of one
    overlap group that are, and a region of a vehicle that has no drive for validation.
    """
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise UsageError(f"{path}: {path.stat().st_size} bytes, expected at most {LIMIT_BYTES}")
        split = _Split.model_validate_json(utf8(path.read_bytes(), path.name))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except ScenarioError as error:
        raise UsageError(str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise UsageError(f"{path}: {where}: {first['msg']}") from error
    try:
        return _checked(split, drives)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def as_json(parts: Partition) -> dict[str, object]:
    """Return a split as the file holds it."""
    vehicles = {
        name: {"region": region, "drives": list(drives)} for name, (region, drives) in parts.vehicles.items()
    }
    held = {
        side: {region: list(drives) for region, drives in regions.items()}
        for side, regions in (("validation", parts.validation), ("test", parts.test))
    }
    return {"format": 1, "vehicles": vehicles, **held}


def _checked(split: _Split, drives: Sequence[Drive]) -> Partition:
    known = {drive.key for drive in drives}
    regions = {one.region for one in split.vehicles.values()} | set(split.validation) | set(split.test)
    parts = Partition(
        {name: (one.region, tuple(sorted(one.drives))) for name, one in sorted(split.vehicles.items())},
        {region: tuple(sorted(some)) for region, some in sorted(split.validation.items())},
        {region: tuple(sorted(split.test.get(region, ()))) for region in sorted(regions)},
    )
    named = [drive for _, some in parts.vehicles.values() for drive in some]
    named += [drive for side in (parts.validation, parts.test) for some in side.values() for drive in some]
    for drive in named:
        if drive not in known:
            raise UsageError(f"no drive {drive} in the recordings")
    for name, (region, _) in parts.vehicles.items():
        if region not in parts.validation:
            raise UsageError(f"vehicle {name} is in region {region}, which has no drive for validation")
    check_overlaps(parts, drives)
    return parts
