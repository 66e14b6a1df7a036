"""Hard-concrete gates: differentiable switches that can be exactly open or exactly closed.

Source: Louizos, Welling, Kingma 2018, "Learning sparse neural networks through L0 regularization", eq. 10-12.
"""

import math

import torch
from torch import Tensor

TEMPERATURE = 2 / 3  # β, stretch γ and ζ of Louizos et al. 2018
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1


def open_probability(logit: Tensor) -> Tensor:
    """P(gate ≠ 0), eq. 12; same shape as `logit`."""
    return torch.sigmoid(logit - TEMPERATURE * math.log(-STRETCH_LOW / STRETCH_HIGH))


def sample_gates(logit: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Draw gates in [0, 1] for `groups` groups of samples: [M, ...] -> [M, groups, ...], eq. 10-11.

    The uniform draws of one edge are stratified over the groups (a random rotation of the strata per edge), so
    that each edge is open in very nearly the same share of every batch: less noise in the gradient at no cost.
    """
    members, *edges = logit.shape
    device = logit.device
    group = torch.arange(groups, device=device).view(1, groups, *[1] * len(edges))
    rotation = torch.randint(groups, (members, 1, *edges), device=device, generator=generator)
    within = torch.rand((members, groups, *edges), device=device, generator=generator)
    uniform = (((group + rotation) % groups + within) / groups).clamp(1e-6, 1 - 1e-6)
    return _stretch(torch.sigmoid((uniform.logit() + logit.unsqueeze(1)) / TEMPERATURE))


def mean_gates(logit: Tensor) -> Tensor:
    """The deterministic gate used for prediction, eq. 13; same shape as `logit`."""
    return _stretch(torch.sigmoid(logit))


def _stretch(concrete: Tensor) -> Tensor:
    return (concrete * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)
