"""``fedfleet scenarios plot``: scenarios from above, as pictures, moving GIFs, and MP4 where ffmpeg is installed."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from fedfleet.cli.config import load
from fedfleet.cli.options import ConfigFile, ScenariosDir, pack_dir
from fedfleet.cli.page import COLOURS, GREY
from fedfleet.cli.terminal import Terminal
from fedfleet.models import extras
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.printable import printable
from fedfleet.scenarios.reading import stream
from fedfleet.scenarios.records import Scenario

__all__ = ["plot"]

SIDE_INCHES: Final = 6.4
DPI: Final = 100
MOST_FRAMES: Final = 300
"""Frames of an animation; a longer scenario skips evenly."""
TAIL_S: Final = 1.0
MARGIN: Final = 1.08
LEAST_M: Final = 30.0
_TYPES: Final = {
    "vehicle": COLOURS[0],
    "truck": COLOURS[5],
    "bus": COLOURS[4],
    "motorcycle": COLOURS[3],
    "cyclist": COLOURS[2],
    "pedestrian": COLOURS[1],
    "static": GREY,
    "unknown": COLOURS[0],
}
_OWN: Final = "#d9480f"
_JUDGED: Final = "#0a8f5b"
FFMPEG_LIMIT_S: Final = 300.0


def plot(  # noqa: PLR0913 - the options of the command
    *,
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="Only the scenario of this id; may be given again.", show_default=False),
    ] = None,
    drives: Annotated[
        str | None,
        typer.Option(
            metavar="REGION/DRIVE,…", help="Only these drives; without it all of them.", show_default=False
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="Scenarios that are drawn at most.")] = 4,
    gif: Annotated[bool, typer.Option("--gif", help="Also as moving GIF.")] = False,
    mp4: Annotated[bool, typer.Option("--mp4", help="Also as MP4 (needs ffmpeg).")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("out/scenarios"),
    config: ConfigFile = None,
    scenarios: ScenariosDir = None,
) -> None:
    """Draw scenarios from above: every track, judged ones in green, the recording car in orange."""
    settings = load(config)
    folder = scenarios or settings.data.scenarios or pack_dir()
    extras.need("matplotlib", "PIL", what="`fedfleet scenarios plot`")
    ffmpeg = shutil.which("ffmpeg")
    if mp4 and ffmpeg is None:
        raise UsageError("--mp4: ffmpeg is not installed; --gif needs nothing more")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: expected a folder, got a file")
    keys = [key.strip() for key in drives.split(",") if key.strip()] if drives else None
    wanted = set(scenario or ())
    found = (one for one in stream(folder, keys) if not wanted or one.scenario_id in wanted)
    drawn = set()
    out.mkdir(parents=True, exist_ok=True)
    for one in islice(found, len(wanted) if wanted else most):
        drawn.add(one.scenario_id)
        for path in _files(one, out, gif=gif, ffmpeg=ffmpeg if mp4 else None):
            Terminal().say(str(path))
    if missing := sorted(wanted - drawn):
        raise UsageError(f"{folder}: no scenario {missing[0]} in {drives or 'any drive'}")
    if not drawn:
        raise UsageError(f"{folder}: no scenario in {drives or 'any drive'}")


@dataclass(eq=False)
class _Canvas:
    """A figure, the dots that move, and the tails behind them."""

    figure: Any
    dots: Any
    tails: Any
    clock: Any

    def rgb(self) -> NDArray[np.uint8]:
        """Return the picture, uint8[rows, columns, 3]."""
        self.figure.canvas.draw()
        return np.ascontiguousarray(np.asarray(self.figure.canvas.buffer_rgba())[..., :3])


def _files(one: Scenario, out: Path, *, gif: bool, ffmpeg: str | None) -> Iterator[Path]:
    """Draw the whole scenario with its tracks, then as it goes."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{one.region}-{one.drive}-{one.scenario_id}")[:120]
    still = _canvas(one, is_whole=True)
    _show(still, one, one.frames - 1)
    path = out / f"{name}.png"
    still.figure.savefig(path, dpi=DPI, metadata={"Software": None})
    yield path
    if not gif and ffmpeg is None:
        return
    every = -(-one.frames // MOST_FRAMES)
    canvas = _canvas(one, is_whole=False)
    pictures = []
    for frame in range(0, one.frames, every):
        _show(canvas, one, frame)
        pictures.append(canvas.rgb())
    rate_hz = one.rate_hz / every
    if gif:
        yield _gif(out / f"{name}.gif", pictures, rate_hz)
    if ffmpeg is not None:
        yield _mp4(out / f"{name}.mp4", pictures, rate_hz, ffmpeg)


def _canvas(one: Scenario, *, is_whole: bool) -> _Canvas:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIDE_INCHES, SIDE_INCHES + 0.4), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.09, 0.07, 0.88, 0.85))
    colours = [_colour(kind, each) for kind, each in zip(one.kinds, one.types, strict=True)]
    if is_whole:
        axes.add_collection(LineCollection(list(one.xy), colors=colours, linewidths=1.1, alpha=0.75))
    tails = axes.add_collection(LineCollection([], colors=colours, linewidths=1.8, alpha=0.6))
    sizes = [42 if kind != "OTHERS" else 20 for kind in one.kinds]
    nowhere = np.zeros(len(one.xy))
    dots = axes.scatter(nowhere, nowhere, s=sizes, c=colours, zorder=3, lw=0.4, ec="white")
    low, high = np.nanmin(one.xy, axis=(0, 1)), np.nanmax(one.xy, axis=(0, 1))
    middle, half = (low + high) / 2, max(LEAST_M, float((high - low).max())) / 2 * MARGIN
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set_aspect("equal")
    axes.ticklabel_format(useOffset=False, style="plain")
    axes.tick_params(labelsize=7, color=GREY)
    axes.grid(visible=True, color="#eef1f4", lw=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(GREY)
    title = f"{one.region} · {one.drive[-30:]} · scenario {one.scenario_id[-30:]}"
    axes.set_title(printable(title), parse_math=False, fontsize=9, loc="left")
    axes.set_xlabel("m east", fontsize=8)
    clock = axes.text(0.99, 0.985, "", transform=axes.transAxes, ha="right", va="top", fontsize=9)
    return _Canvas(figure, dots, tails, clock)


def _show(canvas: _Canvas, one: Scenario, frame: int) -> None:
    """Move everything to a frame; a track that is not seen then is not drawn."""
    back = max(0, frame - round(TAIL_S * one.rate_hz))
    canvas.dots.set_offsets(np.ma.masked_invalid(one.xy[:, frame]))
    canvas.tails.set_segments(list(one.xy[:, back : frame + 1]))
    canvas.clock.set_text(f"{frame / one.rate_hz:.1f} of {one.seconds:.1f} s")


def _colour(kind: str, type_: str) -> str:
    return {"AV": _OWN, "AGENT": _JUDGED}.get(kind, _TYPES[type_])


def _gif(path: Path, pictures: Sequence[NDArray[np.uint8]], rate_hz: float) -> Path:
    from PIL import Image

    first, *others = (
        Image.fromarray(picture).quantize(64, method=Image.Quantize.FASTOCTREE) for picture in pictures
    )
    hundredths = max(2, round(100 / rate_hz))  # a GIF counts in these; browsers slow down what is below two
    first.save(
        path,
        save_all=True,
        append_images=others,
        duration=10 * hundredths,
        loop=0,
        optimize=False,
        disposal=1,
    )
    return path


def _mp4(path: Path, pictures: Sequence[NDArray[np.uint8]], rate_hz: float, ffmpeg: str) -> Path:
    """Give the raw pictures to ffmpeg."""
    rows, columns = (side - side % 2 for side in pictures[0].shape[:2])  # H.264 wants even sides
    command = [ffmpeg, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{columns}x{rows}", "-r", f"{rate_hz:g}", "-i", "-"]
    command += ["-an", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    raw = b"".join(np.ascontiguousarray(picture[:rows, :columns]).tobytes() for picture in pictures)
    done = subprocess.run(command, input=raw, capture_output=True, check=False, timeout=FFMPEG_LIMIT_S)
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"--mp4: ffmpeg failed on {path.name}: {last}")
    return path
