"""Losses and networks of plug-ins that cannot teach are refused before a fleet begins, in one line."""

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny_task import TinyTask
from torch import nn

from fedfleet.models.loss_check import check_loss
from fedfleet.models.training import network
from fedfleet.protocol.errors import UsageError

MODULE = "losses_of_the_tests"


@pytest.fixture
def plugin() -> Iterator[ModuleType]:
    module = ModuleType(MODULE)
    sys.modules[MODULE] = module
    yield module
    del sys.modules[MODULE]


def task(**attributes: Any) -> Any:
    return type("Changed", (TinyTask,), attributes)()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda _o, _t: np.float32(3.0), "gave float32, expected a tensor of one number"),
        (lambda o, t: ((o - t) ** 2).mean().item(), "gave float, expected a tensor of one number"),
        (lambda o, t: o.detach().numpy() - t.numpy(), "gave ndarray, expected a tensor of one number"),
        (lambda _o, _t: None, "gave NoneType, expected a tensor of one number"),
        (lambda o, t: (o - t) ** 2, "gave a tensor of shape [4, 1], expected one number: take the mean"),
        (lambda o, t: ((o - t) ** 2).mean().detach(), "gave a tensor without a gradient"),
        (lambda o: o.mean(), "fails on 4 made-up samples: TypeError"),
        (lambda o, t: o.numpy() - t.numpy(), "fails on 4 made-up samples: RuntimeError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_loss_that_cannot_teach_is_refused(
    plugin: ModuleType, loss: Callable[..., Any], words: str
) -> None:
    plugin.loss = loss  # type: ignore[attr-defined]
    with pytest.raises(UsageError) as caught:
        check_loss(task(loss=f"{MODULE}:loss"), nn.Linear(4, 1))
    assert str(caught.value).startswith(f"loss of tiny: {MODULE}:loss ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "loss",
    [
        nn.functional.mse_loss,
        lambda o, t: ((o - t) ** 2).mean(dim=0),  # one number, in a tensor of one
        lambda o, t: nn.functional.cross_entropy(o.repeat(1, 2), t.reshape(-1).long()),
    ],
)
def test_a_loss_that_can_is_not_and_chance_is_left_alone(
    plugin: ModuleType, loss: Callable[..., Any]
) -> None:
    plugin.loss = loss  # type: ignore[attr-defined]
    model = nn.Linear(4, 1)
    before = torch.get_rng_state()
    check_loss(task(loss=f"{MODULE}:loss"), model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _x: nn.Linear(4, 1), "fails: TypeError: "),
        (lambda: nn.Linear, "gave type, expected nn.Module"),
        (lambda: 1 / 0, "fails: ZeroDivisionError: division by zero"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused(
    plugin: ModuleType, make: Callable[..., Any], words: str
) -> None:
    plugin.make = make  # type: ignore[attr-defined]
    with pytest.raises(UsageError) as caught:
        network(task(network=f"{MODULE}:make"), seed=1)
    assert words in str(caught.value)
