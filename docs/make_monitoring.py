"""Writes the table of metrics in docs/monitoring.md from that of fleet_server/gauges.py."""

from collections.abc import Iterable
from pathlib import Path

from fedfleet.fleet_server.gauges import TABLE, Family

BEGIN, END = "<!-- metrics:begin -->\n", "<!-- metrics:end -->"


def table(families: Iterable[Family]) -> str:
    """Return the table in Markdown."""
    rows = [
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.meaning} |"
        for one in families
    ]
    return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows])


def drawn(page: str) -> str:
    """Return the page with the table between its marks made anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table(TABLE.values())}\n{END}{after}"


if __name__ == "__main__":
    path = Path(__file__).with_name("monitoring.md")
    path.write_text(drawn(path.read_text(encoding="utf-8")), encoding="utf-8")
