"""The CLI reference, ``docs/cli.md``, written from the commands' own ``--help``."""

from typing import Any

import click
import typer.main

from fedfleet.cli.config import ENV_PREFIX, Settings

__all__ = ["reference"]

_WIDTH = 100


def reference() -> str:
    """Return the page: every command's help, then every key of the configuration."""
    from fedfleet.cli.main import app

    parts = [
        "# Command reference\n",
        "Written by `make docs` from `--help`; a test fails when it is stale.\n",
    ]
    command = typer.main.get_command(app)
    parts += _help(
        command, click.Context(command, info_name="fedfleet", max_content_width=_WIDTH, terminal_width=_WIDTH)
    )
    parts += ["\n## Configuration\n", _configuration()]
    return "\n".join(parts) + "\n"


def _help(command: click.Command, context: click.Context) -> list[str]:
    formatter = context.make_formatter()
    click.Command.format_usage(command, context, formatter)
    formatter.write_paragraph()
    formatter.write_text(command.help or "")
    click.Command.format_options(command, context, formatter)
    if isinstance(command, click.Group):
        click.Group.format_commands(command, context, formatter)
    text = "\n".join(line.rstrip() for line in formatter.getvalue().strip().splitlines())
    parts = [f"## `{context.command_path}`\n", f"```text\n{text}\n```\n"]
    if isinstance(command, click.Group):
        for name in sorted(command.list_commands(context)):
            child = command.get_command(context, name)
            if child is not None:
                parts += _help(
                    child,
                    click.Context(
                        child, parent=context, info_name=name, max_content_width=_WIDTH, terminal_width=_WIDTH
                    ),
                )
    return parts


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
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        rows.append(
            f"| `{prefix}{name}` | `{default.replace('|', chr(92) + '|')}` | {field.description or ''} |"
        )
    return rows
