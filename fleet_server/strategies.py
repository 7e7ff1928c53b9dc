"""Server optimizers as pure pairs of functions: what a round's merged pseudo-gradient does to the model.

Sign convention of this room: the pseudo-gradient is Δ_n = Σ_k w_k (x_k − x_n) / Σ_k w_k, the mean way from the
published vector x_n to the vehicles' models x_k. It points downhill, so an update is *added*: x_n + u. Papers that
write Δ = x_n − x_k subtract instead.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fedfleet.protocol.errors import UsageError

__all__ = ["NAMES", "State", "Strategy", "Vector", "create", "fedavg"]

Vector: TypeAlias = npt.NDArray[np.float64]
State: TypeAlias = Mapping[str, Vector]
"""What a strategy remembers between rounds: float64[M] arrays by name, so that it can be stored without pickle."""

NAMES = ("fedavg", "fedavgm")


@dataclass(frozen=True)
class Strategy:
    """A server optimizer. Both functions are pure: they return new values and change no argument.

    `needs` says whether the folded `sum` of updates is enough or `each` of them is needed. `init(size)` returns the
    state before the first round. `apply(state, pseudo_gradient float64[M])` returns the next state and the update
    u float64[M] to add; it raises ValueError when the pseudo-gradient is not finite or the state is not its own.
    """

    name: str
    needs: Literal["sum", "each"]
    init: Callable[[int], State]
    apply: Callable[[State, Vector], tuple[State, Vector]]


def create(name: str, *, server_learning_rate: float = 1.0, momentum: float = 0.0) -> Strategy:
    """Return the strategy of this name; UsageError for an unknown name, or a momentum that it does not take."""
    if name not in NAMES:
        raise UsageError(f"strategy: expected one of {', '.join(NAMES)}, got {name!r}")
    if name == "fedavg" and momentum != 0.0:
        raise UsageError(f"strategy fedavg has no momentum, got {momentum}; expected strategy fedavgm")
    if name == "fedavgm" and momentum == 0.0:
        raise UsageError("strategy fedavgm: expected a momentum above 0, got 0.0; without one it is fedavg")
    return fedavg(server_learning_rate, momentum)


def fedavg(server_learning_rate: float = 1.0, momentum: float = 0.0) -> Strategy:
    """Return federated averaging, with server momentum when `momentum` β is above 0.

    β = 0, FedAvg (McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data",
    algorithm 1; with a server learning rate η after Reddi et al. 2021):

        u_n = η Δ_n                                     no state

    so that with η = 1 the model becomes the weighted mean of the vehicles' models. β > 0, FedAvgM (Hsu et al. 2019,
    "Measuring the effects of non-identical data distribution for federated visual classification", section 4.3):

        v_n = β v_{n−1} + Δ_n,   u_n = η v_n            state {"momentum": v}, v_{−1} = 0

    No dampening (Δ_n enters whole), no Nesterov step, no bias correction: a constant Δ grows towards Δ / (1 − β).
    A zero pseudo-gradient gives u = 0 without momentum, and lets the momentum run on with it.
    Raises UsageError unless η is finite and above 0, and 0 ≤ β < 1.
    """
    if not (np.isfinite(server_learning_rate) and server_learning_rate > 0):
        raise UsageError(
            f"server_learning_rate: expected a finite number above 0, got {server_learning_rate}"
        )
    if not 0 <= momentum < 1:
        raise UsageError(f"momentum: expected at least 0 and below 1, got {momentum}")
    if momentum == 0:
        return _plain(server_learning_rate)
    return _with_momentum(server_learning_rate, momentum)


def _plain(rate: float) -> Strategy:
    def init(_size: int) -> State:
        return {}

    def apply(state: State, pseudo_gradient: Vector) -> tuple[State, Vector]:
        _check(state, pseudo_gradient, names=())
        return {}, rate * pseudo_gradient

    return Strategy("fedavg", "sum", init, apply)


def _with_momentum(rate: float, momentum: float) -> Strategy:
    def init(size: int) -> State:
        return {"momentum": np.zeros(size)}

    def apply(state: State, pseudo_gradient: Vector) -> tuple[State, Vector]:
        _check(state, pseudo_gradient, names=("momentum",))
        velocity = momentum * state["momentum"] + pseudo_gradient
        return {"momentum": velocity}, rate * velocity

    return Strategy("fedavgm", "sum", init, apply)


def _check(state: State, pseudo_gradient: Vector, *, names: tuple[str, ...]) -> None:
    if pseudo_gradient.ndim != 1 or pseudo_gradient.dtype != np.float64:
        got = f"{pseudo_gradient.dtype}{list(pseudo_gradient.shape)}"
        raise ValueError(f"pseudo-gradient: expected float64[M], got {got}")
    if not np.isfinite(pseudo_gradient).all():
        raise ValueError("pseudo-gradient: a value is NaN or infinite")
    if sorted(state) != sorted(names):
        raise ValueError(f"strategy state: expected {sorted(names)}, got {sorted(state)}")
    for name, array in state.items():
        if array.shape != pseudo_gradient.shape or array.dtype != np.float64:
            expected = f"float64{list(pseudo_gradient.shape)}"
            raise ValueError(
                f"strategy state {name}: expected {expected}, got {array.dtype}{list(array.shape)}"
            )
