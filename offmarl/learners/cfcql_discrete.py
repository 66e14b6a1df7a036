"""CFCQL: counterfactual conservative Q-learning (Shao et al. 2023, arXiv 2309.12696), for choices.

A mixer makes the team's value of the agents'. Where QMIX-CQL samples joint choices, whose number grows exponentially
with that of agents, CFCQL looks at all choices of one agent at a time, with the others' at those of the data:

    (Q_tot - y)² + α (Σ_i λ_i log Σ_{a_i} exp Q_tot(s, a_i, a_-i) - Q_tot(s, a)),    Σ_i λ_i = 1

Illegal choices are in no sum, dead agents have no weight.

Shapes: S seeds, B windows, T time, N agents, K choices; J = N K counterfactuals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.data.episodes import EpisodeBatch
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Metrics
from offmarl.learners.choice_policy import ChoicePolicy
from offmarl.learners.qmix_cql import TeamValue, TeamValueConfig
from offmarl.learners.softmax import log_softmax
from offmarl.settings import UpToOne


@dataclass
class DiscreteCFCQLConfig(TeamValueConfig):
    """CFCQL (Shao et al. 2023) with the settings of its code for battles."""

    # The paper's τ, with the sign that it has for continuous actions: above 0 agents near the behaviour weigh more,
    # below 0 those far from it, as in the authors' code for battles (5); at 0 all weigh the same.
    sharpness: float = -5.0
    td_lambda: UpToOne = 0.6  # their code; 0.3 on 6h_vs_8z


class DiscreteCFCQL(TeamValue):
    """Q_tot, pushed down on one agent's choices at a time, and cloned behaviour that says where to push most."""

    config_class = DiscreteCFCQLConfig
    config: DiscreteCFCQLConfig

    def __init__(
        self,
        spec: EnvSpec,
        config: DiscreteCFCQLConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        if config.sharpness:
            self.behaviour = ChoicePolicy(self, "behaviour")

    def joint_choices(self, batch: EpisodeBatch) -> Tensor:
        """(a_i, a_-i): every choice of every agent, the others' as in the data, [S, B, T, N, J]."""
        N, K = self.spec.n_agents, self.spec.action_dim
        number = torch.arange(N * K, device=self.device)
        own = number // K == torch.arange(N, device=self.device).unsqueeze(1)  # [N, J]
        return torch.where(own, number % K, batch.action.unsqueeze(4))

    # ---- λ

    @torch.no_grad()
    def divergence(self, q: Tensor, logits: Tensor) -> Tensor:
        """KL(μ_i, β_i) [S, B, T, N] of μ_i ∝ exp Q_tot(s, ·, a_-i) from β: of masked q and logits [S, B, T, N, K]."""
        mu, beta = log_softmax(q), log_softmax(logits)
        return (mu.exp() * (mu - beta)).sum(-1)

    @torch.no_grad()
    def weight(self, q: Tensor, batch: EpisodeBatch, *behaviour: Tensor) -> Tensor:
        """λ [S, B, T, N], a softmax over living agents of how near each is to behaviour, given its logits."""
        alive = batch.weight
        if not self.config.sharpness:
            return alive / alive.sum(3, keepdim=True).clamp(min=1)
        nearness = -self.config.sharpness * self.divergence(q, *behaviour)
        lowest = torch.finfo(nearness.dtype).min
        return torch.softmax(nearness.masked_fill(alive == 0, lowest), dim=3) * alive

    # ---- the loss

    def conservative_gap(
        self, q_sampled: Tensor, q_data: Tensor, batch: EpisodeBatch, *given: Tensor
    ) -> Tensor:
        """Σ_i λ_i (log Σ_{a_i} exp Q_tot(s, a_i, a_-i) - Q_tot(s, a)), [S, B, T]."""
        q = self.masked(q_sampled.unflatten(3, (self.spec.n_agents, -1)), batch.legal_now)  # [S, B, T, N, K]
        soft_maximum = torch.logsumexp(q, dim=-1)
        return (self.weight(q, batch, *given) * (soft_maximum - q_data.unsqueeze(3))).sum(3)

    def update(self, batch: EpisodeBatch) -> Metrics:
        """One step of Q_tot, and one of the cloned behaviour where weights need it."""
        if not self.config.sharpness:
            return super().update(batch)
        inputs = self.inputs(batch)
        logits = self.behaviour.logits(inputs, batch)
        metrics = self.team_step(inputs, batch, logits.detach())
        error = -self.behaviour.log_likelihood(logits, batch.action)
        return metrics | self.behaviour.step(self.average(error, batch))
