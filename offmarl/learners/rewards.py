"""The unit that learners of values reckon in.

Shapes: S seeds, B batch, N agents.
"""

import torch
from torch import Tensor

from offmarl.data.table import Batch
from offmarl.learners.base import RewardConfig


class Rewards:
    """Rewards centred and scaled as `RewardConfig` describes, and one-step targets made of them."""

    def __init__(self, config: RewardConfig, n_agents: int, device: torch.device) -> None:
        self.config = config
        self.mean = torch.zeros(n_agents, device=device)
        self.scale = torch.ones(n_agents, device=device)

    def observe(self, mean: Tensor, std: Tensor, ends: bool, together: bool = False) -> None:
        """Take the moments [N] of the data, and whether any future that is valued ends other than by the time limit.

        `together`: in one unit for all agents, as what is added up must be.
        """
        if together:
            spread = (std.square().mean() + mean.var(correction=0)).sqrt()
            mean, std = mean.mean().expand_as(mean), spread.expand_as(std)
        if self.config.standardise_rewards:
            self.scale.copy_(torch.where(std > 1e-6, self.config.reward_sd / std.clamp(min=1e-6), 1.0))
        if self.config.centre_rewards and not ends:
            self.mean.copy_(mean)

    def of(self, reward: Tensor) -> Tensor:
        """Rewards [..., N] in this unit."""
        return (reward - self.mean) * self.scale

    def normalised(self, batch: Batch) -> Tensor:
        """Rewards in this unit, [S, N, B]."""
        return self.of(batch.reward).transpose(1, 2)

    def td_target(self, batch: Batch, next_value: Tensor) -> Tensor:
        """Compute r + γ V(o'), or r where the episode terminated or the agent died: [S, N, B].

        A time limit is no end.
        """
        return self.normalised(batch) + self.config.gamma * batch.lives_on.transpose(1, 2) * next_value

    def team_target(self, batch: Batch, next_value: Tensor) -> Tensor:
        """Compute r̄ + γ V(s') of the team's mean reward and value [S, 1, B], whoever died: [S, 1, B]."""
        going_on = 1 - batch.terminated.unsqueeze(1)  # [S, 1, B]
        return self.normalised(batch).mean(1, keepdim=True) + self.config.gamma * going_on * next_value

    def tensors(self) -> dict[str, Tensor]:
        """Give the moments, for checkpoints."""
        return {"reward_mean": self.mean, "reward_scale": self.scale}
