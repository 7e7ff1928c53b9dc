"""The CLI reference, ``docs/cli.md``, written from the commands' ``--help`` and the configuration's descriptions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner

from fedfleet.cli.config import ENV_PREFIX, Settings

__all__ = ["paths", "reference"]

_WIDTH = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "TERM": "dumb", "NO_COLOR": "1"}
_SHOWN_CHARACTERS = 60


def reference() -> str:
    """Return the page: every command's help, then every key of the configuration."""
    from fedfleet.cli.main import app

    parts = [
        "# Command reference\n",
        "Written by `make docs` from `--help`; a test fails when it is stale.\n",
    ]
    for path in paths(typer.main.get_command(app), ()):
        shown = CliRunner().invoke(app, [*path, "--help"], env=_WIDTH, prog_name="fedfleet").output
        text = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        parts.append(f"## `{' '.join(('fedfleet', *path))}`\n\n```text\n{text}\n```\n")
    parts += ["## Configuration\n", _configuration()]
    return "\n".join(parts) + "\n"


def paths(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:  # noqa: ANN401 - Typer vendors click
    """Yield the words of every command, groups too, in the order of the page."""
    yield path
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from paths(child, (*path, name))


def _configuration() -> str:
    head = f"One TOML file; the environment overrides it, for example `{ENV_PREFIX}BROKER__PORT=1884`.\n\n"
    return head + "| key | default | meaning |\n|---|---|---|\n" + "\n".join(_rows(Settings, ""))


def _rows(model: Any, prefix: str) -> list[str]:  # noqa: ANN401 - a pydantic model class
    rows: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            rows += _rows(inner, f"{prefix}{name}.")
            continue
        value = field.get_default(call_default_factory=True)
        default = (
            "required" if field.is_required() else repr(str(value) if isinstance(value, Path) else value)
        )
        shown = default.replace("|", "\\|")[:_SHOWN_CHARACTERS]
        rows.append(f"| `{prefix}{name}` | `{shown}` | {field.description or ''} |")
    return rows
