"""The methods that `learning.py` compares, and the settings that each of them tries: the same number for every one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from learning_runs import Method, Remedy

from fedfleet.codec.residual import Feedback
from fedfleet.codec.settings import Settings

CENTRAL_RATES = (0.02, 0.05, 0.1, 0.2)
FEDSGD_RATES = (0.25, 0.5, 1.0, 2.0)
"""Of the full gradient, not clipped; a rate of 2 diverges."""
GRID = tuple(product((0.1, 0.2), (1.0, 2.0)))
"""Learning rate of the vehicles, and of the server."""

TRIAL_ROUNDS = 60
"""A trial is the beginning of a run: the learning rate does not change."""

FEDSGD = Method("fedsgd", rounds=250, whole_batch=True)
METHODS: Mapping[str, Method] = {
    "fedsgd": FEDSGD,
    "fedavg": Method("fedavg"),
    "int8": Method("int8", up=Settings("dense", "int8")),
    "stochastic4": Method("stochastic4", up=Settings("dense", "stochastic4", 0.1)),
    "top-1% sign": Method("top-1% sign", up=Settings(density=0.01)),
    "top-0.1% sign": Method("top-0.1% sign", up=Settings(density=0.001)),
    "ours": Method("ours", rounds=180, up=Settings(density=0.02), down=Settings(density=0.04)),
}

RARE = Method("rare", rounds=120, learning_rate=0.1, share=0.1)
_SPARSE = replace(RARE, up=Settings(density=0.01))
REMEDIES: Mapping[str, Method] = {
    "dense float32": RARE,
    "top 1 % sign, residual kept": _SPARSE,
    "no residual": replace(_SPARSE, remedy=Remedy(Feedback(keep=0))),
    "residual × 0.5": replace(_SPARSE, remedy=Remedy(Feedback(keep=0.5))),
    "residual dropped after 10 rounds": replace(_SPARSE, remedy=Remedy(Feedback(drop_after=10))),
    "momentum factor masking 0.9": replace(_SPARSE, remedy=Remedy(masking=0.9)),
    "step ahead by half": replace(_SPARSE, remedy=Remedy(step_ahead=0.5)),
    "server momentum 0.5": replace(_SPARSE, server_momentum=0.5),
    "density falls 1.5 % to 0.5 %": replace(_SPARSE, up_falls=0.5),
    "density × rounds away, ≤ 10": replace(_SPARSE, remedy=Remedy(Feedback(catch_up=10))),
    "density × rounds away, no residual": replace(_SPARSE, remedy=Remedy(Feedback(keep=0, catch_up=10))),
    "density × rounds away, step ahead by half": replace(
        _SPARSE, remedy=Remedy(Feedback(catch_up=10), step_ahead=0.5)
    ),
    "stateless 4 bit": replace(RARE, up=Settings("dense", "stochastic4", 0.1)),
}
RARE_RATES = (1.0, 2.0)
"""Server learning rates that every way at 10 % participation tries."""


def trials(method: Method) -> list[Method]:
    """The settings that a method tries."""
    if method.whole_batch:
        return [replace(method, rounds=100, learning_rate=rate) for rate in FEDSGD_RATES]
    if method.share < 1:
        return [replace(method, server_rate=rate) for rate in RARE_RATES]
    return [
        replace(method, rounds=TRIAL_ROUNDS, learning_rate=rate, server_rate=server) for rate, server in GRID
    ]
