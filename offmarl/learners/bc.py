"""Behaviour cloning: imitate the actions of the data, per agent. The baseline every other learner must beat.

Agents that were dead when an action was recorded do not count.
Shapes: S seeds, B batch, T time, N agents, O observation, A action dimensions, K choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.data.episodes import EpisodeBatch
from offmarl.data.table import Batch
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Metrics, ObservingConfig, ObservingLearner
from offmarl.learners.discrete import DiscreteConfig, DiscreteLearner
from offmarl.learners.optimiser import StackedAdam
from offmarl.learners.softmax import log_softmax


@dataclass
class BCConfig(ObservingConfig):
    """Behaviour cloning of continuous actions has no settings of its own."""


class BC(ObservingLearner):
    """Deterministic cloning of continuous actions, one policy per agent: least squares on tanh of the output."""

    action_type = "continuous"
    config_class = BCConfig

    def __init__(
        self, spec: EnvSpec, config: BCConfig, seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.policy = self.network("policy", self.input_dim, spec.action_dim)
        self.optimiser = self.keep(
            "optimiser", StackedAdam(self.policy, config.learning_rate, config.gradient_clip)
        )

    def error(self, action: Tensor, batch: Batch) -> Tensor:
        """Mean squared error over action dimensions; dimensions beyond an agent's own are recorded as 0: [S, N, B]."""
        return (action - batch.action.transpose(1, 2)).square().mean(3)

    def update(self, batch: Batch) -> Metrics:
        """One gradient step down the mean error of living agents."""
        action = torch.tanh(self.apply(self.policy, self.prepare(batch.obs)))
        error = self.error(action, batch)
        if batch.alive is None:
            loss = error.mean(2)
        else:
            alive = batch.alive.transpose(1, 2)
            loss = torch.where(alive, error, 0.0).sum(2) / alive.sum(2).clamp(min=1)
        norm = self.optimiser.minimise(self.total(loss))
        self.updates += 1
        return {
            "policy_loss": loss.detach().mean(1),
            "policy_gradient": norm.view(len(self.seeds), -1).mean(1),
            "saturation": (action.detach().abs() > 0.99).float().mean((1, 2, 3)),
        }

    @torch.no_grad()
    def act(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """Act as the data did: [S, B, N, O] -> [S, B, N, A]."""
        return torch.tanh(self.apply(self.policy, self.prepare(obs))).transpose(1, 2)


@dataclass
class DiscreteBCConfig(DiscreteConfig):
    """Behaviour cloning of choices has no settings of its own."""


class DiscreteBC(DiscreteLearner):
    """One policy network per agent, trained by maximum likelihood of the recorded choices among the legal ones."""

    config_class = DiscreteBCConfig

    def __init__(
        self,
        spec: EnvSpec,
        config: DiscreteBCConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.policy = self.agent_network("policy")
        self.optimiser = self.keep(
            "optimiser", StackedAdam(self.policy, config.learning_rate, config.gradient_clip)
        )

    def error(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """-log π(recorded choice), and whether it is the likeliest: [S, B, T, N] each."""
        logits = self.masked(self.run(self.policy, self.inputs(batch)[:-1]), batch.legal_now)
        likelihood = log_softmax(logits).gather(-1, batch.action.unsqueeze(-1))
        return -likelihood.squeeze(-1), logits.argmax(-1) == batch.action

    def update(self, batch: EpisodeBatch) -> Metrics:
        """One gradient step down the mean error of living agents."""
        error, agrees = self.error(batch)
        loss = self.average(error, batch)
        norm = self.optimiser.minimise(loss.sum())
        self.updates += 1
        return {
            "policy_loss": loss.detach().mean(1),
            "policy_gradient": norm.view(len(self.seeds), -1).mean(1),
            "agreement": self.average(agrees.float(), batch).mean(1),
        }
