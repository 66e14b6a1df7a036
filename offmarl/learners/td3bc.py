"""TD3+BC: a minimalist approach to offline reinforcement learning (Fujimoto & Gu 2021), per agent."""

from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.learners.actor_critic import ActorCritic, ActorCriticConfig
from offmarl.learners.base import Metrics
from offmarl.learners.critics import States
from offmarl.settings import NonNegative


@dataclass
class TD3BCConfig(ActorCriticConfig):
    """TD3+BC; with `bc_weight=0` plain TD3, which also learns online.

    The paper minimises -(α / mean|Q|) Q + (π - a)² with α = 2.5; divided by α that is -Q / mean|Q| +
    `bc_weight` (π - a)² with `bc_weight` = 1/α = 0.4. One change: |Q| is measured from the mean of Q, so that
    adding a constant to the rewards changes nothing. Where values are far from zero compared with their
    differences, the paper's balance corresponds to a larger weight here.
    """

    bc_weight: NonNegative = (
        5.0  # measured on MPE tasks: 5 to 20 are good; the paper's 2.5 is 0.4 (see above)
    )
    normalise_q: bool = True  # as above (paper: eq. 5); false: -Q as in TD3


class TD3BC(ActorCritic):
    """TD3 whose policy is also pulled towards the actions of the data."""

    config_class = TD3BCConfig
    config: TD3BCConfig

    def tried(self, states: States) -> tuple[Tensor, ...]:
        """The critics are trained on the data's actions alone."""
        return (states.action.unsqueeze(3),)

    def critic_loss(self, q: Tensor, td_target: Tensor, *drawn: Tensor) -> tuple[Tensor, Metrics]:
        """TD3, eq. 4: the squared temporal-difference error."""
        q = q.squeeze(-1)
        loss = (q - td_target).square()
        return loss, {"critic_loss": loss, "q_mean": q}

    def critic_gradient(self, q: Tensor, td_target: Tensor, *drawn: Tensor) -> Tensor:
        """Twice the error."""
        return 2 * (q - td_target.unsqueeze(-1))

    def unit(self, q: Tensor, states: States) -> Tensor:
        """Its mean distance from its mean over the batch (TD3+BC, eq. 5, and the change above)."""
        if not self.config.normalise_q:
            return torch.ones_like(q[..., :1])
        return states.mean((q - states.mean(q)).abs()).clamp(min=1e-6)

    def policy_loss(self, q: Tensor, policy_action: Tensor, action: Tensor) -> Tensor:
        """TD3+BC, eq. 3."""
        cloning = (policy_action - action).square().mean(3)
        return -q + self.config.bc_weight * cloning

    def policy_gradient(self, q: Tensor, policy_action: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """-1, and the way from the data's action."""
        to_action = (2 * self.config.bc_weight / action.shape[3]) * (policy_action - action)
        return torch.full_like(q, -1), to_action
