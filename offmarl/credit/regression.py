"""What decompositions by a single regression share: guards, scale, constants, exact sum, and a plain network.

They fit one answer and do not ask whether the data admits another. Shapes: R dataset rows, n transitions,
N agents, V variables that vary.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from offmarl.credit.base import AgentVerdict, Credit, Decomposer, Progress, equal_split
from offmarl.credit.diagnosis import EQUAL_SPLIT, r_squared
from offmarl.credit.inputs import input_layout
from offmarl.credit.samples import Samples, Scale, living, prepare, split_episodes
from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec

UNTESTED = "not tested: one split was fitted"  # whether another explains the data as well was not asked
FEWEST_EPISODES = 10  # fewer cannot be split
CENTRING_ROWS = 10_000  # of the fitted transitions, evenly spaced: enough for a mean
ASSIGN_CHUNK = 32_768  # agents x rows predicted at a time

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass
class RegressionConfig:
    """What every decomposition by regression lets you set; the same split of the data as `macca`."""

    heldout: Share = 0.1  # share of the episodes that are never fitted
    max_transitions: Count = 200_000  # fit on at most so many; the answer covers all rows
    exact_sum: bool = True  # share R - Σ r̂ out equally among the living
    owner: dict[str, str] = field(default_factory=dict)  # as for `macca`; read by `additive` and `shapley`


class Regression(Decomposer):
    """A decomposition that fits once. Subclasses `learn`, then answer for any transitions.

    As with `macca`, the living share constants equally (no data tells whose they are), the dead earn nothing,
    and R/N is the answer where nothing can be fitted: fewer than 10 episodes, or a constant reward. Whether
    all agents are paid the same is not asked.
    """

    config_class = RegressionConfig

    learned: bool
    reason: str  # why the answer is R/N, empty where it is not
    heldout_rows: Tensor | None  # [H]
    mask: Tensor | None  # [N, V] bool
    edge_probability: Tensor | None  # [N, V]
    fit_r2: float | None
    scale: Scale
    centre: Tensor  # [N] mean reward while alive

    def __init__(
        self,
        spec: EnvSpec,
        config: RegressionConfig,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        super().__init__(spec, config, seed, device, progress)
        self.config = config
        self.layout = input_layout(spec, config.owner)
        self._forget()

    @abstractmethod
    def learn(self, samples: Samples, transitions: Transitions, rows: Tensor) -> None:
        """Fit `samples`, made of the `rows` [n] of `transitions`."""

    @abstractmethod
    def individual(self, transitions: Transitions, rows: Tensor) -> Tensor:
        """Rewards [n, N] of the transitions that start in `rows` [n], in standard deviations of R.

        Those of dead agents are not looked at.
        """

    def prediction(self, transitions: Transitions, rows: Tensor) -> Tensor:
        """The team reward [n] that the fitted model expects, in standard deviations: Σ_i r̂_i."""
        alive = living(transitions, rows).to(self.device)
        return (self.individual(transitions, rows) * alive).sum(1)

    def edges(self, samples: Samples) -> tuple[Tensor | None, Tensor | None]:
        """Masks [N, V] bool and edge probabilities [N, V] of what was learned, where the method has any."""
        return None, None

    def fit(self, transitions: Transitions) -> None:
        """Learn the split, and how well it explains the reward of episodes that were held out."""
        self._forget()
        if transitions.n_episodes < FEWEST_EPISODES:
            self.reason = (
                f"{transitions.n_episodes} episodes are too few to hold some out: {FEWEST_EPISODES} needed"
            )
            return
        config = self.config
        samples = prepare(
            transitions, config.heldout, config.max_transitions, self.seed, self.device, self.layout
        )
        self.heldout_rows, self.scale = samples.heldout_rows, samples.scale
        if not samples.scale.reward_std or not len(samples.scale.varying):
            constant = "the team reward" if not samples.scale.reward_std else "every observation and action"
            self.reason = f"{constant} is constant: there is nothing to explain"
            return
        rows, _, heldout_rows = split_episodes(transitions, config.heldout, config.max_transitions, self.seed)
        self.learn(samples, transitions, rows)
        self.mask, self.edge_probability = self.edges(samples)
        spaced = rows[:: -(-len(rows) // CENTRING_ROWS)]
        earned = torch.cat([self.individual(transitions, part) for part in self._chunks(spaced)])
        alive = living(transitions, spaced).to(self.device)
        self.centre = (earned * alive).sum(0) / alive.sum(0).clamp(min=1)
        predicted = torch.cat([self.prediction(transitions, part) for part in self._chunks(heldout_rows)])
        self.fit_r2 = r_squared(predicted, samples.heldout_team_reward)
        self.learned = True

    def assign(self, transitions: Transitions) -> Credit:
        """Individual rewards of every row; R/N with the reason where nothing could be fitted."""
        reward = self._rewards(transitions) if self.learned else equal_split(transitions)
        verdict = UNTESTED if self.learned else EQUAL_SPLIT
        return Credit(
            reward=reward,
            masks=self._on_all_inputs(self.mask),
            edge_probability=self._on_all_inputs(self.edge_probability),
            input_names=self.layout.names,
            heldout_rows=self.heldout_rows,
            metrics={"fit_r2": self.fit_r2},
            agents=[AgentVerdict(name, verdict) for name in self.spec.agents],
            fallback=not self.learned,
            reason=self.reason,
        )

    def _rewards(self, transitions: Transitions) -> Tensor:
        """[R, N] in the units of R."""
        reward = torch.zeros(len(transitions.row), self.spec.n_agents)
        done = 0
        for rows in self._chunks(transitions.transition_rows):
            alive = living(transitions, rows).to(self.device)  # [n, N]
            share = alive / alive.sum(1, keepdim=True)
            individual = (self.individual(transitions, rows) - self.centre) * alive
            constants = (self.centre * alive).sum(1, keepdim=True) * self.scale.reward_std
            point = individual * self.scale.reward_std + (constants + self.scale.reward_mean) * share
            if self.config.exact_sum:
                team_reward = transitions.column("team_reward")[rows].to(self.device)
                point = point + (team_reward - point.sum(1))[:, None] * share
            reward[rows.cpu()] = point.cpu()
            done += len(rows)
            self.report("assign", done, len(transitions))
        return reward

    def _chunks(self, rows: Tensor) -> Iterator[Tensor]:
        yield from rows.split(max(256, ASSIGN_CHUNK // self.spec.n_agents))

    def _on_all_inputs(self, of_varying: Tensor | None) -> Tensor | None:
        """An [N, V] array with zeros where a variable never varied: [N, all]."""
        if of_varying is None:
            return None
        full = torch.zeros(len(of_varying), len(self.layout.names), dtype=of_varying.dtype)
        full[:, self.scale.varying.cpu()] = of_varying.cpu()
        return full

    def _forget(self) -> None:
        """Nothing is known yet."""
        self.learned, self.reason = False, ""
        self.heldout_rows = self.mask = self.edge_probability = self.fit_r2 = None


def perceptron(sizes: Sequence[int], generator: torch.Generator, device: torch.device) -> nn.Sequential:
    """ReLU network with layers of `sizes`: He's normal weights, biases of zero."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
        last = len(layers) == 2 * (len(sizes) - 2)
        nn.init.normal_(layer.weight, std=math.sqrt((1 if last else 2) / inputs), generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(device)


def kinds(names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Which of the variables `names` are actions and which are successors: [V] bool each.

    Successors are named `next.<name>` after a variable of the situation; an action has none.
    """
    known = set(names)
    successor = torch.tensor([name.startswith("next.") and name[5:] in known for name in names])
    situation = torch.tensor([f"next.{name}" in known for name in names])
    return ~(successor | situation), successor
