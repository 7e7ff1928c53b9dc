"""Writes docs/cli.md from the commands' own --help."""

from pathlib import Path

from fedfleet.cli.reference import reference

if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(reference(), encoding="utf-8")
