"""Server optimizers as pure pairs of functions: what a round's merged pseudo-gradient does to the model.

Sign convention of this room: the pseudo-gradient is Δ_n = Σ_k w_k (x_k − x_n) / Σ_k w_k, the mean way from the
published vector x_n to the vehicles' models x_k. It points downhill, so an update is *added*: x_n + u. Papers that
write Δ = x_n − x_k subtract instead. How a region makes its mean of many updates is a rule's matter (`rules.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fedfleet.protocol.errors import UsageError

__all__ = [
    "State",
    "Strategy",
    "Vector",
    "averaging",
    "check",
    "fedavg",
    "fednova",
    "fedprox",
    "renamed",
    "scaffold",
    "scaled",
]

Vector: TypeAlias = npt.NDArray[np.float64]
State: TypeAlias = Mapping[str, Vector]
"""What a strategy remembers between rounds: float64[M] arrays by name, so that it can be stored without pickle."""


class Init(Protocol):
    """Makes the state before the first round."""

    def __call__(self, size: int, /) -> State:
        """Return the state for a model of `size` parameters."""


class Apply(Protocol):
    """Makes one step. Pure: it returns new values and changes no argument."""

    def __call__(
        self, state: State, pseudo_gradient: Vector, control: Vector | None = None, /
    ) -> tuple[State, Vector]:
        """Return the next state and the update u float64[M]; `control` is what SCAFFOLD's variate moves by."""


@dataclass(frozen=True)
class Strategy:
    """A server optimizer. Both functions are pure.

    `needs` says whether the folded `sum` of updates is enough or `each` of them is needed (none of these needs each).
    `init(size)` returns the state before the first round. `apply(state, pseudo_gradient float64[M])` returns the next
    state and the update u float64[M] to add; it raises ValueError when the pseudo-gradient is not finite or the state
    is not its own. `weighting` says by what an update counts in the fold: its examples (capped), or all `equal`ly.
    """

    name: str
    needs: Literal["sum", "each"]
    init: Init
    apply: Apply
    weighting: Literal["examples", "equal"] = "examples"


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
    check_rate(server_learning_rate)
    if not 0 <= momentum < 1:
        raise UsageError(f"momentum: expected at least 0 and below 1, got {momentum}")
    if momentum == 0:
        return _plain(server_learning_rate)
    return _with_momentum(server_learning_rate, momentum)


def fedprox(server_learning_rate: float = 1.0) -> Strategy:
    """Return FedProx: the server's side is FedAvg's, u_n = η Δ_n, without state.

    Li et al. 2020, "Federated optimization in heterogeneous networks", algorithm 2: the vehicle minimises
    F_k(w) + (μ/2) ‖w − x_n‖², so its gradient has μ (w − x_n) added (`TrainSettings.proximal_mu`).
    """
    return renamed(fedavg(server_learning_rate), "fedprox")


def fednova(server_learning_rate: float = 1.0) -> Strategy:
    """Return FedNova: the server's side is u_n = η Δ_n without state, with Δ_n the normalised mean of the fold.

    Wang et al. 2020, "Tackling the objective inconsistency problem in heterogeneous federated optimization",
    equations 9 and 10: Δ_n = τ_eff Σ_k p_k (x_k − x_n) / ‖a_k‖₁ with p_k = w_k / Σ w, τ_eff = Σ_k p_k ‖a_k‖₁ and a_k
    the weights with which the vehicle's optimizer sums its τ_k gradients (`normalised.py`). No bias correction.
    """
    return renamed(fedavg(server_learning_rate), "fednova")


def scaffold(server_learning_rate: float = 1.0) -> Strategy:
    """Return SCAFFOLD's server side, which keeps the server's control variate c.

    Karimireddy et al. 2020, "SCAFFOLD: Stochastic controlled averaging for federated learning", algorithm 1:

        u_n = η Δ_n,   c_{n+1} = c_n + (1/N) Σ_{k in S} (c_k⁺ − c_k)      state {"control": c}, c_0 = 0

    Δ_n counts every vehicle of S equally; N is the number of enrolled vehicles; the second sum is `control`, None
    when no region folded anything. c_k⁺ is option II (`models/training.py`): c_k⁺ = c_k − c + (x − y_k) / Σ_j η_j,
    and c_k starts at 0. No bias correction. The vehicles move c_k by what the payload carried, so c stays the mean
    of all c_k. A control that is not finite is a ValueError.
    """
    check_rate(server_learning_rate)

    def init(size: int, /) -> State:
        return {"control": np.zeros(size)}

    def apply(
        state: State, pseudo_gradient: Vector, control: Vector | None = None, /
    ) -> tuple[State, Vector]:
        check(state, pseudo_gradient, names=("control",))
        if control is None:
            return {"control": state["control"].copy()}, server_learning_rate * pseudo_gradient
        if control.shape != pseudo_gradient.shape or not np.isfinite(control).all():
            raise ValueError(f"control: expected finite float64[{pseudo_gradient.size}]")
        return {"control": state["control"] + control}, server_learning_rate * pseudo_gradient

    return Strategy("scaffold", "sum", init, apply, weighting="equal")


def renamed(strategy: Strategy, name: str) -> Strategy:
    """Return the same server optimizer under another name."""
    return replace(strategy, name=name)


def scaled(strategy: Strategy, factor: float) -> Strategy:
    """Return the same server optimizer whose update u_n is multiplied by a factor; its state is what it was."""
    if factor == 1.0:
        return strategy

    def apply(
        state: State, pseudo_gradient: Vector, control: Vector | None = None, /
    ) -> tuple[State, Vector]:
        found, update = strategy.apply(state, pseudo_gradient, control)
        return found, factor * update

    return replace(strategy, apply=apply)


def averaging(strategy: Strategy, places: npt.NDArray[np.bool_]) -> Strategy:
    """Return the same server optimizer, but at some places bool[M] the update is the pseudo-gradient itself.

    Running statistics of a batch norm lie there: their mean is what is wanted; a learning rate, momentum or Adam's
    scaling makes of a variance one that no data have.
    """
    if not places.any():
        return strategy

    def apply(
        state: State, pseudo_gradient: Vector, control: Vector | None = None, /
    ) -> tuple[State, Vector]:
        found, update = strategy.apply(state, pseudo_gradient, control)
        return found, np.where(places, pseudo_gradient, update)

    return replace(strategy, apply=apply)


def check_rate(server_learning_rate: float) -> None:
    """Raise UsageError unless the rate is finite and above 0."""
    if not (np.isfinite(server_learning_rate) and server_learning_rate > 0):
        raise UsageError(
            f"server_learning_rate: expected a finite number above 0, got {server_learning_rate}"
        )


def _plain(rate: float) -> Strategy:
    def init(_size: int, /) -> State:
        return {}

    def apply(state: State, pseudo_gradient: Vector, _: Vector | None = None, /) -> tuple[State, Vector]:
        check(state, pseudo_gradient, names=())
        return {}, rate * pseudo_gradient

    return Strategy("fedavg", "sum", init, apply)


def _with_momentum(rate: float, momentum: float) -> Strategy:
    def init(size: int, /) -> State:
        return {"momentum": np.zeros(size)}

    def apply(state: State, pseudo_gradient: Vector, _: Vector | None = None, /) -> tuple[State, Vector]:
        check(state, pseudo_gradient, names=("momentum",))
        velocity = momentum * state["momentum"] + pseudo_gradient
        return {"momentum": velocity}, rate * velocity

    return Strategy("fedavgm", "sum", init, apply)


def check(state: State, pseudo_gradient: Vector, *, names: tuple[str, ...]) -> None:
    """Raise ValueError unless the pseudo-gradient is finite float64[M] and the state has these names at its size."""
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
