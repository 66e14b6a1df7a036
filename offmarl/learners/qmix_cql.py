"""QMIX-CQL: conservative Q-learning of the team's value, which a monotonic mixer makes of the agents'.

QMIX (Rashid et al. 2018) or VDN (Sunehag et al. 2018) with the conservative term of Kumar et al. (2020) on Q_tot, as
published with OG-MARL (Formanek et al. 2023). With α = 0 it is QMIX as such.

Shapes: S seeds, B windows, T time, N agents, K choices, J sampled joint choices.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.data.episodes import EpisodeBatch
from offmarl.data.table import Statistics
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Metrics
from offmarl.learners.legality import allowed
from offmarl.learners.mixers import Mixed, MixerKind, MonotonicMixer, value_decomposition
from offmarl.learners.optimiser import minimise
from offmarl.learners.packing import PackedFrames
from offmarl.learners.value_based import DiscreteValueConfig, ValueBased
from offmarl.settings import Count, Discount, NonNegative, Positive


@dataclass
class TeamValueConfig(DiscreteValueConfig):
    """Settings of conservative learners of the team's value."""

    mixer: MixerKind = "qmix"
    alpha: NonNegative = 1.0  # weight of the conservative term
    mixer_embedding: Count = 32  # E; QMIX
    hypernet_hidden: Count = 64  # PyMARL (Samvelyan et al. 2019)
    gamma: Discount = 0.99  # QMIX
    learning_rate: Positive = 1e-3
    gradient_clip: Positive | None = 10.0  # PyMARL


class TeamValue(ValueBased):
    """Agents' values, a mixer of them, and target networks of both; conservative about some of the joint choices."""

    config: TeamValueConfig

    def __init__(
        self,
        spec: EnvSpec,
        config: TeamValueConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        if config.mixer == "qmix":
            weights = MonotonicMixer.outputs(spec.n_agents, config.mixer_embedding)
            self.keep_mixer(config.hypernet_hidden, weights)

    def observe(self, statistics: Statistics) -> None:
        """Take the normalisers of observations, states and rewards from a dataset; one reward unit for all agents."""
        super().observe(statistics)
        self.observe_team(statistics, mixed=self.config.mixer == "qmix")

    def mixers(self, batch: EpisodeBatch) -> tuple[Mixed, Mixed]:
        """Make the online mixer of the frames in which choices were made, the target one of their successors."""
        if self.config.mixer == "vdn":
            return value_decomposition, value_decomposition
        state, mixing = self.states(batch), (self.spec.n_agents, self.config.mixer_embedding)
        online = MonotonicMixer(self.mixer, *mixing)(state[:, :, :-1])
        with torch.no_grad():
            return online, MonotonicMixer(self.target_mixer, *mixing)(state[:, :, 1:])

    @abstractmethod
    def joint_choices(self, batch: EpisodeBatch) -> Tensor:
        """Give J joint choices for each state beside the data's: [S, B, T, N, J]."""

    @abstractmethod
    def conservative_gap(
        self, q_sampled: Tensor, q_data: Tensor, batch: EpisodeBatch, *given: Tensor
    ) -> Tensor:
        """What α weighs, [S, B, T], of Q_tot of those choices [S, B, T, J] and of the data's [S, B, T]."""

    def update(self, batch: EpisodeBatch) -> Metrics:
        """One step of the agents' values and their mixer."""
        return self.team_step(self.inputs(batch), batch)

    def team_step(self, inputs: PackedFrames, batch: EpisodeBatch, *given: Tensor) -> Metrics:
        """Squared TD error of Q_tot, eq. 6 of QMIX, + α (soft maximum of Q_tot - Q_tot of the data).

        `given` is passed on to `conservative_gap`.
        """
        q, next_target_q = self.frames(inputs)
        mix, target_mix = self.mixers(batch)
        next_q = self.double_q(q, next_target_q, batch)
        choices, now = batch.action.unsqueeze(4), q[:, :, :-1]
        if self.config.alpha:
            choices = torch.cat([choices, self.joint_choices(batch)], dim=4)
        chosen_q = now.gather(4, choices)  # [S, B, T, N, 1 + J], the data's first
        if batch.alive is not None:  # the dead add nothing
            chosen_q = chosen_q * batch.alive[:, :, :-1].unsqueeze(4)
            next_q = next_q * batch.alive[:, :, 1:]
        q_tot = mix(chosen_q)
        q_data = q_tot[..., 0]
        target = self.team_target(batch, target_mix(next_q.unsqueeze(4)).squeeze(3))
        loss = td = self.team_average((q_data - target).square(), batch)
        metrics = {"critic_loss": td, "q_mean": self.team_average(q_data, batch)}
        if self.config.alpha:
            gap = self.team_average(self.conservative_gap(q_tot[..., 1:], q_data, batch, *given), batch)
            metrics["conservative_gap"] = gap
            loss = td + self.config.alpha * gap
        norm = minimise(loss.sum(), *self.optimisers)[0]
        self.target_critic.follow(self.critic, self.config.tau)
        if self.config.mixer == "qmix":
            self.target_mixer.follow(self.mixer, self.config.tau)
        self.updates += 1
        averaged = {name: value.detach() for name, value in metrics.items()}
        return averaged | {"critic_gradient": norm.view(len(self.seeds), -1).mean(1)}


@dataclass
class QMIXCQLConfig(TeamValueConfig):
    """Settings of QMIX-CQL."""

    action_samples: Count = 20  # J, joint choices a state; OG-MARL


class QMIXCQL(TeamValue):
    """Conservative about joint choices that are drawn at random."""

    config_class = QMIXCQLConfig
    config: QMIXCQLConfig

    @torch.no_grad()
    def joint_choices(self, batch: EpisodeBatch) -> Tensor:
        """Draw joint choices uniform over the legal ones: [S, B, T, N, J]."""
        uniform = self.draws(batch, self.spec.n_agents, self.config.action_samples)
        permitted = allowed(batch.legal_now, self.choices)
        if permitted is None:
            return (uniform * self.spec.action_dim).long().clamp_(max=self.spec.action_dim - 1)
        number = permitted.expand(*batch.action.shape, -1).cumsum(-1)  # [S, B, T, N, K] legal choices so far
        drawn = (uniform * number[..., -1:]).long() + 1  # the n-th legal choice
        found = torch.searchsorted(number.contiguous(), drawn.contiguous())
        return found.clamp_(max=self.spec.action_dim - 1)  # where nothing is legal, which nobody looks at

    def conservative_gap(
        self, q_sampled: Tensor, q_data: Tensor, batch: EpisodeBatch, *given: Tensor
    ) -> Tensor:
        """Log Σ exp Q_tot over sampled joint choices [S, B, T, J] and the data's [S, B, T] - Q_tot of the data's."""
        return torch.logsumexp(torch.cat([q_sampled, q_data.unsqueeze(3)], dim=3), dim=3) - q_data
