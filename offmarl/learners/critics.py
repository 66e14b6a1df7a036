"""What a critic sees: its agent alone, the whole team from that agent's side, or one critic for the team.

Shapes: S seeds, N agents, B batch, K actions per state, O observation, A action dimensions, D state, C what a critic
sees beside the action that it rates.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from offmarl.data.table import Statistics
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError, UsageError

CriticKind = Literal["own", "joint", "central"]
STATE_LIMIT = 10.0  # standard deviations, as for observations
NO_STATE = "this dataset does not record the state: set learner.critic_sees_state=false"


@dataclass(frozen=True)
class States:
    """B joint states, and the joint actions there beside which an agent's own action is rated."""

    obs: Tensor  # [S, N, B, O], what each agent's policy sees
    seen: Tensor  # [S, N, B, C], what its critic sees beside the action that it rates
    action: Tensor  # [S, N, B, A]
    # How much each agent's state counts in a loss, [S, N, B]: 0 for the dead, mean 1; None: all alike.
    counted: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """Average over the states that count: [S, N, B] -> [S, N, 1]."""
        return (values if self.counted is None else values * self.counted).mean(2, keepdim=True)


class OwnCritic:
    """Q_i(o_i, a_i): agents learn independently. `state`: critics also see the task's state."""

    def __init__(self, spec: EnvSpec, input_dim: int, state: bool, device: torch.device) -> None:
        if state and not spec.state_dim:
            raise UsageError(f"task '{spec.id}' has no state: leave learner.critic_sees_state=false")
        self.spec, self.with_state = spec, state
        self.state_mean = torch.zeros(spec.state_dim, device=device)
        self.state_scale = torch.ones(spec.state_dim, device=device)
        D = spec.state_dim if state else 0
        self.seen_dim = self.team_dim(input_dim, spec.n_agents, spec.obs_dim, spec.action_dim) + D
        self.action_dim = self.rated_dim(spec.n_agents, spec.action_dim)

    def require(self, arrays: Collection[str]) -> None:
        """Raise `DataError` where a dataset that holds these `arrays` lacks a state to be seen."""
        if self.with_state and "state" not in arrays:
            raise DataError(NO_STATE)

    def observe(self, statistics: Statistics) -> None:
        """Take the normaliser of the state. Raises `DataError` where the data lacks a state to be seen."""
        if not self.with_state:
            return
        if statistics.state_mean is None or statistics.state_std is None:
            raise DataError(NO_STATE)
        self.state_mean.copy_(statistics.state_mean)
        std = statistics.state_std.to(self.state_scale)
        self.state_scale.copy_(torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), 1.0))

    def states(self, obs: Tensor, action: Tensor, state: Tensor | None) -> States:
        """Gather what is seen: [S, N, B, O], [S, N, B, A] and [S, B, D] where the data has it."""
        seen = self.team(obs, action)
        if self.with_state:
            if state is None:
                raise DataError(NO_STATE)
            scaled = ((state - self.state_mean) * self.state_scale).clamp(-STATE_LIMIT, STATE_LIMIT)
            seen = torch.cat([seen, scaled.unsqueeze(1).expand(*seen.shape[:3], -1)], dim=3)
        return States(obs, seen, action)

    def tensors(self) -> dict[str, Tensor]:
        """Give the normaliser, for checkpoints; nothing where no state is seen."""
        return {"state_mean": self.state_mean, "state_scale": self.state_scale} if self.with_state else {}

    # ---- what differs between the kinds

    def team_dim(self, input_dim: int, n_agents: int, obs_dim: int, action_dim: int) -> int:
        """Count the columns of `team`."""
        return input_dim

    def team(self, obs: Tensor, action: Tensor) -> Tensor:
        """Choose what a critic sees beside the action that it rates, the state apart: [S, N, B, ...]."""
        return obs

    def rated_dim(self, n_agents: int, action_dim: int) -> int:
        """Count the columns of `rated`."""
        return action_dim

    def rated(self, own: Tensor, action: Tensor) -> Tensor:
        """Build critic inputs of own actions [S, N, B, K, A], in joint actions [S, N, B, A]: [S, N, B, K, ...]."""
        return own

    def own_gradient(self, gradient: Tensor) -> Tensor:
        """Pick the gradient by an agent's own action from that by `rated`: [S, N, B, ...] -> [S, N, B, A]."""
        return gradient


class JointCritic(OwnCritic):
    """Q_i(o_i, o_i+1, ..., a_i+1, ..., a_i), as in MADDPG (Lowe et al. 2017): each agent's critic sees everyone.

    The own observation comes first and the others' in rotating order, so that agents can share a critic. All but
    the own action is the same for all K actions of a state, so that their number hardly costs more than before.
    """

    def team_dim(self, input_dim: int, n_agents: int, obs_dim: int, action_dim: int) -> int:
        """Own, the others' observations and the others' actions."""
        return input_dim + (n_agents - 1) * (obs_dim + action_dim)

    def team(self, obs: Tensor, action: Tensor) -> Tensor:
        """Own, the others' observations without agent ids, the others' actions."""
        N, others = obs.shape[1], torch.cat([obs[..., : self.spec.obs_dim], action], dim=3)
        shifted = [torch.roll(others, -shift, dims=1) for shift in range(1, N)]
        return torch.cat([obs, *shifted], dim=3)


class CentralCritic(OwnCritic):
    """Q(o_1, ..., o_N, a_1, ..., a_N): one critic that values what the team as a whole earns."""

    def team_dim(self, input_dim: int, n_agents: int, obs_dim: int, action_dim: int) -> int:
        """Everyone's observation."""
        return n_agents * obs_dim

    def team(self, obs: Tensor, action: Tensor) -> Tensor:
        """Everyone's observation, agent ids apart, in the order of agents."""
        S, N, B, _ = obs.shape
        everyone = obs[..., : self.spec.obs_dim].transpose(1, 2).reshape(S, 1, B, -1)
        return everyone.expand(S, N, B, -1)

    def rated_dim(self, n_agents: int, action_dim: int) -> int:
        """Everyone's action."""
        return n_agents * action_dim

    def rated(self, own: Tensor, action: Tensor) -> Tensor:
        """Joint actions in which agent i's own takes the place that it has in `action`."""
        S, N, B, K, A = own.shape
        joint = action.transpose(1, 2).view(S, 1, B, 1, N, A).expand(S, N, B, K, N, A).clone()
        joint.diagonal(dim1=1, dim2=4).copy_(own.permute(0, 2, 3, 4, 1))  # [S, B, K, A, N]
        return joint.flatten(4)

    def own_gradient(self, gradient: Tensor) -> Tensor:
        """Agent i's part of the gradient by the joint action."""
        own = gradient.unflatten(3, (self.spec.n_agents, -1)).diagonal(dim1=1, dim2=3)  # [S, B, A, N]
        return own.permute(0, 3, 1, 2).contiguous()


CRITICS: dict[CriticKind, Callable[[EnvSpec, int, bool, torch.device], OwnCritic]] = {
    "own": OwnCritic,
    "joint": JointCritic,
    "central": CentralCritic,
}
