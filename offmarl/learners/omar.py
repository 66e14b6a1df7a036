"""OMAR: offline multi-agent reinforcement learning with actor rectification (Pan et al. 2022), per agent.

The critics are those of CQL. A policy that climbs such a critic by its gradient stops at the first of many hills,
so OMAR also looks at the critic's values of sampled actions and pulls the policy to the best one found:

    (1 - τ) · (-Q(o, π(o))) + τ · (π(o) - â)²,   â = argmax Q over π(o) and the samples     (eq. 4)

The samples come from a Gaussian that is refitted, for a few rounds, to their softmax-weighted mean and variance.

Shapes: S seeds, B batch, N agents, O observation, A action dimensions, K samples.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from offmarl.learners.base import Metrics
from offmarl.learners.cql import CQL, CQLConfig
from offmarl.learners.critics import States
from offmarl.learners.softmax import softmax
from offmarl.settings import Count, Positive, UpToOne

InRange = Annotated[float, Field(ge=-1, le=1)]  # of actions
NARROWEST = 1e-3  # standard deviation below which sampling again finds nothing new


@dataclass
class OMARConfig(CQLConfig):
    """OMAR (Pan et al. 2022) with the settings of its code for the particle tasks."""

    coefficient: UpToOne = 0.9  # τ, weight of rectification; OMAR: .7 to 1 but for world-medium (.1)
    rounds: Count = 3  # of sampling and refitting; OMAR's code: 3, in HalfCheetah 2
    samples: Count = 10  # a round; OMAR's code: 10, in HalfCheetah 20
    first_mean: InRange = 0.0  # of the first round's Gaussian; OMAR's code
    first_sd: Positive = 2.0  # clipped to [-1, 1] mostly corners, which is where experts act; OMAR's code


class OMAR(CQL):
    """CQL whose policy is also pulled to the best action that zeroth-order search finds."""

    config_class = OMARConfig
    config: OMARConfig

    def policy_step(self, states: States, action: Tensor) -> Metrics:
        """One gradient step towards what was found, rather than what the data did."""
        return super().policy_step(states, self.rectified(states))

    @torch.no_grad()
    def rectified(self, states: States) -> Tensor:
        """â: the best of the policy's action and the last round's samples, [S, N, B, A].

        Samples lie [S, N, A, K, B], the long axis last: PyTorch takes a tenth of the time over such rows.
        """
        S, N, B, A = states.action.shape
        mean = states.obs.new_full((S, N, A, 1, B), self.config.first_mean)
        sd = states.obs.new_full((S, N, A, 1, B), self.config.first_sd)
        for _ in range(self.config.rounds - 1):
            sampled = self.samples(mean, sd)
            mean, sd = self.refitted(sampled, self.first_q(states, sampled.transpose(2, 4)))
        policy_action = self.actions(self.policy, states.obs)[0]
        candidates = torch.cat(
            [self.samples(mean, sd), policy_action.mT.unsqueeze(3)], dim=3
        )  # [S, N, A, K + 1, B]
        q = self.first_q(states, candidates.transpose(2, 4))  # [S, N, B, K + 1]
        best = q.argmax(3).view(S, N, 1, 1, B).expand(S, N, A, 1, B)
        return candidates.gather(3, best).squeeze(3).mT.contiguous()

    def samples(self, mean: Tensor, sd: Tensor) -> Tensor:
        """Draw actions from Gaussians [S, N, A, 1, B], within the range of actions: [S, N, A, K, B]."""
        _, N, A, _, B = mean.shape
        sampled = self.normal(N, A, self.config.samples, B).mul_(sd).add_(mean).clamp_(-1, 1)
        return sampled if self._used is None else sampled * self._used.mT.unsqueeze(2)  # [N, A, 1, 1]

    @staticmethod
    def refitted(sampled: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of samples [..., A, K, B] weighted by softmax Q [..., B, K]: mean and sd [..., A, 1, B] (eq. 5)."""
        weight = softmax(q).mT.unsqueeze(-3)  # [..., 1, K, B]
        mean = (weight * sampled).sum(-2, keepdim=True)
        variance = (weight * (sampled - mean).square()).sum(-2, keepdim=True)
        return mean, variance.sqrt().clamp_(min=NARROWEST)

    def policy_loss(self, q: Tensor, policy_action: Tensor, action: Tensor) -> Tensor:
        """OMAR, eq. 4; `action` is â."""
        climbing = super().policy_loss(q, policy_action, action)
        imitating = (policy_action - action).square().mean(3)
        return (1 - self.config.coefficient) * climbing + self.config.coefficient * imitating

    def policy_gradient(self, q: Tensor, policy_action: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The action that was found is a target, not something to be minimised."""
        climbing, _ = super().policy_gradient(q, policy_action, action)
        towards = (2 * self.config.coefficient / action.shape[3]) * (policy_action - action)
        return (1 - self.config.coefficient) * climbing, towards
