"""Settings that suit a task where nobody chose others: its `suits`, wherever the configuration says nothing."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from fedfleet.cli.compare_settings import ArmSettings
from fedfleet.cli.config import Settings
from fedfleet.fleet_server.config import ServerSettings
from fedfleet.models import task as tasks
from fedfleet.models.task import Task
from fedfleet.protocol.errors import UsageError

__all__ = ["arms", "demo_rounds", "server"]

Model = TypeVar("Model", bound=BaseModel)

DEMO_ROUNDS: Final = 10


def server(settings: Settings) -> ServerSettings:
    """Return the server's settings: each section that the configuration does not speak of as it suits the task.

    Raises UsageError for a task whose settings are not valid.
    """
    own = settings.server
    wanted = _of(tasks.load(settings.task), "server")
    left = {name: value for name, value in wanted.items() if name not in own.model_fields_set}
    return _changed(own, left, settings.task) if left else own


def arms(task: Task) -> ArmSettings:
    """Return the arms of a comparison as they suit the task, without augmentation when it offers none."""
    return _changed(ArmSettings(), _of(task, "compare"), task.name).offered(task)


def demo_rounds(task: Task) -> int:
    """Return how many rounds a demo of the task takes; UsageError for what is no number of rounds."""
    wanted = _of(task, "demo").get("rounds", DEMO_ROUNDS)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise UsageError(
            f"task {task.name}: suits: demo.rounds: expected a whole number above 0, got {wanted!r}"
        )
    return wanted


def _of(task: Task, part: str) -> Mapping[str, Any]:
    suits: Mapping[str, Mapping[str, Any]] = getattr(task, "suits", {})
    return suits.get(part, {})


def _changed(model: Model, wanted: Mapping[str, Any], task: str) -> Model:
    """Return the model with some fields changed; a mapping for a field that is a model changes some of its fields."""
    changed = dict(model)
    for name, value in wanted.items():
        old = changed.get(name)
        if isinstance(old, BaseModel) and isinstance(value, Mapping):
            changed[name] = _changed(old, value, task)
        else:
            changed[name] = value
    try:
        return type(model).model_validate(changed)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"task {task}: suits: {where}: {first['msg']}") from error
