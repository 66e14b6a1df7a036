"""Policies that are networks of their own, beside critics: distributions over the legal choices.

Shapes: S seeds, B windows, T time, N agents, K choices.
"""

from typing import Any

from torch import Tensor

from offmarl.data.episodes import EpisodeBatch
from offmarl.learners.base import Metrics
from offmarl.learners.discrete import DiscreteLearner
from offmarl.learners.optimiser import StackedAdam
from offmarl.learners.packing import PackedFrames
from offmarl.learners.softmax import log_softmax


class ChoicePolicy:
    """π_i(a | o), a softmax over the legal choices, with its optimiser: kept in the learner's checkpoint as `name`.

    The learner acts by the one named "policy".
    """

    def __init__(self, learner: DiscreteLearner, name: str = "policy") -> None:
        self.learner, self.name = learner, name
        self.network = learner.agent_network(name)
        adam: StackedAdam[Any] = StackedAdam(
            self.network, learner.settings.learning_rate, learner.settings.gradient_clip
        )
        self.optimiser = learner.keep(f"{name}_optimiser", adam)

    def logits(self, inputs: PackedFrames, batch: EpisodeBatch) -> Tensor:
        """Rate choices where they were made, the illegal ones lowest: [S, B, T, N, K]."""
        return self.learner.masked(self.learner.run(self.network, inputs[:-1]), batch.legal_now)

    @staticmethod
    def log_likelihood(logits: Tensor, action: Tensor) -> Tensor:
        """Log π of choices: [S, B, T, N, K], [S, B, T, N] -> [S, B, T, N]."""
        return log_softmax(logits).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def clone(self, logits: Tensor, batch: EpisodeBatch, weight: Tensor) -> Metrics:
        """One step down E[-ρ log π(a | o)] of the data's choices, weighted by ρ [S, B, T, N]."""
        # Before the product: what the dead chose may be illegal, its likelihood nothing.
        rho = weight * batch.weight
        metrics = self.step(self.learner.average(-rho * self.log_likelihood(logits, batch.action), batch))
        rows = (1, 2, 3)
        # Kish's effective sample size: at 1 this is cloning, near 0 a few choices are all that counts.
        squares = (batch.weight.sum(rows) * rho.square().sum(rows)).clamp(min=1e-9)
        return metrics | {"effective_batch": rho.sum(rows).square() / squares}

    def step(self, loss: Tensor) -> Metrics:
        """One step down a loss of each network [S, 1 or N]."""
        norm = self.optimiser.minimise(loss.sum())
        return {
            f"{self.name}_loss": loss.detach().mean(1),
            f"{self.name}_gradient": norm.view(len(loss), -1).mean(1),
        }
