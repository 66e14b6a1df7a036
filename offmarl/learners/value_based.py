"""What learners of Q-values of choices share: the critic and its target network, double Q-learning, TD(λ).

Shapes: S seeds, B windows, T time, N agents, K choices.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offmarl.data.episodes import EpisodeBatch
from offmarl.data.table import Statistics
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import ValueConfig
from offmarl.learners.discrete import AgentNetwork, DiscreteConfig, DiscreteLearner
from offmarl.learners.mixers import StateInput
from offmarl.learners.networks import StackedMLP
from offmarl.learners.optimiser import StackedAdam
from offmarl.learners.packing import PackedFrames
from offmarl.learners.rewards import Rewards
from offmarl.settings import UpToOne


@dataclass
class DiscreteValueConfig(DiscreteConfig, ValueConfig):
    """Settings of learners of Q-values of choices."""

    # TD(λ): targets mix all the n-step returns of an episode, weights ∝ λ^n; above 0 batches are whole episodes.
    td_lambda: UpToOne = 0.0


class ValueBased(DiscreteLearner):
    """Agents whose `critic` rates the choices of each, taught by targets of a slowly following copy."""

    config: DiscreteValueConfig

    def __init__(
        self,
        spec: EnvSpec,
        config: DiscreteValueConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.config = config
        if config.td_lambda:
            self.batch_unit = "episodes"
        self.rewards = self.keep("normaliser", Rewards(config, spec.n_agents, self.device))
        self.critic = self.agent_network("critic")
        self.target_critic = self.keep("target_critic", self.critic.target())
        adam: StackedAdam[Any] = StackedAdam(self.critic, config.learning_rate, config.gradient_clip)
        self.optimiser = self.keep("optimiser", adam)
        self.optimisers = [self.optimiser]

    def keep_mixer(self, hidden: int, outputs: int) -> None:
        """Make the networks of a mixer, online and target, that depend on the state by so many `outputs`."""
        self.states = self.keep("states", StateInput(self))
        self.mixer = self.stacked(StackedMLP, "mixer", (self.states.width, hidden, outputs), per_seed=1)
        self.target_mixer = self.keep("target_mixer", self.mixer.target())
        adam: StackedAdam[Any] = StackedAdam(self.mixer, self.config.learning_rate, self.config.gradient_clip)
        self.optimisers.append(self.keep("mixer_optimiser", adam))

    def require(self, arrays: Collection[str]) -> None:
        """Raise `DataError` where a dataset lacks a state that a mixer depends on."""
        states = self._stored.get("states")
        if isinstance(states, StateInput):
            states.require(arrays)

    def observe(self, statistics: Statistics) -> None:
        """Take the normalisers of observations and rewards from a dataset."""
        super().observe(statistics)
        self.rewards.observe(
            *self._pooled(statistics.reward_mean, statistics.reward_std), statistics.agents_end
        )

    def observe_team(self, statistics: Statistics, mixed: bool) -> None:
        """Take one reward unit for all agents and, where a mixer depends on it, the moments of the state."""
        mean, std = statistics.reward_mean.to(self.device), statistics.reward_std.to(self.device)
        self.rewards.observe(mean, std, statistics.terminates, together=True)
        if mixed and self.config.normalise_observations:
            self.states.observe(statistics)

    def q_of(self, q: Tensor, action: Tensor) -> Tensor:
        """Pick the values of the choices [S, B, T, N] out of `q` [S, B, T, N, K]."""
        return q.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def best_choice(self, q: Tensor, legal: Tensor | None) -> Tensor:
        """[S, B, T, N, K] -> the best legal choices [S, B, T, N]."""
        return self.masked(q.detach(), legal).argmax(-1)

    @torch.no_grad()
    def double_q(self, q: Tensor, next_target_q: Tensor, batch: EpisodeBatch) -> Tensor:
        """Double Q-learning (van Hasselt et al. 2016): the online network chooses, the target rates.

        Both networks' values as `frames` gives them -> those of the successors' best legal choices, [S, B, T, N].
        """
        return self.q_of(next_target_q, self.best_choice(q[:, :, 1:], batch.next_legal))

    @torch.no_grad()
    def td_target(self, batch: EpisodeBatch, next_value: Tensor) -> Tensor:
        """Compute each agent's TD(λ) target [S, B, T, N] from its `next_value`.

        An agent's own future ends with its death as with the task; a time limit is no end.
        """
        return self.lambda_return(self.rewards.of(batch.reward), next_value, batch.lives_on, batch.valid)

    @torch.no_grad()
    def team_target(self, batch: EpisodeBatch, next_value: Tensor) -> Tensor:
        """Compute the team's TD(λ) target [S, B, T] from its `next_value`, for the mean of the agents' rewards."""
        reward = self.rewards.of(batch.reward).mean(3)
        return self.lambda_return(reward, next_value, 1 - batch.terminated, batch.valid)

    def lambda_return(self, reward: Tensor, next_value: Tensor, going_on: Tensor, valid: Tensor) -> Tensor:
        """G_t = r_t + γ ((1 - λ) V_{t+1} + λ G_{t+1}), the last step of a window bootstrapped from V alone.

        All [S, B, T] or [S, B, T, N], `valid` [S, B, T]; `going_on` is 0 where the future is worth nothing.
        Sutton & Barto (2018), eq. 12.20.
        """
        gamma, lam = self.config.gamma, self.config.td_lambda
        target = reward + gamma * going_on * next_value
        if lam == 0:
            return target
        carried = gamma * lam * going_on  # how much of G_{t+1} - V_{t+1} reaches G_t
        carried[:, :, :-1] *= valid[:, :, 1:].view(*valid.shape[:2], -1, *[1] * (reward.dim() - 3))
        for t in range(valid.shape[2] - 2, -1, -1):
            target[:, :, t] += carried[:, :, t] * (target[:, :, t + 1] - next_value[:, :, t])
        return target

    def frames(self, inputs: PackedFrames) -> tuple[Tensor, Tensor]:
        """Rate the choices of all frames [S, B, T + 1, N, K], and by the target network those of successors [., T, .].

        Gradients reach what was seen when choices were made, not the last frame nor the target network.
        """
        q = self.unrolled(self.critic, inputs)
        with torch.no_grad():
            if self.memory_dim:  # which comes from the frames before
                return q, self.run(self.target_critic, inputs)[:, :, 1:]
            return q, self.run(self.target_critic, inputs[1:])

    def unrolled(self, network: AgentNetwork, inputs: PackedFrames) -> Tensor:
        """Run a network over all frames, T + 1 steps -> [S, B, T + 1, N, outputs].

        Gradients reach what it says where choices were made, not of the last frame.
        """
        if self.memory_dim:
            return self.run(network, inputs)
        now = self.run(network, inputs[:-1])
        with torch.no_grad():
            last = self.run(network, inputs[-1:])
        return torch.cat([now, last], dim=2)
