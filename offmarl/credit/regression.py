"""What decompositions by a single regression share: constants, exact sum, and a plain network.

They fit one answer and do not ask whether the data admits another. Shapes: R dataset rows, n transitions,
N agents, V variables that vary.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from offmarl.credit.base import AgentVerdict, Credit, equal_split
from offmarl.credit.diagnosis import EQUAL_SPLIT, r_squared
from offmarl.credit.fitted import FittedDecomposer
from offmarl.credit.samples import Samples, living
from offmarl.data.table import Transitions

UNTESTED = "not tested: one split was fitted"  # whether another explains the data as well was not asked
CENTRING_ROWS = 10_000  # of the fitted transitions, evenly spaced: enough for a mean


class Regression(FittedDecomposer):
    """A decomposition that fits once. Subclasses `regress`, then answer for any transitions.

    Whether all agents are paid the same is not asked.
    """

    learned: bool
    fit_r2: float | None
    centre: Tensor  # [N] mean reward while alive

    @abstractmethod
    def regress(self, samples: Samples, transitions: Transitions) -> None:
        """Fit `samples` of `transitions`."""

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

    def forget(self) -> None:
        """Know nothing yet."""
        super().forget()
        self.learned, self.fit_r2 = False, None

    def learn(self, samples: Samples, transitions: Transitions) -> None:
        """Fit, and measure how well that explains the reward of episodes that were held out."""
        self.regress(samples, transitions)
        self.mask, self.edge_probability = self.edges(samples)
        spaced = samples.rows[:: -(-len(samples.rows) // CENTRING_ROWS)]
        earned = torch.cat([self.individual(transitions, part) for part in self.chunks(spaced)])
        alive = living(transitions, spaced).to(self.device)
        self.centre = (earned * alive).sum(0) / alive.sum(0).clamp(min=1)
        heldout = self.chunks(samples.heldout_rows)
        predicted = torch.cat([self.prediction(transitions, part) for part in heldout])
        self.fit_r2 = r_squared(predicted, samples.heldout_team_reward)
        self.learned = True

    def assign(self, transitions: Transitions) -> Credit:
        """Individual rewards of every row; R/N with the reason where nothing could be fitted."""
        verdict = UNTESTED if self.learned else self.exact or EQUAL_SPLIT
        answer = Credit(
            reward=self._rewards(transitions) if self.learned else equal_split(transitions),
            metrics={"fit_r2": self.fit_r2},
            agents=[AgentVerdict(name, verdict) for name in self.spec.agents],
            fallback=not self.learned,
            reason=self.reason,
        )
        return self.named(answer)

    def _rewards(self, transitions: Transitions) -> Tensor:
        """[R, N] in the units of R."""
        reward = torch.zeros(len(transitions.row), self.spec.n_agents)
        done = 0
        for rows in self.chunks(transitions.transition_rows):
            alive = living(transitions, rows).to(self.device)  # [n, N]
            individual = (self.individual(transitions, rows) - self.centre) * alive
            constants = (self.centre * alive).sum(1, keepdim=True)
            reward[rows.cpu()] = self.in_units_of_reward(
                individual, constants, transitions, rows, alive
            ).cpu()
            done += len(rows)
            self.report("assign", done, len(transitions))
        return reward


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
