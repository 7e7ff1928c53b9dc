"""Small made-up Argoverse 1 folders for tests: CSV text, zips and an index."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

HEADER = "TIMESTAMP,TRACK_ID,OBJECT_TYPE,X,Y,CITY_NAME"
EPOCH_S = 315_967_941.0


def rows(
    *, city: str = "MIA", t0_s: float = 0.0, x_m: float = 0.0, y_m: float = 0.0, others: int = 2
) -> list[str]:
    """The rows of one scenario, frame by frame: an AV, an AGENT and others, east at 5, 6, 7 … m/s."""
    kinds = ["AV", "AGENT", *["OTHERS"] * others]
    return [
        f"{EPOCH_S + t0_s + 0.1 * frame:.6f},track-{i},{kind},{x_m + (5 + i) * 0.1 * frame:.4f},{y_m + 4 * i},{city}"
        for frame in range(50)
        for i, kind in enumerate(kinds)
    ]


def text(lines: Sequence[str], header: str = HEADER) -> str:
    """A CSV file of them."""
    return "\n".join([header, *lines]) + "\n"


def write_zip(path: Path, members: Mapping[str, str]) -> Path:
    """A zip of these texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def scenarios(city: str = "MIA", *, drives: int = 10, x0_m: float = 0.0) -> dict[str, str]:
    """Two scenarios in each drive, 10 s apart; drives are an hour and a kilometre apart, from west to east."""
    first = {"MIA": 1, "PIT": 1001}.get(city, 5001)
    return {
        str(first + 2 * drive + part): text(
            rows(city=city, t0_s=3600.0 * drive + 10.0 * part, x_m=x0_m + 1000.0 * drive + 50.0 * part)
        )
        for drive in range(drives)
        for part in range(2)
    }


def index(names: Mapping[str, Sequence[str]], *, per_drive: int = 2) -> str:
    """An `index.csv` of scenarios by city: the first half of the drives in the west, the others in the east."""
    lines = ["scenario,city,district,drive,t0,tracks"]
    for city, each in names.items():
        for i, name in enumerate(each):
            side = "W" if 2 * i < len(each) else "E"
            drive, part = divmod(i, per_drive)
            t0_s = EPOCH_S + 3600.0 * drive + 10.0 * part
            lines.append(f"{name},{city},{city}-{side},{city}-D{drive},{t0_s:.3f},4")
    return "\n".join(lines) + "\n"


def write_folder(folder: Path, *, cities: Sequence[str] = ("MIA", "PIT"), indexed: bool = True) -> Path:
    """A folder with one zip per city: 10 drives and 20 scenarios each."""
    members = {city: scenarios(city) for city in cities}
    for city, each in members.items():
        write_zip(folder / f"{city}.zip", {f"{city}/{name}.csv": content for name, content in each.items()})
    if indexed:
        (folder / "index.csv").write_text(index({city: list(each) for city, each in members.items()}))
    return folder
