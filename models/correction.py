"""What FedProx and SCAFFOLD do to the gradients of a fine-tuning (torch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats
from fedfleet.models.tensors import learned, pieces, places
from fedfleet.protocol.errors import UsageError

__all__ = ["Control", "Correction", "check_control"]


@dataclass(frozen=True, eq=False)
class Control:
    """SCAFFOLD's control variates, f32[M] each: the vehicle's own c_k and the server's c."""

    own: Floats
    server: Floats


class Correction:
    """Changes each batch's gradients g: towards the base, bounded, and by the control variates, in this order.

    FedProx (Li et al. 2020, equation 2) minimises loss + (μ / 2) ‖w - base‖²: g has μ (w - base) added. Then the norm
    of g is clipped. SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II): the step goes along g - c_k + c, and
    c_k⁺ = c_k - c + (base - w) / Σ_j η_j, which is the mean of the g. The model must hold the base when this is made.
    `rates` is Σ_j η_j so far.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, control: Control | None) -> None:
        self._model, self._settings, self._control = model, settings, control
        parameters = list(model.parameters())
        self._anchors = [each.detach().clone() for each in parameters] if settings.proximal_mu else []
        self._drift = _by_parameter(model, control.server - control.own) if control else []
        self.rates = 0.0

    def apply(self, rate: float) -> None:
        """Change the gradients of a batch whose step has this learning rate."""
        parameters = list(self._model.parameters())
        with torch.no_grad():
            for parameter, anchor in zip(parameters, self._anchors, strict=False):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - anchor, alpha=self._settings.proximal_mu)
            if self._settings.clip_norm:
                nn.utils.clip_grad_norm_(parameters, self._settings.clip_norm)
            for parameter, drift in zip(parameters, self._drift, strict=False):
                if parameter.grad is not None:
                    parameter.grad.add_(drift)
        self.rates += rate

    def control_step(self, delta: Floats) -> Floats | None:
        """Return c_k⁺ - c_k of what was trained; zero without a batch, and for what gradients do not train."""
        if self._control is None:
            return None
        step = np.zeros_like(delta)
        if self.rates:
            trained = _is_parameter(self._model)
            step[trained] = (-self._control.server - delta / np.float32(self.rates))[trained]
        return step


def _by_parameter(model: nn.Module, weights: Floats) -> list[Tensor]:
    """Return f32[M] cut into tensors like the model's parameters, in their order; zero for one that is not in it."""
    found = dict(zip(learned(model), pieces(model, weights), strict=True))
    return [found.get(name, torch.zeros(())) for name, _ in model.named_parameters()]


def _is_parameter(model: nn.Module) -> NDArray[np.bool_]:
    """Return bool[M]: whether a place of the vector is trained by gradients (buffers are not)."""
    names = {name for name, _ in model.named_parameters()}
    return places(model, names.__contains__)


def check_control(settings: TrainSettings, control: Control | None, base: Floats) -> None:
    """Raise UsageError unless settings and control variates belong together, and to the base f32[M]."""
    if (settings.correction == "scaffold") != (control is not None):
        got = "none" if control is None else "one"
        raise UsageError(f"control variate: correction is {settings.correction}, got {got}")
    if control is None:
        return
    if settings.optimizer != "sgd" or settings.momentum != 0:
        got = f"{settings.optimizer} with momentum {settings.momentum}"
        raise UsageError(f"correction scaffold: expected sgd with momentum 0, got {got}")
    for name, vector_ in (("own", control.own), ("server's", control.server)):
        if vector_.shape != base.shape or not np.isfinite(vector_).all():
            raise UsageError(f"{name} control variate: expected finite float32[{base.size}]")
