"""One contract for every strategy, and the exact steps of each."""

import numpy as np
import pytest

from fedfleet.fleet_server.strategies import NAMES, Strategy, create, fedavg
from fedfleet.protocol.errors import UsageError

SIZE = 5
ALL = [create("fedavg"), create("fedavg", server_learning_rate=0.5), create("fedavgm", momentum=0.9)]
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


# --- creating ---


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_is_called_as_it_was_asked_for(name: str) -> None:
    made = create(name, momentum=0.9 if name == "fedavgm" else 0.0)
    assert (made.name, made.needs) == (name, "sum")


@pytest.mark.parametrize(
    ("name", "rate", "momentum", "text"),
    [
        ("fedsgd", 1.0, 0.0, "strategy: expected one of fedavg, fedavgm, got 'fedsgd'"),
        ("fedavg", 1.0, 0.9, "strategy fedavg has no momentum, got 0.9; expected strategy fedavgm"),
        (
            "fedavgm",
            1.0,
            0.0,
            "strategy fedavgm: expected a momentum above 0, got 0.0; without one it is fedavg",
        ),
        ("fedavg", 0.0, 0.0, "server_learning_rate: expected a finite number above 0, got 0.0"),
        ("fedavg", float("nan"), 0.0, "server_learning_rate: expected a finite number above 0, got nan"),
        ("fedavgm", 1.0, 1.0, "momentum: expected at least 0 and below 1, got 1.0"),
        ("fedavgm", 1.0, float("nan"), "momentum: expected at least 0 and below 1, got nan"),
    ],
)
def test_what_makes_no_strategy(name: str, rate: float, momentum: float, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        create(name, server_learning_rate=rate, momentum=momentum)
    assert str(caught.value) == text
