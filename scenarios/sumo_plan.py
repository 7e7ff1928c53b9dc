"""How the SUMO pack's roads are drawn: points along curves, plain nodes and edges, SUMO's network tools.

May live here: geometry and the call of netconvert or netgenerate; which roads there are lives in `sumo_nets`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from fedfleet.protocol.errors import UsageError

__all__ = ["COMMON", "Plan", "Points", "beside", "bowed", "find_tool", "path", "run_tool"]

Points = NDArray[np.float64]

COMMON: Final = (
    "--no-turnarounds=true",
    "--junctions.internal-link-detail=16",
    "--junctions.corner-detail=8",
    "--junctions.limit-turn-speed=3.2",
    "--tls.yellow.time=3",
    "--offset.disable-normalization=true",
    "--precision=2",
    "--no-warnings=true",
)


@dataclass
class Plan:
    """Plain nodes, edges and connections, in the order in which they were drawn."""

    nodes: list[str] = field(default_factory=list)
    edges: list[str] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)

    def node(self, name: str, at: Points, *, kind: str = "priority", radius: float | None = None) -> None:
        """A junction at a point; `kind` is SUMO's node type."""
        extra = "" if radius is None else f' radius="{radius:g}"'
        self.nodes.append(f'<node id="{name}" x="{at[0]:.2f}" y="{at[1]:.2f}" type="{kind}"{extra}/>')

    def edge(
        self, name: str, ends: tuple[str, str], shape: Points, *, lanes: int, speed: float, rank: int = 1
    ) -> None:
        """A one-way road along points; its lanes lie on the driving side of them."""
        points = " ".join(f"{x:.2f},{y:.2f}" for x, y in shape)
        self.edges.append(
            f'<edge id="{name}" from="{ends[0]}" to="{ends[1]}" numLanes="{lanes}" speed="{speed:g}" '
            f'priority="{rank}" shape={quoteattr(points)}/>'
        )

    def join(self, before: str, after: str, lanes: dict[int, int]) -> None:
        """Connect lanes of one edge with lanes of the next."""
        self.connections += [
            f'<connection from="{before}" to="{after}" fromLane="{a}" toLane="{b}"/>'
            for a, b in lanes.items()
        ]

    def convert(self, out: Path, *options: str) -> None:
        """Write the network; raises CalledProcessError with netconvert's words when it refuses."""
        with tempfile.TemporaryDirectory() as folder:
            parts = {"node": self.nodes, "edge": self.edges, "connection": self.connections}
            arguments = []
            for kind, lines in parts.items():
                file = Path(folder) / f"{kind}.xml"
                file.write_text(f"<{kind}s>\n" + "\n".join(lines) + f"\n</{kind}s>\n")
                arguments.append(f"--{kind}-files={file}")
            run_tool("netconvert", [*arguments, *COMMON, *options], out)


def find_tool(name: str) -> str | None:
    """Path of a SUMO tool: beside this Python first (as pip installs it), then on PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def run_tool(tool: str, options: list[str], out: Path) -> None:
    """Run a SUMO network tool; raises UsageError when it is not installed, CalledProcessError when it fails."""
    found = find_tool(tool)
    if found is None:
        raise UsageError(
            f"{tool} is not installed; building road networks needs it: pip install eclipse-sumo"
        )
    subprocess.run([found, *options, f"--output-file={out}"], check=True, stdout=subprocess.DEVNULL)


def path(profile: Sequence[tuple[float, float]], *, step: float = 10.0) -> Points:
    """Points each `step` metres along pieces of (length m, curvature 1/m), from (0, 0) eastwards; smoothed."""
    curvature = np.concatenate([np.full(round(length / step), bend) for length, bend in profile])
    smooth = np.convolve(np.pad(curvature, 8, mode="edge"), np.ones(17) / 17, mode="valid")
    heading = np.cumsum(smooth) * step
    return np.concatenate(
        [np.zeros((1, 2)), np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * step, axis=0)]
    )


def beside(path: Points, left_m: float | NDArray[np.float64]) -> Points:
    """The path moved to its left by so many metres (negative: right)."""
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    moved: Points = path + normal * np.asarray(left_m).reshape(-1, 1)
    return moved


def bowed(start: Points, end: Points, bow: float, swing: float) -> Points:
    """A line from start to end, bent sideways by `bow` metres once and by `swing` metres to either side."""
    t = np.linspace(0.0, 1.0, max(8, int(np.linalg.norm(end - start) / 9)))
    line = start + (end - start) * t[:, None]
    fade = np.sin(np.pi * t)
    return beside(line, fade**2 * bow + np.sin(2 * np.pi * t) * fade * swing)
