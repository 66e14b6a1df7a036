"""Deterministic policies with twin critics: what TD3+BC and continuous CQL have in common.

Every agent acts on its own observation. What its critic sees is `critics.py`; whatever that is, losses vary the
agent's own action only and leave the others' at those of the data, as CFCQL (Shao et al. 2023) does for policies
and sampled actions. In the targets all agents act by their target policies.

Shapes: S seeds, B batch, N agents, O observation, A action dimensions, K actions per state; 2 twin critics.
"""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from offmarl.data.table import Batch, Statistics
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Metrics, ObservingLearner, ValueConfig
from offmarl.learners.critics import CRITICS, CriticKind, States
from offmarl.learners.networks import StackedMLP, tiles
from offmarl.learners.optimiser import StackedAdam
from offmarl.learners.rewards import Rewards
from offmarl.settings import Count, NonNegative, Positive


@dataclass
class ActorCriticConfig(ValueConfig):
    """Settings of deterministic policies with twin critics.

    `critic`: "own" Q_i(o_i, a_i), "joint" Q_i of everyone's observations and actions (MATD3: Ackermann et al. 2019),
    or "central", one of the team's mean reward.
    """

    critic: CriticKind = "own"
    critic_sees_state: bool = False  # also the task's state, where agents do not see all of it together
    # TD3 (Fujimoto et al. 2018) waits for two critic updates; OMAR's code updates both every time. With its 2,000
    # updates in all, waiting halves what the policy learns: measured on expert data 32 against 79 normalised.
    policy_delay: Count = 1  # critic updates per policy update
    target_noise: NonNegative = 0.2  # smoothing of the target policy's action; TD3
    target_noise_clip: NonNegative = 0.5  # TD3
    # A saturated tanh has no gradient and never comes back: |a| > 0.99 was where most failed runs ended, and
    # a penalty on the action itself acts too late. Measured: 1e-2 on the mean square before tanh cures it.
    pre_tanh_penalty: NonNegative = 1e-2
    action_penalty: NonNegative = 0.0  # on the mean square of the action; OMAR's code: 1e-3
    last_layer_bound: Positive | None = 3e-3  # policies start near the centre; DDPG (Lillicrap et al. 2016)


class ActorCritic(ObservingLearner):
    """Twin critics of each agent's action and a policy tanh(z(o_i)), with target networks of both."""

    action_type = "continuous"
    least_batch = 2  # values are measured in units of their spread over the batch
    config: ActorCriticConfig

    def __init__(
        self,
        spec: EnvSpec,
        config: ActorCriticConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.config = config
        A = spec.action_dim
        self.rewards = self.keep("normaliser", Rewards(config, spec.n_agents, self.device))
        self.policy = self.network("policy", self.input_dim, A, last_bound=config.last_layer_bound)
        inputs = CRITICS[config.critic](spec, self.input_dim, config.critic_sees_state, self.device)
        self.inputs = self.keep("critic_inputs", inputs)
        self.central = config.critic == "central"
        self.critics_per_seed = 1 if self.central else self.nets_per_seed
        width = inputs.seen_dim + inputs.action_dim
        self.critic = self.network("critic", width, 1, twins=2, per_seed=self.critics_per_seed)
        self.target_policy = self.keep("target_policy", self.policy.target())
        self.target_critic = self.keep("target_critic", self.critic.target())
        self.first_critic = self.critic.first()
        self.policy_optimiser = self.keep(
            "policy_optimiser", StackedAdam(self.policy, config.learning_rate, config.gradient_clip)
        )
        self.critic_optimiser = self.keep(
            "critic_optimiser", StackedAdam(self.critic, config.learning_rate, config.gradient_clip)
        )
        widths = torch.tensor([len(names) for names in spec.action_names], device=self.device)
        self.action_widths = widths.view(-1, 1)  # [N, 1]
        narrower = bool((widths < A).any())
        used = torch.arange(A, device=self.device) < self.action_widths  # [N, A]
        self._used = used.float().unsqueeze(1) if narrower else None  # [N, 1, A]

    def require(self, arrays: Collection[str]) -> None:
        """Raise `DataError` where a dataset lacks a state that critics see."""
        self.inputs.require(arrays)

    def observe(self, statistics: Statistics) -> None:
        """Take the normalisers of observations, rewards and a state that critics see from a dataset."""
        self.inputs.observe(statistics)
        super().observe(statistics)
        mean, std = self._pooled(statistics.reward_mean, statistics.reward_std)
        ends = statistics.terminates if self.central else statistics.agents_end
        self.rewards.observe(mean, std, ends, together=self.central)

    # ---- the losses of an algorithm, each with its gradient

    @abstractmethod
    def tried(self, states: States) -> tuple[Tensor, ...]:
        """Choose the K own actions in each state at which the critic loss looks.

        [S, N, B, K, A], and what else `critic_loss` needs, [S, N, B, ...] each. Whatever is random is drawn here, at
        once, so that tiles do not matter.
        """

    @abstractmethod
    def critic_loss(self, q: Tensor, td_target: Tensor, *drawn: Tensor) -> tuple[Tensor, Metrics]:
        """Compute what a critic minimises in each state: [G, M, K], [G, M] -> [G, M], and metrics [G, M].

        G counts networks (twins, seeds, agents), M their states; `drawn` is what `tried` gave beside actions.
        """

    @abstractmethod
    def critic_gradient(self, q: Tensor, td_target: Tensor, *drawn: Tensor) -> Tensor:
        """Differentiate `critic_loss` by Q: -> [G, M, K]."""

    @abstractmethod
    def unit(self, q: Tensor, states: States) -> Tensor:
        """Choose what `policy_loss` measures Q in, no part of what is minimised: [S, N, B] -> [S, N, 1]."""

    @abstractmethod
    def policy_loss(self, q: Tensor, policy_action: Tensor, action: Tensor) -> Tensor:
        """Compute what a policy minimises in each state, penalties apart.

        Q of the policy's actions in its unit [S, N, B], those and the data's [S, N, B, A] -> [S, N, B].
        """

    @abstractmethod
    def policy_gradient(
        self, q: Tensor, policy_action: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Differentiate `policy_loss` by Q [S, N, B] and, at constant Q, by the action [S, N, B, A] (None: 0)."""

    # ---- their pieces

    def actions(self, policy: StackedMLP, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the action tanh(z) and z itself, zero beyond an agent's own width: [S, N, B, A] each."""
        z = self.apply(policy, obs)
        if self._used is not None:
            z = z * self._used
        return torch.tanh(z), z

    @torch.no_grad()
    def q_values(self, critics: StackedMLP, states: States, own: Tensor) -> Tensor:
        """Both critics, or the first alone, on K own actions per state: [S, N, B, K, A] -> [2 or 1, S, N, B, K]."""
        twins = len(critics.flat) // (len(self.seeds) * self.critics_per_seed)
        seen = self.critic_rows(states.seen, twins)
        action = self.critic_rows(self.inputs.rated(own, states.action), twins)
        return critics.outputs(seen, action).view(twins, *own.shape[:4])

    def first_q(self, states: States, own: Tensor) -> Tensor:
        """The first critic, which policies climb, on K own actions per state: [S, N, B, K, A] -> [S, N, B, K]."""
        return self.q_values(self.first_critic, states, own).squeeze(0)

    def critic_rows(self, values: Tensor, twins: int = 2) -> Tensor:
        """Give each of the twin critics its agents' values: [S, N, B, ...] -> [G, M, ...]."""
        rows = values.reshape(len(self.seeds) * self.critics_per_seed, -1, *values.shape[3:])
        return rows if twins == 1 else torch.cat([rows] * twins)

    @torch.no_grad()
    def td_target(self, batch: Batch, next_obs: Tensor) -> Tensor:
        """TD3, eq. 14-15: r + γ min_j Q'_j(o', π'(o') + clipped noise), [S, N, B]. Time limits are no end."""
        _, N, B, _ = next_obs.shape
        noise = self.normal(N, B, self.spec.action_dim).mul_(self.config.target_noise)
        noise.clamp_(-self.config.target_noise_clip, self.config.target_noise_clip)
        if self._used is not None:
            noise *= self._used
        next_action = (self.actions(self.target_policy, next_obs)[0] + noise).clamp_(-1, 1)
        states = self.inputs.states(next_obs, next_action, batch.next_state)
        q = torch.minimum(*self.q_values(self.target_critic, states, next_action.unsqueeze(3))).squeeze(-1)
        if self.central:
            return self.rewards.team_target(batch, q.mean(1, keepdim=True)).expand_as(q)
        return self.rewards.td_target(batch, q)

    @staticmethod
    def counted(batch: Batch) -> Tensor | None:
        """How much each agent's state counts, as `States` has it: the dead decide nothing."""
        if batch.alive is None:
            return None
        alive = batch.alive.transpose(1, 2).float()  # [S, N, B]
        return alive * (alive.shape[2] / alive.sum(2, keepdim=True).clamp(min=1))

    # ---- one update

    def update(self, batch: Batch) -> Metrics:
        """One step of the critics, and one of the policies and targets every `policy_delay` steps."""
        obs, next_obs = self.prepare(batch.obs), self.prepare(batch.next_obs)
        action = batch.action.transpose(1, 2).contiguous()  # [S, N, B, A]
        states = replace(self.inputs.states(obs, action, batch.state), counted=self.counted(batch))
        metrics = self.critic_step(states, self.td_target(batch, next_obs))
        self.updates += 1
        if int(self.updates) % self.config.policy_delay == 0:
            metrics |= self.policy_step(states, action)
            self.target_policy.follow(self.policy, self.config.tau)
            self.target_critic.follow(self.critic, self.config.tau)
        return metrics

    @torch.no_grad()
    def critic_step(self, states: States, td_target: Tensor) -> Metrics:
        """One gradient step of the critics, in tiles whose activations stay in the cache."""
        own, *drawn = self.tried(states)
        seen, tried = self.critic_rows(states.seen), self.critic_rows(self.inputs.rated(own, states.action))
        given = [self.critic_rows(values) for values in (td_target, *drawn)]
        counted = None if states.counted is None else self.critic_rows(states.counted)  # [G, M]
        q = tried.new_empty(tried.shape[:3])  # [G, M, K]
        for tile in tiles(self.critic, *q.shape[1:]):
            forward = self.critic.part(tile[0]).forward(seen[tile], tried[tile])
            q[tile] = tile_q = forward.output.squeeze(-1)
            to_q = self.critic_gradient(tile_q, *(values[tile] for values in given)) / q.shape[1]
            if counted is not None:
                to_q *= counted[tile].unsqueeze(-1)
            forward.backward(to_q.unsqueeze(-1), self.critic_optimiser.gradient.part(tile[0]))
        norm = self.critic_optimiser.step()
        _, metrics = self.critic_loss(q, *given)
        if counted is not None:
            metrics = {name: value * counted for name, value in metrics.items()}
        metrics = {name: value.mean(1) for name, value in metrics.items()} | {"critic_gradient": norm}
        return {name: value.view(2, len(self.seeds), -1).mean((0, 2)) for name, value in metrics.items()}

    @torch.no_grad()
    def policy_step(self, states: States, action: Tensor) -> Metrics:
        """One gradient step of the policies through the first critic; `action` is for `policy_loss`."""
        S, N, B, A = action.shape
        rows = self.rows(states.obs)
        policy = self.policy.forward(rows)
        z = policy.output.view(S, N, B, A)
        if self._used is not None:
            z = z * self._used
        policy_action = torch.tanh(z)
        rated = self.inputs.rated(policy_action.unsqueeze(3), states.action)
        critic = self.first_critic.forward(self.critic_rows(states.seen, 1), self.critic_rows(rated, 1))
        q = critic.output.view(S, N, B)
        unit = self.unit(q, states)
        q = q / unit
        to_q, to_action = self.policy_gradient(q, policy_action, action)
        to_rated = critic.to_action(self.critic_rows(to_q / unit, 1).view_as(critic.output))
        gradient = self.inputs.own_gradient(to_rated.view(S, N, B, -1))
        if to_action is not None:
            gradient += to_action
        if self.config.action_penalty:
            gradient += (2 * self.config.action_penalty / A) * policy_action
        gradient *= 1 - policy_action.square()  # of tanh
        if self.config.pre_tanh_penalty:
            gradient += (2 * self.config.pre_tanh_penalty / A) * z
        if self._used is not None:
            gradient *= self._used
        if states.counted is not None:
            gradient *= states.counted.unsqueeze(3)
        policy.backward(self.rows(gradient) / rows.shape[1], self.policy_optimiser.gradient)
        norm = self.policy_optimiser.step()
        loss = self.policy_loss(q, policy_action, action)  # [S, N, B]
        loss = loss + self.config.pre_tanh_penalty * z.square().mean(3)
        if self.config.action_penalty:
            loss += self.config.action_penalty * policy_action.square().mean(3)
        return {
            "policy_loss": states.mean(loss).mean((1, 2)),
            "policy_gradient": norm.view(S, -1).mean(1),
            "saturation": (policy_action.abs() > 0.99).float().mean((1, 2, 3)),
        }

    @torch.no_grad()
    def act(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """Act greedily: [S, B, N, O] -> [S, B, N, A]."""
        return self.actions(self.policy, self.prepare(obs))[0].transpose(1, 2)
