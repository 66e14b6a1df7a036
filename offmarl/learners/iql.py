"""IQL: implicit Q-learning (Kostrikov et al. 2022), per agent, for continuous actions and for choices.

The best that the data shows is an upper expectile of the values of what it does, so no target ever rates an action that
was not taken:

    L_V = E[|τ - 1(u < 0)| u²],  u = Q'(o, a) - V(o)                        (eq. 5)
    L_Q = E[(r + γ V(o') - Q(o, a))²]                                       (eq. 6)
    L_π = E[-exp(β (Q'(o, a) - V(o))) log π(a | o)]                         (eq. 7)

There is one critic, where the paper takes the smaller of two.

Shapes: S seeds, B batch or windows, T time, N agents, O observation, A action dimensions, K choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from offmarl.data.episodes import EpisodeBatch
from offmarl.data.table import Batch, Statistics
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Metrics, ValueConfig
from offmarl.learners.choice_policy import ChoicePolicy
from offmarl.learners.optimiser import StackedAdam, minimise
from offmarl.learners.value_based import DiscreteValueConfig, ValueBased
from offmarl.learners.weighted_cloning import WeightedCloning
from offmarl.settings import Discount, Positive

Expectile = Annotated[float, Field(gt=0, lt=1)]


@dataclass
class ImplicitConfig:
    """What IQL (Kostrikov et al. 2022) sets for actions of any kind."""

    expectile: Expectile = 0.7  # τ; paper: 0.7 (MuJoCo), 0.9 (AntMaze)
    # 1/β in standard deviations of the advantage over the batch (paper, in units of reward: 1/3 in MuJoCo, 1/10 in
    # AntMaze), so that the unit of rewards does not matter. Measured on OMAR's spread task, replayed data, 500 updates:
    # team return 671 at 1, 693 at 2, 671 by cloning.
    policy_temperature: Positive = 2.0
    largest_weight: Positive = 100.0  # of exp(β A); the authors' code


class Implicit:
    """The equations, for actions of any kind."""

    config: ImplicitConfig

    def value_loss(self, advantage: Tensor) -> Tensor:
        """Eq. 5 of u = Q' - V of any shape."""
        return self.asymmetry(advantage) * advantage.square()

    def asymmetry(self, advantage: Tensor) -> Tensor:
        """|τ - 1(u < 0)| of eq. 5."""
        return (self.config.expectile - (advantage < 0).float()).abs()

    def policy_weight(self, advantage: Tensor, counted: Tensor) -> Tensor:
        """exp(β A) of eq. 7, bounded, 0 in rows that are not counted: [S, N, B] each."""
        unit = self.config.policy_temperature * WeightedCloning.spread(advantage, counted)
        return (advantage / unit).exp().clamp(max=self.config.largest_weight) * counted


@dataclass
class IQLConfig(ImplicitConfig, ValueConfig):
    """IQL of continuous actions has no other settings of its own."""


class IQL(Implicit, WeightedCloning):
    """A Gaussian policy, a critic and its upper expectile V(o) for each agent."""

    config_class = IQLConfig
    config: IQLConfig

    def observe(self, statistics: Statistics) -> None:
        """Take the normalisers of observations and rewards from a dataset."""
        super().observe(statistics)
        mean, std = self._pooled(statistics.reward_mean, statistics.reward_std)
        self.rewards.observe(mean, std, statistics.agents_end)

    @torch.no_grad()
    def update(self, batch: Batch) -> Metrics:
        """One step of the values, of the critics and of the policies."""
        obs, alive = self.prepare(batch.obs), self.living(batch)
        action = batch.action.transpose(1, 2).contiguous()  # [S, N, B, A]
        next_v = self.apply(self.value, self.prepare(batch.next_obs)).squeeze(3)
        advantage, metrics = self.value_step(obs, action, alive)
        metrics |= self.critic_step(obs, action, self.rewards.td_target(batch, next_v), alive)
        self.target_critic.follow(self.critic, self.config.tau)
        self.updates += 1
        return metrics | self.policy_step(obs, action, self.policy_weight(advantage, alive))

    @torch.no_grad()
    def value_step(self, obs: Tensor, action: Tensor, alive: Tensor) -> tuple[Tensor, Metrics]:
        """One step of the values down L_V. Returns u before it, [S, N, B]."""
        value = self.value.forward(self.rows(obs))
        advantage = self.q_values(self.target_critic, obs, action) - value.output.view(alive.shape)
        count = alive.sum(2, keepdim=True).clamp(min=1)
        to_v = -2 * self.asymmetry(advantage) * advantage * alive / count
        self.descend(value, to_v, self.value_optimiser)
        return advantage, {"value_loss": (self.value_loss(advantage) * alive / count).sum(2).mean(1)}

    @torch.no_grad()
    def critic_step(self, obs: Tensor, action: Tensor, td_target: Tensor, alive: Tensor) -> Metrics:
        """One step of the critics down L_Q."""
        critic = self.critic.forward(self.rows(obs), self.rows(action).unsqueeze(2))
        q = critic.output.view(alive.shape)
        to_q = 2 * (q - td_target) * alive / alive.sum(2, keepdim=True).clamp(min=1)
        norm = self.descend(critic, to_q, self.critic_optimiser)
        return {
            "critic_loss": self.squared_error(q, td_target, alive).mean(1),
            "q_mean": q.mean((1, 2)),
            "critic_gradient": norm.view(len(self.seeds), -1).mean(1),
        }


@dataclass
class DiscreteIQLConfig(ImplicitConfig, DiscreteValueConfig):
    """Where IQL of choices has other defaults."""

    # Measured on a battle (smax_3m) whose data mostly stands idle, 500 updates: 34 % won at 1, 17 % at 2, none by
    # cloning.
    policy_temperature: Positive = 1.0
    gamma: Discount = 0.99  # paper


class DiscreteIQL(Implicit, ValueBased):
    """A policy over choices, a critic and its upper expectile V(o) for each agent."""

    config_class = DiscreteIQLConfig
    config: DiscreteIQLConfig

    def __init__(
        self,
        spec: EnvSpec,
        config: DiscreteIQLConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.policy = ChoicePolicy(self)
        self.value = self.agent_network("value", outputs=1)
        adam: StackedAdam[Any] = StackedAdam(self.value, config.learning_rate, config.gradient_clip)
        self.value_optimiser = self.keep("value_optimiser", adam)

    def episode_weight(self, advantage: Tensor, batch: EpisodeBatch) -> Tensor:
        """Weigh the steps of all windows together, [S, B, T, N]."""
        rows, counted = (values.flatten(1, 2).transpose(1, 2) for values in (advantage, batch.weight))
        return self.policy_weight(rows, counted).transpose(1, 2).view_as(advantage)

    def update(self, batch: EpisodeBatch) -> Metrics:
        """One step of values and critics down L_V + L_Q, and one of the policies down L_π."""
        inputs = self.inputs(batch)
        v = self.unrolled(self.value, inputs).squeeze(4)  # [S, B, T + 1, N]
        q = self.q_of(self.run(self.critic, inputs[:-1]), batch.action)
        with torch.no_grad():
            target_q = self.q_of(self.run(self.target_critic, inputs[:-1]), batch.action)
        advantage = target_q - v[:, :, :-1]
        value_loss = self.average(self.value_loss(advantage), batch)
        critic_loss = self.average((q - self.td_target(batch, v[:, :, 1:].detach())).square(), batch)
        norm = minimise((value_loss + critic_loss).sum(), self.optimiser, self.value_optimiser)[0]
        self.target_critic.follow(self.critic, self.config.tau)
        self.updates += 1
        weight = self.episode_weight(advantage.detach(), batch)
        return {
            "critic_loss": critic_loss.detach().mean(1),
            "value_loss": value_loss.detach().mean(1),
            "q_mean": self.average(q.detach(), batch).mean(1),
            "critic_gradient": norm.view(len(self.seeds), -1).mean(1),
        } | self.policy.clone(self.policy.logits(inputs, batch), batch, weight)
