"""Additive decomposition: every agent's reward is a function of its own and of nobody's variables.

    R ≈ Σ_i f_i(own variables of i, global variables)

No masks are learned, which makes it what `macca` has to improve on: it cannot see causes that another agent
owns, and what the global variables pay lands with whichever agents picked it up. Generalised additive models:
Hastie & Tibshirani 1986, "Generalized additive models".

Shapes: N agents, B batch, V variables that vary, K variables that a head looks at, n transitions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.credit.fitted import FitConfig, OwnerConfig
from offmarl.credit.heads import RewardHeads, minimise, variables_seen
from offmarl.credit.regression import Regression
from offmarl.credit.samples import Samples
from offmarl.data.table import Transitions
from offmarl.settings import Count, Positive
from offmarl.streams import stream


@dataclass
class AdditiveConfig(FitConfig, OwnerConfig):
    """The network of the refit of `macca`; one member, so that it sees a larger batch for longer. Not tuned further."""

    width: Count = 64  # hidden units a head
    depth: Count = 3  # hidden layers
    steps: Count = 3_000
    batch_size: Count = 256
    learning_rate: Positive = 5e-3  # Adam, cosine
    warm_up: Count = 100  # steps of linear warm-up


class Additive(Regression):
    """One network an agent on what is its own or nobody's, fitted to the sum; see the module's docstring."""

    config_class = AdditiveConfig
    config: AdditiveConfig
    heads: RewardHeads
    gates: Tensor  # [1, N, K] 1 where a variable counts

    @staticmethod
    def reconstruction(agent_reward: Tensor, team_reward: Tensor) -> Tensor:
        """E[(Σ_i r̂_i - R)²]; [1, N, B] and [B]."""
        return (agent_reward.sum(1) - team_reward).square().mean()

    def regress(self, samples: Samples, transitions: Transitions) -> None:
        """Fit all agents' networks together."""
        config = self.config
        variables, counts = variables_seen(samples.own | samples.shared)  # [N, K]
        self.gates = counts.float()[None]
        init = stream(self.seed, "additive", "init")
        self.heads = RewardHeads(variables, self.gates.sum(2), config.width, config.depth, init)
        generator = stream(self.seed, "additive", "batches", device=self.device)

        def loss(step: int) -> Tensor:
            self.report("additive", step + 1, config.steps)
            batch = torch.randint(
                len(samples.inputs), (config.batch_size,), generator=generator, device=self.device
            )
            agent_reward = self.heads(samples.inputs[batch][None], self.gates[:, None])  # [1, N, B]
            agent_reward = agent_reward * samples.alive[batch].T
            return self.reconstruction(agent_reward, samples.team_reward[batch])

        rates = [(self.heads.parameters, config.learning_rate)]
        minimise(loss, rates, range(config.steps), config.steps, config.warm_up)

    def individual(self, transitions: Transitions, rows: Tensor) -> Tensor:
        """Rewards [n, N]."""
        return self.heads.predict(self.scale.inputs(transitions, rows), self.gates)[0].T

    def edges(self, samples: Samples) -> tuple[Tensor | None, Tensor | None]:
        """All that an agent's network looks at."""
        return samples.own | samples.shared, None
