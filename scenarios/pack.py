"""Packs: folders of scenario tables with a `pack.json` that says what must be in them.

May live here: finding, reading and checking a pack. What a pack is made of lives in `generate`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from fedfleet.scenarios.records import Scenario, ScenarioError

__all__ = ["PACK_FILE", "check_pack", "read_manifest", "read_pack", "sumo_pack", "tables"]

PACK_FILE: Final = "pack.json"
TABLE_VERSION: Final = 1
"""Of the tables of a pack: the shipped one stays what it was."""
_MAX_MANIFEST_BYTES: Final = 2**20


def sumo_pack() -> Path:
    """Folder of the pack that ships with fedfleet."""
    return Path(__file__).parent / "packs" / "sumo"


def tables(folder: Path) -> list[Path]:
    """The scenario tables of a folder, sorted by name; raises ScenarioError for no folder or no table in it."""
    if not folder.is_dir():
        raise ScenarioError(
            "no-such-folder", f"{folder} is not a folder, expected one with *.parquet scenario tables"
        )
    found = sorted(folder.glob("*.parquet"))
    if not found:
        raise ScenarioError(
            "no-scenarios", f"{folder} holds no *.parquet file, expected at least one scenario table"
        )
    return found


def read_pack(folder: Path) -> list[Scenario]:
    """All scenarios of all tables of a folder; raises ScenarioError as `read_table`, and for a drive in two files."""
    from fedfleet.scenarios.table import read_table  # pyarrow: who only asks for the folder does without

    scenarios: list[Scenario] = []
    home: dict[tuple[str, str], Path] = {}
    for path in tables(folder):
        here = read_table(path)
        for key in {(scenario.region, scenario.drive) for scenario in here}:
            if key in home:
                text = f"drive {key[1]!r} of region {key[0]!r} is in {home[key]} and again in {path}, expected one file"
                raise ScenarioError("duplicate-drive", text)
            home[key] = path
        scenarios += here
    return scenarios


def read_manifest(folder: Path) -> dict[str, Any]:
    """The parsed `pack.json`; raises ScenarioError when it is missing, too large or not an object with a hash."""
    path = folder / PACK_FILE
    if not path.is_file():
        raise ScenarioError("no-manifest", f"{path} does not exist, expected the manifest of a pack")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ScenarioError(
            "manifest-too-large", f"{path} is {path.stat().st_size} bytes, limit {_MAX_MANIFEST_BYTES}"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScenarioError("bad-manifest", f"{path}: expected JSON, got: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("table_sha256"), str):
        raise ScenarioError("bad-manifest", f"{path}: expected an object with table_sha256")
    return manifest


def check_pack(folder: Path) -> str:
    """Read every table, compare with `pack.json`, return the table hash; raises ScenarioError for a difference."""
    from fedfleet.scenarios.table import table_sha256

    manifest = read_manifest(folder)
    got = table_sha256(read_pack(folder), version=TABLE_VERSION)
    if got != manifest["table_sha256"]:
        text = f"{folder}: expected table hash {manifest['table_sha256']:.64}, got {got}"
        raise ScenarioError("table-hash", text)
    return got
