"""Causal mean-field Q-learning (Ma et al. 2025): neighbours count by how much their action alone would change a policy.

Intervening on the merged neighbour, do(ā = a_k), gives unit i's counterfactual policy for neighbour k; the divergence
from its policy under the plain average is the neighbour's causal effect. It depends on k only by the action a_k, so
neighbours that did the same share a weight, and K actions are intervened on rather than N neighbours.
Shapes: S seeds, B units, A actions of neighbours, K choices, H hidden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.learners.base import Metrics
from offmarl.learners.meanfield.base import Experience
from offmarl.learners.meanfield.network import MeanFieldNetwork
from offmarl.learners.meanfield.q_learning import MeanFieldQ, MeanFieldQConfig
from offmarl.settings import Positive

REPORT_EVERY = 10  # updates between two looks at the distribution of causal effects
QUANTILES = {"effect_median": 0.5, "effect_q99": 0.99}  # of the causal effects of a batch's neighbours


@dataclass
class CMFQConfig(MeanFieldQConfig):
    """Settings of causal mean-field Q-learning."""

    epsilon: Positive = 0.01  # Ma et al. 2025, figure 4d: 0.001 to 1; the larger, the nearer to MFQ
    # Of the policy softmax(β Q) (eq. 3), Q in the unit in which rewards are paid; the paper leaves it open. It decides
    # whether weights differ at all: in battles half the effects stay below 0.002 at 10, where ε hides them, and some
    # reach 0.1 at 30.
    beta: Positive = 30.0


class CMFQ(MeanFieldQ):
    """ǎ = Σ_k w_k a_k with w_k = (TE_k + ε) / Σ (TE + ε) (eqs. 10 and 11)."""

    config_class = CMFQConfig
    config: CMFQConfig

    def log_policy(self, network: MeanFieldNetwork, q: Tensor, dim: int = -1) -> Tensor:
        """Log π = log softmax(β Q) over the choices, which lie along `dim` (eq. 3)."""
        return torch.log_softmax(self.config.beta / network.unit * q, dim=dim)

    @torch.no_grad()
    def causal_effects(self, network: MeanFieldNetwork, z: Tensor, counts: Tensor) -> Tensor:
        """TE = KL(π(· | s, ā), π(· | s, do(ā = a))) of each action a (eq. 7): [S, B, A], zero or above."""
        average = counts / counts.sum(2, keepdim=True).clamp(min=1)
        policy = self.log_policy(network, network.values(z, network.action_part(average)))  # [S, B, K]
        likely = policy.exp()
        counterfactual = self.log_policy(network, network.counterfactual_values(z), dim=1)  # [S, K, B, A]
        expected = (likely.mT.unsqueeze(3) * counterfactual).sum(1)  # [S, B, A]
        return ((likely * policy).sum(2, keepdim=True) - expected).clamp_(min=0)

    @torch.no_grad()
    def action_weights(self, network: MeanFieldNetwork, z: Tensor, counts: Tensor) -> Tensor:
        """Weigh a neighbour that did each action last, w [S, B, A] (eq. 11)."""
        essential = self.causal_effects(network, z, counts) + self.config.epsilon
        total = (counts * essential).sum(2, keepdim=True)
        return essential / torch.where(total > 0, total, 1.0)

    def learn(self, kind: str, experience: Experience) -> Metrics:
        """A step of Q-learning, and now and then how causal effects are distributed over neighbours."""
        report = {} if int(self.updates) % REPORT_EVERY else self.effect_quantiles(kind, experience)
        return super().learn(kind, experience) | report

    @torch.no_grad()
    def effect_quantiles(self, kind: str, experience: Experience) -> Metrics:
        """Quantiles of TE over all neighbours of the units in a batch."""
        network, counts = self.actors[kind], experience.now.counts
        assert counts is not None
        effects = self.causal_effects(network, network.state_part(experience.now.inputs), counts).flatten(1)
        effects, order = effects.sort(dim=1)
        cumulative = counts.flatten(1).gather(1, order).cumsum(1)  # [S, B * A] neighbours up to here
        found = {}
        for name, quantile in QUANTILES.items():
            place = torch.searchsorted(cumulative, quantile * cumulative[:, -1:].contiguous())
            found[name] = effects.gather(1, place.clamp(max=effects.shape[1] - 1)).squeeze(1)
        return found
