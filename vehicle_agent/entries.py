"""What the journal keeps: frozen values."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from fedfleet.protocol.ids import UpdateId

__all__ = ["Graph", "OutboxEntry", "Released"]


@dataclass(frozen=True)
class Graph:
    """The model file with its weights zeroed, and its layout as JSON; ``sha256`` is that of the blob it came in."""

    sha256: str
    layout: bytes
    onnx: bytes


@dataclass(frozen=True)
class Released:
    """A release that passed its checks: the whole model file and its digest; ``variant`` when it is one."""

    number: int
    version: int
    onnx_sha256: str
    model: bytes
    variant: str = ""


@dataclass(frozen=True, eq=False)
class OutboxEntry:
    """An update ready to be sent; with the coordinates int64[k] that its plan named, when the payload has none."""

    id: UpdateId
    sealed: bytes
    round: int
    region: str
    coordinates: NDArray[np.int64] | None = None

    @property
    def sealed_sha256(self) -> str:
        """Return the SHA-256 (hex) of the sealed bytes."""
        return sha256(self.sealed).hexdigest()
