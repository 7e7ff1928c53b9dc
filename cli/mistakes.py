"""Mistakes in a configuration, in words: all at once, each with its place, what was expected and what may be meant."""

import os
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.printable import printable

__all__ = ["Mistakes", "meant", "of_validation", "read_toml"]

_SECRET: Final = ("enrolment", "code", "password")
_SHOWN: Final = 80
_TWICE: Final = ("Cannot overwrite a value", "Cannot declare")
_QUOTES: Final = "“”„‟‘’‚«»"


class Mistakes(UsageError):  # noqa: N818 - it is several
    """One or more mistakes of the user, a line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("; ".join(self.lines))


def meant(word: str, known: Sequence[str]) -> str:
    """Return `, did you mean X?`, or nothing when no known word is near."""
    near = get_close_matches(word, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


# --- the file itself ---


def read_toml(file: Path) -> dict[str, Any]:
    """Return what a TOML file says. A byte order mark is passed over; UsageError, one line, for all else."""
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{file}: no such configuration file") from error
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    text = _decoded(data, file)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: not TOML: {_explained(str(error), text)}") from error


def _decoded(data: bytes, file: Path) -> str:
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"} or data[1:2] == b"\x00":
        raise UsageError(f"{file}: is saved as UTF-16, expected UTF-8: choose that encoding when saving")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        text = f"line {line} has the byte 0x{data[error.start]:02x}"
        raise UsageError(f"{file}: is not UTF-8: {text}: choose that encoding when saving") from error


def _explained(told: str, text: str) -> str:
    """Return the parser's words with the line that they are about, and what usually is the reason."""
    number = "".join(each for each in told.rpartition("(at line ")[2].partition(",")[0] if each.isdigit())
    lines = text.splitlines()
    line = lines[int(number) - 1].strip() if number and int(number) <= len(lines) else ""
    why = ""
    if told.startswith(_TWICE):
        why = ": this key or section is given twice"
    elif any(quote in line for quote in _QUOTES):
        why = """: typographic quotes, expected " or '"""
    elif "\\" in line and '"' in line:
        why = r": a \ in double quotes begins an escape; write paths with / or in single quotes"
    elif "=" in line and "Invalid value" in told:
        why = ": texts stand in quotes, truth values are true and false"
    shown = f": {printable(line)[:_SHOWN]}" if line else ""
    return f"{told}{shown}{why}"


# --- what it says ---


def of_validation(error: ValidationError, root: type[BaseModel], *, file: Path | None, env: str) -> Mistakes:
    """Return all mistakes of a configuration; ``env`` is the prefix of environment variables."""
    return Mistakes([_line(one, root, file=file, env=env) for one in error.errors(include_url=False)])


def _line(one: Mapping[str, Any], root: type[BaseModel], *, file: Path | None, env: str) -> str:
    key = printable(".".join(str(part) for part in one["loc"]))
    where: object = file or "configuration"
    variable = env + "__".join(str(part) for part in one["loc"]).upper()
    if variable in os.environ:
        where = f"environment {variable}"
    if one["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown key{_hint(one['loc'], root)}"
    got = "nothing" if one["type"] == "missing" else repr(one["input"])[:_SHOWN]
    if any(word in key for word in _SECRET):
        got = "a value that is not shown"
    return f"{where}: {key}: expected: {one['msg']}; got {got}"


def _hint(place: Sequence[str | int], root: type[BaseModel]) -> str:
    """Return what an unknown key was meant to be: a near one beside it, or the same one in another section."""
    name = str(place[-1])
    siblings = _model_at(root, place[:-1])
    if near := meant(name, list(siblings.model_fields) if siblings else []):
        return near
    elsewhere = [path for path in _paths(root, "") if path.rpartition(".")[2] == name]
    return f", did you mean {' or '.join(elsewhere)}?" if elsewhere else ""


def _model_at(model: type[BaseModel], place: Sequence[str | int]) -> type[BaseModel] | None:
    found: type[BaseModel] | None = model
    for part in place:
        if found is None:
            return None
        if isinstance(part, int) or part not in found.model_fields:
            continue  # an index, or the name of an entry: the field's own type says what is in it
        found = _inner(found.model_fields[part].annotation)
    return found


def _inner(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - any type
    """Return the model that a field holds, directly, or in a list, a mapping or a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        inner = (_inner(each) for each in typing.get_args(annotation))
        return next((each for each in inner if each is not None), None)
    return None


def _paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _paths(inner, f"{prefix}{name}.")
