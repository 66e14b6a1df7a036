"""Behaviour cloning: imitate the actions of the data, per agent. The baseline every other learner must beat.

Agents that were dead when an action was recorded do not count.
Shapes: S seeds, B batch, N agents, O observation, A action dimensions or choices.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from offmarl.data.table import Batch
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Learner, LearnerConfig, Metrics
from offmarl.learners.legality import choices, mask_illegal
from offmarl.learners.optimiser import StackedAdam


@dataclass
class BCConfig(LearnerConfig):
    """Behaviour cloning has no settings of its own."""


class Cloning(Learner):
    """One policy network per agent, trained by maximum likelihood of the recorded actions."""

    config_class = BCConfig

    def __init__(
        self, spec: EnvSpec, config: BCConfig, seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.policy = self.network("policy", self.input_dim, spec.action_dim)
        self.optimiser = self.keep(
            "optimiser", StackedAdam(self.policy, config.learning_rate, config.gradient_clip)
        )

    @abstractmethod
    def error(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """Compute the loss of each recorded action: network output [S, N, B, A] -> [S, N, B], and metrics."""

    def update(self, batch: Batch) -> Metrics:
        """One gradient step down the mean error of living agents."""
        error, metrics = self.error(self.apply(self.policy, self.prepare(batch.obs)), batch)
        if batch.alive is None:
            loss = error.mean(2)
        else:
            alive = batch.alive.transpose(1, 2)
            loss = torch.where(alive, error, 0.0).sum(2) / alive.sum(2).clamp(min=1)
        norm = self.optimiser.minimise(self.total(loss))
        self.updates += 1
        own = {
            "policy_loss": loss.detach().mean(1),
            "policy_gradient": norm.view(len(self.seeds), -1).mean(1),
        }
        return own | metrics


class BC(Cloning):
    """Deterministic cloning of continuous actions: least squares on tanh of the output."""

    action_type = "continuous"

    def error(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean squared error over action dimensions; dimensions beyond an agent's own are recorded as 0."""
        action = torch.tanh(output)
        saturation = (action.detach().abs() > 0.99).float().mean((1, 2, 3))
        return (action - batch.action.transpose(1, 2)).square().mean(3), {"saturation": saturation}

    @torch.no_grad()
    def act(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """Act as the data did: [S, B, N, O] -> [S, B, N, A]."""
        return torch.tanh(self.apply(self.policy, self.prepare(obs))).transpose(1, 2)


class DiscreteBC(Cloning):
    """Cross entropy over the legal choices."""

    action_type = "discrete"

    def __init__(
        self, spec: EnvSpec, config: BCConfig, seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.choices = choices(spec, self.device)

    def error(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """-log π(recorded choice)."""
        logits = mask_illegal(output, batch.legal, self.choices)  # [S, N, B, K]
        action = batch.action.transpose(1, 2)  # [S, N, B]
        agreement = (logits.detach().argmax(-1) == action).float().mean((1, 2))
        error = F.cross_entropy(logits.flatten(0, 2), action.reshape(-1), reduction="none")
        return error.view(action.shape), {"agreement": agreement}

    @torch.no_grad()
    def act(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """Choose the likeliest legal choices: [S, B, N, O], [S, B, N, K] -> [S, B, N]."""
        logits = mask_illegal(self.apply(self.policy, self.prepare(obs)), legal, self.choices)
        return logits.argmax(-1).transpose(1, 2)
