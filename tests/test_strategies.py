"""One contract for every strategy, and the exact steps of each."""

import re

import numpy as np
import pytest
from pydantic import ValidationError

from fedfleet.fleet_server.config import ServerSettings, StrategyConfig
from fedfleet.fleet_server.strategies import Strategy, fedavg, scaffold, scaled
from fedfleet.fleet_server.strategies_adaptive import ADAPTIVE, Moments, adaptive
from fedfleet.protocol.errors import UsageError

SIZE = 5
CONFIGURED = [
    {"name": "fedavg"},
    {"name": "fedavg", "server_learning_rate": 0.5},
    {"name": "fedavgm", "momentum": 0.9},
    {"name": "fedprox"},
    {"name": "fednova"},
    {"name": "scaffold"},
    *({"name": name} for name in ADAPTIVE),
]
CHOSEN = [StrategyConfig.model_validate(one).strategy() for one in CONFIGURED]
ALL = [*CHOSEN, *(scaled(one, 0.25) for one in CHOSEN)]
every = pytest.mark.parametrize("strategy", ALL, ids=lambda strategy: strategy.name)


def gradient(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SIZE)


# --- the contract ---


@every
def test_apply_changes_no_argument_and_repeats_itself(strategy: Strategy) -> None:
    # given a state after one round
    state, _ = strategy.apply(strategy.init(SIZE), gradient(0))
    before = {name: array.copy() for name, array in state.items()}
    delta = gradient(1)
    # when it is applied twice to the same values
    first_state, first = strategy.apply(state, delta)
    second_state, second = strategy.apply(state, delta)
    # then both are equal to the bit, and nothing given was touched
    assert first.tobytes() == second.tobytes()
    assert {n: a.tobytes() for n, a in first_state.items()} == {
        n: a.tobytes() for n, a in second_state.items()
    }
    assert {n: a.tobytes() for n, a in state.items()} == {n: a.tobytes() for n, a in before.items()}
    assert delta.tobytes() == gradient(1).tobytes()


@every
def test_state_and_update_are_float64_arrays_of_the_models_size(strategy: Strategy) -> None:
    state, update = strategy.apply(strategy.init(SIZE), gradient())
    assert sorted(state) == sorted(strategy.init(SIZE))
    for array in (update, *state.values(), *strategy.init(SIZE).values()):
        assert array.dtype == np.float64
        assert array.shape == (SIZE,)


@every
def test_the_update_shares_no_memory_with_what_was_given(strategy: Strategy) -> None:
    delta = gradient()
    state, update = strategy.apply(strategy.init(SIZE), delta)
    update += 1
    again, expected = strategy.apply(state, delta)
    assert delta.tobytes() == gradient().tobytes()
    assert strategy.apply(state, delta)[1].tobytes() == expected.tobytes()
    assert sorted(again) == sorted(state)


@every
def test_a_zero_pseudo_gradient_at_the_start_moves_nothing(strategy: Strategy) -> None:
    _, update = strategy.apply(strategy.init(SIZE), np.zeros(SIZE))
    assert not update.any()


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pseudo_gradient_that_is_not_finite_is_refused(strategy: Strategy, value: float) -> None:
    delta = gradient()
    delta[2] = value
    with pytest.raises(ValueError, match="pseudo-gradient: a value is NaN or infinite"):
        strategy.apply(strategy.init(SIZE), delta)


@every
def test_a_pseudo_gradient_of_another_type_is_refused(strategy: Strategy) -> None:
    with pytest.raises(ValueError, match=r"expected float64\[M\], got float32\[5\]"):
        strategy.apply(strategy.init(SIZE), gradient().astype(np.float32))


@every
def test_a_strange_state_is_refused(strategy: Strategy) -> None:
    with pytest.raises(ValueError, match=r"strategy state: expected .*, got \['other'\]"):
        strategy.apply({"other": np.zeros(SIZE)}, gradient())


# --- FedAvg and FedAvgM ---


def test_fedavg_adds_the_mean_of_the_vehicles_changes() -> None:
    state, update = fedavg().apply({}, gradient())
    assert update.tobytes() == gradient().tobytes()
    assert state == {}


def test_the_server_learning_rate_scales_the_step() -> None:
    assert np.array_equal(fedavg(0.25).apply({}, gradient())[1], 0.25 * gradient())


def test_fedavgm_follows_its_equation_by_hand() -> None:
    # given β = 0.5, η = 2 and Δ = 1, 1, 0
    strategy, state, updates = fedavg(2.0, 0.5), fedavg(2.0, 0.5).init(1), []
    for delta in (1.0, 1.0, 0.0):
        state, update = strategy.apply(state, np.array([delta]))
        updates.append(float(update[0]))
    # then v = 1, 1.5, 0.75 and u = 2 v: no dampening, no bias correction, and it runs on
    assert updates == [2.0, 3.0, 1.5]
    assert state["momentum"].tolist() == [0.75]


def test_a_constant_pseudo_gradient_grows_to_its_limit() -> None:
    strategy = fedavg(1.0, 0.9)
    state = strategy.init(1)
    for _ in range(300):
        state, update = strategy.apply(state, np.array([1.0]))
    assert update[0] == pytest.approx(1 / (1 - 0.9))


def test_a_state_of_another_size_is_refused() -> None:
    strategy = fedavg(1.0, 0.9)
    with pytest.raises(ValueError, match=r"momentum: expected float64\[5\], got float64\[4\]"):
        strategy.apply(strategy.init(4), gradient())


# --- the adaptive ones, against plain loops over the paper's algorithm 2 ---


def by_hand(
    name: str, deltas: list[list[float]], *, rate: float, beta1: float, beta2: float, tau: float
) -> list[list[float]]:
    """Return the updates of one coordinate after the other, written from the paper and without arrays."""
    size = len(deltas[0])
    m, v, updates = [0.0] * size, [tau * tau] * size, []
    for delta in deltas:
        update = []
        for i in range(size):
            g = delta[i]
            m[i] = beta1 * m[i] + (1 - beta1) * g
            if name == "fedadagrad":
                v[i] = v[i] + g * g
            elif name == "fedadam":
                v[i] = beta2 * v[i] + (1 - beta2) * g * g
            else:
                sign = (v[i] > g * g) - (v[i] < g * g)
                v[i] = v[i] - (1 - beta2) * g * g * sign
            update.append(rate * m[i] / (v[i] ** 0.5 + tau))
        updates.append(update)
    return updates


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize(("beta1", "beta2", "tau"), [(0.9, 0.99, 1e-3), (0.0, 0.5, 0.1), (0.5, 0.0, 1e-6)])
def test_an_adaptive_strategy_equals_its_plain_loop(
    name: str, beta1: float, beta2: float, tau: float
) -> None:
    # given twenty rounds, with coordinates of very different size and one that never moves
    scale = np.array([1e-4, 1e-2, 1.0, 30.0, 0.0])
    deltas = [gradient(n) * scale for n in range(20)]
    expected = by_hand(name, [d.tolist() for d in deltas], rate=0.03, beta1=beta1, beta2=beta2, tau=tau)
    # when
    strategy = adaptive(name, 0.03, Moments(beta1, beta2, tau))
    state = strategy.init(SIZE)
    found = []
    for delta in deltas:
        state, update = strategy.apply(state, delta)
        found.append(update)
    # then
    assert np.allclose(found, expected, rtol=1e-12, atol=0)
    assert [update[4] for update in found] == [0.0] * 20


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_first_step_shows_the_initial_state_and_that_no_bias_is_corrected(name: str) -> None:
    # given β1 = 0.9 and τ = 1: m = 0.1 Δ; v begins at τ² = 1
    strategy = adaptive(name, 1.0, Moments(0.9, 0.99, 1.0))
    assert strategy.init(2)["square"].tolist() == [1.0, 1.0]
    # when Δ = 2 comes first
    _, update = strategy.apply(strategy.init(1), np.array([2.0]))
    # then v = 1 + 4 (Adagrad), 0.99 + 0.04 (Adam), 1 + 0.04 (Yogi: Δ² above v raises it)
    square = {"fedadagrad": 5.0, "fedadam": 1.03, "fedyogi": 1.04}[name]
    assert update[0] == pytest.approx(0.2 / (square**0.5 + 1.0), rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"beta1": 1.0}, "beta1: expected at least 0 and below 1, got 1.0"),
        ({"beta2": -0.1}, "beta2: expected at least 0 and below 1, got -0.1"),
        ({"beta2": float("nan")}, "beta2: expected at least 0 and below 1, got nan"),
        ({"tau": 0.0}, "tau: expected a finite number above 0, got 0.0"),
        ({"tau": float("inf")}, "tau: expected a finite number above 0, got inf"),
    ],
)
def test_moments_that_diverge_are_refused(changes: dict[str, float], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Moments(**changes)
    assert str(caught.value) == text


# --- SCAFFOLD's server ---


def test_scaffold_moves_its_control_variate_by_what_the_vehicles_sent() -> None:
    # given η = 0.5, and controls that moved by 1 and then by -3 in the mean over all vehicles
    strategy = scaffold(0.5)
    state, update = strategy.apply(strategy.init(2), np.array([2.0, 4.0]), np.array([1.0, 0.0]))
    assert update.tolist() == [1.0, 2.0]
    state, _ = strategy.apply(state, np.zeros(2), np.array([-3.0, 1.0]))
    assert state["control"].tolist() == [-2.0, 1.0]
    # when a round has none
    state, _ = strategy.apply(state, np.zeros(2), None)
    # then it stays
    assert state["control"].tolist() == [-2.0, 1.0]


@pytest.mark.parametrize("control", [np.zeros(3), np.array([1.0, np.nan])])
def test_a_control_of_another_size_or_not_finite_is_refused(control: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"control: expected finite float64\[2\]"):
        scaffold().apply(scaffold().init(2), np.zeros(2), control)


def test_only_scaffold_counts_every_vehicle_equally() -> None:
    assert {one.name for one in ALL if one.weighting == "equal"} == {"scaffold"}


@every
def test_a_scaled_strategy_makes_a_share_of_the_step_and_keeps_the_state(strategy: Strategy) -> None:
    # given
    control = gradient(2) if strategy.name == "scaffold" else None
    state, _ = strategy.apply(strategy.init(SIZE), gradient(0), control)
    # when
    whole_state, whole = strategy.apply(state, gradient(1), control)
    part_state, part = scaled(strategy, 0.5).apply(state, gradient(1), control)
    # then
    assert part.tolist() == (0.5 * whole).tolist()
    assert {n: a.tobytes() for n, a in part_state.items()} == {n: a.tobytes() for n, a in whole_state.items()}


# --- choosing ---


@pytest.mark.parametrize("told", CONFIGURED, ids=lambda told: "-".join(map(str, told.values())))
def test_a_strategy_is_called_as_it_was_asked_for(told: dict[str, object]) -> None:
    made = StrategyConfig.model_validate(told).strategy()
    assert (made.name, made.needs) == (told["name"], "sum")


def test_the_rate_that_is_not_told_fits_the_optimizer() -> None:
    assert StrategyConfig().rate() == 2.0
    assert StrategyConfig().rate(dense=True) == 1.0
    assert StrategyConfig(name="fedyogi").rate(dense=True) == 0.01
    assert StrategyConfig(name="fedyogi", server_learning_rate=0.1).rate() == 0.1


@pytest.mark.parametrize(
    ("codec", "rate"),
    [
        ({}, 2.0),
        ({"index": "common", "value": "int8"}, 2.0),
        ({"index": "dense", "value": "float32"}, 1.0),
        ({"index": "dense", "value": "stochastic4"}, 1.0),
    ],
)
def test_the_rate_that_is_not_told_fits_the_codec(codec: dict[str, str], rate: float) -> None:
    # given a constant pseudo-gradient
    settings = ServerSettings.model_validate({"codec": codec})
    gradient = np.ones(4)
    # then the step is as long as that codec needs
    _, step = settings.optimizer.apply({}, gradient)
    assert step.tolist() == [rate] * 4


def test_adagrad_has_no_momentum_of_its_own() -> None:
    strategy = StrategyConfig(name="fedadagrad").strategy()
    state, _ = strategy.apply(strategy.init(1), np.array([2.0]))
    assert state["mean"].tolist() == [2.0]


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"momentum": 0.9}, "strategy fedavg has no momentum, got 0.9; expected strategy fedavgm"),
        ({"name": "fedadam", "momentum": 0.9}, "strategy fedadam has no momentum, got 0.9"),
        ({"name": "fedavgm"}, "strategy fedavgm: expected a momentum above 0, got 0.0; without one it is"),
        ({"beta1": 0.5}, "strategy fedavg has no beta1; expected one of fedadagrad, fedadam, fedyogi"),
        ({"rule": "mean", "clip_norm": 1.0}, "rule mean has no clip_norm; expected rule norm-clip"),
        ({"rule": "median", "clip_factor": 2.0}, "rule median has no clip_factor; expected rule norm-clip"),
        ({"clip_norm": 1.0, "clip_factor": 2.0}, "expected clip_norm or clip_factor, not both"),
        ({"rule": "fltrust"}, "rule fltrust needs root_dir"),
        ({"root_dir": "somewhere"}, "rule fltrust needs root_dir, and no other rule takes one"),
        ({"rule": "vote"}, "Input should be 'mean', 'norm-clip'"),
        ({"hostile": 0.5}, "less than 0.5"),
    ],
)
def test_what_makes_no_strategy(told: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(text)):
        StrategyConfig.model_validate(told)


@pytest.mark.parametrize(
    ("rate", "momentum"), [(0.0, 0.0), (float("nan"), 0.0), (1.0, 1.0), (1.0, float("nan"))]
)
def test_a_rate_or_momentum_that_diverges_is_refused(rate: float, momentum: float) -> None:
    with pytest.raises(UsageError, match="expected"):
        fedavg(rate, momentum)
