"""CFCQL: counterfactual conservative Q-learning (Shao et al. 2023, arXiv 2309.12696), for continuous actions.

One central critic values what the team earns. Where CQL would sample joint actions, whose number grows with that of
agents, CFCQL samples one agent's action at a time, with the others' at those of the data:

    (Q - y)² + α (Σ_i λ_i log ∫ exp Q(s, a_i, a_-i) da_i - Q(s, a)),    Σ_i λ_i = 1

Policies climb the critic in the same way, each with the others' actions at those of the data.

Shapes: S seeds, B batch, N agents, A action dimensions, K samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.envs.base import EnvSpec
from offmarl.errors import UsageError
from offmarl.learners.base import Metrics
from offmarl.learners.cql import CQL, CQLConfig
from offmarl.learners.critics import CriticKind, States
from offmarl.learners.optimiser import StackedAdam
from offmarl.settings import Positive


@dataclass
class CFCQLConfig(CQLConfig):
    """CFCQL (Shao et al. 2023) with the settings of its code for the particle tasks."""

    critic: CriticKind = "central"
    # The paper's τ. 0, the default of its code, weighs all agents alike. Above 0 those near the behaviour weigh more
    # (softmin of divergence, as its code for continuous actions does), below 0 those far from it (as for SMAC).
    sharpness: float = 0.0
    narrowest_behaviour: Positive = 0.1  # the least standard deviation that behaviour is taken to have


class CFCQL(CQL):
    """A central critic pushed down on one agent's sampled actions at a time; policies climb it."""

    config_class = CFCQLConfig
    config: CFCQLConfig

    def __init__(
        self,
        spec: EnvSpec,
        config: CFCQLConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        if config.critic != "central":
            raise UsageError(f"cfcql has a central critic: learner.critic={config.critic} goes with cql")
        super().__init__(spec, config, seeds, device)
        if config.sharpness:
            self.behaviour = self.network("behaviour", self.input_dim, spec.action_dim)
            self.behaviour_optimiser = self.keep(
                "behaviour_optimiser", StackedAdam(self.behaviour, config.learning_rate, config.gradient_clip)
            )

    # ---- λ

    def tried(self, states: States) -> tuple[Tensor, ...]:
        """As in CQL, each agent's samples beside the others' actions in the data; and the agents' weights."""
        return *super().tried(states), self.weight(states)

    @torch.no_grad()
    def weight(self, states: States) -> Tensor:
        """N λ, [S, N, B]: a softmax over agents of how near each agent's policy is to behaviour."""
        if not self.config.sharpness:
            return torch.ones_like(states.action[..., 0])
        nearness = -self.config.sharpness * self.divergence(states)
        if states.counted is None:
            return self.spec.n_agents * torch.softmax(nearness, dim=1)
        alive = states.counted > 0
        among = nearness.masked_fill(~alive, torch.finfo(nearness.dtype).min)
        return alive.sum(1, keepdim=True) * torch.softmax(among, dim=1)

    def divergence(self, states: States) -> Tensor:
        """KL(policy, behaviour) [S, N, B] of two Gaussians as wide as behaviour is around its cloned mean.

        The authors take the density of the policy's action under a variational auto-encoder trained beforehand;
        this Gaussian is fitted alongside and costs little. Its width is that of the batch.
        """
        mean = self.actions(self.behaviour, states.obs)[0]
        error = (states.action - mean).square()  # [S, N, B, A]
        if states.counted is not None:
            error *= states.counted.unsqueeze(3)
        variance = error.mean(2, keepdim=True).clamp(min=self.config.narrowest_behaviour**2)
        apart = self.actions(self.policy, states.obs)[0] - mean
        return (apart.square() / (2 * variance)).sum(3)

    def critic_step(self, states: States, td_target: Tensor) -> Metrics:
        """One gradient step of the critics, and one of the cloned behaviour where weights need it."""
        metrics = super().critic_step(states, td_target)
        if self.config.sharpness:
            with torch.enable_grad():
                mean = self.actions(self.behaviour, states.obs)[0]
                loss = states.mean((states.action - mean).square().mean(3)).squeeze(2)
                self.behaviour_optimiser.minimise(self.total(loss))
            metrics["behaviour_loss"] = loss.detach().mean(1)
        return metrics

    # ---- the critic's loss: a mean over agents, so that with the weights N λ in it it is the sum of λ above

    def critic_loss(self, q: Tensor, td_target: Tensor, *drawn: Tensor) -> tuple[Tensor, Metrics]:
        """Squared temporal-difference error + α N λ (soft maximum of Q - Q of the data)."""
        log_density, weight = drawn
        _, metrics = super().critic_loss(q, td_target, log_density)
        return metrics["critic_loss"] + self.config.alpha * weight * metrics["conservative_gap"], metrics

    def critic_gradient(self, q: Tensor, td_target: Tensor, *drawn: Tensor) -> Tensor:
        """That of CQL with α N λ in the place of α."""
        log_density, weight = drawn
        gradient = (self.config.alpha * weight).unsqueeze(-1) * self.gap_gradient(q, log_density)
        gradient[..., -1] += 2 * (q[..., -1] - td_target)
        return gradient
