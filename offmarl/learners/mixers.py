"""How agents' values make up the team's: sums, and monotonic functions that depend on the state.

Shapes: S seeds, B windows, T time, N agents, J joint choices rated in one state, D state; E embedding.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from offmarl.data.episodes import EpisodeBatch
from offmarl.data.table import Statistics
from offmarl.errors import DataError
from offmarl.learners.discrete import DiscreteLearner
from offmarl.learners.networks import StackedMLP
from offmarl.policy import OBSERVATION_LIMIT

MixerKind = Literal["qmix", "vdn"]
Mixed = Callable[[Tensor], Tensor]  # agents' values [S, B, T, N, J] -> the team's [S, B, T, J]


class StateInput:
    """What a mixer depends on: the task's state, or where there is none the observations of all agents together."""

    def __init__(self, learner: DiscreteLearner) -> None:
        spec = learner.spec
        self.learner, self.of_task = learner, spec.state_dim > 0
        self.width = spec.state_dim or spec.n_agents * spec.obs_dim  # D
        self.mean = torch.zeros(spec.state_dim, device=learner.device)
        self.scale = torch.ones(spec.state_dim, device=learner.device)

    def require(self, arrays: Collection[str]) -> None:
        """Raise `DataError` where a dataset that holds these `arrays` lacks the state of its task."""
        if self.of_task and "state" not in arrays:
            raise DataError(
                f"this dataset does not record the state of {self.learner.spec.id}, on which a mixer depends: "
                "take a learner without one, such as cql or iql"
            )

    def observe(self, statistics: Statistics) -> None:
        """Take the moments of the state; those of observations are the learner's own."""
        if statistics.state_mean is None or statistics.state_std is None:
            return
        std = statistics.state_std.to(self.mean)
        self.mean.copy_(statistics.state_mean)
        self.scale.copy_(torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), 1.0))

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        """Give the states of all frames, normalised: [S, B, T + 1, D]."""
        if self.of_task:
            assert batch.state is not None, "require sees to it"
            scaled = (batch.state - self.mean) * self.scale
        else:
            scaled = (batch.obs - self.learner.obs_mean) * self.learner.obs_scale
            if batch.alive is not None:
                scaled = scaled * batch.alive.unsqueeze(4)
            scaled = scaled.flatten(3)
        return scaled.clamp(-OBSERVATION_LIMIT, OBSERVATION_LIMIT)

    def tensors(self) -> dict[str, Tensor]:
        """Give the moments, for checkpoints."""
        return {"state_mean": self.mean, "state_scale": self.scale}


@dataclass
class MonotonicMixer:
    """QMIX (Rashid et al. 2018): Q_tot = w₂(s)·ELU(W₁(s) q + b₁(s)) + v(s) with W₁, w₂ ≥ 0.

    So each agent's best choice is its part of the team's. The hypernetwork that makes weights of states is one
    perceptron, where the paper has one for each of W₁, w₂ and v; `network` [S] is either the online or the target one.
    """

    network: StackedMLP
    n_agents: int
    embedding: int  # E

    @staticmethod
    def outputs(n_agents: int, embedding: int) -> int:
        """Count the weights that a hypernetwork makes: W₁, b₁, w₂, v."""
        return (n_agents + 2) * embedding + 1

    def __call__(self, state: Tensor) -> Mixed:
        """Make the weights of states [S, B, T, D] once, for mixing any number of joint choices in each."""
        S, B, T, _ = state.shape
        N, E = self.n_agents, self.embedding
        made = self.network(state.flatten(1, 2)).flatten(0, 1)  # [S*B*T, weights]
        first, bias, second, value = made.split([N * E, E, E, 1], dim=1)
        first = first.abs().unflatten(1, (E, N))
        second, bias, value = second.abs().unsqueeze(1), bias.unsqueeze(2), value.unsqueeze(2)

        def mixed(q: Tensor) -> Tensor:
            hidden = F.elu(torch.baddbmm(bias, first, q.reshape(S * B * T, N, -1)), inplace=True)  # [., E, J]
            return torch.baddbmm(value, second, hidden).view(S, B, T, -1)

        return mixed


def value_decomposition(q: Tensor) -> Tensor:
    """VDN (Sunehag et al. 2018): Q_tot = Σ_i Q_i."""
    return q.sum(3)
