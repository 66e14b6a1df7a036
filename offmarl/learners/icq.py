"""ICQ: implicit constraint Q-learning (Yang et al. 2021, "Believe what you see"), for continuous actions.

Values are bootstrapped on actions of the data alone, and the policy is regressed on them; how much an action counts
says how good it is:

    J_Q = E[(r + γ ρ(o', a') Q'(o', a') - Q(o, a))²]      a' is what the data did next
    J_π = E[-ρ(o, a) log π(a | o)]                        ρ = exp(Q / α) / Z(o)

Every agent learns from its own reward. With a mixer (ICQ-MA) all learn from the mean of the rewards, through
Q_tot = Σ w_i(s) Q_i(o_i, a_i) + b(s) with w_i ≥ 0, and ρ_i = exp(w_i Q_i / α) / Z_i(o_i).

There is one critic, as in the paper and its code for SMAC and MuJoCo.

Shapes: S seeds, B batch, N agents, O observation, A action dimensions, D what the mixer sees.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.data.table import Batch, Statistics
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Metrics, ValueConfig
from offmarl.learners.critics import CentralCritic
from offmarl.learners.networks import Pass, StackedMLP
from offmarl.learners.weighted_cloning import WeightedCloning
from offmarl.settings import Positive


@dataclass
class ICQConfig(ValueConfig):
    """ICQ (Yang et al. 2021)."""

    # α of J_π in standard deviations of the advantage over the batch (the paper's: in units of reward). Errors of the
    # critic shift what the policy regresses on, the more the lower α: measured on OMAR's spread task, expert data,
    # 2,000 updates, 33 normalised at 1, 90 at 2 and 93 without weights.
    policy_temperature: Positive = 2.0
    critic_temperature: Positive = 1_000.0  # α of J_Q; their code: 1,000 (SMAC), 10 to 100 (AntMaze, MuJoCo)
    mixer: bool = False  # ICQ-MA: one value of the team, decomposed
    critic_sees_state: bool = True  # the mixer sees the state, where there is one, beside all observations


class ICQ(WeightedCloning):
    """A policy, a critic Q(o_i, a_i) and its mean V(o_i) for each agent, with ICQ-MA also a mixer.

    Z(o) cannot be had from one action a state. One Z for all states, a plain softmax of Q over the batch, makes
    actions count for being taken in good states: measured on expert data (OMAR's spread task, α of one unit of
    reward) it reached 13 normalised, and 76 with a Z for each state: here log Z(o) is V(o) / α, its first-order
    term, and what is left of Z is the batch's. Their code for SMAC subtracts Σ_a π(a) Q(o, a) instead of V; for
    continuous actions that would rate actions that are not in the data.
    """

    config_class = ICQConfig
    config: ICQConfig

    def __init__(
        self, spec: EnvSpec, config: ICQConfig, seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(spec, config, seeds, device)
        if config.mixer:
            with_state = config.critic_sees_state and spec.state_dim > 0
            team = CentralCritic(spec, self.input_dim, with_state, self.device)
            self.team = self.keep("mixer_input", team)
            self.mixer = self.network("mixer", team.seen_dim, spec.n_agents + 1, per_seed=1)
            self.target_mixer = self.keep("target_mixer", self.mixer.target())
            self.mixer_optimiser = self._optimiser("mixer", self.mixer)

    def require(self, arrays: Collection[str]) -> None:
        """Raise `DataError` where a dataset lacks a state that the mixer sees."""
        if self.config.mixer:
            self.team.require(arrays)

    def observe(self, statistics: Statistics) -> None:
        """Take the normalisers of a dataset. Raises `DataError` where it lacks a state to be seen."""
        super().observe(statistics)
        if self.config.mixer:
            self.team.observe(statistics)
        mean, std = self._pooled(statistics.reward_mean, statistics.reward_std)
        ends = statistics.terminates if self.config.mixer else statistics.agents_end
        self.rewards.observe(mean, std, ends, together=self.config.mixer)

    # ---- the paper's equations

    @staticmethod
    def importance(exponent: Tensor, counted: Tensor) -> Tensor:
        """ρ of the exponents [..., B]: mean 1 over the `counted` rows, 0 in the others."""
        lowest = torch.finfo(exponent.dtype).min
        share = torch.softmax(exponent.masked_fill(~counted, lowest), dim=-1)
        return share * counted * counted.sum(-1, keepdim=True)

    def td_target(self, batch: Batch, next_obs: Tensor) -> Tensor:
        """Compute r + γ ρ(o', a') Q'(o', a'), [S, N, B], with a mixer [S, 1, B]; no use where only time ran out.

        Here ρ is over the batch and at most 1, as in their code: with γ that keeps values from growing for ever.
        """
        goes_on = batch.done.unsqueeze(1) == 0  # [S, 1, B]; elsewhere there is no next action
        next_action = torch.where(goes_on.unsqueeze(3), batch.next_action.transpose(1, 2), 0.0)
        q = self.q_values(self.target_critic, next_obs, next_action)
        alive = None if batch.next_alive is None else batch.next_alive.transpose(1, 2)
        if self.config.mixer:
            q = self.q_total(
                q, *self.mixing(self.target_mixer, next_obs, next_action, batch.next_state, alive)[1:]
            )
        elif alive is not None:
            goes_on = goes_on & alive
        rho = self.importance(q / self.config.critic_temperature, goes_on.expand_as(q)).clamp(max=1)
        target = self.rewards.team_target if self.config.mixer else self.rewards.td_target
        return target(batch, rho * q)

    @staticmethod
    def q_total(q: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Q_tot = Σ w_i(s) Q_i(o_i, a_i) + b(s): [S, N, B], [S, N, B], [S, 1, B] -> [S, 1, B]."""
        return (weight * q).sum(1, keepdim=True) + bias

    def mixing(
        self,
        mixer: StackedMLP,
        obs: Tensor,
        action: Tensor,
        state: Tensor | None,
        alive: Tensor | None = None,
    ) -> tuple[Pass, Tensor, Tensor]:
        """Compute the pass, w(s) [S, N, B], non-negative with sum 1 as in their code, and b(s) [S, 1, B].

        The dead, those not `alive` [S, N, B], have no weight.
        """
        forward = mixer.forward(self.team.states(obs, action, state).seen[:, 0].contiguous())  # [S, B, N + 1]
        output = forward.output.transpose(1, 2)
        scores, bias = output[:, :-1], output[:, -1:]
        if alive is None:
            return forward, torch.softmax(scores, dim=1), bias
        lowest = torch.finfo(scores.dtype).min
        return forward, torch.softmax(scores.masked_fill(~alive, lowest), dim=1) * alive, bias

    # ---- one update

    @torch.no_grad()
    def update(self, batch: Batch) -> Metrics:
        """One step of the critics, with the mixer, and then of values and policies."""
        obs, next_obs = self.prepare(batch.obs), self.prepare(batch.next_obs)
        action = batch.action.transpose(1, 2).contiguous()  # [S, N, B, A]
        # Where time ran out the value goes on, but with which action the data does not say.
        known = ((batch.done == 0) | (batch.terminated == 1)).unsqueeze(1)  # [S, 1, B]
        alive = self.living(batch)
        metrics = self.critic_step(
            obs,
            action,
            batch.state,
            self.td_target(batch, next_obs),
            known if self.config.mixer else known & alive,
            alive,
        )
        advantage, value_metrics = self.value_step(obs, action, alive)
        if self.config.mixer:
            advantage = advantage * self.mixing(self.mixer, obs, action, batch.state, alive)[1]
            self.target_mixer.follow(self.mixer, self.config.tau)
        rho = self.importance(
            advantage / (self.config.policy_temperature * self.spread(advantage, alive)), alive
        )
        self.target_critic.follow(self.critic, self.config.tau)
        self.updates += 1
        return metrics | value_metrics | self.policy_step(obs, action, rho)

    @torch.no_grad()
    def critic_step(
        self,
        obs: Tensor,
        action: Tensor,
        state: Tensor | None,
        td_target: Tensor,
        counted: Tensor,
        alive: Tensor | None = None,
    ) -> Metrics:
        """One step of the critics down J_Q, with a mixer through it, which the `alive` [S, N, B] have a part in."""
        S, N, B, _ = obs.shape
        critic = self.critic.forward(self.rows(obs), self.rows(action).unsqueeze(2))
        q = total = critic.output.view(S, N, B)
        if self.config.mixer:
            mixer, weight, bias = self.mixing(self.mixer, obs, action, state, alive)
            total = self.q_total(q, weight, bias)
        to_q = 2 * (total - td_target) * counted / counted.sum(-1, keepdim=True).clamp(min=1)
        if self.config.mixer:
            to_scores = to_q * weight * (q - (total - bias))  # the softmax's gradient
            mixer.backward(torch.cat([to_scores, to_q], 1).transpose(1, 2), self.mixer_optimiser.gradient)
            self.mixer_optimiser.step()
            critic.backward(self.rows(to_q * weight).view_as(critic.output), self.critic_optimiser.gradient)
            norm = self.critic_optimiser.step()
        else:
            norm = self.descend(critic, to_q, self.critic_optimiser)
        return {
            "critic_loss": self.squared_error(total, td_target, counted).mean(1),
            "q_mean": total.mean((1, 2)),
            "critic_gradient": norm.view(S, -1).mean(1),
        }

    @torch.no_grad()
    def value_step(self, obs: Tensor, action: Tensor, alive: Tensor) -> tuple[Tensor, Metrics]:
        """One step of the values down J_V. Returns the advantages Q - V before it, [S, N, B]."""
        S, N, B, _ = obs.shape
        value = self.value.forward(self.rows(obs))
        v, q = value.output.view(S, N, B), self.q_values(self.critic, obs, action)
        to_v = 2 * (v - q) * alive / alive.sum(-1, keepdim=True).clamp(min=1)
        self.descend(value, to_v, self.value_optimiser)
        return q - v, {"value_loss": self.squared_error(v, q, alive).mean(1)}
