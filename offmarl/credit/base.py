"""What a decomposer is given and what it answers.

Shapes: R dataset rows, N agents, V variables of a transition (see `credit.inputs`), H held-out rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)` while a decomposer works."""


@dataclass(frozen=True)
class AgentVerdict:
    """What the data says about one agent's share."""

    name: str
    verdict: str
    ambiguity: float | None = None  # A_i: how far two equally good answers differ, in sd of the answer
    reproducibility: float | None = None  # κ_i: agreement of refits on resampled episodes, 1 = all agree
    locality: float | None = None  # share of the estimate that own and nobody's variables alone explain
    exploration: float | None = None  # share of the agent's actions that what it saw does not explain
    overlap: float | None = None  # how well its causes can be told from other agents' variables, 0 ... 1


@dataclass
class Credit:
    """Individual rewards of every row, and how far they can be trusted."""

    reward: Tensor  # [R, N] float32; the last row of an episode is 0
    std: Tensor | None = None  # [R, N] spread over the ensemble: ranks errors, but is smaller than they are
    masks: Tensor | None = None  # [N, V] bool: edges found, from a variable to an agent's reward
    edge_probability: Tensor | None = None  # [N, V] probability that the edge exists
    # [V] bool: nobody's variables that the reward of every agent may follow, since that of some agent depends on them
    shared_parents: Tensor | None = None
    input_names: tuple[str, ...] = ()  # V names
    heldout_rows: Tensor | None = None  # [H] rows never used to fit
    metrics: dict[str, float | None] = field(default_factory=dict)
    agents: list[AgentVerdict] = field(default_factory=list)
    fallback: bool = False  # every agent got R/N because the data does not say more
    reason: str = ""  # why, also where a fallback was wanted but switched off; else what to be careful about

    @property
    def equal(self) -> bool:
        """Whether everybody is paid the same in every row."""
        return bool((self.reward == self.reward[:, :1]).all())


@dataclass
class NoSettings:
    """Nothing to set."""


class Decomposer(ABC):
    """Splits the team's reward into one reward per agent. Never sees the true individual rewards."""

    config_class: ClassVar[type] = NoSettings
    reads_obs: ClassVar[bool] = False  # beside `transition_inputs`, which of many tasks is the state

    def __init__(
        self,
        spec: EnvSpec,
        config: object,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        self.spec, self.seed, self.device, self.progress = spec, seed, torch.device(device), progress

    @abstractmethod
    def fit(self, transitions: Transitions) -> None:
        """Learn the split from `transitions`."""

    @abstractmethod
    def assign(self, transitions: Transitions) -> Credit:
        """The split of every row of `transitions`."""

    def report(self, stage: str, done: int, total: int) -> None:
        """Tell the listener, if there is one, how far the work is."""
        if self.progress is not None:
            self.progress(stage, done, total)


def equal_split(transitions: Transitions) -> Tensor:
    """R/N for every agent: [R, N] float32, 0 on the last row of an episode."""
    agents = transitions.spec.n_agents
    share = torch.zeros(transitions.row.shape[0], agents)
    rows = transitions.transition_rows.cpu()
    team_reward = transitions.column("team_reward").cpu()[rows]
    share[rows] = (team_reward / agents)[:, None].expand(-1, agents)
    return share
