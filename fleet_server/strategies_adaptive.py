"""Adaptive server optimizers: FedAdagrad, FedAdam, FedYogi (Reddi et al. 2021).

"Adaptive federated optimization", algorithm 2, all three without bias correction, as in the paper:

    m_n = β1 m_{n−1} + (1 − β1) Δ_n                                m_{−1} = 0
    v_n = v_{n−1} + Δ_n²                            FedAdagrad     v_{−1} = τ²
    v_n = v_{n−1} − (1 − β2) Δ_n² sign(v_{n−1} − Δ_n²)  FedYogi
    v_n = β2 v_{n−1} + (1 − β2) Δ_n²                FedAdam
    u_n = η m_n / (√v_n + τ)

State {"mean": m, "square": v}. τ is the smallest step that counts: a coordinate with |Δ| ≪ τ moves like η Δ / 2τ.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite

import numpy as np

from fedfleet.fleet_server.strategies import State, Strategy, Vector, check, check_rate
from fedfleet.protocol.errors import UsageError

__all__ = ["ADAPTIVE", "Moments", "adaptive"]


@dataclass(frozen=True)
class Moments:
    """β1, β2 and τ of the adaptive strategies; UsageError when 0 ≤ β < 1 or τ > 0 does not hold.

    The paper's experiments have β2 = 0.99 and τ = 1e-3, and β1 = 0.9 for FedAdam and FedYogi, 0 for FedAdagrad.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse what diverges."""
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise UsageError(f"{name}: expected at least 0 and below 1, got {value}")
        if not (isfinite(self.tau) and self.tau > 0):
            raise UsageError(f"tau: expected a finite number above 0, got {self.tau}")


Second = Callable[[Vector, Vector, float], Vector]
"""(v, Δ², β2) -> next v."""


def _adagrad(square: Vector, fresh: Vector, _beta2: float) -> Vector:
    return square + fresh


def _yogi(square: Vector, fresh: Vector, beta2: float) -> Vector:
    return square - (1 - beta2) * fresh * np.sign(square - fresh)


def _adam(square: Vector, fresh: Vector, beta2: float) -> Vector:
    return beta2 * square + (1 - beta2) * fresh


ADAPTIVE: Mapping[str, Second] = {"fedadagrad": _adagrad, "fedadam": _adam, "fedyogi": _yogi}


def adaptive(name: str, server_learning_rate: float = 0.01, moments: Moments | None = None) -> Strategy:
    """Return FedAdagrad, FedAdam or FedYogi by name: equations, initial state and conventions in the module's words.

    Raises UsageError for a rate η that is not finite and above 0.
    """
    check_rate(server_learning_rate)
    second, told = ADAPTIVE[name], moments or Moments()

    def init(size: int, /) -> State:
        return {"mean": np.zeros(size), "square": np.full(size, told.tau**2)}

    def apply(state: State, pseudo_gradient: Vector, _: Vector | None = None, /) -> tuple[State, Vector]:
        check(state, pseudo_gradient, names=("mean", "square"))
        mean = told.beta1 * state["mean"] + (1 - told.beta1) * pseudo_gradient
        square = second(state["square"], pseudo_gradient**2, told.beta2)
        return {"mean": mean, "square": square}, server_learning_rate * mean / (np.sqrt(square) + told.tau)

    return Strategy(name, "sum", init, apply)
