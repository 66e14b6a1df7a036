"""Q-learning of single units, online and offline: double Q, Huber loss, and a conservative term for logged data.

Shapes: S seeds, B units of a batch, K choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from offmarl.data.units import UnitStatistics
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Metrics, RewardConfig
from offmarl.learners.meanfield.base import Experience, MeanFieldConfig, MeanFieldLearner
from offmarl.learners.meanfield.network import MeanFieldNetwork
from offmarl.learners.rewards import Rewards
from offmarl.settings import Fraction, NonNegative, Positive


@dataclass
class MeanFieldQConfig(MeanFieldConfig, RewardConfig):
    """Settings of mean-field Q-learning."""

    tau: Fraction = 0.005  # TD3 (Fujimoto et al. 2018); MFQ's code moves by 0.005 as well
    # Decides how much rewards weigh against the conservative term. Battles of 25 v 25 at α 0.5, wins against the net
    # that made the data: 0.56 at 0.3, which is how rewards are paid, where it does little but clone; 0.90 at 3.
    reward_sd: Positive = 3.0
    # Weight of the conservative term (Kumar et al. 2020), chosen; 0: plain Q-learning, which is right where the learner
    # plays itself. It did best on logs with a tenth of random choices as well, not with a hundredth (two trainings).
    alpha: NonNegative = 0.5


class MeanFieldQ(MeanFieldLearner):
    """Units whose `critic` rates their choices, taught by targets of a slowly following copy."""

    config_class = MeanFieldQConfig
    config: MeanFieldQConfig
    network_name = "critic"

    def __init__(
        self,
        spec: EnvSpec,
        config: MeanFieldQConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.targets: dict[str, MeanFieldNetwork] = {}
        self.rewards: dict[str, Rewards] = {}
        for kind, critic in self.actors.items():
            self.targets[kind] = self.keep(f"target_critic.{kind}", critic.target())
            self.rewards[kind] = self.keep(f"normaliser.{kind}", Rewards(config, 1, self.device))
            critic.unit = self.targets[kind].unit = self.rewards[kind].scale

    def observe(self, statistics: Sequence[UnitStatistics]) -> None:
        """Take the unit that rewards are reckoned in, one for all groups of a kind."""
        for kind, rewards in self.rewards.items():
            groups = [group for group in statistics if group.kind == kind]
            weight = torch.tensor([float(group.agents) for group in groups], dtype=torch.float64)
            mean = torch.tensor([group.reward_mean for group in groups], dtype=torch.float64)
            std = torch.tensor([group.reward_std for group in groups], dtype=torch.float64)
            pooled = (weight * mean).sum() / weight.sum()
            variance = (weight * (std.square() + (mean - pooled).square())).sum() / weight.sum()
            ends = any(group.terminates for group in groups)
            rewards.observe(pooled.float().view(1), variance.sqrt().float().view(1), ends)

    @torch.no_grad()
    def td_target(self, kind: str, experience: Experience) -> Tensor:
        """Compute y = r + γ Q⁻(s', argmax Q(s', a, ã'), ã') [S, B] (Ma et al. 2025, eq. 13, with double Q-learning).

        A unit's own future ends with its death as with the game; a time limit is no end.
        """
        best = self.outputs(self.actors[kind], experience.next).argmax(2, keepdim=True)
        value = self.outputs(self.targets[kind], experience.next).gather(2, best).squeeze(2)
        return self.rewards[kind].of(experience.reward) + self.config.gamma * experience.going_on * value

    def conservative_gap(self, q: Tensor, q_data: Tensor) -> Tensor:
        """Log Σ_a exp Q(s, a, ã) - Q(s, a_data, ã) (Kumar et al. 2020, CQL(H), eq. 4): [S, B]."""
        return torch.logsumexp(q, dim=2) - q_data

    def learn(self, kind: str, experience: Experience) -> Metrics:
        """One step down Huber(Q - y) (eq. 12) + α · the conservative gap."""
        target = self.td_target(kind, experience)
        q = self.outputs(self.actors[kind], experience.now)  # [S, B, K]
        q_data = q.gather(2, experience.action.unsqueeze(2)).squeeze(2)
        td_error = F.smooth_l1_loss(q_data, target, reduction="none").mean(1)  # [S]
        gap = self.conservative_gap(q, q_data).mean(1)
        loss = td_error + self.config.alpha * gap if self.config.alpha else td_error
        norm = self.optimisers[kind].minimise(loss.sum())
        self.targets[kind].follow(self.actors[kind], self.config.tau)
        return {
            "td_error": td_error.detach(),
            "conservative_gap": gap.detach(),
            "q_mean": q_data.detach().mean(1),
            "target_mean": target.mean(1),
            "critic_gradient": norm,
        }
