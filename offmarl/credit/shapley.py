"""Shapley values of a learned team-reward model: an agent earns what it adds to coalitions of the others.

    φ_i = E_π[v(agents up to i in the order π) - v(agents before i)],   v(C) = E[f(x_C, x'_absent)]

f is a model of R on everything, and the variables of absent agents (observations, actions, successors) are
those of a random transition x' of the data; nobody's variables are always present. By efficiency
Σ_i φ_i = f - v(∅); v(∅), which nobody earned, is shared out equally.

Sources: Shapley 1953, "A value for n-person games"; Castro et al. 2009 (sampled permutations); the idea that
SQDDPG (Wang et al. 2020, "Shapley Q-value") and SHAQ (Wang et al. 2022) apply to value functions, here applied
to the reward itself. Marginal replacement: Lundberg & Lee 2017.

Shapes: P permutations, n transitions, N agents, V variables that vary, H hidden units.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from offmarl.credit.fitted import OwnerConfig
from offmarl.credit.regression import Regression
from offmarl.credit.samples import Samples, living
from offmarl.credit.team_model import TeamModelConfig, TeamRewardModel
from offmarl.data.table import Transitions
from offmarl.streams import stream


@dataclass
class ShapleyConfig(TeamModelConfig, OwnerConfig):
    """The model of the team's reward, and how many orders of the agents are tried."""

    permutations: Annotated[int, Field(ge=2, multiple_of=2)] = 16  # half of them reversed; 32 measured equal


class Shapley(Regression):
    """Sampled Shapley values over agent coalitions; see the module's docstring."""

    config_class = ShapleyConfig
    config: ShapleyConfig
    model: TeamRewardModel
    own: Tensor  # [N, V] bool
    order: Tensor  # [P, N] int64
    absent: Tensor  # [P, N, H] what absent agents bring to the model's first layer

    def regress(self, samples: Samples, transitions: Transitions) -> None:
        """Fit the model of the team's reward; draw orders and the transitions that stand in for the absent.

        Both are the same for all transitions that are decomposed: their error is then nearly a constant, which
        does not count, instead of noise. Every order is followed by its reverse with the same stand-in
        (antithetic: an interaction of two agents is halved exactly).
        """
        pairs, N = self.config.permutations // 2, self.spec.n_agents
        everything = torch.ones_like(samples.shared)
        self.model = TeamRewardModel(samples, everything, self.config, self.seed, self.report)
        self.own = samples.own
        generator = stream(self.seed, "shapley", "permutations")
        order = torch.rand(pairs, N, generator=generator).argsort(1)
        drawn = torch.randint(len(samples.inputs), (pairs,), generator=generator)
        self.order = torch.stack([order, order.flip(1)], 1).flatten(0, 1).to(self.device)
        stand_in = samples.inputs[drawn.to(self.device)].repeat_interleave(2, 0)  # [P, V]
        self.absent = self.model.contributions(stand_in, samples.own)

    @torch.no_grad()
    def individual(self, transitions: Transitions, rows: Tensor) -> Tensor:
        """φ_i + v(∅)/N, [n, N]. The dead are in no coalition: what they are is nobody's doing."""
        inputs, alive = self.scale.inputs(transitions, rows), living(transitions, rows).to(self.device)
        present = self.model.contributions(inputs, self.own)  # [n, N, H]
        entering = self.model.first_layer(inputs)  # [n, H]
        everyone = self.model.after_first_layer(entering)  # [n]
        shapley, nobody = torch.zeros_like(alive), torch.zeros_like(everyone)
        for order, absent in zip(self.order, self.absent, strict=True):
            joining = ((present - absent) * alive.unsqueeze(2))[:, order]  # [n, N, H]
            coalition = entering.unsqueeze(1) - joining.flip(1).cumsum(1).flip(1)  # before each agent joins
            value = torch.cat([self.model.after_first_layer(coalition), everyone[:, None]], 1)  # [n, N + 1]
            shapley[:, order] += value.diff(dim=1)
            nobody += value[:, 0]
        share = alive / alive.sum(1, keepdim=True)
        return (shapley + nobody[:, None] * share) / len(self.order)
