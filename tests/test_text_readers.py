"""What editors, spreadsheets and libraries do to text on its way: all readers tolerate the same, and read the same."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import argoverse
import pytest
import recorded
import test_kitti
import test_openscenario
import tubs
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.csv_dialect import dialect_of
from fedfleet.scenarios.donkey import open_camera
from fedfleet.scenarios.reading import open_recordings, read
from fedfleet.scenarios.records import Scenario
from fedfleet.scenarios.text import open_text, utf8

TRACKS = recorded.made(11, tracks=4, frames=60)


def _argoverse1(folder: Path) -> None:
    for name in ("1", "2"):
        (folder / f"{name}.csv").write_text(argoverse.text(argoverse.rows()))
    (folder / "index.csv").write_text("scenario,city,district,drive\n1,MIA,MIA-W,D1\n2,MIA,MIA-W,D2\n")


def _commonroad(folder: Path) -> None:
    recorded.commonroad(folder, TRACKS, "USA_A-1_1_T-1")
    (folder / "index.csv").write_text("location,file,overlap_group\nRoad 5,USA_A-1_1_T-1.xml,G1\n")


def _kitti(folder: Path) -> None:
    rows = [test_kitti.label(i, 1, "Car", 3.0, 10.0 + i) for i in range(12)]
    test_kitti.sequence(folder, "".join(rows), poses=12)


def _openscenario(folder: Path) -> None:
    whole = test_openscenario.tracks(3)
    stories = "".join(
        test_openscenario.event(name, test_openscenario.follow(xy)) for name, xy in whole.items()
    )
    text = test_openscenario.xosc(dict.fromkeys(whole, test_openscenario.CAR), stories)
    (folder / "drive.xosc").write_text(text)


TABLES: dict[str, Callable[[Path], object]] = {
    "INTERACTION": lambda folder: recorded.interaction(folder, TRACKS),
    "NGSIM": lambda folder: recorded.ngsim(folder, TRACKS),
    "highD": lambda folder: recorded.highd(folder, TRACKS),
    "inD": lambda folder: recorded.ind(folder, TRACKS),
    "Argoverse 1": _argoverse1,
}
TEXTS: dict[str, Callable[[Path], object]] = TABLES | {
    "CommonRoad": _commonroad,
    "KITTI": _kitti,
    "OpenSCENARIO": _openscenario,
}


def _utf16(order: str, mark: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        text = data.decode().replace('encoding="UTF-8"', 'encoding="UTF-16"')
        return mark + text.encode(f"utf-16-{order}")

    return change


ODD_TEXT: dict[str, Callable[[bytes], bytes]] = {
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16 little-endian": _utf16("le", b"\xff\xfe"),
    "UTF-16 big-endian": _utf16("be", b"\xfe\xff"),
    "UTF-16 without a mark": _utf16("le", b""),
    "carriage returns": lambda data: data.replace(b"\n", b"\r\n"),
    "blank lines at the end": lambda data: data + b"\n\n",
    "no line break at the end": lambda data: data.rstrip(b"\n"),
}


def _cells(change: Callable[[str], str], **how: object) -> Callable[[bytes], bytes]:
    """A CSV file written again, its cells changed but for the header's."""

    def again(data: bytes) -> bytes:
        head, *rows = csv.reader(io.StringIO(data.decode()))
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n", **how)  # type: ignore[arg-type]
        writer.writerow(head)
        writer.writerows([change(cell) for cell in row] for row in rows)
        return out.getvalue().encode()

    return again


def _float(cell: str) -> str:
    return f"{cell}.0" if re.fullmatch(r"-?\d+", cell) else cell


def _scientific(cell: str) -> str:
    return f"{int(cell):.15E}" if re.fullmatch(r"\d{2,}", cell) else cell


def _comma(cell: str) -> str:
    return cell.replace(".", ",") if re.fullmatch(r"-?\d+\.\d+(e[+-]?\d+)?", cell) else cell


def _header(
    change: Callable[[bytes], bytes], rows: Callable[[bytes], bytes] = bytes
) -> Callable[[bytes], bytes]:
    def again(data: bytes) -> bytes:
        head, _, rest = data.partition(b"\n")
        return change(head) + b"\n" + rows(rest)

    return again


ODD_TABLE: dict[str, Callable[[bytes], bytes]] = {
    "every cell in quotes": _cells(str, quoting=csv.QUOTE_ALL),
    "whole numbers as 2.0": _cells(_float),
    "whole numbers as 2.0E+00": _cells(_scientific),
    "semicolons": _cells(str, delimiter=";"),
    "semicolons and decimal commas": _cells(_comma, delimiter=";"),
    "decimal commas in quotes": _cells(_comma, delimiter=";", quoting=csv.QUOTE_ALL),
    "tabs": _cells(str, delimiter="\t"),
    "sep= in the first line": lambda data: b"sep=,\n" + data,
    "header in small letters": _header(bytes.lower),
    "header in capitals": _header(bytes.upper),
    "blanks in the header": _header(lambda head: head.replace(b",", b" , ")),
    "empty columns at the end": lambda data: data.replace(b"\n", b",,\n"),
    "empty columns at the end of rows only": _header(bytes, lambda rows: rows.replace(b"\n", b",\n")),
    "empty rows at the end": lambda data: data + b"," * data.partition(b"\n")[0].count(b",") + b"\n",
    "old line ends": lambda data: data.replace(b"\n", b"\r"),
}  # fmt: skip


def plain(scenarios: tuple[Scenario, ...]) -> list[tuple[object, ...]]:
    return [
        (s.region, s.drive, s.scenario_id, s.track_ids, s.kinds, s.types, s.xy.tobytes()) for s in scenarios
    ]


def changed(folder: Path, write: Callable[[Path], object], change: Callable[[bytes], bytes]) -> Path:
    folder.mkdir()
    write(folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.write_bytes(change(path.read_bytes()))
    return folder


@pytest.mark.parametrize("oddity", ODD_TEXT)
@pytest.mark.parametrize("kind", TEXTS)
def test_every_text_reader_reads_it_as_if_it_were_plain(tmp_path: Path, kind: str, oddity: str) -> None:
    known = read(changed(tmp_path / "plain", TEXTS[kind], bytes))
    odd = tmp_path / "odd" / "plain"
    odd.parent.mkdir()
    found = read(changed(odd, TEXTS[kind], ODD_TEXT[oddity]))
    assert plain(found) == plain(known)
    assert open_recordings(odd).account.rows == []


@pytest.mark.parametrize("oddity", ODD_TABLE)
@pytest.mark.parametrize("kind", TABLES)
def test_every_reader_of_tables_reads_it_as_if_it_were_plain(tmp_path: Path, kind: str, oddity: str) -> None:
    known = read(changed(tmp_path / "plain", TABLES[kind], bytes))
    odd = tmp_path / "odd" / "plain"
    odd.parent.mkdir()
    found = read(changed(odd, TABLES[kind], ODD_TABLE[oddity]))
    assert plain(found) == plain(known)


@pytest.mark.parametrize("change", [*ODD_TEXT.values()], ids=[*ODD_TEXT])
def test_a_tub_is_read_whatever_an_editor_did(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed (extra scenarios)")
    made = tubs.files(60)
    odd = {name: change(data) if not name.startswith("images/") else data for name, data in made.items()}
    tubs.write_folder(tmp_path / "a" / "hall-red", made)
    tubs.write_folder(tmp_path / "b" / "hall-red", odd)
    tubs.write_zip(tmp_path / "c" / "hall-red.zip", odd)
    whole = [open_camera(tmp_path / name).blocks for name in "abc"]
    each = [[block.records for block in blocks.values()] for blocks in whole]
    assert each[0] == each[1] == each[2]


# --- archives from other systems ---


def _mac(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(f"__MACOSX/._{name.rpartition('/')[2]}", b"\0\5\x16\7\0\2\0\0Mac OS X")
    archive.writestr(name, data)
    archive.writestr(f"{name.rpartition('/')[0]}/.DS_Store", b"\0\0\0\1Bud1")


def _powershell(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo("x")
    entry.filename = f"Data\\{name}".replace("/", "\\")
    archive.writestr(entry, data)


@pytest.mark.parametrize("write", [_mac, _powershell])
@pytest.mark.parametrize("kind", [*TEXTS])
def test_every_reader_reads_archives_of_other_systems(
    tmp_path: Path, kind: str, write: Callable[[zipfile.ZipFile, str, bytes], None]
) -> None:
    """Cases 19 and 27: Finder's zips and those of Windows PowerShell."""
    known = read(changed(tmp_path / "plain", TEXTS[kind], bytes))
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "plain.zip", "w") as archive:
        for path in sorted((tmp_path / "plain").rglob("*")):
            if path.is_file() and path.name != "index.csv":
                write(archive, path.relative_to(tmp_path / "plain").as_posix(), path.read_bytes())
            elif path.name == "index.csv":
                (tmp_path / "zipped" / "index.csv").write_bytes(path.read_bytes())
    found = read(tmp_path / "zipped")
    assert [s.xy.tobytes() for s in found] == [s.xy.tobytes() for s in known]
    assert open_recordings(tmp_path / "zipped").account.rows == []


@pytest.mark.parametrize("write", [_mac, _powershell])
def test_tubs_in_archives_of_other_systems(
    tmp_path: Path, write: Callable[[zipfile.ZipFile, str, bytes], None]
) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed (extra scenarios)")
    with zipfile.ZipFile(tmp_path / "hall-red.zip", "w") as archive:
        for name, data in tubs.files(60).items():
            write(archive, f"hall-red/{name}", data)
    found = open_camera(tmp_path)
    assert sum(block.end - block.start for block in found.blocks.values()) > 0
    assert found.account.rows == []


# --- what cannot be understood is said in our words ---


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: data.replace(b",car,", b",c\xe4r,", 1), r"expected UTF-8 text, got other bytes"),
        (lambda data: data.replace(b",1,100,", b",1.5,100,", 1), r"line 2: expected a whole frame_id .*, got 1.5"),
        (lambda data: data.replace(b",1,100,", b",one,100,", 1), r"line 2: expected a number of frame_id, got 'one'"),
        (lambda data: data.replace(b",0,0\n", b",0\n", 1), r"line 2: expected 8 cells, got 7"),
        (lambda data: b"\xff\xfe" + data.decode().encode("utf-16-le")[:-1], r"begins as UTF-16-LE text, and does not"),
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_told_in_our_words(
    tmp_path: Path, change: Callable[[bytes], bytes], text: str
) -> None:
    recorded.interaction(tmp_path, TRACKS)
    path = tmp_path / "DR_Test" / "vehicle_tracks_000.csv"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UsageError, match=text) as error:
        read(tmp_path)
    assert not re.search(r"CSV|Arrow|conversion|codec|Error|Traceback", str(error.value).partition(": ")[2])


def test_times_that_a_spreadsheet_rounded_are_refused(tmp_path: Path) -> None:
    """Excel saves what it shows: 1.11885E+12, for every row the same."""
    recorded.ngsim(tmp_path, TRACKS)
    path = tmp_path / "trajectories.csv"
    path.write_text(re.sub(r",1118846\d{6},", ",1.11885E+12,", path.read_text()))
    with pytest.raises(UsageError, match=r"rounded-time: trajectories\.csv: .*did a spreadsheet round it"):
        read(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["x.csv", "x.csv.gz", "x.csv.zst"]))
def test_any_bytes_are_text_or_a_reason(data: bytes, name: str) -> None:
    from fedfleet.scenarios.records import ScenarioError

    packed = {"x.csv": bytes, "x.csv.gz": gzip.compress, "x.csv.zst": zstandard.compress}[name](data)
    reasons = []
    try:
        whole = utf8(data, name)
        with open_text(lambda: io.BytesIO(packed), name, len(packed)) as file:
            assert file.read() == whole
        dialect_of(whole, name).has("x")
    except ScenarioError as error:
        reasons.append(error.reason)
    assert set(reasons) <= {"bad-encoding", "malformed-csv"}
