"""The server's configuration of the strategy: which optimizer, which rule, and what fits together."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fedfleet.fleet_server import robust_columns, robust_pairwise, rules, strategies
from fedfleet.fleet_server.config_base import Config
from fedfleet.fleet_server.config_rounds import RoundsConfig
from fedfleet.fleet_server.rules import Rule
from fedfleet.fleet_server.strategies import Strategy
from fedfleet.fleet_server.strategies_adaptive import ADAPTIVE, Moments, adaptive
from fedfleet.models.settings import TrainSettings
from fedfleet.protocol.errors import UsageError

__all__ = ["StrategyConfig"]

Coordinates = Literal["own", "common", "dense"]
CLIP_FACTOR = 1.5
"""Unlike vehicles that are honest were at most 1.8 times as long as the median, one in twenty above 1.5 times."""
OWN_SUMS = frozenset({"scaffold", "fednova"})
"""Optimizers whose fold is a sum of their own."""


class StrategyConfig(Config):
    """How a region makes one mean of its updates (the rule), and what the server makes of it (the optimizer)."""

    name: Literal[
        "fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "scaffold", "fednova"
    ] = Field(
        default="fedavg",
        description="server optimizer: fedavg; fedavgm adds momentum; fedadam, fedyogi, fedadagrad adapt each step; "
        "fedprox needs training.proximal_mu; scaffold corrects the vehicles' drift; fednova evens out their steps",
    )
    rule: (
        Literal[
            "mean",
            "norm-clip",
            "median",
            "trimmed-mean",
            "krum",
            "multi-krum",
            "bulyan",
            "geometric-median",
            "nnm-trimmed-mean",
            "fltrust",
        ]
        | None
    ) = Field(
        default=None,
        description="how a region makes one mean of its updates; all but mean bound what hostile vehicles can do. When "
        "not given: norm-clip, or mean for scaffold and fednova, whose sums are their own",
    )
    server_learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="factor on the step of a round; when not given: 2 where updates are sparse, 1 where they are dense "
        "(codec.index dense), 0.01 for the adaptive ones",
    )
    momentum: float = Field(
        default=0.0, ge=0, lt=1, description="share of the last step that runs on (fedavgm)"
    )
    beta1: float | None = Field(
        default=None, ge=0, lt=1, description="decay of the mean (adaptive); 0.9, or 0 for fedadagrad"
    )
    beta2: float = Field(default=0.99, ge=0, lt=1, description="decay of the squares (fedadam, fedyogi)")
    tau: float = Field(default=1e-3, gt=0, le=1, description="smallest step that counts (adaptive)")
    cooldown: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="last share of rounds.total in which the server's step falls to near 0, in a straight line; "
        "0: it never does",
    )
    hostile: float = Field(
        default=0.2, gt=0, lt=0.5, description="share of a region's vehicles that a robust rule must stand"
    )
    clip_norm: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="norm above which norm-clip cuts; clip_factor times the round's median when not given",
    )
    clip_factor: float | None = Field(
        default=None,
        ge=1,
        le=1e6,
        description="norm above which norm-clip cuts, in median norms of the round; 1.5 when not given",
    )
    root_dir: Path | None = Field(
        default=None, description="prepared folder whose train part is the server's root set (fltrust)"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name not in ADAPTIVE and self.beta1 is not None:
            raise ValueError(f"strategy {self.name} has no beta1; expected one of {', '.join(ADAPTIVE)}")
        if self.name != "fedavgm" and self.momentum != 0.0:
            raise ValueError(
                f"strategy {self.name} has no momentum, got {self.momentum}; expected strategy fedavgm"
            )
        if self.name == "fedavgm" and self.momentum == 0.0:
            raise ValueError(
                "strategy fedavgm: expected a momentum above 0, got 0.0; without one it is fedavg"
            )
        for key in ("clip_norm", "clip_factor"):
            if self.rule_name != "norm-clip" and getattr(self, key) is not None:
                raise ValueError(f"rule {self.rule_name} has no {key}; expected rule norm-clip")
        if self.clip_norm is not None and self.clip_factor is not None:
            raise ValueError("expected clip_norm or clip_factor, not both")
        if (self.rule == "fltrust") != (self.root_dir is not None):
            raise ValueError("rule fltrust needs root_dir, and no other rule takes one")
        try:
            self.strategy()
            self.fold_rule()
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def rule_name(self) -> str:
        """The rule that is meant."""
        return self.rule or ("mean" if self.name in OWN_SUMS else "norm-clip")

    def rate(self, *, dense: bool = False) -> float:
        """Return the server learning rate that is meant; `dense` says that vehicles send all values.

        A sparse update carries a part of what was learned and leaves the rest for the next one, a dense one all.
        """
        if self.server_learning_rate is not None:
            return self.server_learning_rate
        return 0.01 if self.name in ADAPTIVE else 1.0 if dense else 2.0

    def strategy(self, *, dense: bool = False) -> Strategy:
        """Return the server optimizer; `dense` as `rate` takes it."""
        rate = self.rate(dense=dense)
        match self.name:
            case "fedavg" | "fedavgm":
                return strategies.fedavg(rate, self.momentum)
            case "fedprox":
                return strategies.fedprox(rate)
            case "scaffold":
                return strategies.scaffold(rate)
            case "fednova":
                return strategies.fednova(rate)
        beta1 = self.beta1 if self.beta1 is not None else 0.0 if self.name == "fedadagrad" else 0.9
        return adaptive(self.name, rate, Moments(beta1, self.beta2, self.tau))

    def fold_rule(
        self,
        root: npt.NDArray[np.float32] | None = None,
        *,
        usual: float | None = None,
        measured: npt.NDArray[np.bool_] | None = None,
    ) -> Rule:
        """Return the rule of a region's fold.

        `root` float32[M] is the server's own update (fltrust), `usual` the median length of recent updates, `measured`
        bool[M] where running statistics are (norm-clip).
        """
        share, factor = self.hostile, self.clip_factor or CLIP_FACTOR
        makers: Mapping[str, Callable[[], Rule]] = {
            "mean": rules.mean,
            "norm-clip": lambda: rules.norm_clip(
                self.clip_norm, factor=factor, usual=usual, measured=measured
            ),
            "median": robust_columns.coordinate_median,
            "trimmed-mean": lambda: robust_columns.trimmed_mean(share),
            "krum": lambda: robust_pairwise.krum(share),
            "multi-krum": lambda: robust_pairwise.multi_krum(share),
            "bulyan": lambda: robust_pairwise.bulyan(share),
            "geometric-median": robust_pairwise.geometric_median,
            "nnm-trimmed-mean": lambda: robust_pairwise.nnm_trimmed_mean(share),
            "fltrust": lambda: rules.fltrust(root),
        }
        return makers[self.rule_name]()

    def check_fit(self, coordinates: Coordinates, training: TrainSettings, rounds: RoundsConfig) -> None:
        """Raise ValueError with one line unless optimizer, rule, coordinates, training and rounds fit together."""
        self._check_rule(coordinates, rounds)
        self._check_training(training)
        told = f"strategy {self.name}"
        if self.name in OWN_SUMS and self.rule_name != "mean":
            raise ValueError(f"{told} needs rule mean, got {self.rule}: its own sums cannot be made robust")
        if self.name == "scaffold" and (rounds.carries_late or rounds.carries_region):
            raise ValueError(f"{told} needs rounds.mode sync, late return, below_quorum skip")

    def _check_rule(self, coordinates: Coordinates, rounds: RoundsConfig) -> None:
        rule = self.fold_rule()
        if rule.aligned and coordinates == "own":
            raise ValueError(
                f"rule {rule.name} compares vehicles coordinate by coordinate and needs codec.index common or "
                "dense, got rice: each vehicle would send its own coordinates"
            )
        if coordinates == "common" and (rounds.carries_late or rounds.carries_region or rounds.apart):
            raise ValueError(
                "codec.index common needs rounds.mode sync, regions together, late return, below_quorum skip: "
                "coordinates change from round to round"
            )
        if rule.name == "fltrust" and rounds.apart:
            raise ValueError(
                "rule fltrust needs rounds.mode sync and regions together: one root update a round"
            )
        if rounds.quorum < rule.smallest:
            raise ValueError(
                f"rule {rule.name} needs rounds.quorum of at least {rule.smallest}, got {rounds.quorum}"
            )
        if rule.most is not None and rounds.quorum > rule.most:
            raise ValueError(
                f"rule {rule.name} takes at most {rule.most} updates, got quorum {rounds.quorum}"
            )

    def _check_training(self, training: TrainSettings) -> None:
        told = f"strategy {self.name}"
        if self.name == "fedprox" and training.proximal_mu == 0:
            raise ValueError(f"{told} needs training.proximal_mu above 0, got 0; without it it is fedavg")
        if self.name in {"scaffold", "fednova"} and training.optimizer != "sgd":
            raise ValueError(f"{told} needs training.optimizer sgd, got {training.optimizer}")
        if self.name == "scaffold" and training.momentum != 0:
            raise ValueError(f"{told} needs training.momentum 0, got {training.momentum}")
        if self.name != "scaffold" and training.correction != "none":
            raise ValueError("training.correction is set by strategy scaffold; expected none")
