"""Self-contained HTML pages: style, tiles, tables, and pictures drawn with matplotlib. No network to read them."""

import html
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from fedfleet.protocol.printable import printable

__all__ = ["COLOURS", "GREY", "Draw", "document", "escape", "grid", "png", "svg", "tiles"]

COLOURS: Final = ("#2563a8", "#c2571a", "#2f8a57", "#8b4fa3", "#8a6d1f", "#41707a", "#a83255", "#555f6b")
GREY: Final = "#b8c2cc"
Draw = Callable[[Any], None]
"""Draws a picture on matplotlib's axes."""

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b2430;background:#fff}
h1{font-size:1.7rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2rem}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0}
.tile{border:1px solid #d6dde5;border-radius:.5rem;padding:.7rem 1rem;min-width:9rem}
.tile b{display:block;font-size:1.5rem}.tile span{color:#5b6775;font-size:.85rem}
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .6rem;border-bottom:1px solid #e4e9ef;text-align:left}
.yes{color:#0a7a3d;font-weight:600}.no{color:#b3261e;font-weight:600}.plots{display:flex;flex-wrap:wrap;gap:1rem}
svg{max-width:100%;height:auto}figure{margin:0}figcaption{color:#5b6775;font-size:.85rem}
.cases figure{flex:1 1 20rem;max-width:30rem}.cases img{width:100%}
.from dt{color:#5b6775;font-size:.85rem}.from dd{margin:0 0 .5rem;overflow-wrap:anywhere}
footer{margin-top:2rem;color:#5b6775;font-size:.85rem}
"""
_LOOK: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "fedfleet",
    "text.parse_math": False,  # a region may be called $\\frac
}


def escape(text: str) -> str:
    """Return text as HTML that shows all of it, also what a browser would obey without showing it."""
    return html.escape(printable(text))


def document(title: str, body: str) -> str:
    """Return a whole page; ``body`` is HTML."""
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
    return f"{head}<style>{_STYLE}</style>{body}</html>"


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Return tiles of (what it is, its value)."""
    each = (
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in values
    )
    return f'<div class="tiles">{"".join(each)}</div>'


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; every cell is text."""
    heading = "".join(f"<th>{escape(cell)}" for cell in head)
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{heading}</tr>{''.join(lines)}</table>"


def svg(draw: Draw) -> str:
    """Return a picture as SVG, to stand inside a page; the same picture gives the same text."""
    buffer = io.StringIO()
    _save(draw, buffer, "svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(draw: Draw, path: Path) -> None:
    """Write a picture as PNG."""
    _save(draw, path, "png", dpi=150)


def _save(draw: Draw, where: Path | io.StringIO, kind: str, **how: Any) -> None:  # noqa: ANN401 - matplotlib's
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(_LOOK):
        figure, axes = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
        draw(axes)
        _make_printable(figure)
        figure.savefig(where, format=kind, **how)
        plt.close(figure)


def _make_printable(figure: Any) -> None:  # noqa: ANN401 - matplotlib's
    """Let titles, labels and ticks show all of their text."""
    from matplotlib.category import StrCategoryFormatter
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    for text in figure.findobj(Text):
        text.set_text(printable(text.get_text(), keep="\n"))
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        made = axis.get_major_formatter()
        if isinstance(made, FixedFormatter | FuncFormatter | StrCategoryFormatter):
            axis.set_major_formatter(FuncFormatter(partial(_tick, made)))


def _tick(made: Callable[[float, int | None], str], value: float, place: int | None) -> str:
    return printable(made(value, place), keep="\n")
