"""The batched environment: E copies of a multi-agent task, stepped at once.

Shapes: E copies, N agents, O observation (widest agent), A action dimensions, K discrete choices, D state.
"""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_serializer, field_validator, model_validator
from torch import Tensor


class EnvSpec(BaseModel):
    """What a learner, a decomposer or a reader must know of a task; stored beside every dataset.

    `id`, `backend` and `options` rebuild the environment: `make(spec.id, backend=..., options=...)`.
    Continuous actions live in [-1, 1] whatever the simulator's own bounds are; the environment converts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    backend: str = "offmarl"
    options: dict[str, Any] = {}
    agents: tuple[str, ...]  # names, N of them
    groups: tuple[tuple[str, ...], ...]  # partition of `agents`: same group = same role, may share networks
    background: tuple[str, ...] = ()  # agents inside the environment that follow a fixed policy
    action_type: Literal["continuous", "discrete"]
    rendered: bool = (
        False  # the state decides what is observed: data holds states, `envs.magent_render` the rest
    )
    obs_names: tuple[tuple[str, ...], ...]  # per agent, true width; narrower agents are zero-padded to O
    action_names: tuple[tuple[str, ...], ...]  # per agent: dimensions (continuous) or choices (discrete)
    state_names: tuple[str, ...] = ()  # D of them; empty: the task has no global state
    state_owner: tuple[int, ...] = ()  # owner of each state dimension: agent index, -1 = nobody's
    horizon: int  # steps after which an episode is truncated
    shared_reward: bool = False  # every agent is paid the same by construction
    has_agent_reward: bool = True  # `Step.agent_reward` is the truth about who earned what
    causes: tuple[tuple[str, ...], ...] | None = (
        None  # true causes per agent, as `input_names`; yardstick only
    )
    versions: dict[str, str] = {}  # simulator packages

    @field_validator("obs_names", "action_names", mode="before")
    @classmethod
    def _spread(cls, value: Any, others: ValidationInfo) -> Any:
        """Names of each group become those of each agent; see `_gathered`."""
        groups = others.data.get("groups", ())
        if others.data.get("rendered") and len(value) == len(groups):
            return tuple(names for names, group in zip(value, groups, strict=True) for _ in group)
        return value

    @field_serializer("obs_names", "action_names")
    def _gathered(self, value: tuple[tuple[str, ...], ...]) -> list[list[str]]:
        """Write the names of hundreds of agents that observe alike once a group."""
        if not self.rendered:
            return [list(names) for names in value]
        first = np.cumsum([0, *(len(group) for group in self.groups)])[:-1]
        return [list(value[agent]) for agent in first]

    @model_validator(mode="after")
    def _consistent(self) -> "EnvSpec":
        if not self.agents:
            raise ValueError("there are no agents: a task has at least one")
        twice = [agent for agent, count in Counter(self.agents).items() if count > 1]
        if twice:
            raise ValueError(
                f"agents {', '.join(twice)} are named twice: every agent needs a name of its own"
            )
        if self.horizon < 1:
            raise ValueError(f"horizon is {self.horizon}: an episode has at least one step")
        for name in ("obs_names", "action_names"):
            if len(getattr(self, name)) != len(self.agents):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {len(self.agents)} agents"
                )
        grouped = [agent for group in self.groups for agent in group]
        if sorted(grouped) != sorted(self.agents):
            raise ValueError(f"groups {self.groups} are not a partition of the agents {self.agents}")
        if self.state_owner and len(self.state_owner) != len(self.state_names):
            raise ValueError(f"{len(self.state_owner)} state owners for {len(self.state_names)} state names")
        return self

    @property
    def n_agents(self) -> int:
        """N."""
        return len(self.agents)

    @property
    def obs_dim(self) -> int:
        """O, the width of the widest agent's observation."""
        return max(len(names) for names in self.obs_names)

    @property
    def action_dim(self) -> int:
        """A for continuous actions, K (number of choices) for discrete ones; of the widest agent."""
        return max(len(names) for names in self.action_names)

    @property
    def state_dim(self) -> int:
        """D, zero where the task has no global state."""
        return len(self.state_names)

    @property
    def state_rewards(self) -> tuple[int, ...]:
        """Dimensions of the state that tell what somebody was just paid."""
        return tuple(d for d, name in enumerate(self.state_names) if name.endswith(".last_reward"))

    @property
    def opposed(self) -> bool:
        """Whether agents of one group are the enemies of another's: on MAgent's maps they are. Nobody earns the sum."""
        return self.rendered and len(self.groups) > 1

    @property
    def discrete(self) -> bool:
        """Whether actions are choices."""
        return self.action_type == "discrete"


@dataclass
class Frame:
    """What can be seen of all copies at one instant."""

    obs: Tensor  # [E, N, O] float
    state: Tensor | None = None  # [E, D] float
    legal: Tensor | None = None  # [E, N, K] bool, discrete actions only
    alive: Tensor | None = None  # [E, N] bool
    position: Tensor | None = None  # [E, N, 2] float, for drawing

    def where(self, condition: Tensor, other: "Frame") -> "Frame":
        """This frame in copies where `condition` [E] holds, `other` elsewhere."""

        def select(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if mine is None or theirs is None:
                return None
            return torch.where(condition.view(-1, *[1] * (mine.dim() - 1)), mine, theirs)

        merged: dict[str, Any] = {
            field.name: select(getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)
        }
        return replace(self, **merged)


@dataclass
class Step:
    """What one joint action led to.

    `successor` is what the action led to, also where the episode ended; `frame` is what to act on next: the
    same, except in copies that ended and were reset. Nothing is lost to auto-reset.
    """

    frame: Frame
    successor: Frame
    team_reward: Tensor  # [E] float
    agent_reward: Tensor | None  # [E, N] float; sums to team_reward
    terminated: Tensor  # [E] bool: the task is over, the future is worth nothing
    truncated: Tensor  # [E] bool: time ran out, the future would go on
    won: Tensor | None = None  # [E] bool: the episode ended in victory, in tasks that can be won

    @property
    def done(self) -> Tensor:
        """[E] bool: the episode ended, for whichever reason."""
        return self.terminated | self.truncated


class Environment(ABC):
    """E copies of a task. Copies that end are reset by themselves within the same `step`."""

    spec: EnvSpec
    num_envs: int
    device: torch.device

    @abstractmethod
    def reset(self, seed: int) -> Frame:
        """Start a new episode in every copy; the same seed gives the same episodes."""

    @abstractmethod
    def step(self, action: Tensor) -> Step:
        """Advance every copy by one joint action: [E, N, A] in [-1, 1], or [E, N] integers."""

    def close(self) -> None:  # noqa: B027 (most environments hold nothing that needs closing)
        """Release processes and simulators."""

    def __enter__(self) -> "Environment":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@runtime_checkable
class Policy(Protocol):
    """Something that acts for all agents of all copies."""

    def begin(self, starting: Tensor, generator: torch.Generator) -> None:
        """Called before acting in copies where `starting` [E] is true: a new episode begins there."""

    def act(self, frame: Frame, generator: torch.Generator) -> Tensor:
        """The joint action: [E, N, A] float in [-1, 1], or [E, N] int64."""

    def annotations(self) -> dict[str, Tensor]:
        """Facts about the running episodes, [E, ...] each, stored with the data and hidden from learners."""


@runtime_checkable
class KnownPolicy(Protocol):
    """A policy that knows how likely its choices were."""

    def probability(self) -> Tensor | None:
        """Of what the last `act` chose: [E, N], or None where it cannot be told."""
