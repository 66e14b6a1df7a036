"""Deterministic policies with twin critics: what TD3+BC and continuous CQL have in common.

Every agent is learned independently, from its own observation, action and reward.
Shapes: S seeds, B batch, N agents, O observation, A action dimensions, K actions per state; 2 twin critics.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.data.table import Batch, Statistics
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Count, Learner, Metrics, NonNegative, Positive, ValueConfig
from offmarl.learners.networks import StackedMLP
from offmarl.learners.optimiser import StackedAdam
from offmarl.learners.rewards import Rewards

# Rows of a network evaluated at once on CPUs, so that activations stay in the cache. Measured for CQL with 11
# actions a state: 62 ms an update at 704 to 2,816 rows, 70 to 76 in one piece, 91 at 256.
CHUNK_ROWS = 1408


@dataclass
class ActorCriticConfig(ValueConfig):
    """Settings of deterministic policies with twin critics."""

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


class ActorCritic(Learner):
    """Twin critics Q(o_i, a_i) and a policy tanh(z(o_i)) for each agent, with target networks of both."""

    action_type = "continuous"
    config: ActorCriticConfig
    actions_per_state: int = 1  # that the critic loss evaluates

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
        self.critic = self.network("critic", self.input_dim + A, 1, twins=2)
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

    def observe(self, statistics: Statistics) -> None:
        """Take the normalisers of observations and rewards from a dataset."""
        super().observe(statistics)
        self.rewards.observe(
            *self._pooled(statistics.reward_mean, statistics.reward_std), statistics.terminates
        )

    # ---- the pieces of the losses

    @abstractmethod
    def critic_loss(
        self, obs: Tensor, action: Tensor, td_target: Tensor, *drawn: Tensor
    ) -> tuple[Tensor, Metrics]:
        """[S, N, B, O], [S, N, B, A], [S, N, B], `draw(obs)` -> losses [2, S, N] and metrics [S]."""

    @abstractmethod
    def policy_loss(self, q: Tensor, policy_action: Tensor, action: Tensor) -> Tensor:
        """Compute what the policy minimises: [S, N, B], [S, N, B, A], [S, N, B, A] -> [S, N]."""

    def draw(self, obs: Tensor) -> tuple[Tensor, ...]:
        """Draw what the critic loss takes at random, [S, N, B, ...] each; at once, so that chunks do not matter."""
        return ()

    def actions(self, policy: StackedMLP, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the action tanh(z) and z itself, zero beyond an agent's own width: [S, N, B, A] each."""
        z = self.apply(policy, obs)
        if self._used is not None:
            z = z * self._used
        return torch.tanh(z), z

    def q_values(self, critics: StackedMLP, obs: Tensor, action: Tensor) -> Tensor:
        """Twin critics on K actions per state: [S, N, B, O], [S, N, B, K, A] -> [2, S, N, B, K]."""
        S, N, B, K, A = action.shape
        G = S * self.nets_per_seed
        twin_obs = obs.reshape(G, -1, obs.shape[-1]).expand(2, G, -1, -1).flatten(0, 1)
        twin_action = action.reshape(G, -1, K, A).expand(2, G, -1, -1, -1).flatten(0, 1)
        return critics.pairs(twin_obs, twin_action).view(2, S, N, B, K)

    @torch.no_grad()
    def td_target(self, batch: Batch, next_obs: Tensor) -> Tensor:
        """TD3, eq. 14-15: r + γ min_j Q'_j(o', π'(o') + clipped noise), [S, N, B]. Time limits are no end."""
        _, N, B, _ = next_obs.shape
        noise = self.normal(N, B, self.spec.action_dim).mul_(self.config.target_noise)
        noise.clamp_(-self.config.target_noise_clip, self.config.target_noise_clip)
        if self._used is not None:
            noise *= self._used
        next_action = (self.actions(self.target_policy, next_obs)[0] + noise).clamp_(-1, 1)
        q = self.q_values(self.target_critic, next_obs, next_action.unsqueeze(3)).amin(0).squeeze(-1)
        return self.rewards.td_target(batch, q)

    # ---- one update

    def update(self, batch: Batch) -> Metrics:
        """One step of the critics, and one of the policies and targets every `policy_delay` steps."""
        obs, next_obs = self.prepare(batch.obs), self.prepare(batch.next_obs)
        action = batch.action.transpose(1, 2).contiguous()  # [S, N, B, A]
        metrics = self.critic_step(obs, action, self.td_target(batch, next_obs))
        self.updates += 1
        if int(self.updates) % self.config.policy_delay == 0:
            metrics |= self.policy_step(obs, action)
            self.target_policy.follow(self.policy, self.config.tau)
            self.target_critic.follow(self.critic, self.config.tau)
        return metrics

    def critic_step(self, obs: Tensor, action: Tensor, td_target: Tensor) -> Metrics:
        """One gradient step of the critics, the batch in chunks whose activations stay in the cache."""
        B = obs.shape[2]
        chunk = max(1, CHUNK_ROWS // self.actions_per_state) if self.device.type == "cpu" else B
        metrics: Metrics = {}
        parts = (part.split(chunk, dim=2) for part in (obs, action, td_target, *self.draw(obs)))
        for part in zip(*parts, strict=True):
            share = part[0].shape[2] / B
            loss, part_metrics = self.critic_loss(*part)
            self.critic_optimiser.accumulate(self.total(loss) * share)
            for name, value in part_metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value * share
        norm = self.critic_optimiser.step()
        metrics["critic_gradient"] = norm.view(2, len(self.seeds), -1).mean((0, 2))
        return metrics

    def policy_step(self, obs: Tensor, action: Tensor) -> Metrics:
        """One gradient step of the policies through the first critic."""
        policy_action, z = self.actions(self.policy, obs)
        S, N, B, A = policy_action.shape
        G = S * self.nets_per_seed
        rows = self.first_critic.pairs(obs.view(G, -1, obs.shape[-1]), policy_action.reshape(G, -1, 1, A))
        loss = self.policy_loss(rows.view(S, N, B), policy_action, action)
        if self.config.pre_tanh_penalty:
            loss = loss + self.config.pre_tanh_penalty * z.square().mean((2, 3))
        if self.config.action_penalty:
            loss = loss + self.config.action_penalty * policy_action.square().mean((2, 3))
        norm = self.policy_optimiser.minimise(self.total(loss))
        with torch.no_grad():
            return {
                "policy_loss": loss.mean(1),
                "policy_gradient": norm.view(S, -1).mean(1),
                "saturation": (policy_action.abs() > 0.99).float().mean((1, 2, 3)),
            }

    @torch.no_grad()
    def act(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """Act greedily: [S, B, N, O] -> [S, B, N, A]."""
        return self.actions(self.policy, self.prepare(obs))[0].transpose(1, 2)
