"""The model files of a comparison: kept while it runs, placed beside its report at the end, for `replay`."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from fedfleet.fleet_server.files import write_file

__all__ = ["CENTRALISED", "FEDERATED", "ON_SITE", "Models", "remove"]

FEDERATED: Final = "federated"
CENTRALISED: Final = "centralised"
ON_SITE: Final = "on_site"
"""Folder with one file for each vehicle."""


@dataclass(frozen=True)
class Models:
    """Keeps the files that were judged, in a folder of the run's own."""

    folder: Path

    def keep(self, name: str, model: bytes) -> None:
        """Keep a model under a name, such as `federated` or `on_site/v01`."""
        path = self.folder / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, model)

    def place(self, out: Path) -> Mapping[str, str]:
        """Copy all of them into ``out``; return each file's SHA-256 by its name there, for the report."""
        placed = {}
        for path in sorted(self.folder.rglob("*.onnx")):
            name = path.relative_to(self.folder)
            data = path.read_bytes()
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(out / name, data)
            placed[name.as_posix()] = sha256(data).hexdigest()
        return placed


def remove(out: Path) -> None:
    """Remove an earlier run's files: they must not pass for those of one that fails."""
    for name in (FEDERATED, CENTRALISED):
        (out / f"{name}.onnx").unlink(missing_ok=True)
    for path in (out / ON_SITE).glob("*.onnx"):
        path.unlink()
