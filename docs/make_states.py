"""Draws the state machine in docs/protocol.md from the table of fleet_server/rounds.py."""

from pathlib import Path

from fedfleet.fleet_server.rounds import diagram

BEGIN, END = "<!-- rounds:begin -->\n", "<!-- rounds:end -->"


def drawn(page: str) -> str:
    """Return the page with the picture between its marks made anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}```mermaid\n{diagram().strip()}\n```\n{END}{after}"


if __name__ == "__main__":
    path = Path(__file__).with_name("protocol.md")
    path.write_text(drawn(path.read_text(encoding="utf-8")), encoding="utf-8")
