"""OMAR (Pan et al. 2022) for choices: conservative critics, and policies pulled to the best legal choice.

A policy that climbs a critic by its gradient can be stuck: of choices that it hardly makes it hardly learns. So OMAR
also pulls it to the best action that a zeroth-order search finds. Continuous actions are sampled from a Gaussian that
is refitted to the best of them; K choices need no sampling, the search is their enumeration:

    (1 - τ) · (-Σ_a π(a | o) Q(o, a)) + τ · (-log π(â | o)),   â = argmax Q over the legal choices     (eq. 4)

The first term is the policy gradient of COMA's form, with the expectation over the policy's choices in the place of
the data's choice, whose likelihood would fall without bound where it is bad. The second is a cross-entropy: the squared
distance of probabilities has no gradient where a policy is sure of another choice. Published code for choices takes â
from all K, illegal ones included.

Targets are r + γ Q'(o', argmax π(o')): the policy chooses, the target critic rates.

Shapes: S seeds, B windows, T time, N agents, K choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.data.episodes import EpisodeBatch
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Metrics
from offmarl.learners.choice_policy import ChoicePolicy
from offmarl.learners.cql import DiscreteCQL, DiscreteCQLConfig
from offmarl.learners.softmax import softmax
from offmarl.settings import UpToOne


@dataclass
class DiscreteOMARConfig(DiscreteCQLConfig):
    """OMAR for choices; what is not said here is as in CQL."""

    coefficient: UpToOne = 0.5  # τ, weight of rectification; CFCQL's code for battles; MACCA's: 0.2


class DiscreteOMAR(DiscreteCQL):
    """CQL whose critic teaches a policy, by its gradient and by its best legal choice."""

    config_class = DiscreteOMARConfig
    config: DiscreteOMARConfig

    def __init__(
        self,
        spec: EnvSpec,
        config: DiscreteOMARConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.policy = ChoicePolicy(self)

    # ---- the terms of eq. 4

    def climbing(self, logits: Tensor, q: Tensor, batch: EpisodeBatch) -> Tensor:
        """-Σ_a π(a | o) (Q(o, a) - its mean over legal choices), in units of how much choices differ: [S, B, T, N]."""
        legal = self.masked(torch.zeros_like(q), batch.legal_now) == 0  # [S, B, T, N, K]
        count = legal.sum(-1).clamp(min=1)
        centred = torch.where(legal, q - (q * legal).sum(-1, keepdim=True) / count.unsqueeze(-1), 0.0)
        spread = self.average(centred.square().sum(-1) / count, batch).sqrt().clamp(min=1e-6)  # [S, 1 or N]
        return -(softmax(logits) * centred).sum(-1) / spread[:, None, None]

    def rectifying(self, logits: Tensor, q: Tensor, batch: EpisodeBatch) -> Tensor:
        """-log π(â | o), [S, B, T, N]."""
        return -self.policy.log_likelihood(logits, self.best_choice(q, batch.legal_now))

    def policy_loss(self, logits: Tensor, q: Tensor, batch: EpisodeBatch) -> Tensor:
        """Eq. 4 for each network, [S, 1 or N]; `logits` and what the critic says [S, B, T, N, K]."""
        share = self.config.coefficient
        loss = (1 - share) * self.climbing(logits, q, batch) + share * self.rectifying(logits, q, batch)
        return self.average(loss, batch)

    def update(self, batch: EpisodeBatch) -> Metrics:
        """One step of the critics, then of the policies."""
        inputs = self.inputs(batch)
        q, next_target_q = self.frames(inputs)
        logits = self.unrolled(self.policy.network, inputs)
        next_q = self.q_of(next_target_q, self.best_choice(logits[:, :, 1:], batch.next_legal))
        metrics = self.critic_step(q, self.td_target(batch, next_q), batch)
        logits = self.masked(logits[:, :, :-1], batch.legal_now)
        return metrics | self.policy.step(self.policy_loss(logits, q[:, :, :-1].detach(), batch))
