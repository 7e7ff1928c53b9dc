"""What all parts of the server's configuration share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Config", "Positive"]

Positive = Annotated[float, Field(gt=0, le=1e7)]


class Config(BaseModel):
    """What all parts share: frozen, finite numbers, unknown keys refused, no input (a code) in an error's text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
