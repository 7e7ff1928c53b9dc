"""The form of the server's log: one JSON object per line, or text on a terminal. No secret gets into it."""

import json
import logging
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from fedfleet.fleet_server.config_observe import LogsConfig
from fedfleet.protocol.printable import printable

__all__ = ["HIDDEN", "configure"]

HIDDEN = "(not shown)"
SECRET_WORDS = ("code", "key", "nonce", "password", "secret", "token")
FIRST_KEYS = ("timestamp", "level", "event", "round", "region", "vehicle")
"""What a line begins with, as far as it applies."""


def configure(config: LogsConfig, stream: TextIO) -> None:
    """Write the log of this process to ``stream`` from now on, as the configuration says."""
    is_json = config.format == "json" or (config.format == "auto" and not stream.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _hide,
            _order,
            structlog.processors.format_exc_info,
            _render_json if is_json else _render_text,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )


def _hide(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put a mark in the place of every value whose name says that it is a secret."""
    for name in line:
        if any(word in SECRET_WORDS for word in name.lower().split("_")):
            line[name] = HIDDEN
    return line


def _order(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    first = {name: line[name] for name in FIRST_KEYS if name in line}
    return first | {name: value for name, value in line.items() if name not in first}


def _render_json(_logger: object, _method: str, line: MutableMapping[str, Any]) -> str:
    """One JSON object: other scripts stay readable, what a terminal would obey is escaped as JSON escapes it."""
    text = json.dumps(line, ensure_ascii=False, default=repr)
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def _render_text(_logger: object, _method: str, line: MutableMapping[str, Any]) -> str:
    """``12:31:07 info     round open  round=3 region=north``: control characters are shown, never obeyed."""
    rest = dict(line)
    head = f"{str(rest.pop('timestamp'))[11:19]} {rest.pop('level'):8} {printable(str(rest.pop('event')))}"
    trace = printable(str(rest.pop("exception", "")), keep="\n")
    told = " ".join(f"{name}={_shown(value)}" for name, value in rest.items())
    return "  ".join(filter(None, (head, told))) + (f"\n{trace}" if trace else "")


def _shown(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text and text else repr(text)
