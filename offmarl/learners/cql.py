"""CQL: conservative Q-learning (Kumar et al. 2020), per agent, for continuous and for discrete actions.

Shapes: S seeds, B batch, T time, N agents, O observation, A action dimensions, K sampled actions or choices.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from offmarl.data.episodes import EpisodeBatch
from offmarl.learners.actor_critic import ActorCritic, ActorCriticConfig
from offmarl.learners.base import Metrics
from offmarl.learners.critics import States
from offmarl.learners.softmax import logsumexp, softmax
from offmarl.learners.value_based import DiscreteValueConfig, ValueBased
from offmarl.settings import Count, Fraction, Natural, NonNegative, Positive


@dataclass
class CQLConfig(ActorCriticConfig):
    """CQL(H), Kumar et al. (2020), eq. 4, as OMAR (Pan et al. 2022) uses it: deterministic policies."""

    alpha: NonNegative = (
        5.0  # weight of the conservative term; OMAR: 5 on medium and expert data, 0.5 on random
    )
    action_samples: Count = 10  # uniform actions per state; OMAR
    policy_samples: Natural = 0  # more actions around the policy's; OMAR: 0 in MPE, 10 in HalfCheetah
    policy_sample_width: Fraction = 0.2  # they lie within ± this of the policy's action
    temperature: Positive = 1.0  # of the log-sum-exp; OMAR
    # Whether the data's action is one of the sampled too. Then the gap is at least -temperature · log(samples + 1);
    # otherwise it may fall for ever where all data are of one action, by pulling Q apart. Ours.
    sample_data_action: bool = False


class CQL(ActorCritic):
    """Twin critics pushed down on sampled actions and up on the data's; the policy climbs the first."""

    config_class = CQLConfig
    config: CQLConfig

    def tried(self, states: States) -> tuple[Tensor, ...]:
        """Choose K sampled actions and, as the last, the data's; and the log-density of what is in the soft maximum."""
        sampled, log_density = self.draw(states.obs)
        if self.config.sample_data_action:
            log_density = torch.cat([log_density, log_density[..., :1]], dim=3)
        return torch.cat([sampled, states.action.unsqueeze(3)], dim=3), log_density

    def critic_loss(self, q: Tensor, td_target: Tensor, *drawn: Tensor) -> tuple[Tensor, Metrics]:
        """CQL, eq. 4: squared temporal-difference error + α (soft maximum of Q - Q of the data)."""
        (log_density,) = drawn
        q_data = q[..., -1]
        td = (q_data - td_target).square()
        gap = self.soft_maximum(q[..., : log_density.shape[-1]], log_density) - q_data
        return td + self.config.alpha * gap, {"critic_loss": td, "conservative_gap": gap, "q_mean": q_data}

    def critic_gradient(self, q: Tensor, td_target: Tensor, *drawn: Tensor) -> Tensor:
        """Differentiate both: the gap at every action, the squared error at the data's."""
        (log_density,) = drawn
        gradient = self.config.alpha * self.gap_gradient(q, log_density)
        gradient[..., -1] += 2 * (q[..., -1] - td_target)
        return gradient

    def gap_gradient(self, q: Tensor, log_density: Tensor) -> Tensor:
        """The soft maximum's gradient is the softmax: [G, M, K + 1]."""
        samples = log_density.shape[-1]
        soft = softmax(q[..., :samples] / self.config.temperature - log_density)
        gradient = torch.nn.functional.pad(soft, (0, q.shape[-1] - samples))
        gradient[..., -1] -= 1
        return gradient

    @torch.no_grad()
    def draw(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions to be conservative about [S, N, B, K, A] and the log-density of each [S, N, B, K]."""
        S, N, B, _ = obs.shape
        A, K = self.spec.action_dim, self.config.action_samples
        action = self.uniform(N, B, K, A)
        if self._used is not None:
            action *= self._used.unsqueeze(2)
        log_density = (-log(2) * self.action_widths.unsqueeze(-1)).expand(S, N, B, K)
        if not self.config.policy_samples:
            return action, log_density
        centre = self.actions(self.policy, obs)[0].unsqueeze(3)  # [S, N, B, 1, A]
        low = (centre - self.config.policy_sample_width).clamp(min=-1)
        width = (centre + self.config.policy_sample_width).clamp(max=1) - low
        unit = (self.uniform(N, B, self.config.policy_samples, A) + 1) / 2
        near, log_width = low + unit * width, width.log()
        if self._used is not None:
            near, log_width = near * self._used.unsqueeze(2), log_width * self._used.unsqueeze(2)
        near_density = -log_width.sum(-1).expand(S, N, B, self.config.policy_samples)
        return torch.cat([action, near], dim=3), torch.cat([log_density, near_density], dim=3)

    def soft_maximum(self, q: Tensor, log_density: Tensor) -> Tensor:
        """Estimate log ∫ exp Q(o, a) da by importance sampling (CQL, appendix F), over the last axis."""
        temperature = self.config.temperature
        terms = q / temperature - log_density
        return temperature * (logsumexp(terms) - log(q.shape[-1]))

    def unit(self, q: Tensor, states: States) -> Tensor:
        """Its standard deviation over the batch: α moves the scale of Q, the penalties must not care."""
        return states.mean((q - states.mean(q)).square()).sqrt().clamp(min=1e-6)

    def policy_loss(self, q: Tensor, policy_action: Tensor, action: Tensor) -> Tensor:
        """-Q."""
        return -q

    def policy_gradient(
        self, q: Tensor, policy_action: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """-1 everywhere."""
        return torch.full_like(q, -1), None


@dataclass
class DiscreteCQLConfig(DiscreteValueConfig):
    """CQL(H), Kumar et al. (2020), eq. 4, on double deep Q-learning."""

    alpha: NonNegative = 1.0  # weight of the conservative term; Kumar et al.: 1 (Atari, 10 % data) to 4 (1 %)


class DiscreteCQL(ValueBased):
    """Every agent values its own choices; the greedy one among the legal is its policy."""

    config_class = DiscreteCQLConfig
    config: DiscreteCQLConfig

    def conservative_gap(self, q: Tensor, q_data: Tensor, batch: EpisodeBatch) -> Tensor:
        """Log Σ exp Q over the legal choices - Q of the data's, [S, B, T, N]."""
        return torch.logsumexp(self.masked(q, batch.legal_now), dim=-1) - q_data

    def update(self, batch: EpisodeBatch) -> Metrics:
        """One step of the critics, towards double Q-learning's targets."""
        q, next_target_q = self.frames(self.inputs(batch))
        return self.critic_step(q, self.td_target(batch, self.double_q(q, next_target_q, batch)), batch)

    def critic_step(self, q: Tensor, target: Tensor, batch: EpisodeBatch) -> Metrics:
        """CQL, eq. 4: squared TD error + α (soft maximum of Q - Q of the data), of Q as `frames` gives it."""
        now = q[:, :, :-1]
        q_data = self.q_of(now, batch.action)
        td = self.average((q_data - target).square(), batch)
        gap = self.average(self.conservative_gap(now, q_data, batch), batch)
        norm = self.optimiser.minimise((td + self.config.alpha * gap).sum())
        self.target_critic.follow(self.critic, self.config.tau)
        self.updates += 1
        metrics = {"critic_loss": td, "conservative_gap": gap, "q_mean": self.average(q_data, batch)}
        averaged = {name: value.detach().mean(1) for name, value in metrics.items()}
        return averaged | {"critic_gradient": norm.view(len(self.seeds), -1).mean(1)}
