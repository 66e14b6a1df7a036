"""Policies made of other policies: exploration noise, and team-mates who do not do their job."""

import torch
from torch import Tensor

from offmarl.behaviour.random import RandomPolicy
from offmarl.envs.base import EnvSpec, Frame, KnownPolicy, Policy
from offmarl.errors import UsageError


class NoisyPolicy:
    """Exploration on top of a policy.

    Continuous actions get Gaussian noise of standard deviation `noise`, clipped to [-1, 1]; of discrete ones
    a share `noise` is replaced by a uniform legal choice.
    """

    def __init__(self, policy: Policy, spec: EnvSpec, noise: float) -> None:
        if noise < 0:
            raise UsageError(f"behaviour.noise={noise}: expected zero or more")
        self.policy = policy
        self.noise = noise
        self.discrete = spec.discrete
        self.random = RandomPolicy(spec)
        self._meant: Tensor | None = None  # [E, N] bool: at the last `act` the choice was the policy's

    def begin(self, starting: Tensor, generator: torch.Generator) -> None:
        """Passed on."""
        self.policy.begin(starting, generator)

    def act(self, frame: Frame, generator: torch.Generator) -> Tensor:
        """[E, N, A] float in [-1, 1], or [E, N] int64."""
        action = self.policy.act(frame, generator)
        if self.noise == 0:
            self._meant = torch.ones_like(action, dtype=torch.bool) if self.discrete else None
            return action
        if self.discrete:
            explore = (
                torch.rand(action.shape, generator=generator, device=action.device) < self.noise
            )  # [E, N]
            chosen = torch.where(explore, self.random.act(frame, generator), action)
            self._meant = chosen == action
            return chosen
        draw = torch.randn(action.shape, generator=generator, device=action.device, dtype=action.dtype)
        return (action + self.noise * draw).clamp(-1, 1)

    def probability(self) -> Tensor | None:
        """Of what the last `act` chose, around a policy that always chooses alike: [E, N]; None of actions."""
        if self._meant is None:
            return None
        meant = (1 - self.noise) * self._meant
        by_chance = self.random.probability()
        return meant if by_chance is None else meant + self.noise * by_chance

    def annotations(self) -> dict[str, Tensor]:
        """Passed on."""
        return self.policy.annotations()


def check_free_riders(count: int, spec: EnvSpec) -> None:
    """Raise `UsageError` unless `count` agents of the task can ride free."""
    if not 0 < count <= spec.n_agents:
        raise UsageError(f"--free-riders {count}: expected 1 to {spec.n_agents} (the agents of {spec.id})")


class FreeRiders:
    """In every episode `count` agents, drawn anew, act at random; the rest follow the policy.

    Who they were is an annotation (`free_rider` [E, N]): stored with the data, hidden from learners.
    """

    def __init__(self, policy: Policy, spec: EnvSpec, count: int) -> None:
        check_free_riders(count, spec)
        self.policy = policy
        self.random = RandomPolicy(spec)
        self.count = count
        self.n_agents = spec.n_agents
        self.idle: Tensor | None = None  # [E, N] bool

    def begin(self, starting: Tensor, generator: torch.Generator) -> None:
        """Redraw who rides free in the copies that start an episode."""
        self.policy.begin(starting, generator)
        scores = torch.rand(
            len(starting), self.n_agents, generator=generator, device=starting.device
        )  # [E, N]
        drawn = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(self.count).indices, True)
        self.idle = drawn if self.idle is None else torch.where(starting.unsqueeze(1), drawn, self.idle)

    def act(self, frame: Frame, generator: torch.Generator) -> Tensor:
        """[E, N, A] float in [-1, 1], or [E, N] int64."""
        assert self.idle is not None, "begin() comes before act()"
        working = self.policy.act(frame, generator)
        idling = self.random.act(frame, generator).to(working.dtype)
        idle = self.idle if working.dim() == 2 else self.idle.unsqueeze(2)
        return torch.where(idle, idling, working)

    def probability(self) -> Tensor | None:
        """Of what the last `act` chose, given who rode free: [E, N]; None where it cannot be told."""
        working = self.policy.probability() if isinstance(self.policy, KnownPolicy) else None
        idling = self.random.probability()
        if working is None or idling is None or self.idle is None:
            return None
        return torch.where(self.idle, idling.to(working.dtype), working)

    def annotations(self) -> dict[str, Tensor]:
        """`free_rider` [E, N] bool beside what the policy itself tells."""
        assert self.idle is not None, "begin() comes before annotations()"
        return {**self.policy.annotations(), "free_rider": self.idle}
