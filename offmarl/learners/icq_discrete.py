"""ICQ-MA: implicit constraint Q-learning (Yang et al. 2021, "Believe what you see"), for choices.

Values are bootstrapped on the data's choices alone, and policies are regressed on them; how much a choice counts says
how good it is:

    J_Q = E[(G_λ - Q_tot(s, a))²]         G_λ from r + γ ρ(s', a') Q_tot'(s', a'), a' what the data did next
    J_π = E[-ρ_i(o_i, a_i) log π_i(a_i | o_i)]

    Q_tot(s, a) = Σ w_i(s) Q_i(o_i, a_i) + b(s),   w_i ≥ 0, Σ w_i = 1
    ρ = exp(Q_tot / α) / Z,   ρ_i = exp(w_i A_i / α) / Z_i,   A_i = Q_i(o_i, a_i) - Σ_a π_i(a | o_i) Q_i(o_i, a)

Z makes the mean of ρ over the batch 1: over its steps that were taken and its agents that lived, where the published
code also takes padding. Without the mixer every agent learns from its own reward.

Shapes: S seeds, B windows, T time, N agents, K choices, D what the mixer sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from offmarl.data.episodes import EpisodeBatch
from offmarl.data.table import Statistics
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Metrics
from offmarl.learners.choice_policy import ChoicePolicy
from offmarl.learners.icq import ICQ
from offmarl.learners.networks import StackedMLP
from offmarl.learners.optimiser import minimise
from offmarl.learners.softmax import softmax
from offmarl.learners.value_based import DiscreteValueConfig, ValueBased
from offmarl.settings import Count, Discount, Positive, UpToOne


@dataclass
class DiscreteICQConfig(DiscreteValueConfig):
    """ICQ-MA (Yang et al. 2021)."""

    # α of J_π in standard deviations of w_i A_i over the batch (their code: 0.1, in units of return). Measured on a
    # battle (smax_3m) whose data mostly stands idle, 500 updates: 47 % won at 0.3, 14 % at 1, none by cloning. On an
    # expert's data weights only cost, and 1 is better (smax_2s3z, seed 1, 1,000 updates: 44 % won at 0.3, 95 % at 1 and
    # by cloning).
    policy_temperature: Positive = 0.3
    critic_temperature: Positive = 1_000.0  # α of J_Q; their code
    mixer: bool = True  # one value of the team, decomposed; false: every agent by itself
    mixer_hidden: Count = 64  # their code: a hidden layer of 64
    td_lambda: UpToOne = 0.8  # their code, for battles
    gamma: Discount = 0.99  # their code
    # OG-MARL (Formanek et al. 2023): 3e-4; their code, by RMSprop: 5e-4 for policies, 1e-4 for critics.
    learning_rate: Positive = 1e-3
    gradient_clip: Positive | None = 10.0  # their code: 20


class DiscreteICQ(ValueBased):
    """A policy and a critic for each agent, and a mixer of the values of what was chosen.

    Batches are whole episodes, with a memory or without: targets need the data's next choice. Where time ran out there
    is none, so the last step of such an episode teaches policies but no critic.
    """

    config_class = DiscreteICQConfig
    config: DiscreteICQConfig

    def __init__(
        self,
        spec: EnvSpec,
        config: DiscreteICQConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.batch_unit = "episodes"
        self.policy = ChoicePolicy(self)
        if config.mixer:
            self.keep_mixer(config.mixer_hidden, spec.n_agents + 1)

    def observe(self, statistics: Statistics) -> None:
        """Take the normalisers of a dataset; with a mixer one reward unit for all agents."""
        super().observe(statistics)
        if self.config.mixer:
            self.observe_team(statistics, mixed=True)

    # ---- the paper's equations

    @staticmethod
    def importance(exponent: Tensor, counted: Tensor) -> Tensor:
        """ρ of exponents [S, B, T] or [S, B, T, N]: mean 1 over the counted steps of the batch, 0 in the others."""
        steps = exponent.shape[1:3]
        rho = ICQ.importance(
            exponent.flatten(1, 2).movedim(1, -1), counted.bool().flatten(1, 2).movedim(1, -1)
        )
        return rho.movedim(-1, 1).unflatten(1, steps)

    def mixing(self, mixer: StackedMLP, state: Tensor, alive: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute w(s) [S, B, T, N], zero for the dead, and b(s) [S, B, T] of states [S, B, T, D]."""
        made = mixer(state.flatten(1, 2)).unflatten(1, state.shape[1:3])
        scores, bias = made[..., :-1], made[..., -1]
        if alive is None:
            return torch.softmax(scores, dim=3), bias
        lowest = torch.finfo(scores.dtype).min
        return torch.softmax(scores.masked_fill(~alive, lowest), dim=3) * alive, bias

    @staticmethod
    def q_total(q: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Q_tot = Σ w_i(s) Q_i(o_i, a_i) + b(s): [S, B, T, N], [S, B, T, N], [S, B, T] -> [S, B, T]."""
        return (weight * q).sum(3) + bias

    @torch.no_grad()
    def target(self, next_target_q: Tensor, batch: EpisodeBatch) -> tuple[Tensor, EpisodeBatch]:
        """G_λ, [S, B, T] or without a mixer [S, B, T, N]; and the batch with only those steps valid whose G_λ is known.

        ρ is at most 1 here, as ICQ for continuous actions has it: with γ that keeps values from growing for ever.
        """
        follows = F.pad(batch.valid[:, :, 1:], (0, 1)) * (1 - batch.terminated)  # there is a next choice
        next_action = F.pad(batch.action[:, :, 1:], (0, 0, 0, 1))
        next_q = self.q_of(next_target_q, next_action)  # [S, B, T, N]
        taught = replace(batch, valid=batch.valid * torch.maximum(follows, batch.terminated))
        if self.config.mixer:
            alive = None if batch.alive is None else batch.alive[:, :, 1:]
            next_q = self.q_total(
                next_q, *self.mixing(self.target_mixer, self.states(batch)[:, :, 1:], alive)
            )
        else:
            follows = follows.unsqueeze(3) * batch.lives_on
        rho = self.importance(next_q / self.config.critic_temperature, follows).clamp(max=1)
        discounted = self.team_target if self.config.mixer else self.td_target
        return discounted(taught, rho * next_q), taught

    def advantage(self, q: Tensor, logits: Tensor, action: Tensor) -> Tensor:
        """A_i = Q_i(o_i, a_i) - Σ_a π_i(a | o_i) Q_i(o_i, a): [S, B, T, N, K] twice, [S, B, T, N] -> [S, B, T, N]."""
        return self.q_of(q, action) - (softmax(logits) * q).sum(-1)

    def policy_weight(self, advantage: Tensor, batch: EpisodeBatch) -> Tensor:
        """ρ_i of the advantages [S, B, T, N], in units of their standard deviation over the batch."""
        rows, counted = advantage.flatten(1, 2).transpose(1, 2), batch.weight.flatten(1, 2).transpose(1, 2)
        spread = ICQ.spread(rows, counted).view(len(rows), 1, 1, -1)
        return self.importance(advantage / (self.config.policy_temperature * spread), batch.weight)

    # ---- one update

    def update(self, batch: EpisodeBatch) -> Metrics:
        """One step of the critics, with the mixer, down J_Q, and one of the policies down J_π."""
        inputs = self.inputs(batch)
        q, next_target_q = self.frames(inputs)
        now = q[:, :, :-1]
        target, taught = self.target(next_target_q, batch)
        logits = self.policy.logits(inputs, batch)
        advantage = self.advantage(now.detach(), logits.detach(), batch.action)
        q_data = self.q_of(now, batch.action)
        if self.config.mixer:
            alive = None if batch.alive is None else batch.alive[:, :, :-1]
            weight, bias = self.mixing(self.mixer, self.states(batch)[:, :, :-1], alive)
            advantage = advantage * weight.detach()
            total = self.q_total(q_data, weight, bias)
            loss = self.team_average((total - target).square(), taught).unsqueeze(1)  # [S, 1]
            q_mean = self.team_average(total.detach(), taught)
        else:
            loss = self.average((q_data - target).square(), taught)  # [S, 1 or N]
            q_mean = self.average(q_data.detach(), taught).mean(1)
        norm = minimise(loss.sum(), *self.optimisers)[0]
        self.target_critic.follow(self.critic, self.config.tau)
        if self.config.mixer:
            self.target_mixer.follow(self.mixer, self.config.tau)
        self.updates += 1
        return {
            "critic_loss": loss.detach().mean(1),
            "q_mean": q_mean,
            "critic_gradient": norm.view(len(self.seeds), -1).mean(1),
        } | self.policy.clone(logits, batch, self.policy_weight(advantage, batch))
